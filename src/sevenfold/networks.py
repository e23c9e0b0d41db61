"""Bodies of encoders and decoders, shared so that variants compare fairly."""

import itertools
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
