"""Which of the job's channels are read, and as what."""

import difflib
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssd_algo.contract.container import Channel
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data import images, pipe
from ssd_algo.data.annotations import read_image_channel
from ssd_algo.data.check import check_classes, check_duplicates, describe, report
from ssd_algo.data.files import Folder, list_folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Dataset, Rules
from ssd_algo.data.manifest import has_manifest, read_manifest_channel
from ssd_algo.data.progress import Progress, silent
from ssd_algo.data.records import read_record_channel
from ssd_algo.data.table import SampleTable
from ssd_algo.errors import UserError
from ssd_algo.model import pretrained
from ssd_algo.training import model_channel

_RECORD_TYPE = "application/x-recordio"
_IMAGE_TYPES = ("image/jpeg", "image/png", "application/x-image")
_ANNOTATION_TYPES = (*_IMAGE_TYPES, "application/json")
_MODEL_TYPE = "application/x-sagemaker-model"

_NAMES = 1000  # of images, by which other data are noticed

_READ = ("train", "validation")
_LABELLED = ("train", "validation", "train_annotation", "validation_annotation")
_WITHOUT_USE = ("test", "test_annotation")
_WEIGHTS = ("model", "pretrained")
CHANNELS = (*_LABELLED, *_WEIGHTS, *_WITHOUT_USE)


@dataclass(frozen=True)
class TrainingData:
    """The job's data sets, and the directory of its model channel if it has one.

    Of a channel `train` in Pipe mode there is nothing but where it comes from: `piped`.
    """

    train: Dataset = field(default_factory=Dataset)
    validation: Dataset = field(default_factory=Dataset)
    class_names: dict[int, str] = field(default_factory=dict)
    model: Path | None = None
    piped: Channel | None = None


def fingerprint(dataset: Dataset) -> dict[str, int]:
    """By what images are known again: how many there are, and a checksum of some of their names."""
    samples = dataset.samples
    every = max(1, -(-len(samples) // _NAMES))
    names = [samples[index].name for index in range(0, len(samples), every)]
    return {"images": len(samples), "names": zlib.crc32("\n".join(names).encode(errors="surrogateescape"))}


def rules(hyperparameters: Hyperparameters) -> Rules:
    """What the hyperparameters ask of the data."""
    return Rules(
        num_classes=hyperparameters.num_classes,
        num_training_samples=hyperparameters.num_training_samples,
        label_width=hyperparameters.label_width,
        max_bad_records=hyperparameters.max_bad_records,
        base_network=hyperparameters.base_network,
        image_shape=hyperparameters.image_shape,
        transfer=hyperparameters.transfer,
    )


def check(
    channels: dict[str, Channel], rules: Rules, image_shape: int, progress: Progress = silent, thorough: bool = False
) -> tuple[TrainingData, Findings, dict[str, Any]]:
    """Read the channels of a job; returns them, what was found, and the report of `data_check.json`.

    A fault of a channel as such ends it before any file is opened; unless it is `thorough` and reads the others.
    """
    findings = Findings()
    data = read(channels, rules, findings, progress, thorough)
    duplicates = check_duplicates(data.train, data.validation, findings)
    for samples in (data.train.samples, data.validation.samples):
        if isinstance(samples, SampleTable):
            samples.settle()
    described = {}
    for name in _READ:
        dataset: Dataset = getattr(data, name)
        if not findings.faults and not dataset.samples and not (name == "train" and data.piped):
            findings.refuse("channel without images", f"channel {name}", "no readable, annotated image is left in it.")
        check_classes(name, dataset, rules.num_classes, findings)
        described[name] = describe(dataset, data.class_names, image_shape)
    count = len(data.train.samples)
    whole = "train" in channels and not channels["train"].sharded and not data.piped
    if rules.num_training_samples not in (None, count) and whole and not findings.faults:
        findings.warn(
            "num_training_samples",
            "channel train",
            f"num_training_samples is {rules.num_training_samples}, but the channel has {count} images; the schedule "
            "follows the images.",
        )
    return data, findings, report(described, duplicates, findings)


def read(
    channels: dict[str, Channel], rules: Rules, findings: Findings, progress: Progress = silent, thorough: bool = False
) -> TrainingData:
    """Read the channels of a job, see `check`; what breaks a rule is reported."""
    _check_names(channels, findings)
    piped = [name for name in _READ if name in channels and channels[name].input_mode == "Pipe"]
    listed = [name for name in channels if name in (*_LABELLED, *_WEIGHTS) and name not in piped]
    folders = {name: _list(channels[name], findings) for name in listed}
    sound = [name for name in _READ if name in folders and _check_format(channels, folders, name, findings)]
    for name in piped:
        _check_pipe(channels, name, findings)
    if findings.faults and not thorough:
        return TrainingData()
    read = {name: _read(channels, folders, name, rules, findings, progress) for name in sound}
    if "validation" in piped and not findings.faults:
        try:
            read["validation"] = pipe.read_all("validation", channels["validation"].location, rules)
        except UserError as error:
            findings.refuse("what a pipe streams", "channel validation", str(error))
    train, validation = (read.get(name, Dataset()) for name in _READ)
    names = dict(train.class_names)
    for identity, name in validation.class_names.items():
        if names.setdefault(identity, name) != name:
            findings.refuse(
                "conflicting categories",
                "channel validation",
                f'class {identity} is "{name}", but in channel train it is "{names[identity]}"; use one name, and the '
                "same order of classes.",
            )
    if "pretrained" in channels and folders["pretrained"] and not channels["pretrained"].location.startswith("s3://"):
        try:
            pretrained.in_channel(Path(channels["pretrained"].location))
        except UserError as error:
            findings.refuse("channel of weights", "channel pretrained", str(error))
    model = _model(channels, folders, rules, names, findings)
    return TrainingData(train, validation, names, model, channels["train"] if "train" in piped else None)


def _model(
    channels: dict[str, Channel],
    folders: dict[str, Folder | None],
    rules: Rules,
    class_names: dict[int, str],
    findings: Findings,
) -> Path | None:
    """The directory of the model channel, which is looked into on a disk only; None without one."""
    if "model" not in channels:
        if rules.transfer:
            findings.warn(
                "transfer without a model", "channel model", "it is missing, so that transfer True has no effect."
            )
        return None
    location = channels["model"].location
    if folders["model"] is not None and not location.startswith("s3://"):
        model_channel.check(Path(location), rules, class_names, findings)
    return Path(location)


def read_labelled(
    name: str, channels: dict[str, Channel], rules: Rules, findings: Findings, progress: Progress = silent
) -> Dataset:
    """Read the channel of this name, with its annotations, alone; what breaks a rule is reported."""
    wanted = {each: channels[each] for each in (name, f"{name}_annotation") if each in channels}
    folders = {each: _list(channel, findings) for each, channel in wanted.items()}
    if name not in wanted:
        findings.refuse("missing channel", f"channel {name}", "it is missing; give its folder.")
    elif _check_format(wanted, folders, name, findings):
        return _read(wanted, folders, name, rules, findings, progress)
    return Dataset()


def _check_names(channels: dict[str, Channel], findings: Findings) -> None:
    for name in _READ:
        if name not in channels:
            findings.refuse(
                "missing channel",
                f"channel {name}",
                f"it is missing (channels: {', '.join(sorted(channels)) or 'none'}); training needs train and "
                "validation, and for images with JSON annotations also train_annotation and validation_annotation.",
            )
    for name in sorted(set(channels) - set(CHANNELS)):
        near = difflib.get_close_matches(name, CHANNELS, n=1)
        findings.refuse(
            "unknown channel",
            f"channel {name}",
            f"there is no channel of this name{f' (did you mean {near[0]}?)' if near else ''}; the channels are "
            f"{', '.join((*_LABELLED, *_WEIGHTS))}.",
        )
    for name in _WITHOUT_USE:
        if name in channels:
            findings.warn("channel without use", f"channel {name}", "it is not read: there is no test after training.")


def _list(channel: Channel, findings: Findings) -> Folder | None:
    """The channel's files, unless they cannot be had or nothing may be read from them."""
    allowed = _content_types(channel.name)
    if allowed and channel.content_type not in ("", *allowed):
        rule = f"one of {', '.join(allowed)}" if len(allowed) > 1 else f"{allowed[0]} or none"
        findings.refuse(
            "content type",
            f"channel {channel.name}",
            f"its content type is {channel.content_type}; it must be {rule}.",
        )
        return None
    if channel.input_mode == "Pipe":
        findings.refuse(
            "input mode",
            f"channel {channel.name}",
            "it is in Pipe mode, in which only train and validation can be; use File or FastFile mode.",
        )
        return None
    if channel.input_mode not in ("File", "FastFile"):
        findings.refuse(
            "input mode",
            f"channel {channel.name}",
            f'its input mode is "{channel.input_mode}"; it must be File, FastFile or, for train and validation, Pipe.',
        )
        return None
    try:
        folder = list_folder(channel.name, channel.location)
    except UserError as error:
        findings.refuse("channel without files", f"channel {channel.name}", str(error))
        return None
    if not folder.files:
        findings.refuse(
            "channel without files",
            f"channel {channel.name}",
            f"{channel.location} holds no file; check the path or S3 prefix.",
        )
        return None
    return folder


def _content_types(channel: str) -> tuple[str, ...]:
    """The content types that a channel may have beside none; empty where any will do."""
    if channel == "model":
        return (_MODEL_TYPE,)
    if channel in _WEIGHTS:
        return ()
    return _ANNOTATION_TYPES if channel.endswith("_annotation") else (_RECORD_TYPE, *_IMAGE_TYPES)


def _check_format(
    channels: dict[str, Channel], folders: dict[str, Folder | None], name: str, findings: Findings
) -> bool:
    """Whether content type, annotation channel and files of a channel agree, and all that it needs is there."""
    content_type, annotation = channels[name].content_type, f"{name}_annotation"
    folder, before = folders[name], len(findings.faults)
    labelled = folder is not None and has_manifest(folder)
    if annotation in channels and content_type == _RECORD_TYPE:
        findings.refuse(
            "channels that contradict each other",
            f"channel {name}",
            f"its content type is {_RECORD_TYPE}, which has its labels in the .rec file, but there is a channel "
            f"{annotation} too; leave it out, or give channel {name} one of the types {', '.join(_IMAGE_TYPES)}.",
        )
    elif annotation not in channels and content_type in _IMAGE_TYPES and not labelled:
        findings.refuse(
            "missing channel",
            f"channel {annotation}",
            f"it is missing: channel {name} holds images ({content_type}), which need their JSON annotations.",
        )
    elif folder is not None:
        pictures, records = len(folder.with_extension(*images.EXTENSIONS)), len(folder.with_extension(".rec"))
        if annotation in channels and records and not pictures:
            findings.refuse(
                "channels that contradict each other",
                f"channel {name}",
                f"it holds {folder.with_extension('.rec')[0].name} and no image, but there is a channel {annotation}; "
                f"leave that out, with the content type {_RECORD_TYPE} or none for channel {name}.",
            )
        if annotation not in channels and pictures and not records and not labelled:
            findings.refuse(
                "channels that contradict each other",
                f"channel {name}",
                f"it holds {pictures} images and no .rec file"
                + (f", but its content type is {content_type}" if content_type else "")
                + f"; give their JSON annotations in a channel {annotation}, with a content type of images.",
            )
    return len(findings.faults) == before and all(folders.get(each, True) for each in (name, annotation))


def _check_pipe(channels: dict[str, Channel], name: str, findings: Findings) -> None:
    """What is known of a channel in Pipe mode before anything has come through it."""
    content_type, allowed = channels[name].content_type, _content_types(name)
    if content_type not in ("", *allowed):
        findings.refuse(
            "content type",
            f"channel {name}",
            f"its content type is {content_type}; it must be one of {', '.join(allowed)}.",
        )
    if f"{name}_annotation" in channels:
        findings.refuse(
            "channels that contradict each other",
            f"channel {name}",
            f"it is in Pipe mode, in which labels come with the images, but there is a channel {name}_annotation "
            "too; leave it out, or use File mode.",
        )


def _read(
    channels: dict[str, Channel],
    folders: dict[str, Folder | None],
    name: str,
    rules: Rules,
    findings: Findings,
    progress: Progress,
) -> Dataset:
    folder, annotations = folders[name], folders.get(f"{name}_annotation")
    assert folder is not None
    # Records are read from one end to the other; where reading is dear an image file is not opened twice.
    files = annotations is not None or has_manifest(folder)
    headers = not files or channels[name].input_mode != "FastFile"
    rules = replace(rules, headers=headers, sharded=channels[name].sharded)
    if annotations is not None:
        return read_image_channel(folder, annotations, rules, findings, progress)
    if has_manifest(folder):
        return read_manifest_channel(folder, rules, findings, progress)
    return read_record_channel(folder, rules, findings, progress)
