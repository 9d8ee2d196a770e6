"""A real browser for tests: headless Chromium over the DevTools protocol's pipe, standard library only.

``Browser`` opens one page at a time. What its Content-Security-Policy blocks and what it logs is gathered in ``log``,
what it asks to load in ``requests``. The page's own policy does not bind ``evaluate``.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--disable-sync",
    "--remote-debugging-pipe", "about:blank",
)  # fmt: skip
PATIENCE_S = 60.0


def installed() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One headless browser with one page; a context manager."""

    def __init__(self, path: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="browser-")
        theirs, self._write = os.pipe()
        self._read, answers = os.pipe()
        theirs, answers = _above(theirs), _above(answers)
        silent = os.open(os.devnull, os.O_RDWR)
        self._pid = os.posix_spawn(
            path,
            [path, *OPTIONS[:-1], f"--user-data-dir={self._folder}", OPTIONS[-1]],
            os.environ | {"HOME": self._folder},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, f, t) for f, t in ((theirs, 3), (answers, 4), (silent, 1), (silent, 2))
            ],
            setpgroup=0,
        )
        for mine in (theirs, answers, silent):
            os.close(mine)
        self._next, self._rest, self._session = 0, b"", ""
        self.log: list[str] = []
        self.requests: list[str] = []
        self._events: list[str] = []

    def __enter__(self) -> Browser:
        page = next(t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._folder, ignore_errors=True)

    def open(self, page: Path, width: int, dark: bool = False, height: int = 900, media: str = "") -> None:
        """Load a file at this width in CSS pixels; ``media`` "print" shows it as printed. Logs begin anew."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.log, self.requests, self._events = [], [], []
        self._call("Page.navigate", url=page.resolve().as_uri())
        self._until("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def picture(self, whole: bool = True) -> bytes:
        """A PNG of the whole page, or of the first screen."""
        return base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def press(self, key: str) -> None:
        """One key, such as ``Tab``."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=9)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._next += 1
        message: dict[str, Any] = {"id": self._next, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._next:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
        raise AssertionError("unreachable")

    def _until(self, event: str) -> None:
        if event in self._events:
            return
        for message in self._messages():
            if message.get("method") == event:
                return

    def _messages(self) -> Iterator[dict[str, Any]]:
        """Messages as they come; events are kept on the way."""
        end = time.monotonic() + PATIENCE_S
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
                more = os.read(self._read, 1 << 20) if ready else b""
                if not more:
                    raise RuntimeError("the browser does not answer" if not ready else "the browser has ended")
                self._rest += more
            line, self._rest = self._rest.split(b"\0", 1)
            message = json.loads(line)
            self._note(message)
            yield message

    def _note(self, message: dict[str, Any]) -> None:
        about = message.get("params") or {}
        self._events.append(str(message.get("method")))
        if message.get("method") == "Log.entryAdded":
            self.log.append(about["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.log.append(about["exceptionDetails"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"][:100])


def _above(number: int) -> int:
    """The same file under a number that the child's 3 and 4 cannot hit."""
    other = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(number)
    return other


if __name__ == "__main__":  # python tests/browser.py PAGE PICTURE [WIDTH [HEIGHT [dark]]]: its first screen as PNG
    page, picture, *rest = sys.argv[1:]
    found = installed()
    if found is None:
        sys.exit(f"no browser is installed: none of {', '.join(NAMES)} is on PATH")
    with Browser(found) as browser:
        browser.open(
            Path(page), int(rest[0]) if rest else 1280, "dark" in rest, int(rest[1]) if len(rest) > 1 else 1500
        )
        Path(picture).write_bytes(browser.picture(whole=False))
