"""Changes to images that make other images which could as well be data; training sees each image in many forms."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Change = Literal["mirror", "flip", "transpose", "negative"]
"""Left to right, top to bottom, rows for columns (the three make the eight symmetries of a square), and light for dark.

Name what makes images that could as well be data: nothing, [], for digits, "mirror" for clothes, all of it for textures.
"""

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
        else:
            x = torch.where(chosen, _MOVES[change](x), x)
            observed = None if observed is None else torch.where(chosen, _MOVES[change](observed), observed)
    return x, observed
