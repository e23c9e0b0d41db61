"""Denoising autoencoder (Vincent et al., 2008): restores the clean sample from a damaged one."""

import math
from typing import Literal

import torch
from torch import Tensor

from sevenfold import cells, networks
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, Standardiser, pieces

Noise = Literal["gaussian", "masking", "salt-and-pepper", "swap"]


class DenoisingAutoencoder(Autoencoder):
    """Fully connected, trained on damaged samples with the clean ones as target; in `eval` mode nothing is damaged.

    - "gaussian" adds normal noise to numbers; categories stay.
    - "masking" takes cells away: a number becomes the mean of the training samples, a category none.
    - "salt-and-pepper" makes a number the least or the greatest one of its column, or of the whole image, at even odds,
      and a category any of its column's.
    - "swap" gives cells the value of another sample of the batch: noise that looks like data, of any scale and kind.

    A column of a table is damaged as a whole, and a gap stays one.
    """

    center: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor
    is_number: Tensor

    def __init__(
        self,
        layout: Layout,
        *,
        code: int,
        hidden: list[int],
        activation: networks.Activation,
        noise: Noise,
        level: float,
        numbers: cells.Numbers,
        categories: cells.Categories,
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample.
            code: number of values in the code.
            hidden: widths between sample and code.
            activation: between the layers.
            noise: what damages the samples, as the class says.
            level: standard deviation of the noise as a share of the data's own (gaussian), or the share of the columns or
                pixels that are damaged, 0 to 1 (all others).
            numbers: how numbers enter the network, and how their error is measured.
            categories: how categories enter it.

        Raises:
            ValueError: an option is out of range.
        """
        super().__init__(layout, code)
        if not 0 <= level < (math.inf if noise == "gaussian" else 1):
            raise ValueError(f"level is {level}; expected 0 or more, and below 1 for all but gaussian noise")
        self.noise = noise
        self.level = level
        self.cells = cells.Cells(layout, numbers=numbers, categories=categories)
        self.encoder = networks.dense([self.cells.inputs, *hidden, code], activation)
        self.decoder = networks.dense([code, *reversed(hidden), self.cells.outputs], activation)
        is_number = torch.zeros(self.size, dtype=torch.bool)
        is_number[self.cells.numeric] = True
        self.register_buffer("is_number", is_number, persistent=False)
        for name in ("center", "low", "high"):
            self.register_buffer(name, torch.zeros(self.size))
        self.register_buffer("spread", torch.ones(()))

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.cells.learn(x, observed)
        flat, known = x.flatten(1), None if observed is None else observed.flatten(1)
        if self.is_number.any():
            overall = Standardiser((int(self.is_number.sum()),)).to(x.device)
            overall.learn(flat, known, self.cells.numeric)
            self.spread.copy_(overall.spread)
            self.center[self.is_number] = overall.center  # no category stands for the mean of all
        low, high = torch.full_like(self.low, math.inf), torch.full_like(self.high, -math.inf)
        for part, seen in pieces(flat, known):
            low = torch.minimum(low, torch.where(seen, part, math.inf).amin(dim=0))
            high = torch.maximum(high, torch.where(seen, part, -math.inf).amax(dim=0))
        if not self.layout.fields:
            low, high = low.amin().expand_as(low), high.amax().expand_as(high)
        # A value that no row has is infinite in both, and stays the 0 that stands for a gap.
        self.low.copy_(torch.where(low.isfinite(), low, 0))
        self.high.copy_(torch.where(high.isfinite(), high, 0))

    def corrupt(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return damaged samples of the same shape; x itself stays as it is."""
        flat = x.flatten(1)  # (n, size)
        if self.noise == "gaussian":
            damaged = flat + self.level * self.spread * self.is_number * torch.randn_like(flat)
            return damaged.reshape(x.shape)
        hit = self.cells.over_columns(torch.rand(len(x), self.cells.width, device=x.device) < self.level)  # (n, size)
        seen = None if observed is None else observed.flatten(1)
        if self.noise == "masking":
            values = self.center
        elif self.noise == "salt-and-pepper":
            values = torch.where(torch.rand_like(flat) < 0.5, self.low, self.high)
            for block in self.cells.blocks:
                drawn = torch.randint(block.stop - block.start, (len(x),), device=x.device)
                every = torch.arange(block.stop - block.start, device=x.device)
                values[:, block] = (drawn[:, None] == every).to(x.dtype)  # one_hot would look at the values
        else:
            # Each column's values are dealt anew among the samples, independently of the other columns.
            drawn = torch.rand(len(x), self.cells.width, device=x.device)
            donors = self.cells.over_columns(drawn.argsort(dim=0))  # (n, size)
            values = flat.gather(0, donors)
            hit = hit if seen is None else hit & seen.gather(0, donors)
        hit = hit if seen is None else hit & seen
        return torch.where(hit, values, flat).reshape(x.shape)

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        z: Tensor = self.encoder(self.cells.enter(x, observed))  # (n, code)
        return z

    def decode(self, z: Tensor) -> Tensor:
        return self.cells.leave(self.decoder(z))  # (n, *shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        given = self.corrupt(x, observed) if self.training else x
        return self.cells.losses(self.decoder(self.encode(given, observed)), x, observed)
