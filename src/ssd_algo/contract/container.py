"""The container's side of the platform: `/opt/ml` and what lies in it.

Everything else asks this object; nothing else spells `/opt/ml` or, `serving.server` apart, reads the environment.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_algo import whole_files
from ssd_algo.contract import gpus
from ssd_algo.errors import UserError

_PLATFORM_BASE = "/opt/ml"
FAILURE_LIMIT = 1024  # characters of the failure file that the platform shows


@dataclass(frozen=True)
class Channel:
    """One input channel.

    Attributes
    ----------
    name : str
    location : str
        The folder, or `s3://` prefix, of its files (File and FastFile mode).
    content_type : str
        Lower case, without parameters; empty when none was given.
    input_mode : str
        `File`, `FastFile` or `Pipe`.
    sharded : bool
        Whether each host has files of its own (ShardedByS3Key), not all of them.
    """

    name: str
    location: str
    content_type: str = ""
    input_mode: str = "File"
    sharded: bool = False


@dataclass(frozen=True)
class Hosts:
    """The hosts of a job, sorted, which of them this is, and the network interface between them, if it is known."""

    current: str
    all: tuple[str, ...]
    interface: str = ""


@dataclass(frozen=True)
class Container:
    """What the platform hands a container and where it wants results.

    Attributes
    ----------
    base : Path
        `/opt/ml`, or its replacement.
    on_platform : bool
        Whether a SageMaker training job runs this container; then the platform packs the artifact.
    """

    base: Path
    on_platform: bool = False

    @classmethod
    def from_environment(cls, base: Path | None = None) -> "Container":
        """The container this process runs in: `base`, else `SAGEMAKER_BASE_DIR`, replaces `/opt/ml`."""
        return cls(
            base=base or Path(os.environ.get("SAGEMAKER_BASE_DIR") or _PLATFORM_BASE),
            on_platform=bool(os.environ.get("TRAINING_JOB_NAME")),
        )

    @property
    def model_directory(self) -> Path:
        return self.base / "model"

    @property
    def pretrained_directory(self) -> Path:
        """Where the image has its ImageNet weights; `SSD_ALGO_PRETRAINED` replaces it."""
        return Path(os.environ.get("SSD_ALGO_PRETRAINED") or "/opt/ssd-algo/pretrained")

    @property
    def output_directory(self) -> Path:
        return self.base / "output"

    @property
    def packed_model(self) -> Path:
        """Where model.tar.gz goes when no platform packs it."""
        return self.output_directory / "model.tar.gz"

    def checkpoint_directory(self) -> Path | None:
        """Where checkpoints go: what checkpointconfig.json says, else `checkpoints` where that folder is there.

        Raises
        ------
        UserError
            When the configuration is not one.
        """
        path, folder = self._config("checkpointconfig"), self.base / "checkpoints"
        if not path.is_file():
            return folder if folder.is_dir() else None
        local = _read_object(path).get("LocalPath") or folder
        if not isinstance(local, str | Path) or not Path(local).is_absolute():
            raise UserError(f'{path}: "LocalPath" must be an absolute path; it is {local}.')
        within = Path(local).is_relative_to(_PLATFORM_BASE)
        return self.base / Path(local).relative_to(_PLATFORM_BASE) if within else Path(local)

    @property
    def hyperparameters_file(self) -> Path:
        return self._config("hyperparameters")

    def hyperparameters(self) -> dict[str, str]:
        """The job's hyperparameters as the platform wrote them, every value a string.

        Raises
        ------
        UserError
            When the file is missing or is not a flat JSON object.
        """
        path = self.hyperparameters_file
        if not path.is_file():
            raise UserError(
                f"{path} is missing; write the hyperparameters into it as a JSON object, "
                '{"num_classes": "2", "num_training_samples": "100", ...}.'
            )
        return read_hyperparameters(path)

    def channels(self) -> dict[str, Channel]:
        """Input channels by name: the configured ones or, without a configuration, the folders that are there."""
        data = self.base / "input" / "data"
        path = self._config("inputdataconfig")
        if path.is_file():
            configured = _read_object(path)
            bad = [name for name, value in configured.items() if not isinstance(value, dict)]
            if bad:
                raise UserError(f"{path}: the value of channel {bad[0]} is not a JSON object.")
        else:
            folders = sorted(data.iterdir()) if data.is_dir() else []
            configured = {each.name: {} for each in folders if each.is_dir() and not each.name.startswith(".")}
        return {
            name: Channel(
                name,
                str(data / name),
                content_type=str(value.get("ContentType") or "").split(";")[0].strip().lower(),
                input_mode=str(value.get("TrainingInputMode") or "File"),
                sharded=value.get("S3DistributionType") == "ShardedByS3Key",
            )
            for name, value in configured.items()
        }

    def hosts(self) -> Hosts:
        """The job's hosts; this one alone, as `algo-1`, without a configuration."""
        path = self._config("resourceconfig")
        if not path.is_file():
            return Hosts("algo-1", ("algo-1",))
        config = _read_object(path)
        current = str(config.get("current_host") or "algo-1")
        hosts = config.get("hosts") or [current]
        if not isinstance(hosts, list):
            raise UserError(f'{path}: "hosts" must be a list of host names; it is {hosts}.')
        return Hosts(current, tuple(sorted(map(str, hosts))), str(config.get("network_interface_name") or ""))

    def write_output(self, name: str, document: dict[str, Any]) -> Path:
        """Leave a JSON file among the job's output; a reader sees the old or the new one."""
        return self.write_text(name, json.dumps(document, indent=1))

    def write_text(self, name: str, text: str) -> Path:
        """Leave a file among the job's output; a reader sees the old or the new one."""
        path = self.output_directory / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        whole_files.replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return path

    def forget_failure(self) -> None:
        """Remove the reason of an earlier run's failure in the same folder."""
        self._failure_file.unlink(missing_ok=True)

    def write_failure(self, text: str) -> None:
        """Leave the reason of a failure where the platform looks for it."""
        self.output_directory.mkdir(parents=True, exist_ok=True)
        encoded = text.encode(errors="backslashreplace")
        whole_files.replace(self._failure_file, lambda temporary: temporary.write_bytes(encoded))

    @property
    def _failure_file(self) -> Path:
        return self.output_directory / "failure"

    def _config(self, name: str) -> Path:
        return self.base / "input" / "config" / f"{name}.json"


def read_hyperparameters(path: Path, within: str = "") -> dict[str, str]:
    """A file of hyperparameters, every value as the string that the platform writes for it.

    Parameters
    ----------
    within : str
        The key below which they may lie in the file, with others beside it.

    Raises
    ------
    UserError
        When it is not a flat JSON object.
    """
    values = _read_object(path)
    if within and isinstance(values.get(within), dict):
        values = values[within]
    nested = [name for name, value in values.items() if isinstance(value, dict | list)]
    if nested:
        raise UserError(f"{path}: hyperparameter {nested[0]} is a JSON object or array; give it as a string.")
    return {name: value if isinstance(value, str) else _as_platform_writes(value) for name, value in values.items()}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode()  # fails on halves of surrogate pairs
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8 ({error}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, not a JSON object.")
    return value


def _as_platform_writes(value: Any) -> str:
    return str(value) if isinstance(value, bool | float | int) else ""


def check_temporary_directory() -> None:
    """See that there is one: libraries take it for granted, when they are imported or used.

    Raises
    ------
    UserError
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            "There is no directory for temporary files that can be written; give the container one, as docker run's "
            "--tmpfs /tmp does."
        ) from error


def available_cpus() -> int:
    """CPUs that this container may use: the scheduler's set, cut by the cgroup's quota, at least 1."""
    cpus = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return max(1, min(cpus, int(quota)) if quota else cpus)


def _cgroup_quota() -> float | None:
    """CPUs by the cgroup's quota (version 2, then 1); None without one."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        limit_us = int((folder / "cpu.cfs_quota_us").read_text())
        return None if limit_us <= 0 else limit_us / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None


def set_up_mxnet(one_shape: bool) -> None:
    """What MXNet takes from the environment; call before mxnet is imported.

    Left alone it uses half of the CPUs for OpenMP, as if each were a hyper-thread: on 2 cores that halves the training
    speed. cuDNN tries its algorithms for each new shape of a batch, which pays where there is but `one_shape`.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(available_cpus()))
    os.environ.setdefault("MXNET_CUDNN_AUTOTUNE_DEFAULT", "1" if one_shape else "0")
    gpus.provide_driver()


@contextmanager
def set_up_matplotlib() -> Iterator[None]:
    """Within it matplotlib may be imported, and leaves nothing behind but where MPLCONFIGDIR says.

    It would keep its settings and a list of fonts below a home: there may be none, or a read-only one.
    """
    if os.environ.get("MPLCONFIGDIR"):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="ssd-algo-charts-") as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


def set_up_kvstore(role: str, scheduler: str, port: int, hosts: int, address: str) -> None:
    """What MXNet's parameter server takes from the environment; call before mxnet is imported.

    Parameters
    ----------
    role : str
        This process's: `scheduler`, `server` or `worker`.
    scheduler, port
        IP address and port of the scheduler.
    hosts : int
        Each has a server and a worker.
    address : str
        This host's IP address.
    """
    os.environ |= {
        "DMLC_ROLE": role,
        "DMLC_PS_ROOT_URI": scheduler,
        "DMLC_PS_ROOT_PORT": str(port),
        "DMLC_NUM_SERVER": str(hosts),
        "DMLC_NUM_WORKER": str(hosts),
        "DMLC_NODE_HOST": address,
    }
    if role != "worker":
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def hide_gpus() -> None:
    """Let MXNet see no GPU; call before mxnet is imported."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
