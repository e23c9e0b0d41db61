"""Pictures for reports: plots as SVG and grids of images as PNG, the same bytes for the same numbers."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sevenfold import files

OURS, THEIRS, THIRD = "#0a6ebd", "#b35900", "#6b7280"
"""Colours of autoencoders, of rivals, and of what is neither; apart for the colour-blind too."""

FEWEST_PIXELS = 48
"""Edge to which the images of a grid are enlarged, by whole factors: a digit of 8x8 cannot be seen else."""


@dataclass(frozen=True)
class Picture:
    """One drawing.

    name: of its file, without ending; unique within an application.
    title: one line that stands above it.
    description: what it shows, for those who cannot see it.
    """

    name: str
    title: str
    description: str
    kind: Literal["svg", "png"]
    content: bytes

    @property
    def uri(self) -> str:
        """Return the content as an address that needs no network."""
        media = "image/svg+xml" if self.kind == "svg" else "image/png"
        return f"data:{media};base64,{base64.b64encode(self.content).decode()}"


def plot(
    name: str,
    title: str,
    description: str,
    draw: Callable[..., None],
    *,
    panels: int = 1,
    size: tuple[float, float] = (7.0, 3.2),
) -> Picture:
    """Draw with matplotlib: `draw` gets one pair of axes for each panel, side by side; `size` in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Names inside an SVG are random unless they are salted; the date would change every time.
    with mpl.rc_context({"svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for one in axes:
            one.spines[["top", "right"]].set_visible(False)
        draw(*axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return Picture(name, title, description, "svg", svg[svg.index("<svg") :].encode())


def grid(
    name: str,
    title: str,
    description: str,
    images: Sequence[np.ndarray],
    labels: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
) -> Picture:
    """Lay out images in rows.

    Args:
        images: one (columns, channels, height, width) array per row, values 0 to 1; others are clipped.
        labels: one per row, at its left.
        captions: for each row one per image, below it.
    """
    from matplotlib.figure import Figure

    columns, _, height, width = images[0].shape
    factor = max(1, -(-FEWEST_PIXELS // min(height, width)))
    cell = max(0.75, min(2.2, width * factor / 90))
    edge, below = cell * height / width, 0.22 if captions else 0.04  # inches
    wide, high = 1.2 + columns * cell, len(images) * (edge + below)
    figure = Figure(figsize=(wide, high), dpi=110)
    axes = figure.subplots(len(images), columns, squeeze=False)
    figure.subplots_adjust(left=1.2 / wide, right=1, top=1, bottom=below / high, wspace=0.05, hspace=below / edge)
    for row, (line, label) in enumerate(zip(images, labels, strict=True)):
        for column, one in enumerate(np.clip(line, 0, 1)):
            ax = axes[row, column]
            shown = one.transpose(1, 2, 0)  # (height, width, channels)
            # A mode between grey and colour is shown by its mean.
            shown = shown if shown.shape[2] == 3 else np.repeat(shown.mean(axis=2, keepdims=True), 3, axis=2)
            ax.imshow(shown, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if captions:
                ax.set_xlabel(captions[row][column], fontsize=7, labelpad=2)
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return Picture(name, title, description, "png", out.getvalue())


def save(folder: Path, made: Sequence[Picture]) -> None:
    """Write pictures and `pictures.json`, which says what they show, into an existing folder."""
    entries = []
    for one in made:
        (folder / f"{one.name}.{one.kind}").write_bytes(one.content)
        entries.append({"name": one.name, "title": one.title, "description": one.description, "kind": one.kind})
    files.write_json(folder / "pictures.json", entries)


def load(folder: Path) -> list[Picture]:
    """Read what `save` wrote; none where there is no such folder."""
    if not (folder / "pictures.json").is_file():
        return []
    entries: list[dict[str, Any]] = files.read_json(folder / "pictures.json")
    for entry in entries:
        name = f"{entry['name']}.{entry['kind']}"
        if Path(name).name != name or (folder / name).is_symlink():
            raise ValueError(
                f"{folder / 'pictures.json'} names {name!r}; expected plain files beside it; run `dvc repro`"
            )
    return [Picture(**e, content=(folder / f"{e['name']}.{e['kind']}").read_bytes()) for e in entries]
