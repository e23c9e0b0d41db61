"""Compressive autoencoder: transforms trained for rate and distortion together (Ballé et al., 2017), and real streams.

One model holds a ladder of rates (Cui et al., 2021). By option with the scale hyperprior of Ballé et al. (2018), and with
channels that tell of each other (Minnen and Singh, 2020).
"""

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sevenfold import augmentation, entropy, layouts, networks
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, Compressor, Standardiser, pieces

GAIN = 8.0
"""Rounding steps to the networks' unit, so that training starts with latents that outlive the rounding."""

LARGEST = 2.0**20
"""Latents are held within this size: whole numbers of float32, and of `entropy`, are exact there."""

COMPONENTS = 3
"""Logistic distributions that make up the prior of one channel."""

LEVELS, LEAST_SCALE, LEVEL = 64, 0.07, 0.125
"""The scales that the hyperprior chooses from: how many; the least in rounding steps, where 1 latent in 600 is not 0; the
logarithm of the factor from one to the next. The greatest is 184."""

FRACTIONS = 8
"""Means of a latent between two whole numbers."""

WIDTH = 64
"""Hidden values by which a group of channels follows from those before."""

LINEAR = 0.4
"""Of the networks' unit in that of a principal component, at first."""

STRIDE = 8
"""Levels to the hyper synthesis's unit: with more of them training is rough, with fewer slow."""

TILE = 1024
"""Edge, in pixels, of the tiles of a larger image, which go through the networks one by one and have streams of their own."""

_FRACTION_DIGITS = FRACTIONS.bit_length() - 1

FARTHEST = 1e6
"""Spreads from the center at which values of a sample are held: the square of a larger one may overflow."""


class CompressiveAutoencoder(Autoencoder, Compressor):
    """Rounds its code to whole numbers and knows how likely each is, so that an image becomes a stream of few bytes.

    Training minimises rate + weight x distortion. The rate is in bits per value of a sample; the distortion is the mean
    squared error as a share of the data's variance, so that one `weight` and one learning rate suit data of any scale.
    For values in [0, 1], the lambda of the literature (bits per pixel + lambda x 255^2 x mean squared error) is
    weight x channels / (255 x spread)^2. Where no latent is all zeros, the rounding costs an error of about 0.7 / weight
    times latents per value, on top of what the transforms lose.

    One model holds a ladder of rates (Cui et al., 2021): at each rung the latents are multiplied with gains of that rung
    before they are rounded, and with others afterwards. `encode` gives the whole numbers of the highest rung, and
    `forward` what its decoded stream gives. A stream holds latents and a checksum, and nothing of the model:
    `decompress` needs the model that wrote it, the rung, and the size of images that are not as those of the training.

    Encoder and decoder must agree on every probability to the last bit, on any machine and in batches of any size. They
    compute both, the tables and the choice among them, from the weights and the latents by operations that are
    exact or that IEEE 754 fixes: see `entropy.logistic_tables` and `ConditionalPrior`. The transforms need not agree so
    well, since a stream holds what was rounded already.
    """

    weights: Tensor

    def __init__(
        self,
        layout: Layout,
        *,
        channels: list[int],
        hidden: list[int],
        hyper: list[int],
        groups: int,
        weights: list[float],
        augment: list[augmentation.Change],
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample; its shape is that of an image, (channels, height, width).
            channels: after each halving of an image's edges; the last are the latents'. [32, 64, 8] makes of
                (1, 28, 28) a code of 8 x 4 x 4 values.
            hidden: for small images, widths of fully connected layers that stand in the place of convolutions; then
                `channels` holds the number of latents alone, and all images have one size. Else [].
            hyper: channels after each further halving by the hyperprior; the last are the hyperlatents'. For none, [],
                nothing is known of a latent's scale but what the rung and the groups before tell.
            groups: of channels, coded one after the other; each latent's distribution follows from the groups before
                (Minnen and Singh, 2020). 1 without a hyperprior is the factorized prior: one distribution per channel.
            weights: of the distortion, one for each rung, rising; the higher, the better the image and the longer its
                stream.
            augment: what training does to images, each to half of them by chance.

        Raises:
            ValueError: the sample is no image, or an option is out of range.
        """
        layout.require_image()
        _require_options(channels, hidden, hyper, groups, weights)
        shape = layout.shape
        augmentation.require(augment, shape)
        transform = _Layers(shape, hidden, channels[-1]) if hidden else _Convolutions(shape[0], channels)
        grid = (channels[-1], *transform.grid(shape[1:]))
        super().__init__(layout, math.prod(grid), overcomplete=True)
        self.grid = grid
        self.augment = augment
        self.transform = transform
        self.standardise = Standardiser(self.shape if hidden else (shape[0], 1, 1))
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        # At a weight of w the best rounding steps of a transform without distortion are 2.9 / sqrt(w): an error of
        # step^2 / 12 costs as much then as the bits of finer steps.
        ratios = self.weights.sqrt() / (2.9 * GAIN * LINEAR)
        self.gains = nn.Parameter(ratios[:, None].repeat(1, channels[-1]))
        self.inverse_gains = nn.Parameter((1 / ratios)[:, None].repeat(1, channels[-1]))
        self.prior: FactorizedPrior | ConditionalPrior = (
            ConditionalPrior(self.grid, hyper, groups, ratios)
            if hyper or groups > 1
            else FactorizedPrior(channels[-1], ratios)
        )

    @property
    def rungs(self) -> int:
        return len(self.weights)

    @property
    def any_size(self) -> bool:
        return not isinstance(self.transform, _Layers)

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        if isinstance(self.transform, _Layers):
            self.standardise.learn(x, observed)
        else:
            _learn_channels(self.standardise, x, observed)
        self.transform.prepare(x, observed, self.standardise)

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        return self.whole(x, self.rungs).flatten(1)  # (n, code)

    def decode(self, z: Tensor) -> Tensor:
        return self.image(z.reshape(-1, *self.grid), self.rungs, self.shape[1:])

    def whole(self, x: Tensor, rung: int) -> Tensor:
        """Return the whole numbers that stand for images of any size at a rung, (n, latent channels, height, width)."""
        # Rounding gives -0.0 as well, which differs from 0.0 in nothing but its looks.
        return torch.round(self._gained(x, self._all(x, rung))) + 0.0

    def image(self, y: Tensor, rung: int, edges: Sequence[int]) -> Tensor:
        """Return the images of these whole numbers, (n, channels, *edges)."""
        return self._restored(y, self._all(y, rung), edges)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        # Every rung gets its share of the samples, whose order is another one in each epoch of training.
        rung = torch.arange(len(x), device=x.device)
        if self.training:
            x, observed = augmentation.vary(self.augment, x, observed, self.standardise.center)
            rung = rung + torch.randint(self.rungs, (1,), device=x.device)
        rung = rung % self.rungs
        y = self._gained(x, rung)
        # The distortion and the prior's conditions see what a decoder sees, with gradients that pass straight through
        # the rounding; the rate needs a slope, and has noise in its place (Minnen and Singh, 2020).
        rounded = _straight_through(y, torch.round(y))
        error = (self._restored(rounded, rung, x.shape[2:]) - x).square() * self.weights.index_select(0, rung).view(
            -1, 1, 1, 1
        )
        bits = self.prior.bits(_noisy(y) if self.training else rounded, rounded, rung, self.gains).sum()
        cells = x.numel() if observed is None else observed.sum().clamp(min=1)
        error = error if observed is None else error * observed
        return {"distortion": error.sum() / cells / self.standardise.spread.square(), "rate": bits / cells}

    def rate(self, x: Tensor, rung: int | None = None) -> Tensor:
        """Return the information in each image's latents, (n,) in bits: its stream without `entropy.OVERHEAD`."""
        number = self._number(rung)
        y = self.whole(x, number)
        return self.prior.bits(y, y, self._all(y, number), self.gains)

    @torch.no_grad()
    def compress(self, x: Tensor, rung: int | None = None) -> list[bytes]:
        """Return one stream per image, (n, channels, height, width), of any height and width unless `hidden` is given.

        Args:
            rung: 1 for the shortest streams, up to `rungs`, which None is, for the best images.

        Raises:
            ValueError: a value is not finite, the images have another size than they may have, or there is no such rung.
        """
        number = self._number(rung)
        return self.pack(self.whole(self._checked(x), number).flatten(1), rung, x.shape[2:])

    @torch.no_grad()
    def decompress(
        self, streams: Sequence[bytes], rung: int | None = None, edges: Sequence[int] | None = None
    ) -> Tensor:
        """Return the images of these streams, (n, *shape), as `forward` gives them.

        Args:
            edges: (height, width) of the images; None where they have the size of those of the training.

        Raises:
            entropy.DamagedStreamError: a stream is not as this model wrote it, at this rung and size.
        """
        edges = self.shape[1:] if edges is None else edges
        y = self.unpack(streams, rung, edges).reshape(-1, self.grid[0], *self.transform.grid(edges))
        return self.image(y, self._number(rung), edges)

    @torch.no_grad()
    def compress_together(self, x: Tensor, rung: int) -> tuple[bytes, Tensor]:
        """Return one stream of all images, (n, channels, height, width), and the bits of each in it, (n,)."""
        y = self.whole(self._checked(x), self._number(rung))
        (stream,) = self.prior.pack(y, rung, self.gains[rung - 1], together=True)
        return stream, self.prior.bits(y, y, self._all(y, rung), self.gains)

    @torch.no_grad()
    def decompress_together(self, stream: bytes, count: int, rung: int, edges: Sequence[int]) -> Tensor:
        """Return the `count` images of size `edges` in a stream.

        Raises:
            entropy.DamagedStreamError: it is not as this model wrote it.
        """
        places = self.transform.grid(edges)
        y = self.prior.unpack([stream], count, places, self._number(rung), self.gains[rung - 1])
        return self.image(y.to(self.gains), rung, edges)

    def tiles(self, edges: Sequence[int]) -> int:
        return len(self.transform.tiles(edges))

    @torch.no_grad()
    def compress_tiles(self, x: Tensor, rung: int) -> list[bytes]:
        """Return one stream for each tile of an image, (1, channels, height, width), row by row.

        The latents are those of the whole image, but for the last digits of sums before they are rounded. Tiles know
        nothing of each other's latents: that costs a few bits along their edges, and leaves no seam.
        """
        y = self.whole(self._checked(x), self._number(rung))
        gain = self.gains[rung - 1]
        return [
            self.prior.pack(y[:, :, down, across], rung, gain, together=True)[0]
            for down, across in self.transform.tiles(x.shape[2:])
        ]

    @torch.no_grad()
    def decompress_tiles(self, streams: Sequence[bytes], rung: int, edges: Sequence[int]) -> Tensor:
        """Return the image, (1, channels, *edges), of the streams of its tiles.

        Raises:
            entropy.DamagedStreamError: they are not as this model wrote them, at this rung and size.
        """
        tiles, gain = self.transform.tiles(edges), self.gains[self._number(rung) - 1]
        if len(streams) != len(tiles):
            raise entropy.DamagedStreamError(
                f"{len(streams)} streams; an image of {edges[1]}x{edges[0]} has {len(tiles)}, one for each tile; take it "
                "from where it was written to once more"
            )
        y = torch.empty(1, self.grid[0], *self.transform.grid(edges))
        for stream, (down, across) in zip(streams, tiles, strict=True):
            places = (down.stop - down.start, across.stop - across.start)
            y[:, :, down, across] = self.prior.unpack([stream], 1, places, rung, gain).to(y)
        return self.image(y.to(self.gains), rung, edges)

    @torch.no_grad()
    def pack(self, z: Tensor, rung: int | None = None, edges: Sequence[int] | None = None) -> list[bytes]:
        """Return one stream per code, (n, code) from `encode`; of another rung or size where these are given.

        Raises:
            ValueError: a code is not made of whole numbers.
        """
        wrong = (z != torch.round(z)) | ~(z.abs() <= LARGEST)
        if wrong.any():
            raise ValueError(
                f"{int(wrong.sum())} code values are no whole numbers of at most {LARGEST:.0f} in size (first: "
                f"{z[wrong][0].item()}); expected what `encode` gives; round them, or compress the samples themselves"
            )
        places = self.transform.grid(self.shape[1:] if edges is None else edges)
        number = self._number(rung)
        return self.prior.pack(z.reshape(-1, self.grid[0], *places), number, self.gains[number - 1], together=False)

    @torch.no_grad()
    def unpack(self, streams: Sequence[bytes], rung: int | None = None, edges: Sequence[int] | None = None) -> Tensor:
        """Return the very codes that were packed, (n, code).

        Raises:
            entropy.DamagedStreamError: a stream is not as this model wrote it.
        """
        places = self.transform.grid(self.shape[1:] if edges is None else edges)
        number = self._number(rung)
        y = self.prior.unpack(streams, 1, places, number, self.gains[number - 1])
        return y.to(self.gains).flatten(1)

    def _number(self, rung: int | None) -> int:
        if rung is None:
            return self.rungs
        if not 1 <= rung <= self.rungs:
            raise ValueError(f"rung is {rung}; expected 1 to {self.rungs}, as many as there are weights")
        return rung

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.shape[0] or not self.transform.takes(x.shape[2:]):
            size = f"{self.shape[1]}, {self.shape[2]}" if isinstance(self.transform, _Layers) else "height, width"
            raise ValueError(
                f"images are {tuple(x.shape)}; expected (n, {self.shape[0]}, {size}), as those of the training; use a "
                "model that was trained on such images"
            )
        if not (finite := torch.isfinite(x)).all():
            raise ValueError(
                f"{int((~finite).sum())} values are not finite (first: {x[~finite][0].item()}); expected numbers; mend or "
                "drop the samples"
            )
        return x

    def _all(self, x: Tensor, rung: int) -> Tensor:
        """Return the number of the rung, from 0, for each sample."""
        return torch.full((len(x),), rung - 1, device=x.device)

    def _gained(self, x: Tensor, rung: Tensor) -> Tensor:
        """Return what is to be rounded, (n, latent channels, height, width); rung (n,) from 0."""
        y = self.transform.analyse(self.standardise(x).clamp(-FARTHEST, FARTHEST))
        # In float32 whatever the layers compute in: bfloat16 has no whole numbers above 256 but each second one.
        gained: Tensor = y.float() * (GAIN * self.gains.index_select(0, rung))[:, :, None, None]
        return gained.clamp(-LARGEST, LARGEST)

    def _restored(self, y: Tensor, rung: Tensor, edges: Sequence[int]) -> Tensor:
        latents = y * (self.inverse_gains.index_select(0, rung) / GAIN)[:, :, None, None]
        output: Tensor = self.standardise.inverse(self.transform.synthesise(latents, edges))
        return output


def _require_options(
    channels: list[int], hidden: list[int], hyper: list[int], groups: int, weights: list[float]
) -> None:
    problems = layouts.channel_problems(channels)
    if min(hidden, default=1) < 1:
        problems.append(f"hidden is {hidden}; expected widths of 1 or more, or none; mend or remove the others")
    if hidden and len(channels) != 1:
        problems.append(f"channels is {channels} with hidden layers; expected one number, that of latents")
    if min(hyper, default=1) < 1:
        problems.append(f"hyper is {hyper}; expected numbers of 1 or more, or none; mend or remove the others")
    if hyper and hidden:
        problems.append(
            f"hyper is {hyper} with hidden layers; expected none, since there is one place; set `hyper: []`"
        )
    if groups < 1 or (channels and channels[-1] % groups):
        problems.append(
            f"groups is {groups}; expected 1, or a divisor of the last of the channels, {channels[-1:]}; use 1, 2 or 4"
        )
    rising = all(a < b for a, b in itertools.pairwise([0, *weights, math.inf]))
    if not weights or not rising:
        problems.append(
            f"weights is {weights}; expected numbers above 0, each higher than the one before; the higher, the better "
            "the image"
        )
    if problems:
        raise ValueError("; ".join(problems))


class _Convolutions(nn.Module):
    """Convolutions that halve an image's edges, beside a linear transform of its blocks; and their mirror image.

    The blocks have the size of what one place of the latents covers, and the transform is at first that of their principal
    components, as codecs have the cosine transform. The convolutions, at first almost without effect, add what it misses:
    alone they take long to learn what brightness is.
    """

    def __init__(self, depth: int, channels: Sequence[int]) -> None:
        super().__init__()
        analysis: list[nn.Module] = []
        synthesis: list[nn.Module] = []
        for finer, coarser in itertools.pairwise([depth, *channels]):
            analysis += [nn.Conv2d(finer, coarser, 4, stride=2, padding=1), Normalisation(coarser)]
            synthesis += [
                nn.ConvTranspose2d(coarser, finer, 4, stride=2, padding=1),
                Normalisation(coarser, inverse=True),
            ]
        self.halvings = len(channels)
        self.block = 2**self.halvings
        self.analysis = nn.Sequential(*analysis[:-1])
        self.synthesis = nn.Sequential(*reversed(synthesis[:-1]))
        self.down = nn.Conv2d(depth, channels[-1], self.block, stride=self.block, bias=False)
        self.up = nn.ConvTranspose2d(channels[-1], depth, self.block, stride=self.block, bias=False)

    def prepare(self, x: Tensor, observed: Tensor | None, standardise: Standardiser) -> None:
        depth, latents = self.down.in_channels, self.down.out_channels
        size = depth * self.block**2
        products = torch.zeros(size, size, dtype=torch.double, device=x.device)
        for part, seen in pieces(x, observed):
            blocks = functional.unfold(self._padded(standardise(part) * seen), self.block, stride=self.block)
            flat = blocks.transpose(1, 2).reshape(-1, size).double()  # (n x blocks, size)
            products += flat.T @ flat
        vectors = _principal(products, latents)
        with torch.no_grad():
            for weight, scale in ((self.down.weight, LINEAR), (self.up.weight, 1 / LINEAR)):
                weight.zero_()
                weight[: vectors.shape[1]] = (vectors.T * scale).reshape(-1, depth, self.block, self.block)
        _soften(self.analysis[-1])
        _soften(self.synthesis[-1])

    def _padded(self, x: Tensor) -> Tensor:
        border = _border(x.shape[2:], self.halvings)
        return functional.pad(x, border, mode="replicate") if any(border) else x

    def takes(self, edges: Sequence[int]) -> bool:
        return min(edges) >= 1

    def grid(self, edges: Sequence[int]) -> tuple[int, ...]:
        return _halved(edges, self.halvings)

    def tiles(self, edges: Sequence[int]) -> list[tuple[slice, slice]]:
        """Return the places of each tile's latents, row by row; those of a small image are one tile."""
        size = max(1, TILE // self.block)
        down, across = (
            [slice(at, min(at + size, places)) for at in range(0, places, size)] for places in self.grid(edges)
        )
        return [(rows, columns) for rows in down for columns in across]

    def analyse(self, x: Tensor) -> Tensor:
        padded, tiles = self._padded(x), self.tiles(x.shape[2:])
        if self.training or len(tiles) == 1:
            return self._analysed(padded)
        # A latent looks at less than a block beyond its own.
        y = x.new_empty(len(x), self.down.out_channels, *self.grid(x.shape[2:]))
        for tile in tiles:
            taken, inner = _around(tile, y.shape[2:], 1)
            y[:, :, *tile] = self._analysed(padded[:, :, *_scaled(taken, self.block)])[:, :, *inner]
        return y

    def _analysed(self, padded: Tensor) -> Tensor:
        y: Tensor = self.down(padded) + self.analysis(padded)
        return y

    def synthesise(self, y: Tensor, edges: Sequence[int]) -> Tensor:
        cropping, tiles = _cropping(_border(edges, self.halvings)), self.tiles(edges)
        if self.training or len(tiles) == 1:
            return functional.pad(self.up(y) + self.synthesis(y), cropping)
        # A pixel looks at less than two latents beyond its own.
        output = y.new_empty(len(y), self.down.in_channels, *(self.block * places for places in y.shape[2:]))
        for tile in tiles:
            taken, inner = _around(tile, y.shape[2:], 2)
            some = y[:, :, *taken]
            made = self.up(some) + self.synthesis(some)
            output[:, :, *_scaled(tile, self.block)] = made[:, :, *_scaled(inner, self.block)]
        return functional.pad(output, cropping)


class _Layers(nn.Module):
    """A linear transform, that of principal components at first, plus fully connected layers; and their mirror image.

    What is linear keeps its promise on images that were never seen; the layers, at first without effect, add what
    few rows can teach.
    """

    def __init__(self, shape: Sequence[int], hidden: Sequence[int], latents: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        size = math.prod(shape)
        self.analysis = networks.dense([size, *hidden, latents], "silu", bias=True, blocks=0)
        self.synthesis = networks.dense([latents, *reversed(hidden), size], "silu", bias=True, blocks=0)
        self.down = nn.Linear(size, latents, bias=False)
        self.up = nn.Linear(latents, size, bias=False)

    def prepare(self, x: Tensor, observed: Tensor | None, standardise: Standardiser) -> None:
        size, latents = self.up.out_features, self.up.in_features
        products = torch.zeros(size, size, dtype=torch.double, device=x.device)
        for part, seen in pieces(x, observed):
            flat = (standardise(part) * seen).flatten(1).double()
            products += flat.T @ flat
        vectors = _principal(products, latents)
        with torch.no_grad():
            for linear in (self.down, self.up):
                linear.weight.zero_()
            self.down.weight[: vectors.shape[1]] = vectors.T * LINEAR
            self.up.weight[:, : vectors.shape[1]] = vectors / LINEAR
        for layers in (self.analysis, self.synthesis):
            _soften([m for m in layers.modules() if isinstance(m, nn.Linear)][-1])

    def takes(self, edges: Sequence[int]) -> bool:
        return tuple(edges) == self.shape[1:]

    def grid(self, edges: Sequence[int]) -> tuple[int, ...]:
        return (1, 1)

    def tiles(self, edges: Sequence[int]) -> list[tuple[slice, slice]]:
        return [(slice(0, 1), slice(0, 1))]

    def analyse(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        y: Tensor = self.down(flat) + self.analysis(flat)
        return y[:, :, None, None]

    def synthesise(self, y: Tensor, edges: Sequence[int]) -> Tensor:
        flat = y.flatten(1)
        output: Tensor = self.up(flat) + self.synthesis(flat)
        return output.reshape(-1, *self.shape)


def _principal(products: Tensor, count: int) -> Tensor:
    """Return the first principal directions, (size, at most count), of the sums of products (size, size) of values."""
    vectors = torch.linalg.eigh(products)[1].flip(1)[:, :count]
    # A sign is as good as the other, so the largest entry is taken as positive.
    signed: Tensor = vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
    return signed


def _soften(layer: nn.Module) -> None:
    """Make a layer give almost nothing at first."""
    weight, bias = layer.parameters()
    with torch.no_grad():
        weight.mul_(0.01)
        bias.zero_()


def _learn_channels(standardise: Standardiser, x: Tensor, observed: Tensor | None) -> None:
    """Take one mean for each channel: an image of any size has no other place for it; x (n, channels, height, width)."""
    center = torch.zeros_like(standardise.center, dtype=torch.double)
    count, error = torch.zeros_like(center), torch.zeros_like(center)
    over = (0, 2, 3)
    for part, seen in pieces(x, observed):
        center += (part * seen).sum(dim=over, dtype=torch.double).view_as(center)
        count += seen.sum(dim=over).view_as(center)
    center /= count.clamp(min=1)
    for part, seen in pieces(x, observed):
        error += ((part - center.to(part)) * seen).square().sum(dim=over, dtype=torch.double).view_as(center)
    standardise.center.copy_(center)
    standardise.spread.copy_((error.sum() / count.sum().clamp(min=1)).sqrt().clamp(min=1e-6))


class FactorizedPrior(nn.Module):
    """A mixture of logistic distributions for each channel and rung, the same at all places and independent of the others.

    Simpler than the cumulative network of Ballé et al. (2018, appendix 6.1), and as fit for the purpose: any
    distribution is near some mixture, and no number is impossible.
    """

    def __init__(self, channels: int, ratios: Tensor) -> None:
        """Build the mixtures; `ratios` (rungs,) are the gains of latents at each rung."""
        super().__init__()
        self.channels = channels
        form = (1, len(ratios), channels)
        self.logits = nn.Parameter(torch.zeros(COMPONENTS, *form[1:]))
        # Apart, since equal components would stay equal.
        means = torch.linspace(-0.5, 0.5, COMPONENTS)[:, None, None] * ratios[:, None]
        log_scales = torch.linspace(-1.0, 1.0, COMPONENTS)[:, None, None] + ratios[:, None].log()
        self.means = nn.Parameter(means.repeat(1, 1, channels))
        self.log_scales = nn.Parameter(log_scales.repeat(1, 1, channels))

    def bits(self, noisy: Tensor, rounded: Tensor, rung: Tensor, gains: Tensor) -> Tensor:
        """Return the information in latents (n, channels, height, width), (n,) in bits; in `eval` mode both are the same.

        Args:
            rung: of each sample, (n,), from 0.
            gains: of each rung and channel; a prior of mixtures has no need of them.
        """
        # (n, components, channels, 1, 1)
        logits, means, log_scales = (
            p.index_select(1, rung).transpose(0, 1)[..., None, None] for p in (self.logits, self.means, self.log_scales)
        )
        own = log_mass(noisy[:, None] - means * GAIN, log_scales + math.log(GAIN))
        logarithms = torch.logsumexp(own + torch.log_softmax(logits, dim=1), dim=1)
        return -logarithms.flatten(1).sum(dim=1) / math.log(2)

    def coder(self, rung: int) -> entropy.Coder:
        """Return the tables of the channels at a rung, from 1."""
        logits, means, log_scales = (
            p.detach()[:, rung - 1].cpu().double().numpy().T for p in (self.logits, self.means, self.log_scales)
        )
        shares = entropy.exp(logits - logits.max(axis=1, keepdims=True))
        total = sum(shares[:, [i]] for i in range(COMPONENTS))
        return entropy.Coder(entropy.logistic_tables(shares / total, means * GAIN, entropy.exp(log_scales) * GAIN))

    def pack(self, y: Tensor, rung: int, gain: Tensor, *, together: bool) -> list[bytes]:
        """Return one stream per sample's latents, (n, channels, height, width), or one of all of them together."""
        writers = _writers(y, together)
        self.write(writers, y, self.coder(rung))
        return [writer.stream() for writer in writers]

    def unpack(self, streams: Sequence[bytes], count: int, places: Sequence[int], rung: int, gain: Tensor) -> Tensor:
        """Return the latents of the streams, (streams x count, channels, *places) float64; each holds `count` samples."""
        readers = [entropy.Reader(stream) for stream in streams]
        y = self.read(readers, count, places, self.coder(rung))
        for reader in readers:
            reader.close()
        return y

    def write(self, writers: Sequence[entropy.Writer], y: Tensor, coder: entropy.Coder) -> None:
        """Give each writer its share of the latents."""
        channel = np.arange(self.channels)[:, None, None]
        for writer, part in zip(writers, _parts(_whole(y), writers), strict=True):
            writer.write(part.reshape(-1), np.broadcast_to(channel, part.shape).reshape(-1), coder)

    def read(
        self, readers: Sequence[entropy.Reader], count: int, places: Sequence[int], coder: entropy.Coder
    ) -> Tensor:
        shape = (count, self.channels, *places)
        which = np.broadcast_to(np.arange(self.channels)[:, None, None], shape).reshape(-1)
        parts = [reader.read(which, coder).reshape(shape) for reader in readers]
        return torch.from_numpy(np.concatenate([np.empty((0, *shape[1:])), *parts]))


class ConditionalPrior(nn.Module):
    """A logistic distribution for each latent, whose scale and mean follow from what a decoder knows already.

    That is the rung; hyperlatents, where there is a hyperprior (Ballé et al., 2018); and the groups of channels before
    (Minnen and Singh, 2020). The hyperlatents are made from the rounded latents, so that a code is all that its stream
    needs. They go into the stream first, by a factorized prior; then comes group after group.

    The scale is one of `LEVELS`, the mean a multiple of 1 / `FRACTIONS`, and decoder and encoder must choose the same:
    one that differs makes garbage of the rest of a stream. So the way there is integer arithmetic (Ballé et al., 2019),
    done in float64: weights and activations are multiples of powers of two with so few digits that each product and each
    sum is exact, in whatever order a library adds up; where a gain comes in, IEEE 754 fixes the one rounding. Batches of
    other sizes, other thread counts and other machines choose alike.
    """

    def __init__(self, grid: tuple[int, ...], hyper: Sequence[int], groups: int, ratios: Tensor) -> None:
        """Build the layers.

        Args:
            grid: (channels, height, width) of the latents of a sample in training.
            ratios: (rungs,), the gains of latents at each rung.
        """
        super().__init__()
        channels, rungs = grid[0], len(ratios)
        self.channels = channels
        self.groups = groups
        self.hyper = len(hyper)
        # In the unit of the last layers, of which `STRIDE` levels are one.
        self.scales = nn.Parameter((ratios.log() / LEVEL / STRIDE)[:, None].repeat(1, channels))
        if hyper:
            analysis: list[nn.Module] = [nn.Conv2d(channels, hyper[0], 3, padding=1)]
            for finer, coarser in itertools.pairwise([hyper[0], *hyper]):
                analysis += [nn.ReLU(), nn.Conv2d(finer, coarser, 4, stride=2, padding=1)]
            self.analysis = nn.Sequential(*analysis)
            self.doubling = nn.ModuleList(
                nn.ConvTranspose2d(coarser, finer, 4, stride=2, padding=1)
                for coarser, finer in itertools.pairwise([*reversed(hyper), hyper[0]])
            )
            self.last = nn.Conv2d(hyper[0], channels, 3, padding=1)
            self.prior = FactorizedPrior(hyper[-1], torch.ones(rungs))
        if groups > 1:
            reach = 1 if math.prod(grid[1:]) > 1 else 0  # nothing is around a single place
            self.means = nn.Parameter(torch.zeros(rungs, channels))
            self.first = nn.Conv2d(channels, groups * WIDTH, 2 * reach + 1, padding=reach)
            self.second = nn.Conv2d(groups * WIDTH, 2 * channels, 1, groups=groups, bias=False)
            self.entry = nn.Parameter(torch.zeros(rungs, groups * WIDTH))
            nn.init.normal_(self.second.weight, std=0.01)
            own = torch.arange(groups).repeat_interleave(WIDTH)
            of = torch.arange(groups).repeat_interleave(channels // groups)
            self.register_buffer("before", (of < own[:, None]).float()[:, :, None, None], persistent=False)

    before: Tensor
    """(groups x WIDTH, channels, 1, 1): which channels each hidden value may look at."""

    def bits(self, noisy: Tensor, rounded: Tensor, rung: Tensor, gains: Tensor) -> Tensor:
        """Return the information in latents (n, channels, height, width) and hyperlatents, (n,) in bits.

        Args:
            noisy, rounded: in `eval` mode the same.
            rung: of each sample, (n,), from 0.
            gains: (rungs, channels).
        """
        gain, total = gains.detach().index_select(0, rung)[:, :, None, None], noisy.new_zeros(len(noisy))
        base = self._offset(rung)
        if self.hyper:
            z = self._hyperlatents(rounded)
            whole = _straight_through(z, torch.round(z))
            # Training needs slopes: levels between the whole ones, and noise in place of rounding.
            base = base + self._hyper(whole, rounded.shape[2:])
            total = self.prior.bits(_noisy(z) if self.training else whole, whole, rung, gains)
        level, mean = self._given(base, rounded, rung, gain)
        if not self.training:
            level, mean = torch.round(level), _fixed(mean, 21, _FRACTION_DIGITS)
        own = log_mass((noisy - mean).to(noisy.dtype), math.log(LEAST_SCALE) + LEVEL * level.to(noisy.dtype))
        return total - own.flatten(1).sum(dim=1) / math.log(2)

    def pack(self, y: Tensor, rung: int, gain: Tensor, *, together: bool) -> list[bytes]:
        """Return one stream per sample's latents, (n, channels, height, width), or one of all of them together."""
        writers = _writers(y, together)
        number = torch.full((len(y),), rung - 1, device=y.device)
        base = self._offset(number)
        if self.hyper:
            z = torch.round(self._hyperlatents(y)).cpu()
            self.prior.write(writers, z, self.prior.coder(rung))
            base = base.cpu() + self._hyper(z, y.shape[2:])
        # Where it is exact: no promise is made of other devices.
        which, whole = _choice(
            *self._given(base.cpu(), y.cpu().double(), number.cpu(), gain.cpu()[None, :, None, None])
        )
        values = _whole(y) - whole
        for channels in _groups(self.channels, self.groups):
            parts = zip(writers, _parts(values, writers), _parts(which, writers), strict=True)
            for writer, own, tables in parts:
                writer.write(own[:, channels].reshape(-1), tables[:, channels].reshape(-1), _conditional_coder())
        return [writer.stream() for writer in writers]

    def unpack(self, streams: Sequence[bytes], count: int, places: Sequence[int], rung: int, gain: Tensor) -> Tensor:
        """Return the latents of the streams, (streams x count, channels, *places) float64; each holds `count` samples."""
        readers = [entropy.Reader(stream) for stream in streams]
        n = len(streams) * count
        number = torch.full((n,), rung - 1)
        base = self._offset(number.to(self.scales.device)).cpu()
        if self.hyper:
            hyperplaces = _halved(places, self.hyper)
            z = self.prior.read(readers, count, hyperplaces, self.prior.coder(rung))
            base = base + self._hyper(z, places)
        y = torch.zeros(n, self.channels, *places, dtype=torch.double)
        for channels in _groups(self.channels, self.groups):
            which, whole = _choice(*self._given(base, y, number, gain.cpu()[None, :, None, None]))
            for i, reader in enumerate(readers):
                rows = slice(i * count, (i + 1) * count)
                found = reader.read(which[rows, channels].reshape(-1), _conditional_coder())
                y[rows, channels] = torch.from_numpy(
                    found.reshape(which[rows, channels].shape) + whole[rows, channels]
                ).double()
        for reader in readers:
            reader.close()
        return y

    def levels(self, z: Tensor, places: Sequence[int]) -> Tensor:
        """Return the number of each latent's scale by a hyperprior alone, 0 to LEVELS - 1, float64, exactly.

        Args:
            z: hyperlatents of the first rung, whole numbers, (n, *their grid).
            places: (height, width) of the latents.
        """
        base = self._offset(torch.zeros(len(z), dtype=torch.long, device=z.device)) + self._hyper(z, places)
        return torch.round(_levels(base))

    def _hyperlatents(self, rounded: Tensor) -> Tensor:
        # Logarithms, since that is what levels are of.
        border = _border(rounded.shape[2:], self.hyper)
        size = torch.log1p(rounded.abs())
        z: Tensor = (
            self.analysis(functional.pad(size, border, mode="replicate") if any(border) else size).float() * GAIN
        )
        return z.clamp(-LARGEST, LARGEST)

    def _offset(self, rung: Tensor) -> Tensor:
        return _fixed(self.scales.double(), 3, 14).index_select(0, rung)[:, :, None, None]

    def _hyper(self, z: Tensor, places: Sequence[int]) -> Tensor:
        """Return what hyperlatents say of the scales, float64, where they are."""
        # Activations have 10 binary digits before the point and 8 behind it, weights 3 and 14: a product has 35, and a
        # sum of 2^17 of them 52, of the 53 that float64 holds.
        with torch.autocast(z.device.type, enabled=False):
            value = _fixed(z.double() / GAIN, 10, 8)
            for layer in self.doubling:
                value = functional.conv_transpose2d(value, *_coefficients(layer, value), stride=2, padding=1)
                value = _fixed(functional.relu(value), 10, 8)
            value = functional.conv2d(value, *_coefficients(self.last, value), padding=1)
        return functional.pad(value, _cropping(_border(places, self.hyper)))

    def _given(self, base: Tensor, rounded: Tensor, rung: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        """Return level and mean of each latent, float64, from the groups before; where latents are, nothing counts.

        Args:
            base: what else is known of the scales.
            rounded: latents; those of a group need not be there before it is asked for.
            gain: of the latents' rungs and channels.
        """
        if self.groups == 1:
            return _levels(base), torch.zeros_like(base)
        with torch.autocast(rounded.device.type, enabled=False):
            # Latents in the networks' unit, which is the same at all rungs.
            value = _fixed(rounded.double() / (GAIN * gain.double()), 10, 8)
            weight, bias = _coefficients(self.first, value)
            entry = _fixed(self.entry.to(value), 3, 14).index_select(0, rung)[:, :, None, None]
            value = functional.conv2d(value, weight * self.before.to(value), bias, padding=self.first.padding) + entry
            value = _fixed(functional.relu(value), 10, 8)
            value = functional.conv2d(value, _fixed(self.second.weight.to(value), 3, 14), groups=self.groups)
        # Of each group first the scales, then the means.
        size = self.channels // self.groups
        scale, mean = value.reshape(len(value), self.groups, 2, size, *value.shape[2:]).unbind(dim=2)
        mean = mean.flatten(1, 2) + _fixed(self.means.to(value), 3, 14).index_select(0, rung)[:, :, None, None]
        return _levels(base + scale.flatten(1, 2)), mean * (GAIN * gain.double())


def _levels(value: Tensor) -> Tensor:
    level = value * STRIDE + LEVELS / 2
    # A slope that fades below the least level: without one there is no way back up, with a full one no end down.
    return _straight_through(functional.softplus(level), level.clamp(0, LEVELS - 1))


def _choice(level: Tensor, mean: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return by which table each latent goes, and the whole part of its mean, which the table leaves out."""
    steps = torch.round(mean * FRACTIONS).clamp(-LARGEST, LARGEST).detach().numpy().astype(np.int64)
    whole = steps // FRACTIONS
    return torch.round(level).detach().numpy().astype(np.int64) * FRACTIONS + steps - FRACTIONS * whole, whole


def _groups(channels: int, groups: int) -> list[slice]:
    size = channels // groups
    return [slice(at, at + size) for at in range(0, channels, size)]


def _writers(y: Tensor, together: bool) -> list[entropy.Writer]:
    return [entropy.Writer() for _ in range(1 if together else len(y))]


def _parts(values: np.ndarray, writers: Sequence[entropy.Writer]) -> list[np.ndarray]:
    """Cut rows into one part for each writer: all of them, or one each."""
    return [values] if len(writers) == 1 else [row[None] for row in values]


def _coefficients(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias with few binary digits, of the type of `like` and where it is."""
    weight, bias = (_fixed(p.to(like), 3, 14) for p in layer.parameters())
    return weight, bias


def _fixed(value: Tensor, before: int, behind: int) -> Tensor:
    """Return the nearest numbers with so many binary digits before and behind the point."""
    held = value.clamp(-(2.0**before), 2.0**before)
    return _straight_through(held, torch.round(held * 2.0**behind) / 2.0**behind)


@functools.cache
def _conditional_coder() -> entropy.Coder:
    """Return the tables of every level, each with means of 0 and of every fraction."""
    scales = np.repeat(LEAST_SCALE * entropy.exp(LEVEL * np.arange(LEVELS)), FRACTIONS)
    means = np.tile(np.arange(FRACTIONS) / FRACTIONS, LEVELS)
    return entropy.Coder(entropy.logistic_tables(np.ones((len(scales), 1)), means[:, None], scales[:, None]))


class Normalisation(nn.Module):
    """Generalised divisive normalisation, or its approximate inverse (Ballé et al., 2017).

    Each value is divided by, in the inverse multiplied with, the root of a constant and a weighted sum of all channels'
    squares at its place.
    """

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.constant = nn.Parameter(torch.ones(channels))
        self.weight = nn.Parameter(0.1 * torch.eye(channels) + 0.01 / channels)

    def forward(self, x: Tensor) -> Tensor:
        # Sizes, and a bit more than nothing: there is no root of what is negative, and no slope at 0.
        squares = functional.conv2d(x.square(), self.weight.abs()[:, :, None, None], self.constant.abs() + 1e-3)
        return x * squares.sqrt() if self.inverse else x * squares.rsqrt()


def log_mass(x: Tensor, log_scale: Tensor) -> Tensor:
    """Return the logarithm of the mass of logistic distributions around 0 from x - 1/2 to x + 1/2.

    Exact far out too, where the difference of two cumulative values would be 0: s(b) - s(a) of the logistic function s
    is s(b) s(-a) (1 - exp(a - b)).
    """
    steps = torch.exp(-log_scale)
    upper, lower = (x + 0.5) * steps, (x - 0.5) * steps
    return functional.logsigmoid(upper) + functional.logsigmoid(-lower) + torch.log(-torch.expm1(-steps))


def _straight_through(value: Tensor, result: Tensor) -> Tensor:
    """Return `result`, to the last bit, with the gradient of `value`."""
    return result.detach() + (value - value.detach())


def _noisy(y: Tensor) -> Tensor:
    return y + torch.rand_like(y) - 0.5


def _whole(y: Tensor) -> np.ndarray:
    whole: np.ndarray = torch.round(y).detach().cpu().numpy().astype(np.int64)
    return whole


def _halved(edges: Sequence[int], times: int) -> tuple[int, ...]:
    return tuple(math.ceil(edge / 2**times) for edge in edges)


def _border(edges: Sequence[int], halvings: int) -> tuple[int, int, int, int]:
    """Return what is missing from a multiple of all halvings: left, right, top and bottom, on both sides alike."""
    down, right = (-edge % 2**halvings for edge in edges)
    return right // 2, right - right // 2, down // 2, down - down // 2


def _around(
    tile: tuple[slice, slice], places: Sequence[int], margin: int
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return a tile with a margin on each side that is not the image's edge, and where in that the tile itself is."""
    taken = tuple(
        slice(max(0, one.start - margin), min(one.stop + margin, most)) for one, most in zip(tile, places, strict=True)
    )
    inner = tuple(slice(one.start - more.start, one.stop - more.start) for one, more in zip(tile, taken, strict=True))
    return taken, inner


def _scaled(tile: Sequence[slice], factor: int) -> tuple[slice, ...]:
    return tuple(slice(one.start * factor, one.stop * factor) for one in tile)


def _cropping(border: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the padding that takes a border off again."""
    left, right, top, bottom = (-size for size in border)
    return left, right, top, bottom
