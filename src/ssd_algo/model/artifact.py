"""The model directory: its file names, saved whole or not at all, loaded with clear refusals."""

import errno
import gzip
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssd_algo.errors import UserError

if TYPE_CHECKING:
    import mxnet as mx

SYMBOL_FILE = "model_algo_1-symbol.json"
PARAMETERS_FILE = "model_algo_1-0000.params"
HYPERPARAMETERS_FILE = "hyperparams.json"
CLASSES_FILE = "classes.json"
_REQUIRED = (SYMBOL_FILE, PARAMETERS_FILE, HYPERPARAMETERS_FILE)
_OPTIONAL = (CLASSES_FILE,)


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

    Returns
    -------
    Path
        The parameter file.

    Raises
    ------
    UserError
        When the disk is full or not writable.
    """
    import mxnet as mx

    auxiliary = set(symbol.list_auxiliary_states())
    arrays = {f"{'aux' if name in auxiliary else 'arg'}:{name}": mx.nd.array(v) for name, v in parameters.items()}
    names = {str(identity): name for identity, name in sorted(class_names.items())}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory / SYMBOL_FILE, lambda path: path.write_text(symbol.tojson()))
        _replace(directory / HYPERPARAMETERS_FILE, lambda path: path.write_text(json.dumps(hyperparameters)))
        _replace(directory / CLASSES_FILE, lambda path: path.write_text(json.dumps(names)))
        _replace(directory / PARAMETERS_FILE, lambda path: mx.nd.save(str(path), arrays))
    except (OSError, mx.base.MXNetError) as error:
        raise _cannot_write(directory, sum(value.nbytes for value in parameters.values()), error) from error
    return directory / PARAMETERS_FILE


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
            for name in (*_REQUIRED, *_OPTIONAL):
                if (directory / name).is_file():
                    tar.add(directory / name, arcname=name)

    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        _replace(archive, write)
    except OSError as error:
        size = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
        raise _cannot_write(archive, size, error) from error


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old or the new file."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, size: int, error: Exception) -> UserError:
    full = not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = "the disk is full" if full else str(error)
    return UserError(f"{path} cannot be written ({why}; {size} bytes are needed); what was saved before is untouched.")


def describe(directory: Path) -> Description:
    """Read what an artifact says of itself.

    Raises
    ------
    UserError
        Naming the file that is missing or wrong.
    """
    missing = [name for name in _REQUIRED if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"{directory} holds no model: {', '.join(missing)} missing; unpack a model.tar.gz made by training there."
        )
    hyperparameters = _read_object(directory / HYPERPARAMETERS_FILE)
    classes = _read_object(directory / CLASSES_FILE) if (directory / CLASSES_FILE).is_file() else {}
    if not all(identity.isdecimal() for identity in classes):
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
    import mxnet as mx

    path = directory / PARAMETERS_FILE
    try:
        arrays = mx.nd.load(str(path))
        return {name.split(":", 1)[-1]: array.asnumpy() for name, array in arrays.items()}
    except (mx.base.MXNetError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged and cannot be loaded; unpack the model.tar.gz again.") from error


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
        raise UserError(f"{path} is damaged or was not written by this image's training.") from error


@contextmanager
def unpacked(channel: Path) -> Iterator[Path]:
    """The directory with the artifact of a model channel, which holds a model.tar.gz or what was in one.

    Raises
    ------
    UserError
        When neither is there, or the archive is damaged.
    """
    archive = channel / "model.tar.gz"
    if not archive.is_file():
        yield channel
        return
    with tempfile.TemporaryDirectory(prefix="ssd-algo-model-") as directory:
        try:
            _unpack(archive, Path(directory))
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{archive} is damaged and cannot be unpacked; upload it again.") from error
        yield Path(directory)


def _unpack(archive: Path, directory: Path) -> None:
    with gzip.open(archive) as compressed:
        with tarfile.open(fileobj=compressed, mode="r|") as tar:
            for member in tar:
                # Only plain files with a known name are taken, and written under it: links and paths have no effect.
                name = os.path.normpath(member.name)
                source = tar.extractfile(member) if member.isfile() and name in (*_REQUIRED, *_OPTIONAL) else None
                if source is not None:
                    with (directory / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
        while compressed.read(1 << 20):  # to the end, where the checksum is
            pass


def _read_object(path: Path) -> dict[str, str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON in UTF-8 ({error}); use the file that training wrote.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a JSON object; use the file that training wrote.")
    return {str(name): str(each) for name, each in value.items()}
