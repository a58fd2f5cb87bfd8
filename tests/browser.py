"""A real browser without a screen (Debian's chromium), driven over its DevTools protocol, for the tests of pages."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
SECONDS = 60.0
"""The most that anything may take, on a machine however loaded."""
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")


class Browser:
    """One page. errors: exceptions of its scripts, what they wrote to the console as errors, and what could not be loaded."""

    def __init__(self, requests: int, replies: int) -> None:
        """The ends of two pipes to the browser."""
        self.errors: list[str] = []
        self._requests, self._replies = requests, replies
        self._received = b""
        self._number = 0
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while True:
            reply = self._read(end, method)
            if reply.get("id") == number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return dict(reply["result"])

    def _read(self, end: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._replies], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{what}: the browser has not answered for {SECONDS:.0f} s"
            piece = os.read(self._replies, 2**20)
            assert piece, f"{what}: the browser has ended"
            self._received += piece
        line, _, self._received = self._received.partition(b"\0")
        message = json.loads(line)
        self._note(message)
        return dict(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, values = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(value.get("value", value.get("description"))) for value in values["args"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.errors.append(f"{values['entry']['text']} ({values['entry'].get('url', '')})")

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Go to an address, in a window of that size; returns when the page has loaded."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, promises awaited; it may be what JSON holds."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, f"{expression}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """The value of an expression, as soon as it is true."""
        end = time.monotonic() + SECONDS
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"still not true after {SECONDS:.0f} s: {expression}"
            time.sleep(0.02)
        return value

    def click(self, selector: str) -> None:
        """Click in the middle of the first element that a CSS selector finds, as a mouse does."""
        place = self.value(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            "element.scrollIntoView({block: 'center', behavior: 'instant'}); const box = element.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key by its name, such as Enter or ArrowRight."""
        text = {"text": "\r"} if key == "Enter" else {}
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=codes[key], **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=codes[key])

    def type(self, text: str) -> None:
        """Type into whatever has the keyboard."""
        self.send("Input.insertText", text=text)

    def give_file(self, selector: str, path: Path) -> None:
        """Choose a file in an input, as its dialog does."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """What the window shows, as PNG; whole: the whole page."""
        shown = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shown["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in a folder, which ends with the block."""
    assert CHROMIUM is not None
    theirs_in, requests = os.pipe()
    replies, theirs_out = os.pipe()
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--hide-scrollbars",
    ]
    # The protocol reads from 3 and writes to 4; a shell puts the pipes there.
    command = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$0" "$@"'
    process = subprocess.Popen(
        ["bash", "-c", command, CHROMIUM, *options, "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        made = Browser(requests, replies)
        yield made
        made.send("Browser.close")
        process.wait(SECONDS)
    finally:
        process.kill()
        process.wait()
        os.close(requests)
        os.close(replies)
