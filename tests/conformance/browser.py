"""A headless Chromium, spoken to over two pipes in the DevTools protocol: nothing to install beside the browser."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
# Chromium reads commands from descriptor 3 and answers on 4, whatever numbers the pipes have here
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
SECONDS = 60


def installed():
    """The path of a browser, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page.

    Attributes:
        console: what the page and the browser have logged, exceptions among it.
        requested: addresses that the page has asked for, its own among them.
    """

    def __init__(self, folder):
        self.console, self.requested = [], []
        self._sent, self._left, self._session = 0, b"", None
        self._log = folder / "chromium.log"
        commands, answers = os.pipe(), os.pipe()
        ends = (commands[0], answers[1])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", LAUNCH, *map(str, ends), installed(), *FLAGS),
                    f"--user-data-dir={folder / 'profile'}",
                ],
                pass_fds=ends,
                stdout=log,
                stderr=log,
            )
        for end in ends:
            os.close(end)
        self._commands, self._answers = commands[1], answers[0]
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """The result of one command."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda said: said.get("id") == self._sent)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def open(self, path, width, height=800, scheme="light"):
        """Show a file in a window of this size and wait until it has loaded."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.absolute().as_uri())
        self._until(lambda said: said.get("method") == "Page.loadEventFired")

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path):
        """The whole page as PNG, for a person to look at."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path):
        """The page as it prints."""
        data = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self):
        """End the browser."""
        os.close(self._commands)
        os.close(self._answers)
        try:
            self._process.wait(10)  # it ends when its pipe does
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _until(self, wanted):
        """The first message that is wanted; the console and the requests are noted on the way."""
        until = time.monotonic() + SECONDS
        while True:
            while b"\0" in self._left:
                line, self._left = self._left.split(b"\0", 1)
                said = json.loads(line)
                self._note(said)
                if wanted(said):
                    return said
            ready, _, _ = select.select([self._answers], [], [], max(0, until - time.monotonic()))
            chunk = os.read(self._answers, 1 << 16) if ready else b""
            if not chunk:
                log = self._log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"Chromium {'ended' if ready else 'did not answer'}; it said: {log}")
            self._left += chunk

    def _note(self, said):
        params = said.get("params", {})
        match said.get("method"):
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.console.append(params)
            case "Network.requestWillBeSent":
                self.requested.append(params["request"]["url"])


needs_browser = pytest.mark.skipif(
    installed() is None, reason="no chromium, chromium-browser or google-chrome is on the PATH"
)

# what a person could not read: text that leaves the window, other than in a box that scrolls
CUT = """
[...document.querySelectorAll("body *")].filter(element => {
  const box = element.getBoundingClientRect();
  return box.right > document.documentElement.clientWidth + 1 && !element.closest(".scroll");
}).map(element => element.outerHTML.slice(0, 200))
"""
