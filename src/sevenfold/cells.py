"""The way of a sample's cells into a fully connected network, and out of it again, whatever kind of column they are."""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sevenfold.layouts import Layout
from sevenfold.models.base import Standardiser, pieces, squared_error

Numbers = Literal["standard", "quantile"]
"""How numbers enter: "standard" centres them and divides all by one spread; "quantile" gives each column the normal
distribution by rank, whatever it had before."""

Categories = Literal["one-hot", "embedding"]
"""How categories enter: one value for each, or a shorter vector that is learned."""

KNOTS = 200
"""Points of a column's distribution that `Quantiles` remembers."""

LARGEST_EMBEDDING = 50
"""Values; a column of few categories has about half as many as categories."""


class Cells(nn.Module):
    """Turns samples into what a network takes, and what it gives into samples and losses.

    A category is embedded, and read off the output by its product with each category's embedding (Press and Wolf, 2017);
    its loss is the cross-entropy. Gaps enter as 0, and a flag tells them from a value that is 0. Images and tables of
    numbers without gaps are just standardised.

    inputs: values that enter the network.
    outputs: values that it has to give: the inputs without their flags.
    width: columns, or values of an image.
    blocks: the places of each categorical column's values in a flat sample.
    """

    columns: Tensor
    entropy: Tensor
    numeric: Tensor
    owner: Tensor
    order: Tensor
    flagged: Tensor

    def __init__(self, layout: Layout, *, numbers: Numbers, categories: Categories, flag_all: bool = False) -> None:
        """Lay out the inputs.

        Args:
            layout: of a sample.
            numbers: how numbers enter.
            categories: how categories enter.
            flag_all: whether every column has a flag; by default those that may have gaps.
        """
        super().__init__()
        self.shape = layout.shape
        size = int(torch.Size(layout.shape).numel())
        places, numeric, flagged, self.blocks = list(range(size)), [], [], []
        at = 0
        for field in layout.fields:
            if field.categorical:
                self.blocks.append(slice(at, at + field.width))
            else:
                numeric.append(at)
            if field.gaps or flag_all:
                flagged.append(at)
            at += field.width
        if not layout.fields:
            numeric = places
            flagged = places if flag_all else []
        # Cells as they enter: numbers first, then the categories, column by column.
        entering = numeric + [place for block in self.blocks for place in places[block]]
        for name, values in {"numeric": numeric, "order": _inverse(entering), "flagged": flagged}.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)
        self.categorical = [block.start for block in self.blocks]
        self.plain = not self.blocks
        shape = layout.shape if self.plain else (len(numeric),)
        self.numbers: Standardiser | Quantiles = Standardiser(shape) if numbers == "standard" else Quantiles(shape)
        widths = [block.stop - block.start for block in self.blocks]
        self.vectors = nn.ParameterList()
        self.logits = nn.ParameterList()
        if categories == "embedding":
            for width in widths:
                length = min(LARGEST_EMBEDDING, (width + 1) // 2)
                self.vectors.append(torch.randn(width, length) / math.sqrt(length))
                self.logits.append(torch.zeros(width))
            widths = [vectors.shape[1] for vectors in self.vectors]
        self.sizes = [len(numeric), *widths]
        self.outputs = sum(self.sizes)
        self.inputs = self.outputs + len(flagged)
        widths = [field.width for field in layout.fields] or [1] * size
        self.width = len(widths)
        owner = [column for column, width in enumerate(widths) for _ in range(width)]
        self.register_buffer("owner", torch.tensor(owner), persistent=False)  # (size,)
        columns = torch.tensor([float(len(numeric)), float(len(self.blocks))])
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("entropy", torch.ones(len(self.blocks)))

    def learn(self, x: Tensor, observed: Tensor | None) -> None:
        """Learn the distribution of each column from the training samples, x (n, *shape)."""
        if self.sizes[0]:
            self.numbers.learn(x, observed, None if self.plain else self.numeric)
        for index, block in enumerate(self.blocks):
            # A gap is no category.
            seen = sum((part[:, block].sum(dim=0) for part, _ in pieces(x, None)), start=x.new_zeros(())).clamp(
                min=1e-3
            )
            # Of what a guess by frequency is uncertain of; a category that all rows share leaves nothing to learn.
            self.entropy[index] = torch.special.entr(seen / seen.sum()).sum().clamp(min=1e-2)

    def enter(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return what enters the network, (n, *shape) -> (n, inputs)."""
        values = self.numbers(self._numeric(x)).flatten(1)
        if observed is not None:
            values = values * self._numeric(observed).flatten(1)
        parts = [values]
        for index, block in enumerate(self.blocks):
            # The sum of the rows' own vectors: none for a gap, all of whose values are 0.
            parts.append(x[:, block] @ self.vectors[index] if len(self.vectors) else x[:, block])
        if len(self.flagged):
            gaps = None if observed is None else ~observed.flatten(1)[:, self.flagged]
            parts.append(x.new_zeros(len(x), len(self.flagged)) if gaps is None else gaps.to(x.dtype))
        return torch.cat(parts, dim=1) if len(parts) > 1 else values

    def leave(self, output: Tensor) -> Tensor:
        """Return samples, (n, outputs) -> (n, *shape); each category with its probability."""
        if self.plain:
            whole: Tensor = self.numbers.inverse(output.reshape(-1, *self.shape))
            return whole
        values, logits = self._split(output)
        parts: list[Tensor] = [self.numbers.inverse(values), *(scores.softmax(dim=1) for scores in logits)]
        return torch.cat(parts, dim=1)[:, self.order]

    def center(self, x: Tensor) -> Tensor:
        """Return the sample that enters as nothing, (1, *shape): the mean one, or the median by quantiles."""
        return self.leave(x.new_zeros(1, self.outputs))

    def squared_error(self, output: Tensor, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the mean squared error of the numbers as they enter: about 1 for who knows their mean only.

        Args:
            output: (n, outputs).
            x: (n, *shape), what it should be.
            observed: of the same shape; only these cells count.
        """
        wanted: Tensor = self.numbers(self._numeric(x)).flatten(1)
        if not self.sizes[0]:
            return output.new_zeros(())
        seen = None if observed is None else self._numeric(observed).flatten(1)
        return squared_error(output[:, : self.sizes[0]], wanted, seen)

    def cross_entropy(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the cross-entropy of each row's categories, (n, columns) in nats; 0 for a gap, which is no category."""
        _, logits = self._split(output)
        pairs = zip(logits, self.blocks, strict=True)
        return torch.stack([-(functional.log_softmax(s, dim=1) * x[:, b]).sum(dim=1) for s, b in pairs], dim=1)

    def losses(self, output: Tensor, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        """Return the loss of the numbers and, where there are any, of the categories, weighted by their columns' share.

        Every column counts alike: a category's loss is relative to that of a guess by frequency, as the squared error of
        a number is to that of the mean.
        """
        error = self.squared_error(output, x, observed)
        if self.plain:
            return {"reconstruction": error}
        share = self.sizes[0] / (self.sizes[0] + len(self.blocks))
        seen = len(x) if observed is None else observed[:, self.categorical].sum(dim=0).clamp(min=1)
        relative = (self.cross_entropy(output, x).sum(dim=0) / seen / self.entropy).mean()
        return {"reconstruction": share * error, "categories": (1 - share) * relative}

    def counts(self, observed: Tensor | None) -> Tensor:
        """Return how many numbers and how many categories a row has, (2,); the mean over rows where some are gaps."""
        if observed is None:
            return self.columns
        seen = observed.flatten(1)
        return torch.stack([self._numeric(seen).sum(), seen[:, self.categorical].sum()]) / len(seen)

    def seen(self, observed: Tensor) -> Tensor:
        """Return which of the outputs were observed, (n, *shape) -> (n, outputs)."""
        parts = [self._numeric(observed).flatten(1)]
        parts += [observed[:, b, None].expand(-1, s) for b, s in zip(self.categorical, self.sizes[1:], strict=True)]
        return torch.cat(parts, dim=1)

    def over_columns(self, values: Tensor) -> Tensor:
        """Return for each value of a flat sample what its column has, (n, width) -> (n, size)."""
        return values if self.plain else values[:, self.owner]

    def _numeric(self, x: Tensor) -> Tensor:
        return x if self.plain else x[:, self.numeric]

    def _split(self, output: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the numbers (n, k) and, for each categorical column, the scores of its categories (n, width)."""
        values, *parts = torch.split(output, self.sizes, dim=1)
        if len(self.vectors):
            triples = zip(parts, self.vectors, self.logits, strict=True)
            parts = [part @ vectors.T + bias for part, vectors, bias in triples]
        return values, parts


class Quantiles(nn.Module):
    """Gives each value of a sample the standard normal distribution: the normal score of its rank, and back.

    Between the remembered points the map is linear. Beyond them it goes on in the column's own standard deviations, so
    that what lies far out stays far out.
    """

    knots: Tensor
    scores: Tensor
    last: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        size = int(torch.Size(shape).numel())
        line = torch.linspace(-1, 1, KNOTS)
        self.register_buffer("knots", line.repeat(size, 1))  # (size, KNOTS), ascending
        self.register_buffer("scores", line.repeat(size, 1))
        self.register_buffer("last", torch.full((size, 1), KNOTS - 1))  # the last knot that differs from the one before
        self.register_buffer("scale", torch.ones(size, 1))

    def learn(self, x: Tensor, observed: Tensor | None, places: Tensor | None = None) -> None:
        """Take the quantiles of each value over its observed cells, x (n, *shape).

        Args:
            places: of the values (n, values) that count; by default all.
        """
        levels = (torch.arange(KNOTS, dtype=torch.double) + 0.5) / KNOTS
        normal = torch.special.ndtri(levels)
        for place in range(len(self.knots)):
            source = place if places is None else int(places[place])
            values = x.flatten(1)[:, source].double()
            if observed is not None:
                values = values[observed.flatten(1)[:, source]]
            if not len(values):
                values = x.new_zeros(1).double()
            spread = values.std(correction=0)
            # What never varied has no deviation of its own; the samples' unit keeps new values in proportion.
            spread = torch.where(spread > 1e-6, spread, 1.0)
            quantiles = torch.from_numpy(
                np.quantile(values.cpu().numpy(), levels.numpy())
            )  # torch's own takes 16 M rows at most
            knots, copies = torch.unique(quantiles, return_inverse=True)
            # What many rows share has the mean of their scores.
            count = copies.bincount(minlength=len(knots))
            means = torch.zeros_like(knots).index_add(0, copies, normal) / count
            # Two knots at least, and always as many: the last one is repeated.
            if len(knots) == 1:
                knots, means = torch.cat([knots, knots + spread.cpu()]), torch.cat([means, means + 1])
            self.last[place] = len(knots) - 1
            repeat = KNOTS - len(knots)
            self.knots[place] = torch.cat([knots, knots[-1:].expand(repeat)])
            self.scores[place] = torch.cat([means, means[-1:].expand(repeat)])
            self.scale[place] = spread

    def forward(self, x: Tensor) -> Tensor:
        return self._mapped(x, self.knots, self.scores, 1 / self.scale)

    def inverse(self, x: Tensor) -> Tensor:
        return self._mapped(x, self.scores, self.knots, self.scale)

    def _mapped(self, x: Tensor, source: Tensor, target: Tensor, slope: Tensor) -> Tensor:
        """Return x (n, *shape) by the piecewise linear map of each value from `source` to `target`, both (size, KNOTS)."""
        values = x.flatten(1).T.contiguous()  # (size, n)
        right = torch.searchsorted(source, values.detach()).clamp(min=1)
        right = torch.minimum(right, self.last)
        x0, x1 = source.gather(1, right - 1), source.gather(1, right)
        y0, y1 = target.gather(1, right - 1), target.gather(1, right)
        low, high = source[:, :1], source.gather(1, self.last)
        inside = torch.minimum(torch.maximum(values, low), high)
        mapped = y0 + (inside - x0) / (x1 - x0).clamp(min=1e-12) * (y1 - y0)
        return (mapped + (values - inside) * slope).T.reshape(x.shape)


def _inverse(permutation: list[int]) -> list[int]:
    """Return where each of 0 .. n-1 stands in the permutation."""
    places = [0] * len(permutation)
    for place, value in enumerate(permutation):
        places[value] = place
    return places
