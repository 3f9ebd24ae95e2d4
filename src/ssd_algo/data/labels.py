"""The rules for classes and boxes that every label format shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import images
from ssd_algo.data.boxes import Boxes
from ssd_algo.data.files import File
from ssd_algo.data.findings import Findings
from ssd_algo.data.samples import Sample

# How far a box may reach over the image's edge, as a fraction of its side: further it is refused, less it is clipped,
# and less than what labels are rounded to (4 decimals) is not worth a word.
TOLERANCE = 0.05
_ROUNDING = 1e-4
_ERROR = 1e-6  # of float32

# A fraction beyond this is no misplaced box: the label is in pixels.
_PIXELS = 2.0

_LARGEST_NUMBER = 1e9
MOST_CLASSES = 10_000  # the hyperparameter's bound
_LISTED = 100  # faults of one kind in one image


@dataclass(frozen=True)
class Rules:
    """What the job asks of its data.

    Attributes
    ----------
    num_classes : int or None
        None where it is not known: then ids go up to what it may be at most.
    num_training_samples, label_width : int or None
        The hyperparameters; None without them.
    max_bad_records : int
        Images of a channel that may be unreadable, and are then skipped.
    headers : bool
        Whether image headers are read too. Where reading is dear it waits until the image is decoded.
    base_network : str or None
        The hyperparameter, which a model to start from must have too; None without it.
    image_shape : int or None
        The hyperparameter, which some models to start from must have too.
    transfer : bool
        Whether a model to start from may have other classes.
    sharded : bool
        Whether the channel's images are one host's, so that there may be annotations of others'.
    """

    num_classes: int | None
    num_training_samples: int | None = None
    label_width: int | None = None
    max_bad_records: int = 0
    headers: bool = True
    base_network: str | None = None
    image_shape: int | None = None
    transfer: bool = False
    sharded: bool = False


@dataclass
class Dataset:
    """The labelled images of a channel.

    Attributes
    ----------
    samples : Samples, in the order of their names (of their records for RecordIO)
    class_names : dict
        Class id to name, as far as the annotations give names.
    skipped : int
        Unreadable images that are left out.
    """

    samples: Sequence[Sample] = ()
    class_names: dict[int, str] = field(default_factory=dict)
    skipped: int = 0


@dataclass(frozen=True)
class Label:
    """The objects of an image as its label has them.

    Attributes
    ----------
    names : list of str
        What to call each object in a message: file or record, and its index.
    classes : float64 (R,)
    corners : float64 (R, 4)
    difficult : bool (R,)
    size : (width, height) or None
        Of the image in pixels; None where corners are fractions of it.
    """

    names: list[str]
    classes: NDArray[np.float64]
    corners: NDArray[np.float64]
    difficult: NDArray[np.bool_]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Objects:
    """The objects that may be trained on: boxes float32 (R, 4) as fractions, classes int64 (R,), difficult (R,)."""

    boxes: Boxes
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_]


def check_objects(label: Label, rules: Rules, findings: Findings) -> Objects:
    """The objects of a label that break no rule; the others are reported."""
    classes, corners = label.classes, label.corners
    in_pixels = label.size is not None
    most = rules.num_classes or MOST_CLASSES
    width, height = label.size or (1, 1)
    if _are_sound(label, most):  # nearly all are, and a stream's are looked at in every pass
        fractions = corners / (width, height, width, height) if in_pixels else corners
        return Objects(fractions.astype(np.float32), classes.astype(np.int64), label.difficult)
    finite = np.isfinite(corners).all(axis=1) & np.isfinite(classes)
    if not in_pixels and np.any(np.abs(corners[finite]) > _PIXELS):
        index = int(np.abs(np.where(finite[:, None], corners, 0)).max(axis=1).argmax())
        findings.refuse(
            "pixels instead of fractions",
            label.names[index],
            f"the box {_row(corners[index])} is in pixels, but RecordIO labels hold fractions of the image's width and "
            "height; divide, and pack the file again.",
        )
        return _objects(label, np.zeros((0, 4)), np.zeros(0, dtype=np.int64))
    if in_pixels and _are_fractions(corners[finite]):
        findings.refuse(
            "fractions instead of pixels",
            label.names[0],
            "all boxes of the image lie within its first pixel, as fractions would; this format holds pixels: multiply "
            "them with the image's width and height.",
        )
        return _objects(label, np.zeros((0, 4)), np.zeros(0, dtype=np.int64))
    with np.errstate(invalid="ignore"):
        fractions = corners / (width, height, width, height)
        sides = corners[:, 2:] - corners[:, :2]
        over = np.maximum(-fractions, fractions - 1)
        # Labelling tools are a pixel off at the edge now and then, which is more than 5 % of a small image.
        allowed = np.maximum(TOLERANCE, np.asarray([1 / width, 1 / height] * 2) if in_pixels else 0)
        outside = (over > allowed + _ERROR).any(axis=1)
        clips = (over > _ROUNDING).any(axis=1)
        whole = (classes == np.floor(classes)) & (np.abs(classes) < _LARGEST_NUMBER)
    faults = [
        (~finite, "number that is not finite", "has a value that is not a finite number; correct it."),
        (
            finite & ~whole,
            "class that is not an integer",
            "has the class {class_id:g}, which is not an integer; class ids go from 0.",
        ),
        (finite & whole & (classes < 0), "negative class", "has the class {class_id:g}; class ids go from 0."),
        (
            finite & whole & (classes >= most),
            "class beyond num_classes",
            "has the class {class_id:.10g}, but num_classes is {most}: class ids go from 0 to {last}{hint}."
            if rules.num_classes
            else "has the class {class_id:.10g}, but there may be {most} classes at most.",
        ),
        (
            finite & (sides < 0).any(axis=1),
            "box of negative size",
            "has a negative size ({box}); its right and bottom must be larger than its left and top."
            if in_pixels
            else "has swapped corners ({box}); the order is xmin, ymin, xmax, ymax.",
        ),
        (
            finite & (sides >= 0).all(axis=1) & outside,
            "box outside the image",
            "reaches more than 5 % over the edge of the image of {width} x {height} pixels (left, top, right, bottom: "
            "{box}); correct it."
            if in_pixels
            else "reaches more than 0.05 over the image's edge ({box}); its corners must lie between 0 and 1.",
        ),
    ]
    good = np.ones(len(classes), dtype=bool)
    for wrong, rule, text in faults:
        good &= ~wrong
        for index in np.flatnonzero(wrong)[:_LISTED]:
            words = text.format(
                class_id=classes[index],
                most=most,
                last=most - 1,
                hint="; if yours start at 1, subtract 1" if classes[index] == most else "",
                box=_row(corners[index]),
                width=width,
                height=height,
            )
            findings.refuse(rule, label.names[index], words)
        if wrong.sum() > _LISTED:
            findings.refuse(rule, label.names[0], f"{wrong.sum() - _LISTED} more objects of the image are like that.")
    clipped = np.clip(fractions, 0, 1)
    empty = good & ~(clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    for index in np.flatnonzero(empty):
        text = f"has no area ({_row(corners[index])}) and is left out."
        findings.warn("box without area", label.names[index], text)
    for index in np.flatnonzero(good & ~empty & clips):
        text = f"reaches over the image's edge ({_row(corners[index])}) and is clipped."
        findings.warn("box over the edge", label.names[index], text)
    kept = good & ~empty
    return _objects(label, clipped, kept)


def _are_sound(label: Label, most: int) -> bool:
    """Whether no object of a label breaks a rule, reaches over an edge or has no area."""
    classes, corners = label.classes, label.corners
    low, high = corners[:, :2], corners[:, 2:]
    return bool(
        (low >= 0).all()
        and (low < high).all()
        and (high <= (label.size or (1, 1))).all()
        and (classes >= 0).all()
        and (classes < most).all()
        and (classes == np.floor(classes)).all()
    ) and not (label.size is not None and _are_fractions(corners))


def _are_fractions(corners: NDArray[np.float64]) -> bool:
    """Whether boxes that should be in pixels all lie within one pixel, and not on its corners."""
    return bool(len(corners)) and bool((corners <= 1).all()) and bool((corners != np.floor(corners)).any())


def _objects(label: Label, fractions: NDArray[np.float64], kept: NDArray[Any]) -> Objects:
    return Objects(fractions[kept].astype(np.float32), label.classes[kept].astype(np.int64), label.difficult[kept])


def _row(values: Sequence[float] | NDArray[np.float64]) -> str:
    return ", ".join(f"{value:.7g}" for value in values)


def settle_unreadable(bad: list[tuple[str, str]], rules: Rules, findings: Findings) -> None:
    """Refuse the unreadable images of a channel, or warn of them where there are few enough.

    Parameters
    ----------
    bad : list of (where, reason)
    """
    for where, reason in bad:
        if len(bad) <= rules.max_bad_records:
            findings.warn("unreadable image", where, f"{reason}; the image is skipped.")
        else:
            findings.refuse("unreadable image", where, f"{reason}; replace or remove the image.")


def check_label_width(widest: int, objects: int, channel: str, rules: Rules, findings: Findings) -> None:
    """Warn of labels wider than the hyperparameter, which the built-in would have refused."""
    if rules.label_width is not None and widest > rules.label_width:
        findings.warn(
            "label wider than label_width",
            f"channel {channel}",
            f"the widest label ({objects} objects) needs a label_width of {widest}, but it is {rules.label_width}; "
            "all objects are used nevertheless.",
        )


def is_number(value: Any) -> TypeGuard[float]:
    """A finite number that a box or a class id can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def not_among(class_names: list[str]) -> str:
    """The rest of a sentence on a class that is not in the file of class names."""
    shown = ", ".join(class_names[:10]) + (", ..." if len(class_names) > 10 else "")
    return f"which is not among the classes given ({shown}); add it there as the last line, or correct the annotations."


def header_of(name: str, file: File, bad: list[tuple[str, str]]) -> images.Header | None:
    """The header of an image file; None, and an entry of `bad`, when it cannot be read."""
    try:
        with file.open() as opened:
            return images.read_header(opened, file.size)
    except images.NotAnImage as error:
        bad.append((name, str(error)))
    except OSError as error:
        bad.append((name, f"the file cannot be read ({error.strerror or error})"))
    return None


def check_size(said: tuple[int, int], image: str, header: images.Header, where: str, findings: Findings) -> None:
    """Compare the size that an annotation (`where`) gives with that of its image."""
    if said != (header.width, header.height):
        findings.refuse(
            "size that contradicts the image",
            where,
            f"it says {said[0]} x {said[1]} pixels, but {image} is {header.width} x {header.height} upright (EXIF "
            "orientation applied); correct one of them.",
        )


def warn_of_unused(files: list[File], annotated: set[str], channel: str, findings: Findings) -> None:
    """Warn of each image that no annotation names."""
    for file in files:
        if file.name not in annotated:
            findings.warn(
                "image without annotation", f"{channel}/{file.name}", "no annotation names this image; it is left out."
            )
