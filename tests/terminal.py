"""A terminal to run commands on: what was written to it, and what stands on its screen in the end."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

COLUMNS = 120


def run(command: Sequence[str | Path], both: bool = True, **options: object) -> tuple[int, str, str]:
    """Run a command with standard error, and output if `both`, on a terminal.

    Returns
    -------
    tuple
        Exit code, what was written to the terminal, and standard output where that is a pipe.
    """
    terminal, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    out = other_end if both else subprocess.PIPE
    with subprocess.Popen(command, stdout=out, stderr=other_end, text=True, **options) as process:  # type: ignore[call-overload]
        os.close(other_end)
        written = b""
        try:
            while part := os.read(terminal, 65536):
                written += part
        except OSError:  # the other end is closed
            pass
        os.close(terminal)
        piped = "" if both else process.stdout.read()
    return process.returncode, written.decode(), piped


def screen(written: str) -> list[str]:
    """The lines of an endlessly wide screen: a carriage return goes back, and what follows is written over it."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[K|\x1b\[A|[^\r\n\x1b]+|.", written, re.DOTALL):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif part == "\x1b[K":
            lines[row] = lines[row][:column]
        elif part == "\x1b[A":
            row -= 1
        else:
            assert "\x1b" not in part
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]
