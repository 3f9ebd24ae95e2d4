"""The model directory: its file names, saved whole or not at all, loaded with clear refusals."""

import errno
import gzip
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ssd_algo import whole_files
from ssd_algo.data.findings import printable
from ssd_algo.errors import UserError
from ssd_algo.model import parameter_file

if TYPE_CHECKING:
    import mxnet as mx
    import onnx

SYMBOL_FILE = "model_algo_1-symbol.json"
PARAMETERS_FILE = "model_algo_1-0000.params"
HYPERPARAMETERS_FILE = "hyperparams.json"
CLASSES_FILE = "classes.json"
_REQUIRED = (SYMBOL_FILE, PARAMETERS_FILE, HYPERPARAMETERS_FILE)
_OPTIONAL = (CLASSES_FILE,)

# The network up to logits and offsets as ONNX: made of the files above, so that serving starts faster.
Precision = Literal["float32", "int8"]
MOST_BYTES_OF_A_NETWORK = 1_900_000_000  # its format holds 2 GB in a file
NETWORK_FILES: dict[Precision, str] = {"float32": "model_algo_1.onnx", "int8": "model_algo_1-int8.onnx"}

# What an archive may hold. The largest model, ResNet-101 with 10,000 classes, has 9.96 GB.
MOST_BYTES = 10 * 10**9
MOST_MEMBERS = 1_000
MOST_BYTES_OF_A_HEADER = 1_000_000  # it is read into memory, and as long as the names in it say
_CHUNK = 1 << 16

# What tarfile and gzip raise over an archive that is none, or has nonsense in a header.
_DAMAGED = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    ValueError,
    ArithmeticError,
    LookupError,
    RecursionError,
)


@dataclass(frozen=True)
class Description:
    """What an artifact says of itself, known without mxnet.

    Attributes
    ----------
    hyperparameters : dict of strings, as the built-in writes `hyperparams.json`
    class_names : dict
        Class id to name; empty when the training data gave none.
    """

    hyperparameters: dict[str, str]
    class_names: dict[int, str]

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
    def nms_threshold(self) -> float:
        return float(self.hyperparameters["nms_threshold"])

    @property
    def nms_topk(self) -> int:
        return int(self.hyperparameters["nms_topk"])


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
    return ", ".join(name for name in _REQUIRED if not (directory / name).is_file())


def pack(directory: Path, archive: Path) -> None:
    """Pack an artifact flat into a .tar.gz, as the platform does.

    Raises
    ------
    UserError
        When the disk is full or not writable.
    """

    def write(path: Path) -> None:
        with (
            path.open("wb") as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=1) as compressed,
            tarfile.open(fileobj=compressed, mode="w") as tar,
        ):
            for name in (*_REQUIRED, *_OPTIONAL, *NETWORK_FILES.values()):
                if (directory / name).is_file():
                    tar.add(directory / name, arcname=name)

    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        whole_files.replace(archive, write)
    except OSError as error:
        size = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
        raise _cannot_write(archive, size, error) from error


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
    description = Description(hyperparameters, {int(identity): name for identity, name in classes.items()})
    for name in ("num_classes", "base_network", "image_shape", "nms_threshold", "nms_topk"):
        try:
            getattr(description, name)
        except (KeyError, ValueError) as error:
            raise UserError(
                f'{directory / HYPERPARAMETERS_FILE}: "{name}" is missing or wrong; use the file that training wrote.'
            ) from error
    return description


def load_parameters(directory: Path) -> dict[str, NDArray[np.float32]]:
    """The parameters of an artifact by name.

    Raises
    ------
    UserError
        When the file is damaged.
    """
    path = directory / PARAMETERS_FILE
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


def network(directory: Path, precision: Precision) -> tuple[bytes, Path]:
    """The network as ONNX, and the file that it comes from: of older artifacts, which have none, it is made here.

    Raises
    ------
    UserError
        When the artifact is damaged, or int8 is asked for and it was not calibrated.
    """
    check_precision(directory, precision)
    path = directory / NETWORK_FILES[precision]
    if path.is_file():
        return path.read_bytes(), path
    return exported(directory).SerializeToString(), directory / SYMBOL_FILE


def fits_network_file(directory: Path) -> bool:
    """Whether the network can be made as ONNX: one with thousands of classes is too large."""
    return (directory / PARAMETERS_FILE).stat().st_size <= MOST_BYTES_OF_A_NETWORK


def check_precision(directory: Path, precision: Precision) -> None:
    """See that an artifact has what a precision needs.

    Raises
    ------
    UserError
    """
    name = NETWORK_FILES[precision]
    if precision == "int8" and not (directory / name).is_file():
        raise UserError(
            f"{directory} has no int8 network ({name} is missing); train with export_int8 1 or auto, or serve float32."
        )


def exported(directory: Path) -> "onnx.ModelProto":
    """The network of an artifact as ONNX, made of its symbol and parameters.

    Raises
    ------
    UserError
        When a file is damaged.
    """
    from ssd_algo.model.onnx_graph import to_onnx

    described, parameters = describe(directory), load_parameters(directory)
    try:
        return to_onnx((directory / SYMBOL_FILE).read_text(), parameters, described.image_shape)
    except ValueError as error:
        raise _not_ours(directory) from error


def _not_ours(directory: Path) -> UserError:
    return UserError(f"{directory / SYMBOL_FILE} is damaged or was not written by this image's training.")


def load_symbol(directory: Path) -> "mx.sym.Symbol":
    """The network's graph, cut before its detections: outputs `class_logits` and `box_offsets`.

    Raises
    ------
    UserError
        When the file is damaged or is not one of ours.
    """
    import mxnet as mx

    path = directory / SYMBOL_FILE
    try:
        internals = mx.sym.load(str(path)).get_internals()
        return mx.sym.Group([internals["class_logits_output"], internals["box_offsets_output"]])
    except (mx.base.MXNetError, ValueError) as error:
        raise _not_ours(directory) from error


@contextmanager
def unpacked(channel: Path) -> Iterator[Path]:
    """The directory with the artifact of a model channel, which holds a model.tar.gz or what was in one.

    An archive is unpacked into a temporary directory. A `UserError` over the files in it, raised while it is in use, is
    told with the archive's path.

    Raises
    ------
    UserError
        When the archive is damaged, breaks a rule, lacks a file of a model, or does not fit on the disk.
    """
    archive = channel / "model.tar.gz"
    if not archive.is_file():
        yield channel
        return
    with tempfile.TemporaryDirectory(prefix="ssd-algo-model-") as directory:
        _unpack(archive, Path(directory))
        missing = _missing(Path(directory))
        if missing:
            raise UserError(f"{archive} holds no model: {missing} missing; give a model.tar.gz made by training.")
        try:
            yield Path(directory)
        except UserError as error:
            raise UserError(str(error).replace(directory, str(archive))) from error


def _unpack(archive: Path, directory: Path) -> None:
    try:
        with _BoundedGzipFile(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for count, member in enumerate(tar, 1):
                    _check_member(archive, count, member)
                    _copy_member(tar, member, directory, stream)
            while stream.read(_CHUNK):  # to the end, where the checksum is
                stream.after_header()
    except _DAMAGED as error:
        raise UserError(f"{archive} is damaged and cannot be unpacked; upload it again.") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{archive} cannot be unpacked into {directory.parent} (the disk is full); use an instance with a larger "
            "volume."
        ) from error


class _BoundedGzipFile(gzip.GzipFile):
    """Refuses to go on beyond the limits: a small file can hold more than any disk."""

    def __init__(self, archive: Path) -> None:
        super().__init__(archive)
        self._archive, self._all, self._header = archive, 0, 0

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        self._all += len(part)
        self._header += len(part)
        if self._all > MOST_BYTES:
            raise UserError(
                f"{self._archive} has more than {MOST_BYTES / 1e9:g} GB when unpacked, which no model has; pack a "
                "model's files alone."
            )
        if self._header > MOST_BYTES_OF_A_HEADER:
            raise UserError(
                f"{self._archive} has a member with a header of more than {MOST_BYTES_OF_A_HEADER} bytes, which no "
                "model has; pack a model's files anew."
            )
        return part

    def after_header(self) -> None:
        """What was read so far belongs to no header."""
        self._header = 0


def _check_member(archive: Path, count: int, member: tarfile.TarInfo) -> None:
    """See that a member cannot have an effect outside of the directory, nor in it but by its own bytes."""
    name = printable(member.name if len(member.name) <= 100 else f"{member.name[:99]}…")
    if count > MOST_MEMBERS:
        raise UserError(
            f"{archive} has more than {MOST_MEMBERS} members, which no model has; pack a model's files alone."
        )
    # A sparse file is large by its header, not by bytes of the archive.
    if member.issparse() or not (member.isreg() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a sparse file" if member.issparse() else "a device"
        raise UserError(f'{archive}: "{name}" is {kind}, but a model has plain files only; pack them anew.')
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(
            f'{archive}: the path "{name}" is absolute or has "..", but must stay within the archive; pack a model\'s '
            "files anew."
        )


def _copy_member(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path, stream: _BoundedGzipFile) -> None:
    """Write a file with one of the model's names into the directory; read over any other."""
    name = os.path.normpath(member.name)
    source = tar.extractfile(member)
    if source is None:  # a directory
        return
    with open(directory / name if name in (*_REQUIRED, *_OPTIONAL) else os.devnull, "wb") as target:
        while part := source.read(_CHUNK):
            target.write(part)
            stream.after_header()


def _read_object(path: Path) -> dict[str, str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8 ({error}); use the file that training wrote.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a JSON object; use the file that training wrote.")
    return {str(name): str(each) for name, each in value.items()}
