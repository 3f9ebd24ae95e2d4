"""How far a piece of work is: bars on a terminal's standard error, nothing anywhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

# Called with a label and a total; inside its context, the value is called with each part that is done.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

_PARTS = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
_STEPS = "{desc} {n_fmt}/{total_fmt}|{bar}| {elapsed}, {remaining} left{postfix}"

tqdm.monitor_interval = 0  # no thread beside the bars: processes are forked


@contextmanager
def silent(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows nothing."""
    yield lambda done: None


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that stays, if standard error is a terminal; log lines and those of `say` stand whole above it."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    with logging_redirect_tqdm(), _shown(label, total, 0, _PARTS, leave=True) as shown:
        yield shown.update


@contextmanager
def steps(label: str, total: int, done: int) -> Iterator[Callable[[int, str], None]]:
    """The same for steps that are counted, of which some may be `done`; the bar goes when they have ended.

    The value is called with the number of steps done, and a text to stand behind it.
    """
    if not sys.stderr.isatty():
        yield lambda done, text: None
        return
    with logging_redirect_tqdm(), _shown(label, total, done, _STEPS, leave=False) as shown:

        def show(done: int, text: str) -> None:
            shown.set_postfix_str(text, refresh=False)
            shown.update(done - shown.n)

        yield show


def say(line: str, to_error: bool = False) -> None:
    """Print a line at once; above a bar, if there is one."""
    stream = sys.stderr if to_error else sys.stdout
    with tqdm.external_write_mode(file=stream):
        print(line, file=stream, flush=True)


def _shown(label: str, total: int, done: int, form: str, leave: bool) -> "tqdm[None]":
    return tqdm(
        total=total,
        initial=done,
        desc=label,
        file=sys.stderr,
        bar_format=form,
        leave=leave,
        dynamic_ncols=True,
        miniters=1,
    )
