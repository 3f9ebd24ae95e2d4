"""`ssd-algo`: the image's work for people at a terminal."""

import json
import sys
from collections import Counter
from pathlib import Path

import click

from ssd_algo import __version__
from ssd_algo.cli_channels import given
from ssd_algo.cli_model import evaluate, predict
from ssd_algo.cli_request import request
from ssd_algo.contract.log_lines import print_any_text
from ssd_algo.data import progress
from ssd_algo.data.findings import Findings
from ssd_algo.errors import UserError


class _Group(click.Group):
    """Ends a command that the user can mend with its sentence and exit code, as `train` does."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except UserError as error:
            click.echo(f"{error.prefix}: {error}", err=True)
            context.exit(error.exit_code)
        except BrokenPipeError:  # who reads what is printed has enough of it
            raise
        except OSError as error:  # a folder that may not be read or written, a full disk
            click.echo(f"{UserError.prefix}: {error}", err=True)
            context.exit(UserError.exit_code)


@click.group(cls=_Group)
@click.version_option(__version__)
def main() -> None:
    """Train and serve SSD object detectors, as SageMaker's built-in Object Detection algorithm does."""
    print_any_text()


for command in (evaluate, predict, request):
    main.add_command(command)


@main.command()
@click.argument("base", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
def train(base: Path | None) -> None:
    """Train as the image does, over the folder BASE with input, model and output in it.

    Without BASE over the platform's own, or what SAGEMAKER_BASE_DIR says.
    """
    from ssd_algo.training import job

    sys.exit(job.main(base))


@main.command()
@click.argument("base", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
def serve(base: Path | None) -> None:
    """Serve the model of the folder BASE as the image does; without BASE, as for train."""
    from ssd_algo.serving import server

    sys.exit(server.main(base))


@main.command()
def demo() -> None:
    """Draw a small dataset, train on it, serve the model and make a picture of what it finds."""
    from ssd_algo import demo

    beside = Path(sys.executable).parent  # where the package is installed, so are its two scripts
    demo.run([str(beside / "train")], [str(beside / "serve")], click.echo)


@main.command()
@click.argument("channels", nargs=-1, required=True)
@click.option(
    "--hyperparameters",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The job's hyperparameters.json.",
)
@click.option("--num-classes", type=click.IntRange(1, 10_000), help="Without --hyperparameters: number of classes.")
@click.option(
    "--image-shape", type=click.IntRange(128, 4096), default=300, show_default=True, help="Without --hyperparameters."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, as train writes data_check.json.")
def check(
    channels: tuple[str, ...], hyperparameters: Path | None, num_classes: int | None, image_shape: int, as_json: bool
) -> None:
    """Check CHANNELS as train does before it starts.

    A channel is a folder or an s3:// prefix; its last part is the channel's name (train, train_annotation, ...), or
    give it as NAME=FOLDER. A folder of channels stands for all of them. The exit code is 2 exactly when train would
    refuse the data.
    """
    from ssd_algo.contract.container import read_hyperparameters
    from ssd_algo.contract.hyperparameters import Hyperparameters
    from ssd_algo.data.check import as_text
    from ssd_algo.data.labels import Rules
    from ssd_algo.training import data

    rules = Rules(num_classes)
    if hyperparameters is not None:
        parsed = Hyperparameters.parse(read_hyperparameters(hyperparameters))
        rules, image_shape = data.rules(parsed), parsed.image_shape
        for sentence in parsed.warnings():
            click.echo(f"warning: {sentence}", err=True)
    _, findings, report = data.check(given(channels), rules, image_shape, progress.bar, thorough=True)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        click.echo(as_text(report, findings, image_shape))
        click.echo(_verdict(findings, rules.num_classes is not None))
    sys.exit(UserError.exit_code if findings.faults else 0)


def _verdict(findings: Findings, with_num_classes: bool) -> str:
    if findings.faults:
        count = len(findings.faults)
        return f"train refuses this data: {count} fault{'s' * (count > 1)}."
    if not with_num_classes:
        return "train takes this data, if num_classes fits: give it with --num-classes or --hyperparameters."
    return "train takes this data."


@main.command()
@click.argument("images", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("annotations", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--classes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For PASCAL VOC and COCO: class names in the order of their ids, one a line, as an earlier pack left them.",
)
def pack(images: Path, annotations: Path, output: Path, classes: Path | None) -> None:
    """Pack the folder IMAGES into the RecordIO file OUTPUT (.rec), with its .idx and .classes.txt.

    ANNOTATIONS is a folder of SageMaker JSON or PASCAL VOC XML, one file an image, or a COCO .json file. Images without
    objects are packed too. The same input makes the same bytes.
    """
    from ssd_algo.data import pack
    from ssd_algo.data.files import list_file, list_folder

    if output.suffix != ".rec":
        raise UserError(f"{output}: the file must end in .rec, by which training finds it.")
    if not output.parent.is_dir():
        raise UserError(f"{output}: there is no folder {output.parent}; make it first.")
    names = pack.read_class_names(classes) if classes else []
    findings = Findings()
    source = list_file(annotations) if annotations.is_file() else list_folder(annotations.name, annotations)
    dataset = pack.read(list_folder(images.name, images), source, names, findings, progress.bar)
    for sentence in findings.short_warnings():
        click.echo(f"warning: {sentence}", err=True)
    if len(findings.faults) > 1:
        click.echo(findings.grouped_faults(), err=True)
        raise UserError(f"{len(findings.faults)} faults; nothing is packed.")
    findings.raise_faults()
    if not dataset.samples:
        raise UserError(f"{images} holds no annotated image; check both folders.")
    pack.write(dataset.samples, output, progress.bar)
    counts = Counter(int(identity) for sample in dataset.samples for identity in sample.classes)
    named = [str(dataset.class_names.get(each, each)) for each in range(max(dataset.class_names, default=-1) + 1)]
    output.with_suffix(".classes.txt").write_text("".join(f"{name}\n" for name in named), encoding="utf-8")
    click.echo(f"{output}: {len(dataset.samples)} images, {sum(counts.values())} objects.")
    for identity in sorted(counts.keys() | dataset.class_names.keys()):
        click.echo(f"  class {identity}: {counts[identity]} objects  {dataset.class_names.get(identity, '')}".rstrip())


@main.command()
@click.argument("channels", nargs=-1, required=True)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("augmented.png"), show_default=True
)
@click.option("--image-shape", type=click.IntRange(128, 4096), default=300, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def show(channels: tuple[str, ...], output: Path, image_shape: int, seed: int) -> None:
    """Make a picture of 25 augmented training images with their boxes.

    CHANNELS are given as to `check`; only train and train_annotation are needed.
    """
    import cv2
    import numpy as np

    from ssd_algo.data.labels import Rules
    from ssd_algo.data.show import contact_sheet
    from ssd_algo.training import data

    findings = Findings()
    dataset = data.read_labelled("train", given(channels), Rules(None), findings, progress.bar)
    findings.raise_faults()
    sheet = contact_sheet(dataset.samples, dataset.class_names, image_shape, 25, np.random.default_rng(seed))
    if not cv2.imwrite(str(output), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise UserError(f"{output} cannot be written; check the folder, and that the name ends in .png or .jpg.")
    click.echo(f"{output}: 25 augmented images of {len(dataset.samples)}.")


@main.command()
@click.argument("channel", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--passes", type=click.IntRange(1), default=1, show_default=True, help="One an epoch.")
@click.option("--attributes", default="source-ref,boxes", show_default=True, help="Of a manifest, in their order.")
@click.option("--gzip", "compressed", is_flag=True, help="Compress the stream.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="MB a second.")
@click.option("--cut", type=click.IntRange(0), help="End each pass after so many bytes.")
@click.option(
    "--stall",
    type=(click.IntRange(0), click.FloatRange(0)),
    help="After so many bytes, nothing comes for so many seconds.",
)
def feed(
    channel: Path,
    sources: tuple[Path, ...],
    passes: int,
    attributes: str,
    compressed: bool,
    rate: float | None,
    cut: int | None,
    stall: tuple[int, float] | None,
) -> None:
    """Play the platform for a channel in Pipe mode: make its FIFOs and write SOURCES into them.

    CHANNEL is base/input/data/NAME; the FIFOs are NAME_0, NAME_1, ... SOURCES are .rec files, or one manifest of Ground
    Truth beside whose images it lies.
    """
    from ssd_algo.data.feed import Faults
    from ssd_algo.data.feed import feed as write

    write(channel, sources, attributes.split(","), passes, compressed, rate, Faults(cut, stall))


@main.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of photos like those that the model will see: 200 calibrate an int8 network.",
)
@click.option("--input-mean", metavar="R,G,B", help="For a model of the built-in algorithm: what its input is less.")
def export(model: Path, output: Path, images: Path | None, input_mean: str | None) -> None:
    """Make the folder OUTPUT with all that runs MODEL elsewhere: MXNet, ONNX, OpenVINO, a program for each.

    MODEL is a model.tar.gz or what is in one, of a training by this image or by SageMaker's built-in algorithm.
    """
    from ssd_algo.contract.container import available_cpus
    from ssd_algo.inference.deploy import export
    from ssd_algo.model.artifact import parse_mean

    try:
        mean = None if input_mean is None else parse_mean(input_mean)
    except ValueError as error:
        raise UserError(f'--input-mean is "{input_mean}"; it must be {error}.') from error
    photos = _photos_below(images) if images else []
    made = export(model, output, photos, mean, available_cpus())
    click.echo(f"{output}: {' and '.join(made.precisions)}.")
    if made.preprocessing:
        click.echo(f"  {made.preprocessing}")
    if photos:
        click.echo(f"  int8 is calibrated on {made.photos} photos.")
    elif "int8" not in made.precisions:
        click.echo("  no int8: the model has none; --images FOLDER calibrates one.")


def _photos_below(folder: Path) -> list[Path]:
    from ssd_algo.data.images import EXTENSIONS

    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not photos:
        raise UserError(f"{folder} holds no photo ({', '.join(EXTENSIONS)}); give a folder that does.")
    return photos


@main.command()
@click.argument("base", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(base: Path) -> None:
    """Make report.html of the training in BASE again, in BASE/output/data.

    BASE has the folders input, model and output of a training. The network runs over the validation images once more,
    so that there is a report also where the training could not make a whole one.
    """
    from ssd_algo.contract.container import Container
    from ssd_algo.training import report

    click.echo(report.make(Container(base.absolute()), progress.bar))


@main.command(hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
def fetch_weights(folder: Path) -> None:
    """Put ImageNet weights of all backbones into FOLDER; the image's build does it."""
    from ssd_algo.contract.gpus import provide_driver

    provide_driver()
    from ssd_algo.model import pretrained

    pretrained.fetch(folder)


if __name__ == "__main__":
    main()
