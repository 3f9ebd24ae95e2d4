"""The epochs of a training as a table."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

_COLUMNS = (
    "epoch",
    "cross_entropy",
    "smooth_l1",
    "learning_rate",
    "images_a_second",
    "waited_share",
    "mAP",
    "coco_mAP",
    "training_seconds",
    "validation_seconds",
)


def as_csv(epochs: Sequence[Mapping[str, Any]]) -> str:
    """A row for each epoch of metrics.json; without a validation its columns of scores are empty."""
    text = StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for each in epochs:
        validation, seconds = each.get("validation", {}), each["seconds"]
        row = {
            "images_a_second": each["examples"] / seconds,
            "waited_share": each.get("waited_seconds", 0.0) / seconds,
            "mAP": validation.get("mAP"),
            "coco_mAP": validation.get("coco", {}).get("mean"),
            "training_seconds": seconds,
        }
        writer.writerow({**each, **row})
    return text.getvalue()
