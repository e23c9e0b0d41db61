"""The report in a real browser: it renders, asks for nothing, fits a phone, and can be read in light and in dark."""

import json
import os
import select
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import samples
from sevenfold import evaluation, pictures, report, report_page
from sevenfold.report_page import Chapter, Timing

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
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        end = time.monotonic() + PATIENCE
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            assert time.monotonic() < end, "the page did not load"
            self.events.append(self._next())

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
        message = "no Chromium to look at the report with; `apt-get install chromium` brings one"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def chapter(name, kind, candidates, **more):
    """A contest among real models on small data, with the application's own pictures and some of every kind."""
    data, application = samples.dataset(kind), samples.application(name)
    judged, own = {}, []
    for variant in candidates:
        model = samples.trained(variant, kind, application.learns_from)
        calibrated, judged[f"{kind}-{variant}"] = evaluation.judge(application, model, data)
        own = own or calibrated.pictures(model, data.test, evaluation.learned_from(calibrated, data), data.schema)
    rivals, failed = samples.rivals(name, kind)
    contest = evaluation.hold(kind, name, application, judged, rivals, {**failed, f"{kind}-late": "not evaluated"})
    scores = {n: judgement.test for n, judgement in report_page.ranked(contest).items()}
    compared = [*application.comparison(scores, contest.chosen), pictures.plot("bars", "Scores", "Bars.", _bars)]
    own = [*own, pictures.grid("rows", "Some rows", "A grid.", [np.eye(8).reshape(1, 1, 8, 8)] * 2, ["in", "out"])]
    epochs = pd.DataFrame({"epoch": [1, 2, 3], "validation_loss": [0.9, 0.3, 0.35]})
    return Chapter(
        contest,
        variants={f"{kind}-{variant}": variant for variant in (*candidates, "late")},
        differences=report.differences(application, contest),
        compared=compared,
        own=own,
        curves=report.draw_curves(dict.fromkeys(judged, epochs)),
        remarks=["one of its code values never changes"],
        timings={("rivals", kind): Timing(3.2, "x86_64, CPU"), ("train", f"{kind}-pca"): None},
        **more,
    )


def _bars(axes):
    axes.bar(["a", "b"], [1, 2])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    expectation = {
        "severity": "warning",
        "column": "a_column_with_a_name_as_long_as_only_machines_give_them_to_columns",
        "expected": "between 0 and 1",
        "observed": "3 of 480 values",
        "unexpected": 3,
        "examples": ["7", "8.5", "9"],
        "success": False,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "DRAWS", 100)
        chapters = [
            chapter("reduction", "table", ["pca", "deep"]),
            chapter("anomaly", "table", ["pca", "deep"]),
            chapter("reduction", "images", ["pca"]),
        ]
    verdict = {"dataset": "table", "passed": True, "rows": 480, "columns": 14, "expectations": [expectation]}
    nobody = evaluation.hold(
        "images", "anomaly", samples.application("anomaly"), {}, {}, {"images-deep": "not evaluated"}
    )
    chapters.append(Chapter(nobody))
    verdicts = {"table": verdict, "images": verdict | {"dataset": "images", "passed": False}}
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report_page.page(chapters, verdicts), encoding="utf-8")
    return path


def test_every_heading_and_picture_is_there_to_be_seen(browser, path):
    browser.open(path, width=1280)
    seen = "[...document.querySelectorAll('%s')].map(e => Math.min(...['width', 'height'].map(s => e.getBoundingClientRect()[s])))"
    headings = browser.ask(seen % "h1, h2, h3")
    assert len(headings) >= 1 + 4 + 4
    assert min(headings) > 10
    browser.unfold()
    images = browser.ask(seen % "img")
    assert len(images) >= 9
    assert min(images) > 50
    assert browser.ask("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert min(browser.ask(seen % "tbody th")) > 10


def test_the_browser_has_nothing_to_complain_of_and_asks_for_nothing(browser, path):
    browser.open(path, width=1280)
    browser.unfold()
    browser.ask("new Promise(done => requestAnimationFrame(() => setTimeout(done, 200)))")
    assert browser.seen("Log.entryAdded") == []
    assert browser.seen("Runtime.consoleAPICalled") == []
    assert browser.seen("Runtime.exceptionThrown") == []
    asked = [request["request"]["url"] for request in browser.seen("Network.requestWillBeSent")]
    assert path.as_uri() in asked
    assert [url for url in asked if url != path.as_uri() and not url.startswith("data:image/")] == []


def test_a_page_that_would_ask_for_something_is_not_let(browser, path, tmp_path):
    """The watchman of the test above is awake, and the page's own policy holds."""
    bad = tmp_path / "bad.html"
    bad.write_text(path.read_text().replace("</main>", "<img src='http://127.0.0.1:9/x.png' alt=''></main>"))
    browser.open(bad, width=1280)
    assert any("Content Security Policy" in e["entry"]["text"] for e in browser.seen("Log.entryAdded"))


def test_every_picture_has_a_text_that_stands_for_it(browser, path):
    browser.open(path, width=1280)
    browser.unfold()
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = [node["name"]["value"] for node in tree if node["role"]["value"] == "image"]
    assert len(named) == browser.ask("document.images.length")
    assert all(named)


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_never_scrolls_sideways_but_its_tables_may(browser, path, width):
    browser.open(path, width=width)
    for _ in range(2):
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert browser.ask("document.body.scrollWidth") <= width
        browser.unfold()
    wide = browser.ask("[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length")
    assert wide > 0 or width > 360
    # By keyboard too.
    assert browser.ask("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0 && e.ariaLabel)")


CONTRASTS = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = color => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
                         return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = color => rgb(color).slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                         .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => { while (e && rgb(getComputedStyle(e).backgroundColor)[3] < 255) e = e.parentElement;
                        return e ? getComputedStyle(e).backgroundColor : 'white'; };
  const written = [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  return written.map(e => {
    const [high, low] = [light(getComputedStyle(e).color), light(ground(e))].sort((a, b) => b - a);
    return [(high + 0.05) / (low + 0.05), e.outerHTML.slice(0, 120)];
  });
})()
"""
"""The contrast of each element that holds text, to its nearest background, as WCAG 2 defines it."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_its_ground(browser, path, dark):
    browser.open(path, width=1280, dark=dark)
    browser.unfold()
    contrasts = browser.ask(CONTRASTS)
    assert len(contrasts) > 200
    assert [(round(ratio, 2), where) for ratio, where in contrasts if ratio < 4.5] == []
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(17, 20, 24)") == dark


def test_every_link_leads_to_a_place_on_the_page(browser, path):
    browser.open(path, width=360)
    links = "[...document.querySelectorAll('a')]"
    assert browser.ask(f"{links}.length") > 10
    assert browser.ask(f"{links}.every(a => document.getElementById(decodeURIComponent(a.hash.slice(1))))")
    browser.ask("document.querySelector('ul.overview li:last-child a').click()")
    place = "document.getElementById('images-anomaly').getBoundingClientRect().top"
    browser.ask("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
    assert 0 <= browser.ask(place) < 800
