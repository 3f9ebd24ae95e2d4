"""The channels that arguments of a command mean."""

from collections.abc import Container, Sequence
from pathlib import Path

from ssd_algo.contract.container import Channel
from ssd_algo.errors import UserError


def given(arguments: Sequence[str], also: Sequence[str] = ()) -> dict[str, Channel]:
    """Channels by name: each argument is a folder or `s3://` prefix, NAME=FOLDER, or a folder of channels.

    Parameters
    ----------
    also : names of channels
        By which, beside those of training, a folder of channels is known.

    Raises
    ------
    UserError
        When one is given more than once.
    """
    from ssd_algo.training import data

    channels: dict[str, Channel] = {}
    for name, location in (pair for each in arguments for pair in _meant(each, (*data.CHANNELS, *also))):
        if name in channels:
            raise UserError(f"channel {name} is given more than once; give each channel once.")
        channels[name] = Channel(name, location)
    return channels


def _meant(argument: str, known: Container[str]) -> list[tuple[str, str]]:
    name, separator, location = argument.partition("=")
    if separator and "/" not in name:
        return [(name, location)]
    if argument.startswith("s3://"):
        return [(argument.rstrip("/").rsplit("/", 1)[-1], argument)]
    name = Path(argument).absolute().name
    inside = sorted(Path(argument).iterdir()) if Path(argument).is_dir() else []
    if name not in known and any(path.name in known for path in inside):
        return [(path.name, str(path)) for path in inside if path.is_dir() and not path.name.startswith(".")]
    return [(name, argument)]
