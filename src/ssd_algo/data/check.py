"""What a job's data is like as a whole: figures of its channels, and what only shows when they are put together."""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import anchors
from ssd_algo.data.boxes import Boxes, area
from ssd_algo.data.findings import Finding, Findings
from ssd_algo.data.labels import Dataset

_NAMED = 10  # class ids in one sentence
_LISTED_SIZES = 5  # of images


def check_classes(channel: str, dataset: Dataset, num_classes: int | None, findings: Findings) -> None:
    """Warn of class ids without an object: a gap in the ids, or fewer classes than `num_classes`."""
    present = {int(identity) for sample in dataset.samples for identity in sample.classes}
    if not dataset.samples:
        return
    if not present:
        findings.warn("no objects", f"channel {channel}", "no image has an object; a detector learns nothing from it.")
        return
    count = num_classes or max(present) + 1
    absent = count - len(present)
    if absent > 0:
        named = [identity for identity in range(min(count, len(present) + _NAMED)) if identity not in present][:_NAMED]
        text = ", ".join(map(str, named)) + (", ..." if absent > len(named) else "")
        findings.warn(
            "class without objects",
            f"channel {channel}",
            f"{absent} of {count} classes (ids 0 to {count - 1}) without an object: {text}; ids should have no gap.",
        )


def check_duplicates(train: Dataset, validation: Dataset, findings: Findings) -> int:
    """Warn of validation images that are most likely training images too; returns their number."""
    trained = {sample.fingerprint: sample.name for sample in train.samples if sample.fingerprint}
    count = 0
    for sample in validation.samples:
        if sample.fingerprint in trained:
            count += 1
            findings.warn(
                "image in both channels",
                sample.name,
                f"is most likely the same image as {trained[sample.fingerprint]}; scores on it say little.",
            )
    return count


def describe(dataset: Dataset, class_names: dict[int, str], image_shape: int) -> dict[str, Any]:
    """The figures of a channel, as JSON.

    Returns
    -------
    dict
        `images`, `skipped`, `images_without_objects`, `objects`; `sizes`: width x height to its number of images, the
        commonest first; `objects_per_image`: least, median, most; `classes`: id, name, objects, images, `side`: the
        median size of its boxes in pixels of the network's input; `boxes`: what `_describe_boxes` returns.
    """
    samples = dataset.samples
    counts = [len(sample.classes) for sample in samples]
    sizes = Counter(sample.size for sample in samples if sample.size)
    objects: Counter[int] = Counter()
    with_class: Counter[int] = Counter()
    for sample in samples:
        objects.update(sample.classes.tolist())
        with_class.update(set(sample.classes.tolist()))
    boxes = np.concatenate([np.zeros((0, 4), dtype=np.float32), *(sample.boxes for sample in samples)])
    sides = _median_sides(boxes, np.concatenate([np.zeros(0, dtype=np.int64), *(each.classes for each in samples)]))
    return {
        "images": len(samples),
        "skipped": dataset.skipped,
        "images_without_objects": counts.count(0),
        "objects": sum(counts),
        "sizes": {f"{width} x {height}": count for (width, height), count in sizes.most_common()},
        "objects_per_image": [min(counts), float(np.median(counts)), max(counts)] if counts else None,
        "classes": [
            {
                "class_id": each,
                "name": class_names.get(each),
                "objects": objects[each],
                "images": with_class[each],
                "side": round(sides[each] * image_shape, 1) if each in sides else None,
            }
            for each in sorted(objects.keys() | class_names.keys())
        ],
        "boxes": _describe_boxes(boxes, image_shape),
    }


def _median_sides(boxes: Boxes, classes: NDArray[np.int64]) -> dict[int, float]:
    """By class the median size of its boxes: the square root of the area, as a fraction of the image's."""
    sides = np.sqrt(area(boxes))
    order = np.argsort(classes, kind="stable")
    identities, starts = np.unique(classes[order], return_index=True)
    parts = np.split(sides[order], starts[1:])
    return {int(each): float(np.median(part)) for each, part in zip(identities, parts, strict=False)}


def _describe_boxes(boxes: Boxes, image_shape: int) -> list[dict[str, Any]]:
    """For each size of anchors, in pixels of the network's input, the boxes that are nearest to it.

    A box's size is the square root of its area, and the nearest is by ratio. `smaller` counts boxes of less than half
    of the smallest anchor: they match none well and are hardly ever found.
    """
    scales = np.asarray([scale for scale, _ in anchors.scales(image_shape, anchors.map_count(image_shape))])
    sizes = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    small = sizes < scales[0] / 2
    nearest = np.abs(np.log(np.maximum(sizes, 1e-9))[:, None] - np.log(scales)[None, :]).argmin(axis=1)
    rows: list[dict[str, Any]] = [
        {"anchor": None, "smaller_than": round(scales[0] / 2 * image_shape, 1), "boxes": int(small.sum())}
    ]
    for index, scale in enumerate(scales):
        rows.append({"anchor": round(scale * image_shape), "boxes": int(((nearest == index) & ~small).sum())})
    return rows


def report(channels: dict[str, Any], duplicates: int, findings: Findings) -> dict[str, Any]:
    """The whole check as JSON: figures, faults and warnings."""
    return {
        "refused": bool(findings.faults),
        "channels": channels,
        "images_in_both_channels": duplicates,
        "faults": [_as_json(each) for each in findings.faults],
        "warnings": [_as_json(each) for each in findings.warnings],
    }


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """What a report says, without what grows with the number of images.

    Returns
    -------
    dict
        Of each channel its figures, with the commonest sizes only, `side`: the median of the images' mean of width and
        height, and `classes` by id; `images_in_both_channels`; `warnings`: rule, count and first message of each.
    """
    warnings = Counter(each["rule"] for each in report["warnings"])
    first = {each["rule"]: each["message"] for each in reversed(report["warnings"])}
    channels = {}
    for name, figures in report["channels"].items():
        kept = {key: each for key, each in figures.items() if key not in ("sizes", "classes", "boxes")}
        sizes: dict[str, int] = figures["sizes"]
        sides = [sum(map(int, size.split(" x "))) / 2 for size in sizes]
        classes = {
            str(each["class_id"]): {key: each[key] for key in each if key != "class_id"} for each in figures["classes"]
        }
        channels[name] = kept | {
            "sizes": dict(list(sizes.items())[:_LISTED_SIZES]),
            "different_sizes": len(sizes),
            "side": float(np.median(np.repeat(sides, list(sizes.values())))) if sizes else None,
            "classes": classes,
        }
    return {
        **channels,
        "images_in_both_channels": report["images_in_both_channels"],
        "warnings": [{"rule": rule, "count": count, "first": first[rule]} for rule, count in warnings.items()],
    }


def _as_json(finding: Finding) -> dict[str, str]:
    return {"rule": finding.rule, "where": finding.where, "message": str(finding)}


def as_text(report: dict[str, Any], findings: Findings, image_shape: int) -> str:
    """The check for a person at a terminal."""
    lines = []
    for name, figures in report["channels"].items():
        if figures["images"]:
            lines += _channel_text(name, figures, image_shape)
    if all(figures["images"] for figures in report["channels"].values()):
        lines += [f"images in both channels: {report['images_in_both_channels']}", ""]
    if findings.warnings:
        lines += ["Warnings", *(f"  {sentence}" for sentence in findings.short_warnings()), ""]
    if findings.faults:
        lines += [findings.grouped_faults(), ""]
    return "\n".join(lines)


def _channel_text(name: str, figures: dict[str, Any], image_shape: int) -> list[str]:
    lines = [f"channel {name}: {figures['images']} images, {figures['objects']} objects"]
    sizes = list(figures["sizes"].items())
    shown = ", ".join(f"{size} ({count})" for size, count in sizes[:5])
    least, median, most = figures["objects_per_image"]
    lines += [
        f"  sizes              {shown}{f' and {len(sizes) - 5} more' if len(sizes) > 5 else ''}",
        f"  objects per image  {least} to {most}, median {median:g}",
        f"  without objects    {figures['images_without_objects']} images",
        "  class  objects  images  name",
    ]
    for each in figures["classes"]:
        lines.append(f"  {each['class_id']:5}  {each['objects']:7}  {each['images']:6}  {each['name'] or ''}".rstrip())
    lines.append(f"  boxes by the anchors nearest in size, at image_shape {image_shape}")
    for row in figures["boxes"]:
        size = f"under {row['smaller_than']} pixels" if row["anchor"] is None else f"{row['anchor']} pixels"
        lines.append(f"    {size:16}  {row['boxes']:7}")
    return [*lines, ""]
