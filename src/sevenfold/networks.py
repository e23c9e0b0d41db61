"""Bodies of encoders and decoders, shared so that variants compare fairly."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sevenfold import layouts

Activation = Literal["relu", "silu", "gelu", "tanh", "linear"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "linear": nn.Identity,
}


def dense(sizes: Sequence[int], activation: Activation, *, bias: bool = True, blocks: int = 0) -> nn.Sequential:
    """Return fully connected layers of these widths, (n, sizes[0]) -> (n, sizes[-1]), the last one linear.

    Args:
        blocks: residual blocks at each width between the first and the last.

    Raises:
        ValueError: a width is below 1, or the number of blocks below 0.
    """
    if min(sizes) < 1:
        raise ValueError(f"hidden is {list(sizes[1:-1])}; expected widths of 1 or more; mend or remove the others")
    if blocks < 0:
        raise ValueError(f"blocks is {blocks}; expected 0 or more; give 0 for plain layers")
    layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1], bias=bias)]
    for width, following in itertools.pairwise(sizes[1:]):
        layers += [_Residual(width, activation, bias) for _ in range(blocks)]
        layers += [ACTIVATIONS[activation](), nn.Linear(width, following, bias=bias)]
    return nn.Sequential(*layers)


class _Residual(nn.Module):
    """Adds to its input what two layers make of it (He et al., 2016, with the activation first); at the start nothing."""

    def __init__(self, width: int, activation: Activation, bias: bool) -> None:
        super().__init__()
        last = nn.Linear(width, width, bias=bias)
        # Deep stacks of these begin as a shallow network, and learn at the rate of one.
        nn.init.zeros_(last.weight)
        self.change = nn.Sequential(
            ACTIVATIONS[activation](), nn.Linear(width, width, bias=bias), ACTIVATIONS[activation](), last
        )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.change(x)
        return changed


class Transposed(nn.Module):
    """The layers of a `dense` encoder without blocks the other way round: its weights transposed, biases of their own."""

    def __init__(self, encoder: nn.Sequential, outputs: int, bias: bool) -> None:
        super().__init__()
        # In a tuple, so that the weights are not registered, and saved, a second time.
        self._encoder = (encoder,)
        self._outputs = outputs
        widths = [layer.in_features for layer in reversed(encoder) if isinstance(layer, nn.Linear)]
        widths[-1] = outputs
        self.biases = nn.ParameterList(torch.zeros(width) for width in widths) if bias else None

    def forward(self, z: Tensor) -> Tensor:
        biases = iter(self.biases or ())
        (encoder,) = self._encoder
        for layer in reversed(encoder):
            if isinstance(layer, nn.Linear):
                # What enters beside the sample's values, the flags of its gaps, does not come out.
                weight = layer.weight[:, : self._outputs] if layer is encoder[0] else layer.weight
                z = functional.linear(z, weight.T, next(biases, None))
            else:
                z = layer(z)
        return z


def convolutional(
    shape: tuple[int, ...],
    channels: Sequence[int],
    hidden: Sequence[int],
    code: int,
    activation: Activation,
    *,
    blocks: int,
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return an encoder (n, *shape) -> (n, code) and, mirrored, a decoder (n, code) -> (n, *shape) for images.

    Each entry of `channels` is a convolution that halves both edges; `dense` layers with `blocks` stand at the code. Images
    of any size: the encoder repeats their border up to the next multiple of all halvings, the decoder crops it again.

    Args:
        shape: of one image, (channels, height, width).

    Raises:
        ValueError: there is no halving, a number of channels or a width is below 1, or the number of blocks below 0.
    """
    if problems := layouts.channel_problems(channels):
        raise ValueError("; ".join(problems))
    step = 2 ** len(channels)
    height, width = (math.ceil(edge / step) for edge in shape[1:])  # at the code
    down, right = height * step - shape[1], width * step - shape[2]
    # On both sides alike, left, right, top and bottom in torch's order. Zeros would show edges that no image has.
    border = (right // 2, right - right // 2, down // 2, down - down // 2)
    # A kernel of 4 at a stride of 2 halves and doubles exactly, and meets every pixel equally often: no checkerboard.
    encoder: list[nn.Module] = [nn.ReplicationPad2d(border)]
    decoder: list[nn.Module] = [nn.ZeroPad2d(tuple(-size for size in border))]  # a negative padding crops
    for finer, coarser in itertools.pairwise([shape[0], *channels]):
        encoder += [nn.Conv2d(finer, coarser, 4, stride=2, padding=1), ACTIVATIONS[activation]()]
        decoder += [nn.ConvTranspose2d(coarser, finer, 4, stride=2, padding=1), ACTIVATIONS[activation]()]
    grid = (channels[-1], height, width)
    size = math.prod(grid)
    encoder += [nn.Flatten(), dense([size, *hidden, code], activation, blocks=blocks)]
    decoder += [nn.Unflatten(1, grid), dense([code, *reversed(hidden), size], activation, blocks=blocks)]
    return nn.Sequential(*encoder), nn.Sequential(*reversed(decoder))
