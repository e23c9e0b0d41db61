"""What images found as one HTML page that needs nothing but itself: each line a query and its neighbours."""

import base64
import io
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from sevenfold import document
from sevenfold.index_folders import Found

EDGE = 128
"""Pixels to which a longer edge is reduced: a page of a thousand pictures still opens."""

# Colours keep a contrast of 4.5 to 1 or more on their background, in light and in dark.
_STYLE = """
:root { --asked: #e7f0fa; }
@media (prefers-color-scheme: dark) { :root { --asked: #182636; } }
main { max-width: 90rem; }
h2 { font-size: 1.05rem; margin: 0 0 .75rem; }
p { margin: .25rem 0; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem 1.25rem; margin: 1.25rem 0; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: .75rem; }
ol { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
li { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; min-width: 0; }
li.asked { background: var(--asked); border-color: var(--link); }
figure { margin: 0; }
img, .absent { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--page); border-radius: .35rem; }
img.small { image-rendering: pixelated; }
.absent { display: grid; place-items: center; text-align: center; padding: .5rem; color: var(--soft); font-size: .8rem; overflow: hidden; }
figcaption { font-size: .85rem; line-height: 1.35; margin-top: .4rem; }
figcaption b { display: block; }
figcaption span { display: block; color: var(--soft); font-variant-numeric: tabular-nums; }
@media (max-width: 40rem) {
  main { padding: 1rem .6rem 3rem; }
  section { padding: .75rem .6rem; }
  ol { grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .5rem; }
  li { padding: .4rem; }
}
@media print { li { break-inside: avoid; } }
""".strip()


def page(
    found: Found,
    queries: Sequence[np.ndarray | str],
    neighbours: Sequence[Sequence[np.ndarray | str]],
    *,
    title: str = "Nearest images",
    about: Sequence[str] = (),
    names: Sequence[str] | None = None,
    label: str | None = None,
) -> str:
    """Return a page with each query and what it found, nearest first; equal results give equal pages.

    Args:
        queries: an image for each, (height, width) or (height, width, 1, 3 or 4), of any integer type over its whole range, or
            of floats from 0 to 1; or a text that says why there is none, as `picture` gives it.
        neighbours: the same for each neighbour of each query.
        about: lines below the title: the model, the folder, the conditions.
        names: of the queries; their numbers where there are none.
        label: the carried column that stands below each neighbour.

    Raises:
        ValueError: counts differ, the label is not carried, or an image has another shape or type.
    """
    count, k = found.ids.shape
    wide = sorted({len(line) for line in neighbours} - {k})
    if len(queries) != count or len(neighbours) != count or wide or len(names or queries) != count:
        raise ValueError(
            f"there are {len(queries)} queries, {len(neighbours)} lines of neighbours{f' of {wide}' if wide else ''} and "
            f"{len(names or queries)} names; expected {count} with {k} neighbours each, as were found; give one for each"
        )
    if label is not None and label not in found.carried.columns:
        there = ", ".join(map(str, found.carried.columns)) or "nothing"
        raise ValueError(f"the label is {label!r}; expected a column that was carried: {there}; name one, or none")
    labels = None if label is None else found.carried[label].tolist()
    lines = []
    for row in range(count):
        name = names[row] if names else f"Query {row + 1}"
        cells = [_cell(queries[row], name, [], "asked")]
        for place in range(k):
            told = [f"distance {found.distances[row, place]:.4g}"]
            if labels is not None:
                told.append(f"{label}: {labels[row * k + place]}")
            cells.append(_cell(neighbours[row][place], str(found.ids[row, place]), told, "found"))
        nothing = "" if k else "<p>Nothing was found: no row meets the conditions.</p>"
        lines.append(
            f"<section aria-labelledby='q{row}'><h2 id='q{row}'>{escape(name)}</h2><ol>{''.join(cells)}</ol>{nothing}</section>"
        )
    intro = "".join(f"<p>{escape(line)}</p>" for line in about)
    return document.html(title, _STYLE, [f"<header><h1>{escape(title)}</h1>{intro}</header>", *lines])


def picture(path: Path) -> np.ndarray | str:
    """Return an image file's pixels as `page` takes them, or a text that says why they cannot be shown."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                plain = image.mode in ("L", "RGB", "RGBA", "I", "I;16", "F")
                return np.asarray(image if plain else image.convert("RGBA"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"{path.name} is too large to be shown"
    except FileNotFoundError:
        return f"{path.name} is no longer there"
    except (OSError, ValueError, SyntaxError):  # the last one is what Pillow says of damaged PNGs
        return f"{path.name} cannot be read as an image"


def _cell(image: np.ndarray | str, name: str, told: Sequence[str], kind: str) -> str:
    if isinstance(image, str):
        shown = f"<div class='absent' role='img' aria-label='no picture'>{escape(image)}</div>"
    else:
        pixels = _pixels(image)
        small = " class='small'" if max(pixels.shape[:2]) < EDGE else ""
        shown = f"<img{small} src='{_uri(pixels)}' alt='{escape(name, quote=True)}' loading='lazy'>"
    rest = "".join(f"<span>{escape(one)}</span>" for one in told)
    caption = f"<figcaption><b>{'asked' if kind == 'asked' else escape(name)}</b>{rest}</figcaption>"
    return f"<li class='{kind}'><figure>{shown}{caption}</figure></li>"


def _pixels(image: np.ndarray) -> np.ndarray:
    """Return an image as (height, width) or (height, width, 3 or 4) of 8 bits."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)) or 0 in image.shape:
        raise ValueError(
            f"an image has shape {image.shape}; expected (height, width) or (height, width, 1, 3 or 4); turn its axes"
        )
    if image.dtype.kind not in "fbiu":
        raise ValueError(f"an image is of type {image.dtype}; expected integers, or floats from 0 to 1; convert it")
    if image.dtype == np.uint8:
        return image
    # Pillow gives 16 bits as numbers of 32, whose range is not their own.
    most = {"f": 1, "b": 1}.get(image.dtype.kind) or (65535 if image.dtype == np.int32 else np.iinfo(image.dtype).max)
    scaled: np.ndarray = np.rint(np.clip(np.nan_to_num(image.astype(np.float64)) / most, 0, 1) * 255).astype(np.uint8)
    return scaled


def _uri(pixels: np.ndarray) -> str:
    """Return pixels as the address of a small PNG that needs no network."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((EDGE, EDGE), Image.Resampling.BOX)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
