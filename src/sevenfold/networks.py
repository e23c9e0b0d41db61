"""Bodies of encoders and decoders, shared so that variants compare fairly."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from torch import nn

Activation = Literal["relu", "silu", "gelu", "tanh", "linear"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "linear": nn.Identity,
}


def dense(sizes: Sequence[int], activation: Activation) -> nn.Sequential:
    """Return fully connected layers of these widths, (n, sizes[0]) -> (n, sizes[-1]), the last one linear.

    Raises:
        ValueError: a width is below 1.
    """
    if min(sizes) < 1:
        raise ValueError(f"hidden is {list(sizes[1:-1])}; expected widths of 1 or more; mend or remove the others")
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(sizes):
        layers += [nn.Linear(width, following), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def convolutional(
    shape: tuple[int, ...], channels: Sequence[int], code: int, activation: Activation
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return an encoder (n, *shape) -> (n, code) and, mirrored, a decoder (n, code) -> (n, *shape) for images.

    Each entry of `channels` is a convolution that halves both edges; a fully connected layer stands at the code. Images
    of any size: the encoder repeats their border up to the next multiple of all halvings, the decoder crops it again.

    Args:
        shape: of one image, (channels, height, width).

    Raises:
        ValueError: there is no halving, or a number of channels is below 1.
    """
    if min(channels, default=0) < 1:
        raise ValueError(
            f"channels is {list(channels)}; expected one number or more, each 1 or more; mend or remove the others"
        )
    step = 2 ** len(channels)
    height, width = (math.ceil(edge / step) for edge in shape[1:])  # at the code
    down, right = height * step - shape[1], width * step - shape[2]
    # On both sides alike, left, right, top and bottom in torch's order. Zeros would show edges that no image has.
    border = (right // 2, right - right // 2, down // 2, down - down // 2)
    # A kernel of 4 at a stride of 2 halves and doubles exactly, and meets every pixel equally often: no checkerboard.
    encoder: list[nn.Module] = [nn.ReplicationPad2d(border)]
    decoder: list[nn.Module] = [nn.ZeroPad2d(tuple(-size for size in border))]  # a negative padding crops
    for finer, coarser in itertools.pairwise([shape[0], *channels]):
        encoder += [nn.Conv2d(finer, coarser, 4, stride=2, padding=1), _ACTIVATIONS[activation]()]
        decoder += [nn.ConvTranspose2d(coarser, finer, 4, stride=2, padding=1), _ACTIVATIONS[activation]()]
    grid = (channels[-1], height, width)
    encoder += [nn.Flatten(), nn.Linear(math.prod(grid), code)]
    decoder += [nn.Unflatten(1, grid), nn.Linear(code, math.prod(grid))]
    return nn.Sequential(*encoder), nn.Sequential(*reversed(decoder))
