"""Changes to images that make other images which could as well be data; training sees each image in many forms."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Change = Literal["mirror", "flip", "transpose", "negative", "warp"]
"""Left to right, top to bottom, rows for columns (the three make the eight symmetries of a square), light for dark, and a
little turned, stretched and moved.

Name what makes images that could as well be data: "warp" for digits, "mirror" for clothes, all of it for textures.
"""

TURN, STRETCH, MOVE = 0.1, 0.075, 0.125
"""The most that a warp turns, in radians; stretches each axis, as a share; and moves, as a share of half an edge."""

_MOVES: dict[Change, Callable[[Tensor], Tensor]] = {
    "mirror": lambda image: image.flip(-1),
    "flip": lambda image: image.flip(-2),
    "transpose": lambda image: image.transpose(-1, -2),
}


def require(changes: Sequence[Change], shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless samples of this shape can be changed so."""
    if changes and len(shape) != 3:
        raise ValueError(
            f"augment is {list(changes)} for samples of shape {shape}; expected none but for images, (channels, height, "
            "width); set `augment: []`"
        )
    if "transpose" in changes and shape[1] != shape[2]:
        raise ValueError(
            f"augment holds 'transpose' for images of {shape[1]} x {shape[2]}; expected square ones; leave it out"
        )


def vary(changes: Sequence[Change], x: Tensor, observed: Tensor | None, center: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the images (n, channels, height, width), each change done to half of them by chance, and their mask.

    Args:
        center: the mean image, at which a negative is taken.
    """
    for change in changes:
        chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
        if change == "negative":
            x = torch.where(chosen, 2 * center - x, x)
        elif change == "warp":
            grid = _warps(x)
            x = torch.where(chosen, _resampled(x, grid), x)
            # What was resampled from a gap, if only in part, is one.
            observed = (
                None if observed is None else torch.where(chosen, _resampled(observed.to(x), grid) > 0.999, observed)
            )
        else:
            x = torch.where(chosen, _MOVES[change](x), x)
            observed = None if observed is None else torch.where(chosen, _MOVES[change](observed), observed)
    return x, observed


def _warps(x: Tensor) -> Tensor:
    """Return where each pixel of each image comes from, (n, height, width, 2), by a slight affine map of its own."""
    turn, right, down, stretch_x, stretch_y = (2 * torch.rand(5, len(x), device=x.device) - 1).unbind()
    sine, cosine = torch.sin(TURN * turn), torch.cos(TURN * turn)
    rows = [
        torch.stack([cosine * (1 + STRETCH * stretch_x), -sine, MOVE * right], dim=1),
        torch.stack([sine, cosine * (1 + STRETCH * stretch_y), MOVE * down], dim=1),
    ]
    return functional.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)


def _resampled(x: Tensor, grid: Tensor) -> Tensor:
    return functional.grid_sample(x, grid.to(x), mode="bilinear", padding_mode="border", align_corners=False)
