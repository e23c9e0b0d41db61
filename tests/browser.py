"""Chromium without a window, for tests that look at pages as people do."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
)
LAUNCHER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
"""A browser reads commands from file 3 and writes to file 4."""

PATIENCE = 60.0


class Browser:
    """Chromium without a window, driven over a pipe by its DevTools protocol: JSON that ends with a zero byte."""

    def __init__(self, program, profile):
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        self.events, self._count, self._buffer = [], 0, b""
        launch = [sys.executable, "-c", LAUNCHER, str(commands), str(answers)]
        # Its own words are on paths and buses of a desktop; what the page logs comes over the pipe.
        self._process = subprocess.Popen(
            [*launch, program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session = None

    def close(self):
        self._session = None
        self.call("Browser.close")
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)

    def call(self, method, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            got = self._next()
            if got.get("id") == self._count:
                assert "error" not in got, f"{method}: {got['error']}"
                return got["result"]
            self.events.append(got)

    def _next(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE:.0f} s"
            read = os.read(self._read, 1 << 16)
            assert read, f"the browser ended with {self._process.poll()}"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path, *, width, dark=False):
        """Show a file in a window of so many pixels, and wait until it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.visit(path.as_uri())

    def visit(self, url):
        """Go to an address, and wait until its page has loaded."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        end = time.monotonic() + PATIENCE
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            assert time.monotonic() < end, "the page did not load"
            self.events.append(self._next())

    def wait_for(self, *texts):
        """Wait until the page shows all these texts, as one that is drawn by scripts does a little later."""
        end = time.monotonic() + PATIENCE
        while missing := [t for t in texts if t not in (shown := self.ask("document.body?.innerText") or "")]:
            assert time.monotonic() < end, f"the page does not show {missing}; it shows {shown[:3000]!r}"
            time.sleep(0.2)
        return shown

    def wait_until(self, expression):
        """Wait until a JavaScript expression comes to what is true."""
        end = time.monotonic() + PATIENCE
        while not self.ask(expression):
            assert time.monotonic() < end, f"after {PATIENCE:.0f} s the page does not have {expression}"
            time.sleep(0.2)

    def screenshot(self, path):
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def ask(self, expression):
        """Return what a JavaScript expression comes to."""
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def unfold(self):
        self.ask("document.querySelectorAll('details').forEach(d => d.open = true)")

    def seen(self, method):
        return [e["params"] for e in self.events if e.get("method") == method]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        message = "no Chromium to look at pages with; `apt-get install chromium` brings one"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
