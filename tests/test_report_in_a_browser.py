"""The report in a real browser: it renders, asks for nothing, fits a phone, and can be read in light and in dark."""

import numpy as np
import pandas as pd
import pytest

import samples
from sevenfold import evaluation, pictures, report, report_page
from sevenfold.report_page import Chapter, Timing


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
