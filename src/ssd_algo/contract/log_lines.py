"""Every line that the platform or a notebook reads out of the log, made in one place beside its expression."""

import io
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from ssd_algo.contract.gpus import Gpu

# What SageMaker attaches to the built-in image, and users pass as `metric_definitions` with their own.
METRIC_DEFINITIONS = [
    {"Name": "train:progress", "Regex": r"#progress_metric: host=\S+, completed (\S+) %"},
    {
        "Name": "train:smooth_l1",
        "Regex": r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train smooth_l1 <loss>=\((\S+)\)",
    },
    {
        "Name": "train:cross_entropy",
        "Regex": r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train cross_entropy <loss>=\((\S+)\)",
    },
    {"Name": "train:throughput", "Regex": r"#throughput_metric: host=\S+, train throughput=(\S+) records/second"},
    {
        "Name": "validation:mAP",
        "Regex": r"#quality_metric: host=\S+, epoch=\S+, validation mAP <score>=\((\S+)\)",
    },
]


def print_any_text() -> None:
    """Let standard output and error take texts that are not Unicode: names of files may be of any bytes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def configure_logging() -> None:
    """Log to standard output with the built-in's prefix: `[MM/DD/YYYY HH:MM:SS LEVEL thread]`."""
    print_any_text()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        logging.Formatter("[%(asctime)s %(levelname)s %(thread)d] %(message)s", datefmt="%m/%d/%Y %H:%M:%S")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def entry_point(arguments: str) -> str:
    return f"Docker entrypoint called with argument(s): {arguments}"


def provided_configuration(path: str, configuration: dict[str, str]) -> str:
    return f"Merging with provided configuration from {path}: {configuration}"


def final_configuration(configuration: dict[str, str]) -> str:
    return f"Final configuration: {configuration}"


def number_of_gpus(gpus: Sequence[Gpu]) -> str:
    if not gpus:
        return "Number of GPUs being used: 0. Training runs on the CPU, which takes many times as long as on a GPU."
    return f"Number of GPUs being used: {len(gpus)} ({gpus[0].name})"


def start_from_pretrained(flag: int) -> str:
    return f"Start training from pretrained model {flag}."


def loaded_pretrained(arrays: int, base_network: str, path: str) -> str:
    return f"Loaded pretrained model parameters. ({arrays} arrays of {base_network} from {path})"


def train_loss(host: str, epoch: int, batches: int, name: str, value: float) -> str:
    return f"#quality_metric: host={host}, epoch={epoch}, batch={batches} train {name} <loss>=({value!r})"


def validation_map(host: str, epoch: int, value: float) -> str:
    return f"#quality_metric: host={host}, epoch={epoch}, validation mAP <score>=({value!r})"


def progress(host: str, epochs_done: int, epochs: int) -> str:
    return f"#progress_metric: host={host}, completed {100 * epochs_done / epochs:.1f} % of epochs"


def throughput(host: str, records_a_second: float) -> str:
    return f"#throughput_metric: host={host}, train throughput={records_a_second:.3f} records/second"


def batches_done(epoch: int, batches: int, examples: int, seconds: float) -> str:
    return (
        f"Epoch: {epoch:4d}, batches: {batches:6d}, num_examples: {examples:6d}, "
        f"{examples / max(seconds, 1e-9):.1f} samples/sec, epoch time so far:  {timedelta(seconds=seconds)}"
    )


def waited(share: float) -> str:
    return f"The training steps waited for images {100 * share:.1f} % of the epoch's time."


def validated(share: float, every: int) -> str:
    line = f"Validation took {100 * share:.1f} % of the time since the one before."
    return line if share <= 1 / 3 else f"{line} A validate_every above {every} would leave more of it to training."


def coco_precision(mean: float, at_50: float, at_75: float) -> str:
    return f"COCO average precision: {mean:.4f} at IoU 0.5 to 0.95, {at_50:.4f} at 0.5, {at_75:.4f} at 0.75"


def learning_rate(update: int, value: float) -> str:
    return f"Update[{update}]: Change learning rate to {value:.5e}"


def best_model(value: float) -> str:
    return f"Updating the best model with validation-mAP={value!r}"


def saved(path: str) -> str:
    return f'Saved checkpoint to "{path}"'


NO_CHECKPOINTS = "Checkpoint loading and saving are disabled."

NO_TEST_DATA = "Test data is not provided."


def finished(best: float, epoch: int) -> str:
    return f"Training finished: best validation mAP {best:.4f} at epoch {epoch}."


def metrics(host: str, start: float, end: float, values: Mapping[str, float], **dimensions: Any) -> str:
    """The platform's own metrics line: seconds since 1970, a name and a value for each metric."""
    document = {
        "StartTime": start,
        "EndTime": end,
        "Dimensions": {"Algorithm": "AWS/Object Detection", "Host": host, "Operation": "training"} | dimensions,
        "Metrics": {
            name: {"sum": float(value), "count": 1, "min": value, "max": value} for name, value in values.items()
        },
    }
    return f"#metrics {json.dumps(document)}"
