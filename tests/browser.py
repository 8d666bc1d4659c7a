"""Headless Chromium by its DevTools protocol, over a pipe: no port, no driver, no package."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
    "about:blank",
)
# The browser takes its two ends of the pipe as descriptors 3 and 4.
LAUNCHER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
OPEN = "document.querySelectorAll('details').forEach((details) => details.open = true)"
OUTSIDE = """[...document.querySelectorAll('main *')].filter((element) =>
    !element.closest('.scroll') && element.getBoundingClientRect().right > innerWidth + 0.5
).map((element) => element.outerHTML.slice(0, 80))"""
CONTRASTS = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const part = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = numbers(colour).slice(0, 3).map((v) => part(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    // A number in the matrix stands on the cell before it.
    if (element.classList.contains("cell")) return getComputedStyle(element.previousElementSibling).fill;
    for (let up = element; up; up = up.parentElement) {
      const colour = getComputedStyle(up).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
  };
  const low = {};
  for (const element of document.querySelectorAll("body *")) {
    const said = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!said || element.closest("script, title, [hidden]") || element.tagName === "OPTION") continue;
    const style = getComputedStyle(element);
    const both = [element.closest("svg") ? style.fill : style.color, ground(element)].map(light);
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    if (ratio < 4.5) low[element.tagName + "." + element.getAttribute("class")] = ratio;
  }
  return low;
})()"""
SECONDS = 30.0  # for any answer


def find() -> str | None:
    """Path of a Chromium, by CHROMIUM or on the PATH; None without one."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser with one page; `open` shows a file in it.

    Attributes:
        errors: What the page logged as an error or threw since it was opened.
        requests: Addresses that it asked for, data URIs left out.
    """

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process, self._to, self._back = process, to, back
        self._selector = DefaultSelector()
        self._selector.register(back, EVENT_READ)
        self._buffer, self._number, self._session = b"", 0, ""
        self._loaded = False
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        """The result of one command."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        number = self._number
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    msg = f"{method}: {answer['error']}"
                    raise RuntimeError(msg)
                return answer["result"]

    def open(self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False, media: str = "") -> None:
        """Show a file in a window of this size, in this theme, as for ``print`` when ``media`` says so."""
        self.errors, self.requests, self._loaded = [], [], False
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, key: str, *, code: int) -> None:
        """Press a key and let it go; ``code`` is its virtual key code."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self, *, whole: bool = False) -> Image.Image:
        """The window, or the whole page, as an RGB picture."""
        clip = {}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **clip)
        return Image.open(BytesIO(base64.b64decode(answer["data"]))).convert("RGB")

    def _receive(self) -> dict[str, Any]:
        """The next message; events are noted on the way."""
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                msg = f"the browser said nothing for {SECONDS:.0f} s"
                raise TimeoutError(msg)
            data = os.read(self._back, 1 << 20)
            if not data:
                msg = f"the browser ended with exit code {self._process.wait()}"
                raise RuntimeError(msg)
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        event, details = message.get("method"), message.get("params", {})
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(details["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(details["args"]))
        elif event == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.errors.append(details["entry"]["text"])
        elif event == "Network.requestWillBeSent" and not details["request"]["url"].startswith("data:"):
            self.requests.append(details["request"]["url"])
        return message


@contextlib.contextmanager
def browser(program: str) -> Iterator[Browser]:
    """A browser of its own, with an empty profile, that ends with the block."""
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (their_in, their_out)]  # clear of 3 and 4
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [sys.executable, "-S", "-E", "-c", LAUNCHER, *map(str, theirs), program, *OPTIONS]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (their_in, their_out, *theirs):
            os.close(end)
        try:
            shown = Browser(process, our_out, our_in)
            yield shown
            shown._session = ""
            shown.send("Browser.close")
            process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
            os.close(our_out)
            os.close(our_in)


def show_all(chromium: Browser, path: Path, *, width: int = 1200, height: int = 800, dark: bool = False) -> None:
    """A page with everything on it that can be opened; it asks for nothing and logs no error."""
    chromium.open(path, width=width, height=height, dark=dark)
    assert chromium.errors == []
    assert chromium.requests == [path.resolve().as_uri()]
    chromium.evaluate(OPEN)


def check_width(chromium: Browser, width: int) -> None:
    """Nothing is wider than the window: text that ends beyond its card is cut off or lies over something else."""
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate(OUTSIDE) == []


def check_contrasts(chromium: Browser) -> None:
    """All text can be read: WCAG 2.1, 1.4.3, a contrast of at least 4.5 (AA)."""
    assert chromium.evaluate(CONTRASTS) == {}
