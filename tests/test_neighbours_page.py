"""The page of queries and neighbours: it shows what was found, asks for nothing, and fits a phone, in light and in dark."""

import base64
import html
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sevenfold import neighbours_page
from sevenfold.index_folders import Found

GENERATOR = np.random.default_rng(0)
FOUND = Found(
    np.array([["a<b>", "second"], ["third", "a_name_as_long_as_only_machines_give_them_to_their_images"]], object),
    np.array([[0.25, 1.5], [0, 123456]], np.float32),
    pd.DataFrame({"label": ["boot", "<coat>", "bag", "bag"], "price": [1.0, 2.0, np.nan, 4.0]}),
)
QUERIES = [GENERATOR.random((28, 28)), GENERATOR.integers(0, 256, (300, 200, 3), np.uint8)]
NEIGHBOURS = [
    [GENERATOR.integers(0, 256, (28, 28), np.uint8), "boots/17.png is no longer there"],
    [GENERATOR.integers(0, 65536, (28, 28, 1), np.uint16), GENERATOR.integers(0, 2, (28, 28)).astype(bool)],
]


def page(found=FOUND, queries=QUERIES, neighbours=NEIGHBOURS, **options):
    return neighbours_page.page(found, queries, neighbours, **options)


def shown(text):
    """Return the pictures of a page as arrays."""
    found = re.findall(r"src='data:image/png;base64,([^']+)'", text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_every_id_distance_and_label_stands_below_its_picture():
    text = page(label="label", names=["my boot", "my bag"], about=["model shoes/3 & more"])
    cells = [html.unescape(re.sub("<[^>]+>", "|", cell)) for cell in re.findall("<li.*?</li>", text)]
    expected = ["asked", "a<b>|.*distance 0.25|.*label: boot", "second|.*distance 1.5|.*label: <coat>"]
    expected += ["asked", "third|.*distance 0|.*label: bag", "a_name_as.*distance 1.235e.05|.*label: bag"]
    assert len(cells) == 6
    for cell, pattern in zip(cells, expected, strict=True):
        assert re.search(pattern.replace("|", r"\|"), cell), cell
    assert "boots/17.png is no longer there" in cells[2]
    assert "<h2 id='q0'>my boot</h2>" in text
    assert "<p>model shoes/3 &amp; more</p>" in text
    assert page() == page()


def test_pictures_are_the_pixels_themselves_or_smaller():
    pixels = shown(page())
    assert len(pixels) == 5
    np.testing.assert_allclose(pixels[0] / 255, QUERIES[0], atol=0.002)
    assert np.array_equal(pixels[1], NEIGHBOURS[0][0])
    assert pixels[2].shape == (128, 85, 3)
    np.testing.assert_allclose(pixels[2].mean(), QUERIES[1].mean(), rtol=0.02)
    np.testing.assert_allclose(pixels[3] / 255, NEIGHBOURS[1][0][:, :, 0] / 65535, atol=0.002)
    assert np.array_equal(pixels[4], NEIGHBOURS[1][1] * 255)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "1", "P", "I;16", "CMYK"])
def test_files_of_any_mode_can_be_shown(mode, tmp_path):
    grey = Image.fromarray(GENERATOR.integers(0, 256, (9, 7), np.uint8))
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    image.save(path)
    (pixels,) = shown(
        page(Found(np.zeros((1, 0)), np.zeros((1, 0)), pd.DataFrame()), [neighbours_page.picture(path)], [[]])
    )
    expected = np.asarray(image.convert("RGB") if mode != "I;16" else grey.convert("RGB"))
    assert np.array_equal(np.asarray(Image.fromarray(pixels).convert("RGB")), expected)


def test_a_file_that_cannot_be_shown_says_why(tmp_path, monkeypatch):
    (tmp_path / "bad.png").write_text("no image")
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "large.png").read_bytes()[:50])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    assert neighbours_page.picture(tmp_path / "gone.png") == "gone.png is no longer there"
    assert neighbours_page.picture(tmp_path / "bad.png") == "bad.png cannot be read as an image"
    assert neighbours_page.picture(tmp_path / "large.png") == "large.png is too large to be shown"
    monkeypatch.undo()
    assert neighbours_page.picture(tmp_path / "cut.png") == "cut.png cannot be read as an image"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"queries": QUERIES[:1]},
            "there are 1 queries, 2 lines of neighbours and 1 names; expected 2 with 2 neighbours",
        ),
        ({"neighbours": [line[:1] for line in NEIGHBOURS]}, r"2 lines of neighbours of \[1\]"),
        ({"names": ["one"]}, "1 names; expected 2"),
        ({"label": "colour"}, "the label is 'colour'; expected a column that was carried: label, price; name one"),
        ({"queries": [np.zeros((3, 28, 28))] * 2}, r"an image has shape \(3, 28, 28\); expected \(height, width\)"),
        ({"queries": [np.zeros((2, 2), complex)] * 2}, "an image is of type complex128; expected integers, or floats"),
    ],
)
def test_what_cannot_be_shown_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        page(**change)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "page.html").write_text(page(label="label", about=["model shoes/3"]), encoding="utf-8")
    return tmp_path / "page.html"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser_all_is_there_to_be_seen_and_nothing_is_asked_for(browser, path, width, dark):
    browser.open(path, width=width, dark=dark)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("[...document.images].every(i => i.loading == 'lazy')")
    browser.ask("[...document.images].forEach(i => i.loading = 'eager')")
    browser.wait_until("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    sizes = browser.ask("[...document.querySelectorAll('img, .absent')].map(e => e.getBoundingClientRect().width)")
    assert len(sizes) == 6
    assert min(sizes) > 60
    for event in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
        assert browser.seen(event) == []
    asked = [request["request"]["url"] for request in browser.seen("Network.requestWillBeSent")]
    assert [url for url in asked if url != path.as_uri() and not url.startswith("data:image/png")] == []
    page, ink = browser.ask(
        "['background-color', 'color'].map(p => getComputedStyle(document.body).getPropertyValue(p))"
    )
    brightness = [sum(map(int, re.findall(r"\d+", one)[:3])) for one in (page, ink)]
    assert (brightness[0] < brightness[1]) == dark
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = [node["name"]["value"] for node in tree if node["role"]["value"] == "image"]
    assert len(named) == 6
    assert all(named)
