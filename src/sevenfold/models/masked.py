"""Masked autoencoder for tables with gaps: learns to fill in cells that it is not shown.

A denoising autoencoder (Vincent et al., 2008) whose damage is missing cells, and which is told which they are: the mask is
an input, as in GAIN (Yoon et al., 2018).
"""

import numpy as np
import torch
from torch import Tensor, nn

from sevenfold import cells, networks
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, Imputer


class MaskedAutoencoder(Autoencoder, Imputer):
    """Fully connected; each column enters as its value, 0 where it is a gap, and a flag that says so.

    In each step some of the cells that are known are hidden as well: those that are gaps in another row of the batch,
    so that the data's own patterns of missing cells are what is learned, and a share of the others at random, since
    those patterns may be few. Only known cells count in the loss.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        code: int,
        hidden: list[int],
        activation: networks.Activation,
        blocks: int,
        bins: int,
        share: float,
        visible: float,
        numbers: cells.Numbers,
        categories: cells.Categories,
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample.
            code: number of values in the code; it may be larger than a sample, which hiding keeps from being copied.
            hidden: widths between sample and code.
            activation: between the layers.
            blocks: residual blocks at each width between sample and code.
            bins: pieces of each number's range that it enters by beside its value, so that a layer can tell a value in
                the middle from one at either end; 0 for the value alone.
            share: of the columns that are hidden at random, above 0 and at most 0.5. Each row has a share of its own,
                even between 0 and twice this, so that rows with many and with few gaps are filled alike.
            visible: weight of the error on cells that were shown against that on hidden ones, 0 or more.
            numbers: how numbers enter the network, and how their error is measured.
            categories: how categories enter it.

        Raises:
            ValueError: an option is out of range.
        """
        super().__init__(layout, code, overcomplete=True)
        problems = []
        if bins < 0:
            problems.append(f"bins is {bins}; expected 0 or more; 16 is a start")
        if not 0 < share <= 0.5:
            problems.append(f"share is {share}; expected more than 0 and at most 0.5; 0.2 is a start")
        if not 0 <= visible < float("inf"):
            problems.append(f"visible is {visible}; expected a weight of 0 or more; 0.1 is a start")
        if problems:
            raise ValueError("; ".join(problems))
        self.share = share
        self.visible = visible
        self.cells = cells.Cells(layout, numbers=numbers, categories=categories, flag_all=True)
        self.pieces = _Pieces(self.cells.sizes[0], bins)
        inputs = self.cells.inputs + bins * self.cells.sizes[0]
        self.encoder = networks.dense([inputs, *hidden, code], activation, blocks=blocks)
        self.decoder = networks.dense([code, *reversed(hidden), self.cells.outputs], activation, blocks=blocks)

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.cells.learn(x, observed)
        self.pieces.learn(*self._numbers(x, observed))

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        if observed is not None:
            x = x * observed  # what stands in a gap is not looked at
        entering = self.cells.enter(x, observed)
        if self.pieces.bins:
            entering = torch.cat([entering, self.pieces(*self._numbers(x, observed))], dim=1)
        z: Tensor = self.encoder(entering)  # (n, code)
        return z

    def _numbers(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        places = self.cells.numeric
        return x.flatten(1)[:, places], None if observed is None else observed.flatten(1)[:, places]

    def decode(self, z: Tensor) -> Tensor:
        return self.cells.leave(self.decoder(z))  # (n, *shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        known = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
        hidden = self.hide(known)
        output = self.decoder(self.encode(x, known & ~hidden))
        filled = self.cells.losses(output, x, known & hidden)
        shown = self.cells.losses(output, x, known & ~hidden)
        return {name: filled[name] + self.visible * shown[name] for name in filled}

    def hide(self, known: Tensor) -> Tensor:
        """Draw which cells are hidden, (n, *shape) bool, from which are known; whole columns of a table.

        In `eval` mode the draw is the same every time, so that the losses of two epochs differ by their weights alone.
        """
        generator = None if self.training else torch.Generator(known.device).manual_seed(0)
        count = len(known)

        def draw(columns: int) -> Tensor:
            return torch.rand(count, columns, generator=generator, device=known.device)

        at_random = draw(self.cells.width) < 2 * self.share * draw(1)
        others = known[draw(1).flatten().argsort()]
        return self.cells.over_columns(at_random).reshape(known.shape) | ~others

    def impute(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return x (n, *shape) with its gaps filled; cells that were observed come back as they are.

        A category is filled with the likeliest one.
        """
        if observed is None:
            return x
        filled: Tensor = self(x, observed)
        for block in self.cells.blocks:
            likeliest = filled[:, block].argmax(dim=1)
            filled[:, block] = torch.nn.functional.one_hot(likeliest, block.stop - block.start).to(filled.dtype)
        return torch.where(observed, x, filled)


class _Pieces(nn.Module):
    """Piecewise linear encoding of numbers (Gorishniy, Rubachev and Babenko, 2022): how far into each piece a value is.

    Each piece holds as many of the training rows as any other, or one value where there are few.
    """

    edges: Tensor

    def __init__(self, count: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.register_buffer("edges", torch.linspace(-1, 1, bins + 1).repeat(count, 1))  # (count, bins + 1), ascending

    def learn(self, x: Tensor, observed: Tensor | None) -> None:
        """Place the edges by the observed values of each column, x (n, count)."""
        if not self.bins:
            return
        levels = np.linspace(0, 1, self.bins + 1)
        for column in range(x.shape[1]):
            values = x[:, column] if observed is None else x[:, column][observed[:, column]]
            if len(values):
                distinct = np.unique(values.cpu().numpy())
                few = len(distinct) <= self.bins + 1
                edges = np.quantile(distinct if few else values.cpu().numpy(), levels)
                self.edges[column] = torch.from_numpy(edges)

    def forward(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return (n, count * bins): from -1 before a piece to 1 beyond it; 0 where nothing was observed."""
        low, high = self.edges[:, :-1], self.edges[:, 1:]
        within = ((x[:, :, None] - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) * 2 - 1  # (n, count, bins)
        if observed is not None:
            within = within * observed[:, :, None]
        return within.flatten(1)
