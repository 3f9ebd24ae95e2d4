"""`ssd-algo evaluate` and `predict`: what a model is worth, and what it finds."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssd_algo.cli_channels import given
from ssd_algo.contract import gpus
from ssd_algo.contract.container import available_cpus, set_up_matplotlib, set_up_mxnet
from ssd_algo.data import progress
from ssd_algo.data.boxes import SCORE_THRESHOLD
from ssd_algo.data.findings import Findings, printable
from ssd_algo.errors import RequestError, UserError

if TYPE_CHECKING:  # these take a while
    from ssd_algo.data.images import Pixels
    from ssd_algo.data.labels import Dataset
    from ssd_algo.inference.predictor import Predictor
    from ssd_algo.model.artifact import Description, Precision

# Given an encoded image, the same decoded, and the least score: detections as annotations.
_Detect = Callable[[bytes, "Pixels", float], dict[str, Any]]

_MODEL = click.Path(exists=True, path_type=Path)
_PRECISION = click.option(
    "--precision", type=click.Choice(["float32", "int8"]), default="float32", show_default=True, help="int8: on a CPU."
)


@click.command()
@click.argument("model", type=_MODEL)
@click.argument("channels", nargs=-1, required=True)
@click.option("--channel", default="validation", show_default=True, help="Which of the channels.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("evaluation"),
    show_default=True,
    help="Folder for report.html and metrics.json.",
)
@_PRECISION
@click.option(
    "--iou",
    type=click.FloatRange(0, 1, max_open=True),
    help="Above which a box is right; without it, the model's overlap_threshold.",
)
def evaluate(
    model: Path, channels: tuple[str, ...], channel: str, output: Path, precision: "Precision", iou: float | None
) -> None:
    """Make the report of MODEL on labelled images.

    MODEL is a model.tar.gz or what is in one, of a training by this image or by SageMaker's built-in algorithm.
    CHANNELS are given as to `check`; only one, with its annotations, is read.
    """
    from ssd_algo.model import artifact

    with artifact.unpacked(model) as directory:
        described = artifact.describe(directory)
        artifact.check_precision(directory, precision)
        dataset = _labelled(channel, channels)
        _check_classes(dataset, channel, described, model)
        load = _loading(directory, precision)
        from ssd_algo.evaluation import evaluate, report
        from ssd_algo.evaluation.remarks import remarks

        pairs = evaluate.detected(
            dataset.samples,
            described.image_shape,
            load,
            available_cpus(),
            len(dataset.samples),
            progress.bar,
        )
    threshold = described.overlap_threshold if iou is None else iou
    names = described.class_names or dataset.class_names
    compared = [each for _, each in pairs]
    score = evaluate.describe(evaluate.score(compared, threshold), names)
    of = report.evaluated(score, compared, [sample for sample, _ in pairs], names, threshold)
    skipped = dataset.skipped + len(dataset.samples) - len(pairs)
    metrics: dict[str, Any] = {
        "definition": evaluate.DEFINITION,
        "evaluated": {"model": str(model), "channel": channel, "precision": precision, "skipped": skipped},
        "hyperparameters": described.hyperparameters,
        "evaluation": of.described,
    }
    metrics["remarks"] = remarks(metrics)
    output.mkdir(parents=True, exist_ok=True)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    with set_up_matplotlib():
        (output / "report.html").write_text(report.render(metrics, of), encoding="utf-8")
    for line in _table(of.described, channel, skipped):
        click.echo(line)
    click.echo(f"{output / 'report.html'}")


def _labelled(name: str, arguments: tuple[str, ...]) -> "Dataset":
    """The images of a channel; unreadable ones are left out."""
    from ssd_algo.data.labels import Rules
    from ssd_algo.training import data

    channels = given(arguments, also=(name, f"{name}_annotation"))
    if name not in channels:
        raise UserError(
            f"channel {name} is missing (channels: {', '.join(sorted(channels))}); give its folder, or name another "
            "with --channel."
        )
    findings = Findings()
    dataset = data.read_labelled(name, channels, Rules(None, max_bad_records=sys.maxsize), findings, progress.bar)
    for sentence in findings.short_warnings():
        click.echo(f"warning: {sentence}", err=True)
    if len(findings.faults) > 1:
        click.echo(findings.grouped_faults(), err=True)
        raise UserError(f"channel {name} has {len(findings.faults)} faults; nothing is evaluated.")
    findings.raise_faults()
    if not dataset.samples:
        raise UserError(f"channel {name} has no readable, annotated image; check its folders.")
    return dataset


def _check_classes(dataset: "Dataset", channel: str, described: "Description", model: Path) -> None:
    """See that the images have no other classes than the model; other names are warned of."""
    largest = max((int(each.classes.max()) for each in dataset.samples if len(each.classes)), default=-1)
    largest = max(largest, *dataset.class_names, -1)
    if largest >= described.num_classes:
        raise UserError(
            f"channel {channel} has {largest + 1} classes (ids 0 to {largest}), but {model} has "
            f"{described.num_classes}; evaluate it on images with its own classes."
        )
    ours, theirs = described.class_names, dataset.class_names
    others = [each for each in sorted(theirs) if ours.get(each, theirs[each]) != theirs[each]]
    if others:
        first = others[0]
        more = f", and {len(others) - 1} more are others too" if len(others) > 1 else ""
        sentence = f'class {first} is "{ours[first]}" in the model, but "{theirs[first]}" in channel {channel}{more}; '
        click.echo(f"warning: {printable(sentence)}the model's names are used.", err=True)


def _table(evaluation: dict[str, Any], channel: str, skipped: int) -> Iterator[str]:
    """The evaluation for a person at a terminal."""
    unreadable = f", {skipped} unreadable ones skipped" if skipped else ""
    yield f"channel {channel}: {evaluation['images']} images, {evaluation['objects']} objects{unreadable}"
    coco = evaluation["coco"]
    yield f"  mAP at an IoU above {evaluation['iou_threshold']:.2f}  {evaluation['mAP']:.4f}"
    yield f"  COCO AP, IoU 0.5 to 0.95  {_number(coco['mean'], 4)}"
    yield "  objects     AP  COCO AP  threshold    F1  class"
    for _, each in sorted(evaluation["classes"].items(), key=lambda item: int(item[0])):
        numbers = (_number(each.get("AP"), 3), _number(each.get("coco_AP"), 3), _number(each["threshold"], 2))
        columns = [f"{text:>{width}}" for text, width in zip(numbers, (5, 7, 9), strict=True)]
        f1 = _number(each["F1"], 2)
        yield f"  {each['objects']:7d}  {'  '.join(columns)}  {f1:>4}  {printable(each['name'])}"


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="[MODEL] IMAGES...")
@click.option("--endpoint", help="In place of MODEL: the name of an endpoint on SageMaker.")
@click.option("--region", help="Of the endpoint; without it, as the AWS CLI is configured.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("predictions"),
    show_default=True,
    help="Folder for the pictures.",
)
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="The least score.")
@_PRECISION
def predict(
    arguments: tuple[str, ...],
    endpoint: str | None,
    region: str | None,
    output: Path,
    threshold: float,
    precision: "Precision",
) -> None:
    """Draw what MODEL finds in IMAGES, and print it, a line of JSON for each.

    MODEL is a model.tar.gz or what is in one, as for `evaluate`. IMAGES are files, folders and patterns in quotes,
    "photos/**/*.jpg". The exit code is 2 when one of them is no image.
    """
    from ssd_algo.data import photos
    from ssd_algo.data.images import NotAnImage, decode

    model, images = (None, arguments) if endpoint else (Path(arguments[0]), arguments[1:])
    if not images:
        raise UserError("there are no images to look at; give MODEL and IMAGES, or --endpoint NAME and IMAGES.")
    found = photos.find(images, output)
    places = photos.places(found, output)
    failed = empty = 0
    with (
        _detecting(model, precision, endpoint or "", region) as detect,
        progress.bar("detecting", len(found)) as advance,
    ):
        for photo, place in zip(found, places, strict=True):
            try:
                encoded = _content(photo)
                image = decode(encoded)
                answer = detect(encoded, image, threshold)
            except (NotAnImage, RequestError) as error:
                failed += 1
                sentence = f"{photo}: {str(error).rstrip('.')}; replace or leave out the image."
                progress.say(f"{UserError.prefix}: {printable(sentence)}", to_error=True)
            else:
                empty += not answer["annotations"]
                photos.write(photos.draw_annotations(image, answer["annotations"]), place)
                progress.say(json.dumps({"file": str(photo)} | answer))
            advance(1)
    seen = len(found) - failed
    if 2 * empty > seen and threshold > SCORE_THRESHOLD:
        click.echo(
            f"In {empty} of {seen} photos nothing has a score of at least {threshold:g}. A lower --threshold may "
            "show more; the report of a training, or of `ssd-algo evaluate`, says where to cut the scores.",
            err=True,
        )
    sys.exit(UserError.exit_code if failed else 0)


@contextmanager
def _detecting(model: Path | None, precision: "Precision", endpoint: str, region: str | None) -> Iterator[_Detect]:
    """What detects: a model, else an endpoint."""
    if model is None:
        from ssd_algo.serving.endpoint import Endpoint

        yield Endpoint(endpoint, region).detect
        return
    from ssd_algo.data.images import to_square
    from ssd_algo.model import artifact
    from ssd_algo.serving.app import as_annotation

    with artifact.unpacked(model) as directory:
        described = artifact.describe(directory)
        artifact.check_precision(directory, precision)
        predictor = _loading(directory, precision)()

    def detect(encoded: bytes, image: "Pixels", threshold: float) -> dict[str, Any]:
        (detections,) = predictor.detect(to_square(image, described.image_shape)[None])
        return as_annotation(image.shape[1], image.shape[0], detections.above(threshold), described.class_names)

    yield detect


def _content(photo: Path) -> bytes:
    try:
        return photo.read_bytes()
    except OSError as error:
        raise RequestError(f"the file cannot be read ({error.strerror})") from error


def _loading(directory: Path, precision: "Precision") -> "Callable[[], Predictor]":
    """What loads a model as it is served, on this machine's GPUs if it has some; mxnet is set up."""
    set_up_mxnet(one_shape=True)
    from ssd_algo.inference import predictor

    devices = 0 if precision == "int8" else gpus.usable()
    return lambda: predictor.load(directory, precision, devices, available_cpus())


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
