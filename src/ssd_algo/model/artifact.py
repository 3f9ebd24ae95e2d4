"""The model directory: its file names, saved whole or not at all, loaded with clear refusals."""

import errno
import io
import json
import logging
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ssd_algo import whole_files
from ssd_algo.errors import UserError
from ssd_algo.model import archive, builtin_graph, graph, parameter_file

if TYPE_CHECKING:
    import mxnet as mx
    import onnx
    from _typeshed import ReadableBuffer

logger = logging.getLogger(__name__)

SYMBOL_FILE = "model_algo_1-symbol.json"
PARAMETERS_FILE = "model_algo_1-0000.params"
HYPERPARAMETERS_FILE = "hyperparams.json"
CLASSES_FILE = "classes.json"
_REQUIRED = (SYMBOL_FILE, PARAMETERS_FILE, HYPERPARAMETERS_FILE)
_OPTIONAL = (CLASSES_FILE,)
# As the deployment script of the built-in's ancestor names symbol and parameters.
_DEPLOYED = "deploy_"

# What a network of the built-in's is given. ImageNet's mean as its ancestor's training subtracts it, or nothing; a
# BatchNorm on the input has the difference in its statistics (photos have means of about 100).
Mean = tuple[float, float, float]
_BUILTIN_MEAN: Mean = (123.0, 117.0, 104.0)
_RAW: Mean = (0.0, 0.0, 0.0)
_MOST_SEEN_WITHOUT_MEAN = 50.0
INPUT_MEAN = "_input_mean"  # in hyperparams.json, to overrule what the artifact shows

# The network up to logits and offsets as ONNX: made of the files above, so that serving starts faster.
Precision = Literal["float32", "int8"]
MOST_BYTES_OF_A_NETWORK = 1_900_000_000  # its format holds 2 GB in a file
NETWORK_FILES: dict[Precision, str] = {"float32": "model_algo_1.onnx", "int8": "model_algo_1-int8.onnx"}

# What is taken out of an archive: the network in float32 is made anew as fast.
_MEMBERS = {
    *_REQUIRED,
    *_OPTIONAL,
    f"{_DEPLOYED}{SYMBOL_FILE}",
    f"{_DEPLOYED}{PARAMETERS_FILE}",
    NETWORK_FILES["int8"],
}


@dataclass(frozen=True)
class Description:
    """What an artifact says of itself, known without mxnet.

    Attributes
    ----------
    hyperparameters : dict of strings, as the built-in writes `hyperparams.json`
    class_names : dict
        Class id to name; empty when the training data gave none.
    multibox : MultiBoxDetection or None
        How an artifact of the built-in algorithm makes detections; None for ours.
    """

    hyperparameters: dict[str, str]
    class_names: dict[int, str]
    multibox: builtin_graph.MultiBoxDetection | None = None

    @property
    def num_classes(self) -> int:
        return int(self.hyperparameters["num_classes"])

    @property
    def base_network(self) -> str:
        return self.hyperparameters["base_network"]

    @property
    def image_shape(self) -> int:
        return int(self.hyperparameters["image_shape"])

    @property
    def input_mean(self) -> "Mean | None":
        """What `hyperparams.json` says that a network of the built-in's is given less, if it does."""
        return parse_mean(self.hyperparameters[INPUT_MEAN]) if INPUT_MEAN in self.hyperparameters else None

    @property
    def nms_threshold(self) -> float:
        return self.multibox.nms_threshold if self.multibox else float(self.hyperparameters["nms_threshold"])

    @property
    def overlap_threshold(self) -> float:
        return float(self.hyperparameters.get("overlap_threshold", "0.5"))

    @property
    def nms_topk(self) -> int:
        return self.multibox.nms_topk if self.multibox else int(self.hyperparameters["nms_topk"])


@dataclass(frozen=True)
class Model:
    """A whole artifact.

    Attributes
    ----------
    description : Description
    symbol : str
        MXNet's JSON of the network, whose outputs are `class_logits` and `box_offsets`.
    parameters : dict of float32 arrays by name
        Of the graph, with its constants, among them `anchors` (1, A, 4).
    preprocessing : str
        Of a model of the built-in's, in a sentence for the log, what its network is given and why; else empty.
    """

    description: Description
    symbol: str
    parameters: dict[str, NDArray[np.float32]]
    preprocessing: str

    @property
    def has_graph_of_builtin(self) -> bool:
        """Whether the graph is the built-in's, or goes on from it: it does not divide its input as ours do."""
        return "data_std" not in self.parameters


def save(
    directory: Path,
    symbol: "mx.sym.Symbol",
    parameters: dict[str, NDArray[np.float32]],
    hyperparameters: dict[str, str],
    class_names: dict[int, str],
) -> Path:
    """Write an artifact; a file is replaced whole or not at all, the parameters last.

    Parameters of another network, or of other classes, are removed first, and what was made of the former parameters:
    there is never a mix of two models.

    Returns
    -------
    Path
        The parameter file.

    Raises
    ------
    UserError
        When the disk is full or not writable.
    """
    auxiliary = set(symbol.list_auxiliary_states())
    arrays = {f"{'aux' if name in auxiliary else 'arg'}:{name}": value for name, value in parameters.items()}
    names = {str(identity): name for identity, name in sorted(class_names.items())}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in NETWORK_FILES.values():
            (directory / name).unlink(missing_ok=True)
        _replace_texts(
            directory,
            {
                SYMBOL_FILE: symbol.tojson(),
                HYPERPARAMETERS_FILE: json.dumps(hyperparameters),
                CLASSES_FILE: json.dumps(names),
            },
        )
        whole_files.replace(directory / PARAMETERS_FILE, lambda path: parameter_file.write(path, arrays))
    except OSError as error:
        raise _cannot_write(directory, sum(value.nbytes for value in parameters.values()), error) from error
    return directory / PARAMETERS_FILE


def _replace_texts(directory: Path, texts: dict[str, str]) -> None:
    """Write the small files of an artifact that are others than before."""
    old = {name: (directory / name).read_text() if (directory / name).is_file() else None for name in texts}
    if old == texts:
        return
    (directory / PARAMETERS_FILE).unlink(missing_ok=True)
    for name, text in texts.items():
        whole_files.replace(directory / name, lambda path, text=text: path.write_text(text))  # type: ignore[misc]


def is_there(directory: Path) -> bool:
    """Whether a directory holds an artifact."""
    return not _missing(directory)


def _missing(directory: Path) -> str:
    """Names of a model's files that a directory lacks."""
    files = (_symbol_file(directory), _parameters_file(directory), directory / HYPERPARAMETERS_FILE)
    return ", ".join(path.name for path in files if not path.is_file())


def _symbol_file(directory: Path) -> Path:
    return _file(directory, SYMBOL_FILE)


def _parameters_file(directory: Path) -> Path:
    return _file(directory, PARAMETERS_FILE)


def _file(directory: Path, name: str) -> Path:
    """A file of the model, or the deployed one where there is only that."""
    deployed = directory / f"{_DEPLOYED}{name}"
    return deployed if deployed.is_file() and not (directory / name).is_file() else directory / name


def pack(directory: Path, packed: Path) -> None:
    """Pack an artifact flat into a .tar.gz, as the platform does.

    Raises
    ------
    UserError
        When the disk is full or not writable.
    """

    def write(path: Path) -> None:
        with (
            path.open("wb") as raw,
            _Compressed(raw) as compressed,
            tarfile.open(fileobj=cast(BinaryIO, compressed), mode="w|") as tar,
        ):
            for name in (*_REQUIRED, *_OPTIONAL, *NETWORK_FILES.values()):
                if (directory / name).is_file():
                    tar.add(directory / name, arcname=name)

    try:
        packed.parent.mkdir(parents=True, exist_ok=True)
        whole_files.replace(packed, write)
    except OSError as error:
        size = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
        raise _cannot_write(packed, size, error) from error


class _Compressed(io.RawIOBase):
    """What a gzip file is written through, with neither a time nor a name in it.

    By Huffman's codes alone: no bytes repeat in weights, and looking for some takes two thirds of the time.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._compressor = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)

    def write(self, content: "ReadableBuffer") -> int:
        self._file.write(self._compressor.compress(content))
        return memoryview(content).nbytes

    def close(self) -> None:
        try:
            if not self.closed:
                self._file.write(self._compressor.flush())
        finally:
            super().close()


def _cannot_write(path: Path, size: int, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = "the disk is full" if full else str(error)
    return UserError(f"{path} cannot be written ({why}; {size} bytes are needed); what was saved before is untouched.")


def describe(directory: Path) -> Description:
    """Read what an artifact says of itself.

    Raises
    ------
    UserError
        Naming the file that is missing or wrong.
    """
    missing = _missing(directory)
    if missing:
        raise UserError(f"{directory} holds no model: {missing} missing; unpack a model.tar.gz made by training there.")
    hyperparameters = _read_object(directory / HYPERPARAMETERS_FILE)
    classes = _read_object(directory / CLASSES_FILE) if (directory / CLASSES_FILE).is_file() else {}
    if not all(identity.isdecimal() and len(identity) < 10 for identity in classes):
        raise UserError(
            f"{directory / CLASSES_FILE} has a class id that is no number; use the file that training wrote."
        )
    try:
        multibox = builtin_graph.detection(_symbol_file(directory).read_text(encoding="utf-8"))
    except ValueError as error:
        raise not_usable(directory) from error
    description = Description(hyperparameters, {int(identity): name for identity, name in classes.items()}, multibox)
    for name, most in (
        ("num_classes", 10_000),
        ("base_network", None),
        ("image_shape", 4096),
        ("overlap_threshold", 1),
        ("nms_threshold", 1),
        ("nms_topk", None),
    ):
        try:
            value = getattr(description, name)
            if most is not None and not 0 < value <= most:
                raise ValueError(f"{value} is not above 0 and at most {most}")
        except (KeyError, ValueError) as error:
            raise UserError(
                f'{directory / HYPERPARAMETERS_FILE}: "{name}" is missing or wrong; use the file that training wrote.'
            ) from error
    try:
        _ = description.input_mean
    except ValueError as error:
        raise UserError(
            f'{directory / HYPERPARAMETERS_FILE}: "{INPUT_MEAN}" is "{hyperparameters[INPUT_MEAN]}"; it must be '
            f"{error}."
        ) from error
    return description


def load_parameters(directory: Path) -> dict[str, NDArray[np.float32]]:
    """The parameters of an artifact by name.

    Raises
    ------
    UserError
        When the file is damaged.
    """
    path = _parameters_file(directory)
    try:
        return {name.split(":", 1)[-1]: array for name, array in parameter_file.read(path).items()}
    except ValueError as error:
        raise UserError(f"{path} is damaged and cannot be loaded; unpack the model.tar.gz again.") from error


def save_network(directory: Path, precision: Precision, network: bytes) -> Path:
    """Put a network, as ONNX, beside the artifact that it was made of; returns its path.

    Raises
    ------
    UserError
        When the disk is full or not writable.
    """
    path = directory / NETWORK_FILES[precision]
    try:
        whole_files.replace(path, lambda temporary: temporary.write_bytes(network))
    except OSError as error:
        raise _cannot_write(path, len(network), error) from error
    return path


def network(directory: Path, precision: Precision, input_mean: Mean | None = None) -> tuple[bytes, Path]:
    """The network as ONNX, and the file that it comes from: of artifacts that have none, it is made here.

    Raises
    ------
    UserError
        When the artifact is damaged, or int8 is asked for and it was not calibrated.
    """
    check_precision(directory, precision)
    check_input_mean(directory, input_mean)
    path = directory / NETWORK_FILES[precision]
    if path.is_file():
        return path.read_bytes(), path
    return exported(directory, input_mean).SerializeToString(), _symbol_file(directory)


def fits_network_file(directory: Path) -> bool:
    """Whether the network can be made as ONNX: one with thousands of classes is too large."""
    return _parameters_file(directory).stat().st_size <= MOST_BYTES_OF_A_NETWORK


def check_precision(directory: Path, precision: Precision) -> None:
    """See that an artifact has what a precision needs.

    Raises
    ------
    UserError
    """
    name = NETWORK_FILES[precision]
    if precision == "int8" and not (directory / name).is_file():
        raise UserError(
            f"{directory} has no int8 network ({name} is missing); train with export_int8 1 or auto, make one with "
            "ssd-algo export --images, or serve float32."
        )


def read(directory: Path, input_mean: Mean | None = None) -> Model:
    """An artifact of ours or of the built-in's, whose graph is cut and put into our form.

    Parameters
    ----------
    directory : Path
    input_mean : three numbers or None
        What to subtract from the RGB that a network of the built-in's is given; None: what the artifact shows.

    Raises
    ------
    UserError
        When a file is missing or damaged, or does not fit another.
    """
    described = describe(directory)
    check_input_mean(directory, input_mean)
    parameters = load_parameters(directory)
    symbol = _symbol_file(directory).read_text(encoding="utf-8")
    told = ""
    try:
        if described.multibox is None:
            cut = graph.network_of(symbol)
        else:
            adopted = builtin_graph.adopted(symbol, described.image_shape)
            cut = adopted.symbol
            parameters["anchors"] = adopted.anchors[None]
            if not adopted.has_mean:
                mean, told = _input_mean(adopted, described, parameters, input_mean)
                parameters["data_mean"] = np.asarray(mean, dtype=np.float32).reshape(1, 3, 1, 1)
        nodes = graph.parse(cut)
        classes = graph.foreground_classes(nodes)
    except graph.NONSENSE as error:
        raise not_usable(directory) from error
    if classes != described.num_classes:
        raise UserError(
            f"{directory / HYPERPARAMETERS_FILE}: num_classes is {described.num_classes}, but the network of "
            f"{_symbol_file(directory).name} has {classes}; use the files of one training."
        )
    _check_parameters(directory, nodes, parameters)
    return Model(described, cut, parameters, told)


def check_input_mean(directory: Path, input_mean: Mean | None) -> None:
    """See that an artifact leaves open what its network is given, if that is asked for.

    Raises
    ------
    UserError
    """
    if input_mean is not None and (
        describe(directory).multibox is None or '"data_mean"' in _symbol_file(directory).read_text(encoding="utf-8")
    ):
        raise UserError(
            f"{directory}: an input mean is given, but the model has its own inside; it is for models as the built-in "
            "algorithm left them. Leave it out."
        )


def _check_parameters(directory: Path, nodes: list[graph.Node], parameters: dict[str, NDArray[np.float32]]) -> None:
    """See that the network has all its parameters, and the convolutions in their shapes."""
    path = _parameters_file(directory)
    wanted = [node["name"] for node in nodes if node["op"] == "null" and node["name"] != graph.INPUT] + ["anchors"]
    missing = next((name for name in wanted if name not in parameters), None)
    if missing is not None:
        raise UserError(f"{path} lacks {missing}, which the network has; use the files of one training.")
    for node in nodes:
        if node["op"] == "Convolution":
            filters, kernel = int(node["attrs"]["num_filter"]), graph.numbers(node["attrs"]["kernel"])
            weight = nodes[node["inputs"][1][0]]["name"]
            shape = parameters[weight].shape
            if (shape[0], shape[2:]) != (filters, kernel):
                raise UserError(
                    f"{path}: {weight} is {shape}, but the network wants {filters} filters of {kernel}; use the "
                    "files of one training."
                )


def save_deployed(directory: Path, target: Path, input_mean: Mean | None = None) -> str:
    """Put an artifact into a new directory, such that any MXNet runs its symbol on raw RGB: ours as it is.

    A model of the built-in's ends in its detections then, and what is subtracted from its input is inside.

    Returns
    -------
    str
        What the network is given and why, where that was open; else empty.

    Raises
    ------
    UserError
        When a file is missing or damaged, or cannot be written.
    """
    model = read(directory, input_mean)
    described, symbol = model.description, _symbol_file(directory).read_text(encoding="utf-8")
    parameters = parameter_file.read(_parameters_file(directory))
    hyperparameters = described.hyperparameters
    if described.multibox is not None:
        symbol = builtin_graph.deployed(symbol, has_mean=not model.preprocessing)
        parameters |= {"arg:data_mean": model.parameters["data_mean"]}
        hyperparameters = {n: each for n, each in hyperparameters.items() if n != INPUT_MEAN}
        hyperparameters |= {"nms_threshold": str(described.nms_threshold), "nms_topk": str(described.nms_topk)}
    names = {str(identity): name for identity, name in sorted(described.class_names.items())}
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / SYMBOL_FILE).write_text(symbol)
        (target / HYPERPARAMETERS_FILE).write_text(json.dumps(hyperparameters))
        (target / CLASSES_FILE).write_text(json.dumps(names))
        parameter_file.write(target / PARAMETERS_FILE, parameters)
    except OSError as error:
        raise _cannot_write(target, sum(each.nbytes for each in parameters.values()), error) from error
    return model.preprocessing


def _input_mean(
    adopted: builtin_graph.BuiltinGraph,
    described: Description,
    parameters: dict[str, NDArray[np.float32]],
    given: Mean | None,
) -> tuple[Mean, str]:
    """What to subtract from the RGB that a network of the built-in's is given, and a sentence that says why."""
    mean, why = given or described.input_mean, "as it was asked for"
    if mean is None and adopted.input_statistics is None:
        mean, why = _BUILTIN_MEAN, "as ImageNet's weights of a network without BatchNorm on its input want it"
    if mean is None:
        # A BatchNorm on the input has seen in training what the network was given.
        seen = float(np.mean(parameters.get(adopted.input_statistics or "", np.zeros(3))))
        mean = _RAW if seen > _MOST_SEEN_WITHOUT_MEAN else _BUILTIN_MEAN
        why = f"as the mean that its input's BatchNorm saw in training, {seen:.1f}, shows"
    what = "raw RGB" if tuple(mean) == _RAW else f"RGB less ({', '.join(f'{each:g}' for each in mean)})"
    return mean, (
        f"The model is one of the built-in algorithm ({described.base_network}, {described.image_shape}): it is given "
        f"{what}, {why}."
    )


def parse_mean(text: str) -> Mean:
    """Three numbers from 0 to 255, with commas between them.

    Raises
    ------
    ValueError
        With the rule.
    """
    try:
        red, green, blue = (float(each) for each in text.split(","))
    except ValueError:
        red = green = blue = -1.0
    if not all(0 <= each <= 255 for each in (red, green, blue)):
        raise ValueError('three numbers from 0 to 255, as "123, 117, 104" or "0, 0, 0"')
    return red, green, blue


def exported(directory: Path, input_mean: Mean | None = None) -> "onnx.ModelProto":
    """The network of an artifact as ONNX, made of its symbol and parameters.

    Raises
    ------
    UserError
        When a file is damaged.
    """
    from ssd_algo.model.onnx_graph import to_onnx

    model = read(directory, input_mean)
    if model.preprocessing:
        logger.info("%s", model.preprocessing)
    try:
        return to_onnx(model.symbol, model.parameters, model.description.image_shape)
    except ValueError as error:
        raise not_usable(directory) from error


def not_usable(directory: Path) -> UserError:
    """What to say of an artifact whose symbol cannot be used."""
    return UserError(
        f"{_symbol_file(directory)} is damaged or was written by neither this image's training nor the built-in's."
    )


def load_symbol(symbol: str) -> "mx.sym.Symbol":
    """The network of a `Model` in MXNet: outputs `class_logits` and `box_offsets`.

    Raises
    ------
    ValueError
        When MXNet does not take it.
    """
    import mxnet as mx

    try:
        return mx.sym.load_json(symbol)
    except mx.base.MXNetError as error:
        raise ValueError("the graph is not one that training writes") from error


@contextmanager
def unpacked(channel: Path) -> Iterator[Path]:
    """The directory with an artifact: of a model channel, which holds a model.tar.gz or what was in one, or an archive.

    An archive is unpacked into a temporary directory. A `UserError` over the files in it, raised while it is in use, is
    told with the archive's path.

    Raises
    ------
    UserError
        When the archive is damaged, breaks a rule, lacks a file of a model, or does not fit on the disk.
    """
    packed = channel if channel.is_file() else channel / "model.tar.gz"
    if not packed.is_file():
        yield channel
        return
    with tempfile.TemporaryDirectory(prefix="ssd-algo-model-") as directory:
        archive.unpack(packed, Path(directory), _MEMBERS)
        missing = _missing(Path(directory))
        if missing:
            raise UserError(
                f"{packed} holds no model: {missing} missing; give a model.tar.gz made by training, with its "
                "files at the top."
            )
        try:
            yield Path(directory)
        except UserError as error:
            raise UserError(str(error).replace(directory, str(packed))) from error


def _read_object(path: Path) -> dict[str, str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8 ({error}); use the file that training wrote.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a JSON object; use the file that training wrote.")
    return {str(name): str(each) for name, each in value.items()}
