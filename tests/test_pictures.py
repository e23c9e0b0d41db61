"""Pictures are the same bytes for the same numbers, and come back from disk as they were."""

import io

import numpy as np
from PIL import Image

from sevenfold import pictures


def line(*axes):
    for number, one in enumerate(axes):
        one.plot([0, 1, 2], [number, 1, 4], label="a line")
        one.legend()


def gallery():
    shades = np.linspace(0, 1, 3 * 8 * 6).reshape(3, 1, 8, 6)
    colours = np.stack([np.full((3, 8, 6), value) for value in (0.0, 0.5, 2.0)])
    return pictures.grid("grid", "Shades", "Two rows of three images", [shades, colours], ["grey", "colour"])


def test_equal_numbers_give_equal_pictures():
    one, two = (pictures.plot("line", "A line", "It rises", line, panels=2) for _ in range(2))
    assert one == two
    assert one.content.startswith(b"<svg")
    assert one != pictures.plot("other", "A line", "It rises", line, panels=2)
    assert gallery() == gallery()


def test_a_grid_shows_each_image_and_clips_what_is_out_of_range():
    image = np.asarray(Image.open(io.BytesIO(gallery().content)).convert("RGB"))
    height, width, _ = image.shape
    assert width > height
    colours = {tuple(c) for c in image.reshape(-1, 3)}
    assert {(0, 0, 0), (255, 255, 255)} <= colours  # the darkest, and what is brighter than white


def test_what_was_saved_comes_back(tmp_path):
    made = [pictures.plot("line", "A line", "It rises", line), gallery()]
    pictures.save(tmp_path, made)
    assert pictures.load(tmp_path) == made
    assert pictures.load(tmp_path / "nowhere") == []
    assert made[1].uri.startswith("data:image/png;base64,")
