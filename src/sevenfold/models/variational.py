"""Variational autoencoder (Kingma and Welling, 2014) with a calibrated decoder variance (Rybkin et al., 2021)."""

import math

import torch
from torch import Tensor

from sevenfold import cells, networks
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, some

LEAST_VARIANCE = 1e-5
"""Of the decoder, as a share of the data's own variance: without a floor a perfect reconstruction has no loss."""

FOLLOWING = 0.1
"""Share of the newest batch in the decoder's variance: about the last ten batches decide."""

ACTIVE = 0.01
"""A code value is active where its mean varies by more than this over the samples (Burda et al., 2016)."""


class VariationalAutoencoder(Autoencoder):
    """Encodes a sample as a normal distribution over codes, whose mean `encode` returns.

    In `eval` mode the losses add up to the negative evidence lower bound of the standardised sample, in nats per
    observed column (Kingma and Welling, 2014, equation 10, with one draw).
    """

    variance: Tensor

    def __init__(
        self,
        layout: Layout,
        *,
        code: int,
        hidden: list[int],
        activation: networks.Activation,
        warmup: float,
        free_bits: float,
        numbers: cells.Numbers,
        categories: cells.Categories,
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample.
            code: number of values in the code.
            hidden: widths between sample and code.
            activation: between the layers.
            warmup: share of the training, 0 to 1, over which the weight of the Kullback-Leibler term rises from 0 to 1.
            free_bits: information per code value, in bits, that costs nothing in training (Kingma et al., 2016); 0 is
                the plain bound.
            numbers: how numbers enter the network, and how their error is measured.
            categories: how categories enter it.

        Raises:
            ValueError: an option is out of range.
        """
        super().__init__(layout, code)
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup is {warmup}; expected 0 to 1, a share of the training; give 0 for none")
        if not 0 <= free_bits < math.inf:
            raise ValueError(f"free_bits is {free_bits}; expected 0 or more bits per code value; give 0 for none")
        self.warmup = self.settled = warmup
        self.free_bits = free_bits
        self.cells = cells.Cells(layout, numbers=numbers, categories=categories)
        self.encoder = networks.dense([self.cells.inputs, *hidden, 2 * code], activation)
        self.decoder = networks.dense([code, *reversed(hidden), self.cells.outputs], activation)
        self.register_buffer("variance", torch.ones(()))

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.cells.learn(x, observed)

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the codes of x, each (n, code)."""
        mean, logvar = self.encoder(self.cells.enter(x, observed)).chunk(2, dim=1)
        return mean, logvar

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        return self.posterior(x, observed)[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.cells.leave(self.decoder(z))  # (n, *shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        mean, logvar = self.posterior(x, observed)
        output = self.decoder(mean + torch.exp(0.5 * logvar) * self._noise(mean))
        error = self.cells.squared_error(output, x, observed)
        variance = self._calibrated(error)
        kl = kl_divergence(mean, logvar).mean(dim=0)  # (code,)
        if self.training:
            # The floor is under the batch's mean: single samples may say less, as long as the unit stays in use.
            kl = kl.clamp(min=self.free_bits * math.log(2))
            kl = kl * (self.progress / self.warmup).clamp(max=1) if self.warmup else kl
        # All terms are per observed column: their balance is that of the bound, and survives a change of sample shape.
        counts = self.cells.counts(observed)
        columns = counts.sum().clamp(min=1 / len(x))
        losses = {
            "reconstruction": 0.5 * (error / variance + torch.log(2 * math.pi * variance)) * (counts[0] / columns),
            "kl": kl.sum() / columns,
        }
        if self.cells.blocks:
            losses["categories"] = self.cells.cross_entropy(output, x).sum(dim=1).mean() / columns
        return losses

    def remarks(self, x: Tensor, observed: Tensor | None) -> list[str]:
        x, observed = some(x, observed)
        active = self.active_units(x, observed)
        return [
            f"{active} of {self.code} code values are active: their mean's variance over {len(x)} validation rows is above "
            f"{ACTIVE}"
        ]

    def active_units(self, x: Tensor, observed: Tensor | None = None) -> int:
        """Return how many code values tell samples of x apart; the others lie unused (Burda et al., 2016)."""
        with torch.no_grad():
            z = self.encode(x, observed)
        return int((z.var(dim=0, correction=0) > ACTIVE).sum())

    def _noise(self, like: Tensor) -> Tensor:
        if self.training:
            return torch.randn_like(like)
        # The same draw every time, so that the losses of two epochs differ by their weights alone.
        generator = torch.Generator(like.device).manual_seed(0)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    def _calibrated(self, error: Tensor) -> Tensor:
        """Return the decoder's variance, which in training follows its optimum, the mean squared error.

        The optimal variance of Rybkin et al. (2021), over the last batches and not over one: so it is a number that
        the trained model keeps, and that judges rows it was not fitted to.
        """
        if not self.training:
            return self.variance
        variance = self.variance.lerp(error.detach().clamp(min=LEAST_VARIANCE), FOLLOWING)
        self.variance.copy_(variance)
        return variance


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of normal distributions from the standard one, in nats, value by value.

    Kingma and Welling (2014), appendix B.
    """
    return 0.5 * (mean.square() + torch.exp(logvar) - 1 - logvar)
