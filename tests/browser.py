"""A headless Chromium for tests of pages, steered through its debugging pipe: no driver, no package."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LAUNCH = """import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])"""
"""A browser reads from descriptor 3 and writes to 4, whatever the pipes' own numbers are."""
PATIENCE = 60.0  # seconds for one answer, on a machine that has other things to do


class Browser:
    """One page of a running browser. ``problems`` gathers what it complains about."""

    def __init__(self, process: subprocess.Popen[bytes], reading: int, writing: int) -> None:
        self.process, self.reading, self.writing = process, reading, writing
        self.buffer = b""
        self.last = 0
        self.session: str | None = None
        self.problems: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and wait for its answer."""
        self.last += 1
        told: dict[str, Any] = {"id": self.last, "method": method, "params": parameters}
        if self.session is not None:
            told["sessionId"] = self.session
        os.write(self.writing, json.dumps(told).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self.last:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result
            self._hear(message)

    def _next(self) -> dict[str, Any]:
        import select

        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reading], [], [], PATIENCE)
            assert ready, "the browser says nothing any more"
            read = os.read(self.reading, 1 << 20)
            assert read, "the browser has ended"
            self.buffer += read
        first, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message

    def _hear(self, message: dict[str, Any]) -> None:
        method, told = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.problems.append(told["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.problems.append(json.dumps(told["args"]))

    # -- what a reader does --------------------------------------------------------------------------

    def open(self, path: Path, *, width: int = 1440, height: int = 900, dark: bool = False, scale: float = 1) -> float:
        """Open a file; returns the seconds until the page had run."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        start = time.perf_counter()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")
        return time.perf_counter() - start

    def run(self, code: str) -> Any:
        """The value of an expression on the page; promises are awaited."""
        said = self.ask("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, code: str) -> None:
        """Wait until an expression holds."""
        end = time.monotonic() + PATIENCE
        while not self.run(code):
            assert time.monotonic() < end, f"never: {code}"
            time.sleep(0.02)

    def click(self, selector: str, times: int = 1) -> None:
        """Click the middle of the first element that a selector finds, as a mouse does."""
        box = self.run(
            f"(e => {{ if (e instanceof HTMLElement) e.scrollIntoView({{block: 'nearest'}});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        at = {"x": box[0], "y": box[1], "button": "left"}
        for count in range(1, times + 1):
            self.ask("Input.dispatchMouseEvent", type="mousePressed", clickCount=count, **at)
            self.ask("Input.dispatchMouseEvent", type="mouseReleased", clickCount=count, **at)
        self.settle()

    def type(self, text: str) -> None:
        """Type where the cursor is."""
        self.ask("Input.insertText", text=text)
        self.settle()

    def press(self, key: str, code: int = 0) -> None:
        """Press a key, such as ``Enter`` (13)."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                     **(text if kind == "keyDown" else {}))  # fmt: skip
        self.settle()

    def settle(self) -> None:
        """Wait until the page has drawn what was asked for."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def picture(self) -> bytes:
        """A screenshot as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a fresh profile in ``folder``; the test is skipped where none is installed."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium (on Debian: apt install chromium), or name one in $CHROMIUM")
    their_in, writing = os.pipe()
    reading, their_out = os.pipe()
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--disable-extensions", "--disable-background-networking", f"--user-data-dir={folder}",
               "--remote-debugging-pipe"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(their_in), str(their_out), *command],
        pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(their_in)
    os.close(their_out)
    try:
        yield Browser(process, reading, writing)
    finally:
        os.close(writing)
        os.close(reading)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
