"""Sparse autoencoder: few values of the code are active at a time (Ng, 2011; Makhzani and Frey, 2013)."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sevenfold import cells, networks
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, some

Sparsity = Literal["l1", "kl", "top-k"]

_NEEDS = {"l1": {"weight"}, "kl": {"target", "weight"}, "top-k": {"target"}}


class SparseAutoencoder(Autoencoder):
    """Fully connected, with a code of which each sample uses a small part.

    - "l1": a code of 0 or more, whose mean absolute value is penalised relative to its root mean square, for each code
      value by itself: the ratio in Hoyer's sparseness (2004, sec. 3.1). L1 alone falls at no cost when the code shrinks
      and the decoder grows.
    - "kl": a code between 0 and 1, whose mean activation is drawn to a target (Ng, 2011, sec. 3).
    - "top-k": the k largest values of the code stay, the others become 0 (Makhzani and Frey, 2013, sec. 2.1).
    """

    def __init__(
        self,
        layout: Layout,
        *,
        code: int,
        hidden: list[int],
        activation: networks.Activation,
        sparsity: Sparsity,
        target: float | None,
        weight: float | None,
        numbers: cells.Numbers,
        categories: cells.Categories,
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample.
            code: number of values in the code.
            hidden: widths between sample and code.
            activation: between the layers.
            sparsity: what keeps the code sparse, as the class says.
            target: how active the code should be, between 0 and 1: the mean activation of each value (kl), or the share
                of the values that stay (top-k; k is rounded, and at least 1). None for l1.
            weight: of the penalty in the sum of losses, 0 or more (l1, kl). None for top-k, which has no penalty.
            numbers: how numbers enter the network, and how their error is measured.
            categories: how categories enter it.

        Raises:
            ValueError: an option is out of range, or has no meaning for this kind of sparsity.
        """
        super().__init__(layout, code, overcomplete=True)
        _require_options(sparsity, target, weight)
        self.sparsity = sparsity
        self.settled = 0.1 if sparsity == "top-k" else 0.0  # while more than k values stay, the loss is none of k
        self.target = target or 0.0
        self.weight = weight or 0.0
        self.k = max(1, round(self.target * code))
        self.cells = cells.Cells(layout, numbers=numbers, categories=categories)
        self.encoder = networks.dense([self.cells.inputs, *hidden, code], activation)
        self.decoder = networks.dense([code, *reversed(hidden), self.cells.outputs], activation)

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.cells.learn(x, observed)

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        return self._activate(self._potentials(x, observed))  # (n, code)

    def decode(self, z: Tensor) -> Tensor:
        return self.cells.leave(self.decoder(z))  # (n, *shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        potentials = self._potentials(x, observed)
        z = self._activate(potentials)
        losses = self.cells.losses(self.decoder(z), x, observed)
        if self.sparsity == "l1":
            losses["sparsity"] = self.weight * _relative_l1(z)
        elif self.sparsity == "kl":
            losses["sparsity"] = self.weight * _divergence(self.target, potentials)
        return losses

    def remarks(self, x: Tensor, observed: Tensor | None) -> list[str]:
        x, observed = some(x, observed)
        dead = self.dead_units(x, observed)
        return [f"{dead} of {self.code} code values are dead: the same on all of {len(x)} validation rows"]

    def dead_units(self, x: Tensor, observed: Tensor | None = None) -> int:
        """Return how many code values are dead on samples x (n, *shape): the same for all of them.

        The same is within a hundredth of the range of the liveliest one: a sigmoid is never exactly at rest.
        """
        with torch.no_grad():
            z = self.encode(x, observed)
        ranges = z.amax(dim=0) - z.amin(dim=0)  # (code,)
        return int((ranges <= 0.01 * ranges.max()).sum())

    def _potentials(self, x: Tensor, observed: Tensor | None) -> Tensor:
        potentials: Tensor = self.encoder(self.cells.enter(x, observed))  # (n, code)
        return potentials

    def _activate(self, potentials: Tensor) -> Tensor:
        if self.sparsity == "l1":
            return potentials.relu()
        if self.sparsity == "kl":
            return potentials.sigmoid()
        ranks = potentials.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # (n, code), 0 for the largest
        return torch.where(ranks < self._kept(), potentials, 0)

    def _kept(self) -> Tensor | int:
        """Return how many values stay. In training they fall from all to k over the first tenth of the steps.

        A value that is not among the largest at the start would never be trained, and be dead for good. (Makhzani and
        Frey take half of the training; early stopping, which judges by k, would end before.)
        """
        if not self.training:
            return self.k
        return self.k + ((self.code - self.k) * (1 - 10 * self.progress).clamp(min=0)).round()


def _require_options(sparsity: Sparsity, target: float | None, weight: float | None) -> None:
    problems = []
    for name, value, high in (("target", target, 1.0), ("weight", weight, math.inf)):
        if name not in _NEEDS[sparsity]:
            if value is not None:
                problems.append(f"{name} is {value}; {sparsity} sparsity has none; set `{name}: null`")
        elif value is None or not 0 <= value < high or (name == "target" and value == 0):
            wanted = "a number between 0 and 1" if name == "target" else "a finite number of 0 or more"
            problems.append(f"{name} is {value}; {sparsity} sparsity expects {wanted}; set `{name}: 0.1`, for example")
    if problems:
        raise ValueError("; ".join(problems))


def _relative_l1(z: Tensor) -> Tensor:
    """Return mean |z| over root mean square of z, 0 to 1, averaged over the code values; z (n, code)."""
    # A dead value is 0 / 0; as 0 it costs nothing, and the square root's slope stays finite.
    return (z.abs().mean(dim=0) / (z.square().mean(dim=0) + 1e-12).sqrt()).mean()


def _divergence(target: float, potentials: Tensor) -> Tensor:
    """Return KL(Bernoulli(target) || Bernoulli(mean activation)) in nats, averaged over the code values."""
    # By logarithms of the sigmoid: the mean of saturated activations rounds to 0 or 1, which has no slope back.
    count = math.log(max(1, len(potentials)))
    on = functional.logsigmoid(potentials).logsumexp(dim=0) - count  # (code,), log of the mean activation
    off = functional.logsigmoid(-potentials).logsumexp(dim=0) - count
    return (target * (math.log(target) - on) + (1 - target) * (math.log1p(-target) - off)).mean()
