"""Denoising autoencoder (Vincent et al., 2008): restores the clean sample from a damaged one."""

import math
from typing import Literal

import torch
from torch import Tensor

from sevenfold import networks
from sevenfold.models.base import Autoencoder, Standardiser, squared_error

Noise = Literal["gaussian", "masking"]


class DenoisingAutoencoder(Autoencoder):
    """Fully connected, trained on damaged samples with the clean ones as target; in `eval` mode nothing is damaged."""

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        code: int,
        hidden: list[int],
        activation: networks.Activation,
        noise: Noise,
        level: float,
    ) -> None:
        """Build the layers.

        Args:
            shape: of one sample.
            code: number of values in the code.
            hidden: widths between sample and code.
            activation: between the layers.
            noise: "gaussian" adds normal noise; "masking" sets cells to the mean of the training samples.
            level: standard deviation of the noise as a share of the data's own (gaussian), or the share of cells
                that are masked, 0 to 1 (masking).

        Raises:
            ValueError: an option is out of range.
        """
        super().__init__(shape, code)
        if not 0 <= level < (math.inf if noise == "gaussian" else 1):
            raise ValueError(f"level is {level}; expected 0 or more, and below 1 for masking noise")
        self.noise = noise
        self.level = level
        self.standardise = Standardiser(self.shape)
        self.encoder = networks.dense([self.size, *hidden, code], activation)
        self.decoder = networks.dense([code, *reversed(hidden), self.size], activation)

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.standardise.learn(x, observed)

    def corrupt(self, x: Tensor) -> Tensor:
        """Return damaged samples of the same shape; x itself stays as it is."""
        if self.noise == "gaussian":
            return x + self.level * self.standardise.spread * torch.randn_like(x)
        return torch.where(torch.rand_like(x) < self.level, self.standardise.center, x)

    def encode(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(self.standardise(x).flatten(1))  # (n, code)
        return z

    def decode(self, z: Tensor) -> Tensor:
        output: Tensor = self.standardise.inverse(self.decoder(z).reshape(-1, *self.shape))  # (n, *shape)
        return output

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        output = self(self.corrupt(x) if self.training else x)
        # Relative to the spread of the data, so that one learning rate suits data of any scale.
        return {"reconstruction": squared_error(output, x, observed) / self.standardise.spread.square()}
