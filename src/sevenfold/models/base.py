"""The contract of every autoencoder variant, and the little they all share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sevenfold import modules
from sevenfold.layouts import Field, Layout


class Autoencoder(nn.Module, ABC):
    """Encodes a sample as a short vector and decodes it again.

    A variant is one file in `models/` with one subclass. Its options are keyword-only arguments of `__init__` without
    defaults: params.yaml owns the numbers. In `eval` mode both ways are deterministic and treat each sample on its own.
    What else a variant can do is told by what it inherits beside this class: `Restorer`, `Compressor`, `Imputer`,
    `Selector`.
    """

    progress: Tensor
    """Share of the training that is done, 0 to 1, for what is warmed up or annealed; training sets it before each step.
    A tensor, so that a compiled step need not be compiled again for each value."""

    settled: float = 0.0
    """Share of the training from which on validation losses of two epochs compare: what is warmed up or annealed has come
    to rest. No earlier epoch is the best one, and patience counts from here."""

    def __init__(self, layout: Layout, code: int, *, overcomplete: bool = False) -> None:
        """Take the layout of a sample and the number of values in a code.

        Args:
            overcomplete: whether a code may have more values than a sample, since something else than its size keeps
                it from being a copy.
        """
        super().__init__()
        self.register_buffer("progress", torch.ones(()), persistent=False)
        size = int(torch.Size(layout.shape).numel())
        if code < 1 or (code > size and not overcomplete):
            wanted = f"1 to {size}, the number of values in a sample of shape {layout.shape}"
            raise ValueError(f"code is {code}; expected {'1 or more' if overcomplete else wanted}")
        self.layout = layout
        self.shape = layout.shape
        self.size = size
        self.code = code

    @abstractmethod
    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        """Learn buffers (scaling, components) from the training samples, before the first step; x (n, *shape)."""

    @abstractmethod
    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """(n, *shape) -> (n, code); a variant that makes nothing of gaps takes the 0 that stands in their place."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """(n, code) -> (n, *shape)"""

    @abstractmethod
    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        """Return named, weighted scalars; training minimises their sum. Cells that are not observed do not count.

        They depend on tensors alone, of which `progress` is one: training writes down which kernels a step calls, and
        calls just these from then on. A variant that looks at a value in Python, or counts there, is found out, and
        trained at half the speed.
        """

    def remarks(self, x: Tensor, observed: Tensor | None) -> list[str]:
        """Return what a reader of the training's log should know about the trained model, each in one sentence.

        They take little time, whatever the number of rows: see `some`.

        Args:
            x: validation rows, (n, *shape); at least one.
            observed: of the same shape; None where all cells are.
        """
        return []

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return the reconstruction, (n, *shape)."""
        reconstruction: Tensor = self.decode(self.encode(x, observed))
        return reconstruction


class Restorer(ABC):
    """Takes noise off images."""

    stride: int
    """In pixels. Tiles of a larger image have to begin at multiples of it, so that they meet the same grid as the whole."""
    margin: int
    """In pixels, a multiple of `stride`: the receptive field on each side. The pixels of a restored tile are those of the
    restored whole, but for so many along each edge at which it was cut out."""

    @abstractmethod
    def restore(self, x: Tensor, level: float | Tensor) -> Tensor:
        """Return the images without their noise, in their own size.

        Args:
            x: (n, channels, height, width), of any height and width.
            level: standard deviation of the noise in the unit of x, for all images or one per image, (n,); 0 or more.
        """


class Compressor(ABC):
    """Turns images into streams of bytes and back, with the losses of a reconstruction, at a ladder of rates.

    A rung is a number from 1, for the shortest streams, to `rungs`, for the best images, which None stands for.
    """

    @property
    @abstractmethod
    def rungs(self) -> int:
        """Return how many rungs the ladder has."""

    @property
    @abstractmethod
    def any_size(self) -> bool:
        """Return whether images may have another size than those of the training."""

    @abstractmethod
    def compress(self, x: Tensor, rung: int | None = None) -> list[bytes]:
        """Return one stream per image, (n, channels, height, width)."""

    @abstractmethod
    def decompress(
        self, streams: Sequence[bytes], rung: int | None = None, edges: Sequence[int] | None = None
    ) -> Tensor:
        """Return the images of these streams, in the unit of what was compressed; by default as `forward` gives them.

        Only the model that wrote a stream can read it.

        Args:
            edges: (height, width) of the images, where it is not that of the images of the training.
        """

    @abstractmethod
    def compress_together(self, x: Tensor, rung: int) -> tuple[bytes, Tensor]:
        """Return one stream of all images (n, channels, height, width), and the bits of each in it, (n,)."""

    @abstractmethod
    def decompress_together(self, stream: bytes, count: int, rung: int, edges: Sequence[int]) -> Tensor:
        """Return the `count` images of a stream, (count, channels, *edges)."""

    @abstractmethod
    def tiles(self, edges: Sequence[int]) -> int:
        """Return how many streams an image of this size is to have, so that memory does not grow with it."""

    @abstractmethod
    def compress_tiles(self, x: Tensor, rung: int) -> list[bytes]:
        """Return the streams of one image, (1, channels, height, width), as many as `tiles` says."""

    @abstractmethod
    def decompress_tiles(self, streams: Sequence[bytes], rung: int, edges: Sequence[int]) -> Tensor:
        """Return the image of such streams, (1, channels, *edges)."""


class Imputer(ABC):
    """Fills gaps."""

    @abstractmethod
    def impute(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return x (n, *shape) with its gaps filled, in the unit of x; cells that were observed come back as they are.

        Args:
            observed: bool, of the same shape; None where there are no gaps.
        """


class Selector(ABC):
    """Selects some of a sample's values, and copies them to the code."""

    @property
    @abstractmethod
    def selected(self) -> Tensor:
        """Return the position in the flat sample of each code value, (code,) int64, from 0; no position twice."""


def squared_error(output: Tensor, x: Tensor, observed: Tensor | None) -> Tensor:
    """Return the mean squared error over the observed cells, in the squared unit of x."""
    if observed is None:
        return functional.mse_loss(output, x)
    error = (output - x).square()
    return (error * observed).sum() / observed.sum().clamp(min=1)


PIECE = 4096
"""Rows that `prepare` and `remarks` look at together: the rows may be a file that is larger than the memory."""


def pieces(x: Tensor, observed: Tensor | None, places: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the rows of x (n, ...) and which of their cells were observed, piece by piece.

    Args:
        places: of the values (n, values) to give; by default all.
    """
    for start in range(0, len(x), PIECE):
        part = x[start : start + PIECE]
        seen = torch.ones_like(part, dtype=torch.bool) if observed is None else observed[start : start + PIECE]
        yield (part, seen) if places is None else (part[:, places], seen[:, places])


def some(x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return at most `PIECE` of the rows of x (n, ...), evenly spread, and which of their cells were observed."""
    step = max(1, math.ceil(len(x) / PIECE))
    return x[::step], None if observed is None else observed[::step]


class Standardiser(nn.Module):
    """Centres each value of a sample and divides all by one spread, so that networks see numbers of the order of 1.

    One spread for all keeps the values' proportions: what varies little stays small, and the squared error of the
    standardised sample is that of the sample up to a constant factor.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(()))

    def learn(self, x: Tensor, observed: Tensor | None, places: Tensor | None = None) -> None:
        """Take the mean of each value, and the root mean square of what is left of all of them, over observed cells.

        Args:
            places: of the values (n, values) that count; by default all.
        """
        center, count = torch.zeros_like(self.center, dtype=torch.double), torch.zeros_like(self.center)
        for part, seen in pieces(x, observed, places):
            center += (part * seen).sum(dim=0, dtype=torch.double)
            count += seen.sum(dim=0)
        center /= count.clamp(min=1)
        error = torch.zeros_like(self.spread, dtype=torch.double)
        for part, seen in pieces(x, observed, places):
            error += ((part - center.to(part.dtype)) * seen).square().sum(dtype=torch.double)
        self.center.copy_(center)
        self.spread.copy_((error / count.double().sum().clamp(min=1)).sqrt().clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.center) / self.spread

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.spread + self.center


@dataclass(frozen=True)
class ModelSpec:
    """Enough to build a model again, as plain JSON: its variant, what a sample looks like, and the variant's options."""

    variant: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[Field, ...] = ()

    @classmethod
    def of(cls, variant: str, layout: Layout, options: Mapping[str, Any]) -> "ModelSpec":
        return cls(variant, layout.shape, dict(options), layout.fields)

    def problems(self) -> list[str]:
        """Return everything wrong with the variant's name or its options."""
        try:
            variant = modules.member("models", self.variant, Autoencoder)  # type: ignore[type-abstract]
        except ValueError as error:
            return [str(error)]
        return modules.option_problems(variant, self.options, of=self.variant)

    def build(self) -> Autoencoder:
        """Return a fresh model. Seed torch before: the weights are drawn here.

        Raises:
            ValueError: the variant or one of its options is unknown, missing or out of range.
        """
        if problems := self.problems():
            raise ValueError("; ".join(problems))
        variant: Any = modules.member("models", self.variant, Autoencoder)
        model: Autoencoder = variant(Layout(self.shape, self.fields), **self.options)
        return model

    def to_json(self) -> dict[str, Any]:
        layout = Layout(self.shape, self.fields)
        return {"variant": self.variant, **layout.to_json(), "options": dict(self.options)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelSpec":
        layout = Layout.from_json(value)
        return cls(value["variant"], layout.shape, value["options"], layout.fields)
