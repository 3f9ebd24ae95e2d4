"""A headless Chromium, driven over its DevTools protocol."""

import itertools
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
]


class Browser:
    """Chromium's DevTools protocol over a pipe: messages in JSON, a zero byte behind each."""

    def __init__(self, pipe: socket.socket) -> None:
        self.events: list[dict[str, Any]] = []
        self._pipe, self._received, self._numbers = pipe, b"", itertools.count(1)

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """A command's result; events that come meanwhile are kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        self._pipe.sendall(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, method: str, **params: Any) -> None:
        """Until an event with these parameters has come."""
        while not any(each["method"] == method and params.items() <= each["params"].items() for each in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            received = self._pipe.recv(1 << 16)
            assert received, "Chromium ended."
            self._received += received
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)


class Page:
    """A tab with a page."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "DOM", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        loader = self.call("Page.navigate", url=url)["loaderId"]
        browser.wait_for("Page.lifecycleEvent", loaderId=loader, name="load")

    def call(self, method: str, **params: Any) -> Any:
        return self._browser.call(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, or of its promise."""
        said = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def events(self, method: str) -> list[dict[str, Any]]:
        """What has come of an event for this tab."""
        mine = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in mine if event["method"] == method]


@contextmanager
def running() -> Iterator[Browser]:
    """A Chromium with a profile of its own; it ends when its pipe does."""
    # It reads from descriptor 3 and writes to 4.
    command = ["sh", "-c", 'exec "$@" 3<&0 4>&0 </dev/null', "sh", str(CHROMIUM), *OPTIONS, "--remote-debugging-pipe"]
    ours, its = socket.socketpair()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        with its:
            process = subprocess.Popen(
                [*command, f"--user-data-dir={profile}"],
                stdin=its,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        with process, ours:
            ours.settimeout(60)
            yield Browser(ours)
