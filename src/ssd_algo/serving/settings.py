"""What the environment says of the server; docs/serving.md lists the names."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ssd_algo.contract.container import available_cpus
from ssd_algo.errors import NotAcceptable, UserError
from ssd_algo.model.artifact import NETWORK_FILES, Mean, Precision, parse_mean
from ssd_algo.serving import negotiation
from ssd_algo.serving.app import Limits

_WORKERS = (
    "SAGEMAKER_MODEL_SERVER_WORKERS",
    "MODEL_SERVER_WORKERS",
    "SAGEMAKER_GUNICORN_WORKERS",
    "SAGEMAKER_NUM_MODEL_WORKERS",
)
_REQUESTS = ("SAGEMAKER_MODEL_JOB_QUEUE_SIZE", "SAGEMAKER_GUNICORN_THREADS")
_TIMEOUT = ("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", "SAGEMAKER_MODEL_SERVER_TIMEOUT", "MODEL_SERVER_TIMEOUT")

# Of a batch transform, which waits for so long by default.
_SECONDS_OF_BATCHES = 600.0
# Where the platform says that there is no limit.
_UNLIMITED_MB = 1024

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes
    ----------
    port : int
    precision : str
        Of the network on the CPU.
    workers : int
        Server processes, each with a model of its own.
    cpus : int
        For each of them.
    startup_seconds : float
        For loading the model.
    limits : Limits
    default_accept : str
        Media type of the answer where the request does not say.
    log_level : int
        Of Python's logging.
    input_mean : three numbers or None
        What a network of the built-in's gets less than raw RGB; None: what its artifact shows.
    """

    port: int
    precision: Precision
    workers: int
    cpus: int
    startup_seconds: float
    limits: Limits
    default_accept: str
    log_level: int
    input_mean: Mean | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """
        Raises
        ------
        UserError
            Naming the variable that is wrong.
        """
        read = _Reader(environment)
        in_batches = environment.get("SAGEMAKER_BATCH", "").lower() == "true"
        workers = read.number(_WORKERS, 1, 1, 256)
        cpus = max(1, available_cpus() // workers)
        seconds = float(read.number(_TIMEOUT, int(_SECONDS_OF_BATCHES if in_batches else Limits.seconds), 1, 3600))
        bytes_of_payload = read.number(("MAX_CONTENT_LENGTH",), Limits.payload_mb * 2**20, 2**20, _UNLIMITED_MB * 2**20)
        payload = read.number(("SAGEMAKER_MAX_PAYLOAD_IN_MB",), bytes_of_payload // 2**20, 0, _UNLIMITED_MB)
        return cls(
            port=read.number(("SAGEMAKER_BIND_TO_PORT",), 8080, 1, 65535),
            precision=read.choice("SSD_ALGO_PRECISION", tuple(NETWORK_FILES)),
            workers=workers,
            cpus=cpus,
            startup_seconds=float(read.number(("SAGEMAKER_STARTUP_TIMEOUT",), 600, 1, 3600)),
            limits=Limits(
                requests=read.number(_REQUESTS, Limits.requests, 1, 1000),
                payload_mb=payload or _UNLIMITED_MB,
                seconds=seconds,
                decoders=cpus,
            ),
            default_accept=read.parsed("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", _media_type, negotiation.JSON),
            log_level=read.parsed("SAGEMAKER_CONTAINER_LOG_LEVEL", _level, logging.INFO),
            input_mean=read.parsed("SSD_ALGO_INPUT_MEAN", parse_mean, None),
        )


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def number(self, names: tuple[str, ...], default: int, least: int, most: int) -> int:
        """A whole number by the first of the names that is set."""
        for name in names:
            text = self._environment.get(name, "").strip()
            if text:
                if not (text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most):
                    what = "a port" if name == "SAGEMAKER_BIND_TO_PORT" else "a whole number"
                    raise UserError(f'{name} is "{text}"; it must be {what} from {least} to {most}.')
                return int(text)
        return default

    def choice(self, name: str, choices: tuple[Any, ...]) -> Any:
        """One of the choices, the first of them by default."""
        text = self._environment.get(name, "").strip() or choices[0]
        if text not in choices:
            raise UserError(f'{name} is "{text}"; it must be {" or ".join(choices)}.')
        return text

    def parsed(self, name: str, parse: Callable[[str], _Value], default: _Value) -> _Value:
        """What a function makes of a value; it raises ValueError with the rule."""
        text = self._environment.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            raise UserError(f'{name} is "{text}"; it must be {error}.') from error


def _media_type(text: str) -> str:
    try:
        negotiation.accepted(text, negotiation.JSON)
    except NotAcceptable as error:
        raise ValueError(f"{negotiation.JSON} or {negotiation.LINES}") from error
    return text


def _level(text: str) -> int:
    levels = logging.getLevelNamesMapping()
    if text.isascii() and text.isdecimal() and len(text) < 4:
        return int(text)
    if text.upper() not in levels:
        raise ValueError(f"a number, or one of {', '.join(levels)}")
    return levels[text.upper()]
