"""SIGTERM: how the platform announces that a job is stopped or its spot instance taken."""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

# Seconds from the signal to the end of the process, whatever it is doing: the platform kills after 120.
_PATIENCE = 45

STOPPED_BEFORE_FIRST_STEP = "Stopped by SIGTERM before the first step: there is no model."


class Stopped(Exception):
    """Training was to stop and did."""


class Stop:
    """Whether the job is to stop; `listen` before anything else.

    Until `defer` is called the signal ends the process at once (exit code 0), as there is nothing to save.

    Attributes
    ----------
    requested : bool
    before_giving_up : callable
        Called before the process is ended as it took too long.
    """

    def __init__(self) -> None:
        self.requested = False
        self.before_giving_up: Callable[[], object] = bool
        self._deferred, self._since = False, math.inf

    def listen(self) -> None:
        """Take SIGTERM from now on; as process 1 of a container it would else have no effect."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.signal(signal.SIGTERM, self._request)
        # Python calls its handlers between two instructions of the main thread, which may wait for MXNet for a long
        # time; what it writes into the pipe arrives at once.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._limit, args=(reader,), name="stop", daemon=True).start()

    def ignore(self) -> None:
        """The job has ended: the interpreter gives up its handlers before it has, and its exit code is to stand."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def defer(self) -> None:
        """From now on the signal is only noted: `check` and `requested` tell."""
        self._deferred = True

    def check(self) -> None:
        """Go on, unless the job is to stop.

        Raises
        ------
        Stopped
        """
        if self.requested:
            raise Stopped

    def seconds_left(self) -> float:
        """Until the process is ended; infinite without a signal."""
        return self._since + _PATIENCE - time.monotonic()

    def _request(self, *_: object) -> None:
        self.requested, self._since = True, min(self._since, time.monotonic())
        if not self._deferred:
            sys.exit(0)

    def _limit(self, reader: int) -> None:
        while os.read(reader, 1) != bytes([signal.SIGTERM]):
            pass
        logger.warning("Received SIGTERM: the job ends as soon as what is running has.")
        time.sleep(_PATIENCE)
        logger.warning(
            "The step or the saving did not end within %d seconds; what was saved before is whole.", _PATIENCE
        )
        self.before_giving_up()
        logging.shutdown()
        os._exit(0)
