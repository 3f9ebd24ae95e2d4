"""Which of the job's channels are read, and as what."""

from dataclasses import dataclass
from pathlib import Path

from ssd_algo.contract.container import Channel
from ssd_algo.data.annotations import Dataset, read_image_channel, read_record_channel
from ssd_algo.errors import UserError

_RECORD_TYPE = "application/x-recordio"
_IMAGE_TYPES = ("image/jpeg", "image/png", "application/x-image")


@dataclass(frozen=True)
class TrainingData:
    """The job's data sets, and the directory of its model channel if it has one."""

    train: Dataset
    validation: Dataset
    class_names: dict[int, str]
    model: Path | None


def read(channels: dict[str, Channel], num_classes: int) -> TrainingData:
    """Read the channels of a job.

    Raises
    ------
    UserError
        Naming the channel, or the file in it, and the rule it breaks.
    """
    for name in ("train", "validation"):
        if name not in channels:
            raise UserError(
                f"Channel {name} is missing (channels: {', '.join(sorted(channels)) or 'none'}); training needs train "
                "and validation, and for images with JSON annotations also train_annotation and validation_annotation."
            )
    model = channels["model"].directory if "model" in channels else None
    train, validation = (_read(channels, name, num_classes) for name in ("train", "validation"))
    return TrainingData(train, validation, {**train.class_names, **validation.class_names}, model)


def _read(channels: dict[str, Channel], name: str, num_classes: int) -> Dataset:
    channel, annotation = channels[name], channels.get(f"{name}_annotation")
    if channel.content_type not in ("", _RECORD_TYPE, *_IMAGE_TYPES):
        raise UserError(
            f"Channel {name} has the content type {channel.content_type}; it must be {_RECORD_TYPE} or one of "
            f"{', '.join(_IMAGE_TYPES)}."
        )
    for each in (channel, annotation):
        if each is not None and each.input_mode == "Pipe":
            raise UserError(f"Channel {each.name} is in Pipe mode, which this version does not read; use File mode.")
        if each is not None and not each.directory.is_dir():
            raise UserError(f"Channel {each.name} has no folder {each.directory}; check the S3 prefix of the channel.")
    if annotation is not None:
        return read_image_channel(channel.directory, annotation.directory, num_classes)
    if channel.content_type in _IMAGE_TYPES:
        raise UserError(
            f"Channel {name} holds images ({channel.content_type}), but there is no channel {name}_annotation with "
            "their JSON annotations; add it."
        )
    return read_record_channel(channel.directory, num_classes)
