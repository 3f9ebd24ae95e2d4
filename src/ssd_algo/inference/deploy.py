"""A folder with everything that runs a model elsewhere: for MXNet, ONNX Runtime and OpenVINO, and for `serve`."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from ssd_algo.data.images import NotAnImage, Pixels, decode, to_square
from ssd_algo.errors import UserError
from ssd_algo.inference.calibrate import calibrated
from ssd_algo.inference.engines import takes_images
from ssd_algo.model import artifact
from ssd_algo.model.onnx_detections import with_detections

_PROGRAMS = Path(__file__).parent / "programs"
_CALIBRATED_ON = 200  # images; further ones change the ranges of tensors by next to nothing

_README = """A {base_network} for {side} x {side} pixels and {num_classes} classes, and all that runs it:

model/      the model itself, for `serve` and for MXNet; model.tar.gz is the same, for SageMaker
onnx/       for ONNX Runtime and others that read ONNX
openvino/   for OpenVINO
detect_mxnet.py, detect_onnx.py, detect_openvino.py
            a short program for each, which prints what is in a picture

Precisions: {precisions}.

The picture is resized to {side} x {side}, whatever its shape: RGB from 0 to 255, float32 (N, 3, {side}, {side})
for MXNet and ONNX, uint8 (N, {side}, {side}, 3) for OpenVINO. What comes out is (N, K, 6): class, score, xmin,
ymin, xmax, ymax as fractions of the picture, best first; -1 where there is no detection.
"""


@dataclass(frozen=True)
class Exported:
    """What was made.

    Attributes
    ----------
    precisions : list of str
    photos : int
        That calibrated the int8 network.
    preprocessing : str
        As `artifact.Model` has it.
    """

    precisions: list[artifact.Precision]
    photos: int
    preprocessing: str


def export(
    model: Path, output: Path, images: Sequence[Path], input_mean: artifact.Mean | None, threads: int
) -> Exported:
    """Make the folder from an artifact, which may be one of the built-in algorithm; whole or not at all.

    Parameters
    ----------
    model : Path
        A directory with the artifact or its model.tar.gz, or that file.
    output : Path
        A new folder.
    images : sequence of paths
        To calibrate an int8 network with; without them the artifact's own is taken, if it has one.
    input_mean : three numbers or None
        As `artifact.read` takes it.
    threads : int

    Raises
    ------
    UserError
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty; give a new folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        artifact.unpacked(model) as directory,
        tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as unfinished,
    ):
        made = _make(model, directory, Path(unfinished) / "deploy", images, input_mean, threads)
        if output.exists():
            output.rmdir()
        (Path(unfinished) / "deploy").rename(output)
    return made


def _make(
    model: Path,
    directory: Path,
    folder: Path,
    images: Sequence[Path],
    input_mean: artifact.Mean | None,
    threads: int,
) -> Exported:
    described = artifact.describe(directory)
    if not artifact.fits_network_file(directory):
        raise UserError(f"{model} is too large for ONNX (more than 2 GB); MXNet runs it as it is.")
    told = artifact.save_deployed(directory, folder / "model", input_mean)
    network = artifact.exported(folder / "model")
    networks: dict[artifact.Precision, onnx.ModelProto] = {"float32": network}
    squares = list(_squares(images, described.image_shape))
    if images:
        networks["int8"] = _int8(network, described.image_shape, squares, threads)
    elif (directory / artifact.NETWORK_FILES["int8"]).is_file():
        networks["int8"] = _own_int8(directory)
    for precision, each in networks.items():
        artifact.save_network(folder / "model", precision, each.SerializeToString())
        _write(each, described, folder, "model" if precision == "float32" else f"model-{precision}")
    artifact.pack(folder / "model", folder / "model.tar.gz")
    for program in _PROGRAMS.glob("*.py"):
        shutil.copy(program, folder)
    text = _README.format(
        base_network=described.base_network,
        side=described.image_shape,
        num_classes=described.num_classes,
        precisions=" and ".join(networks),
    )
    (folder / "README.txt").write_text(f"{text}\n{told}\n" if told else text)
    return Exported(list(networks), len(squares), told)


def _int8(network: onnx.ModelProto, side: int, squares: Sequence[Pixels], threads: int) -> onnx.ModelProto:
    try:
        return calibrated(network, side, squares, threads)
    except ValueError as error:
        raise UserError(f"No int8 network can be made: {error}; give photos like those that it will see.") from error


def _own_int8(directory: Path) -> onnx.ModelProto:
    content, path = artifact.network(directory, "int8")
    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise UserError(f"{path} is damaged and cannot be loaded; unpack the model.tar.gz again.") from error


def _squares(images: Sequence[Path], side: int) -> Iterator[Pixels]:
    """Up to `_CALIBRATED_ON` of the images, spread evenly, as the network sees them."""
    for path in images[:: -(-len(images) // _CALIBRATED_ON) or 1]:
        with contextlib.suppress(NotAnImage):
            yield to_square(decode(path.read_bytes()), side)


def _write(network: onnx.ModelProto, described: artifact.Description, output: Path, name: str) -> None:
    """The network with its detections, as ONNX and as OpenVINO's own format."""
    import openvino as ov

    whole = with_detections(network, described.nms_threshold, described.nms_topk, described.multibox)
    content = whole.SerializeToString()
    for folder in ("onnx", "openvino"):
        (output / folder).mkdir(exist_ok=True)
    (output / "onnx" / f"{name}.onnx").write_bytes(content)
    # Of float32 input and any N, OpenVINO 2026.4 computes int8 wrongly with what stands behind the network.
    model = takes_images(ov.Core().read_model(content))
    # As 16-bit floats, which are the default, scores would be others in the third place.
    ov.save_model(model, output / "openvino" / f"{name}.xml", compress_to_fp16=False)
