"""Compressive autoencoder: transforms trained for rate and distortion together (Ballé et al., 2017), and real streams.

By option with the scale hyperprior of Ballé et al. (2018).
"""

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sevenfold import augmentation, entropy, layouts
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, Compressor, Standardiser, squared_error

GAIN = 8.0
"""Rounding steps to the networks' unit, so that training starts with latents that outlive the rounding."""

LARGEST = 2.0**20
"""Latents are held within this size: whole numbers of float32, and of `entropy`, are exact there."""

COMPONENTS = 3
"""Logistic distributions that make up the prior of one channel."""

LEVELS, LEAST_SCALE, LEVEL = 64, 0.07, 0.125
"""The scales that the hyperprior chooses from: how many; the least in rounding steps, where 1 latent in 600 is not 0; the
logarithm of the factor from one to the next. The greatest is 184."""

STRIDE = 8
"""Levels to the hyper synthesis's unit: with more of them training is rough, with fewer slow."""

FARTHEST = 1e6
"""Spreads from the center at which values of a sample are held: the square of a larger one may overflow."""


class CompressiveAutoencoder(Autoencoder, Compressor):
    """Rounds its code to whole numbers and knows how likely each is, so that an image becomes a stream of few bytes.

    Training minimises rate + weight x distortion. The rate is in bits per value of a sample; the distortion is the mean
    squared error as a share of the data's variance, so that one `weight` and one learning rate suit data of any scale.
    For values in [0, 1], the lambda of the literature (bits per pixel + lambda x 255^2 x mean squared error) is
    weight x channels / (255 x spread)^2. Where no latent is all zeros, the rounding costs an error of about 0.7 / weight
    times latents per value, on top of what the transforms lose.

    `encode` gives whole numbers, and `forward` what the decoded stream gives. A stream holds latents and a checksum, and
    nothing of the model: `decompress` needs the model that wrote it.

    Encoder and decoder must agree on every probability to the last bit, on any machine and in batches of any size. They
    compute both, the tables and the choice among them, from the weights and the latents by operations that are
    exact or that IEEE 754 fixes: see `entropy.logistic_tables` and `ScaleHyperprior`. The transforms need not agree so
    well, since a stream holds what was rounded already.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        channels: list[int],
        hyper: list[int],
        weight: float,
        augment: list[augmentation.Change],
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample; its shape is that of an image, (channels, height, width).
            channels: after each halving of an image's edges; the last are the latents'. [32, 64, 8] makes of
                (1, 28, 28) a code of 8 x 4 x 4 values.
            hyper: channels after each further halving by the hyperprior; the last are the hyperlatents'. For none, [],
                the prior is factorized: one distribution per channel of latents.
            weight: of the distortion; the higher, the better the image and the longer its stream.
            augment: what training does to images, each to half of them by chance.

        Raises:
            ValueError: the sample is no image, or an option is out of range.
        """
        layout.require_image()
        if problems := layouts.channel_problems(channels):
            raise ValueError("; ".join(problems))
        if min(hyper, default=1) < 1:
            raise ValueError(f"hyper is {hyper}; expected numbers of 1 or more, or none; mend or remove the others")
        if not 0 < weight < math.inf:
            raise ValueError(f"weight is {weight}; expected a number above 0; the higher, the better the image")
        shape = layout.shape
        augmentation.require(augment, shape)
        edges = _halved(shape[1:], len(channels))
        super().__init__(layout, channels[-1] * math.prod(edges), overcomplete=True)
        self.grid = (channels[-1], *edges)
        self.weight = weight
        self.augment = augment
        self.standardise = Standardiser(self.shape)
        border = _border(shape[1:], len(channels))
        analysis: list[nn.Module] = [nn.ReplicationPad2d(border)]
        synthesis: list[nn.Module] = [nn.ZeroPad2d(_cropping(border))]
        for finer, coarser in itertools.pairwise([shape[0], *channels]):
            analysis += [nn.Conv2d(finer, coarser, 4, stride=2, padding=1), Normalisation(coarser)]
            synthesis += [
                nn.ConvTranspose2d(coarser, finer, 4, stride=2, padding=1),
                Normalisation(coarser, inverse=True),
            ]
        self.analysis = nn.Sequential(*analysis[:-1])
        self.synthesis = nn.Sequential(*reversed(synthesis[:-1]))
        self.prior = ScaleHyperprior(self.grid, hyper) if hyper else FactorizedPrior(self.grid)

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.standardise.learn(x, observed)

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        # Rounding gives -0.0 as well, which differs from 0.0 in nothing but its looks.
        return torch.round(self._latents(x)).flatten(1) + 0.0  # (n, code)

    def decode(self, z: Tensor) -> Tensor:
        output: Tensor = self.standardise.inverse(self.synthesis(z.reshape(-1, *self.grid) / GAIN))
        return output

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        if self.training:
            x, observed = augmentation.vary(self.augment, x, observed, self.standardise.center)
        y = self._latents(x)
        # The distortion and the hyperprior see what a decoder sees, with gradients that pass straight through the
        # rounding; the rate needs a slope, and has noise in its place (Minnen and Singh, 2020).
        rounded = _straight_through(y, torch.round(y))
        error = squared_error(self.decode(rounded), x, observed) / self.standardise.spread.square()
        bits = self.prior.bits(_noisy(y) if self.training else rounded, rounded).sum()
        cells = x.numel() if observed is None else observed.sum().clamp(min=1)
        return {"distortion": self.weight * error, "rate": bits / cells}

    def rate(self, x: Tensor) -> Tensor:
        """Return the information in the code of each image, (n,) in bits: its stream without `entropy.OVERHEAD`."""
        y = torch.round(self._latents(x))
        return self.prior.bits(y, y)

    def compress(self, x: Tensor) -> list[bytes]:
        """Return one stream per image, (n, *shape).

        Raises:
            ValueError: a value is not finite.
        """
        if not (finite := torch.isfinite(x)).all():
            raise ValueError(
                f"{int((~finite).sum())} values are not finite (first: {x[~finite][0].item()}); expected numbers; mend or "
                "drop the samples"
            )
        return self.pack(self.encode(x))

    def decompress(self, streams: Sequence[bytes]) -> Tensor:
        """Return the images of these streams, (n, *shape), as `forward` gives them.

        Raises:
            entropy.DamagedStreamError: a stream is not as this model wrote it.
        """
        return self.decode(self.unpack(streams))

    @torch.no_grad()
    def pack(self, z: Tensor) -> list[bytes]:
        """Return one stream per code, (n, code) from `encode`.

        Raises:
            ValueError: a code is not made of whole numbers.
        """
        wrong = (z != torch.round(z)) | ~(z.abs() <= LARGEST)
        if wrong.any():
            raise ValueError(
                f"{int(wrong.sum())} code values are no whole numbers of at most {LARGEST:.0f} in size (first: "
                f"{z[wrong][0].item()}); expected what `encode` gives; round them, or compress the samples themselves"
            )
        return self.prior.pack(z.reshape(-1, *self.grid))

    @torch.no_grad()
    def unpack(self, streams: Sequence[bytes]) -> Tensor:
        """Return the very codes that were packed, (n, code).

        Raises:
            entropy.DamagedStreamError: a stream is not as this model wrote it.
        """
        z = torch.from_numpy(np.array(self.prior.unpack(streams), np.float32).reshape(-1, self.code))
        return z.to(self.standardise.center.device)

    def _latents(self, x: Tensor) -> Tensor:
        # In float32 whatever the layers compute in: bfloat16 has no whole numbers above 256 but each second one.
        y: Tensor = self.analysis(self.standardise(x).clamp(-FARTHEST, FARTHEST)).float() * GAIN  # (n, *grid)
        return y.clamp(-LARGEST, LARGEST)


class FactorizedPrior(nn.Module):
    """A mixture of logistic distributions for each channel, the same at all places and independent of the others.

    Simpler than the cumulative network of Ballé et al. (2018, appendix 6.1), and as fit for the purpose: any
    distribution is near some mixture, and no number is impossible.
    """

    def __init__(self, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid
        self.logits = nn.Parameter(torch.zeros(COMPONENTS, grid[0]))
        # Apart, since equal components would stay equal.
        self.means = nn.Parameter(torch.linspace(-0.5, 0.5, COMPONENTS)[:, None].repeat(1, grid[0]))
        self.log_scales = nn.Parameter(torch.linspace(-1.0, 1.0, COMPONENTS)[:, None].repeat(1, grid[0]))

    def bits(self, noisy: Tensor, rounded: Tensor) -> Tensor:
        """Return the information in latents (n, *grid), (n,) in bits; in `eval` mode both are the same."""
        form = (COMPONENTS, self.grid[0], 1, 1)
        means, log_scales = self.means.reshape(form) * GAIN, self.log_scales.reshape(form) + math.log(GAIN)
        own = log_mass(noisy[:, None] - means, log_scales)  # (n, components, *grid)
        logarithms = torch.logsumexp(own + torch.log_softmax(self.logits, dim=0).reshape(form), dim=1)
        return -logarithms.flatten(1).sum(dim=1) / math.log(2)

    def coder(self) -> entropy.Coder:
        """Return the tables of the channels."""
        logits, means, log_scales = (
            p.detach().cpu().double().numpy().T for p in (self.logits, self.means, self.log_scales)
        )
        shares = entropy.exp(logits - logits.max(axis=1, keepdims=True))
        total = sum(shares[:, [i]] for i in range(COMPONENTS))
        return entropy.Coder(entropy.logistic_tables(shares / total, means * GAIN, entropy.exp(log_scales) * GAIN))

    def places(self) -> np.ndarray:
        """Return the channel of each latent, in the order of a code."""
        return np.repeat(np.arange(self.grid[0]), math.prod(self.grid[1:]))

    def pack(self, y: Tensor) -> list[bytes]:
        """Return one stream per sample's latents, (n, *grid)."""
        coder, places = self.coder(), self.places()
        streams = []
        for latents in _whole(y):
            writer = entropy.Writer()
            writer.write(latents, places, coder)
            streams.append(writer.stream())
        return streams

    def unpack(self, streams: Sequence[bytes]) -> list[np.ndarray]:
        """Return the latents of each stream, (latents,)."""
        coder, places = self.coder(), self.places()
        codes = []
        for stream in streams:
            reader = entropy.Reader(stream)
            codes.append(reader.read(places, coder))
            reader.close()
        return codes


class ScaleHyperprior(nn.Module):
    """A logistic distribution around 0 for each latent, whose scale follows from hyperlatents (Ballé et al., 2018).

    The hyperlatents are made from the rounded latents, so that a code is all that its stream needs. They go into the
    stream first, by a factorized prior.

    The scale is one of `LEVELS`, and decoder and encoder must choose the same: one that differs makes garbage of the rest
    of a stream. So the way from hyperlatents to scales is integer arithmetic (Ballé et al., 2019), done in float64:
    weights and activations are multiples of powers of two with so few digits that each product and each sum is exact,
    in whatever order a library adds up. Batches of other sizes, other thread counts and other machines choose alike.
    """

    def __init__(self, grid: tuple[int, ...], hyper: Sequence[int]) -> None:
        super().__init__()
        border = _border(grid[1:], len(hyper))
        analysis: list[nn.Module] = [nn.ReplicationPad2d(border), nn.Conv2d(grid[0], hyper[0], 3, padding=1)]
        for finer, coarser in itertools.pairwise([hyper[0], *hyper]):
            analysis += [nn.ReLU(), nn.Conv2d(finer, coarser, 4, stride=2, padding=1)]
        self.analysis = nn.Sequential(*analysis)
        self.doubling = nn.ModuleList(
            nn.ConvTranspose2d(coarser, finer, 4, stride=2, padding=1)
            for coarser, finer in itertools.pairwise([*reversed(hyper), hyper[0]])
        )
        self.last = nn.Conv2d(hyper[0], grid[0], 3, padding=1)
        self.cropping = _cropping(border)
        self.prior = FactorizedPrior((hyper[-1], *_halved(grid[1:], len(hyper))))

    def bits(self, noisy: Tensor, rounded: Tensor) -> Tensor:
        """Return the information in latents (n, *grid) and their hyperlatents, (n,) in bits."""
        z = self._hyperlatents(rounded)
        whole = _straight_through(z, torch.round(z))
        # Training needs slopes: levels between the whole ones, and noise in place of rounding.
        level = self._levels(whole) if self.training else self.levels(whole).to(noisy.dtype)
        own = -log_mass(noisy, math.log(LEAST_SCALE) + LEVEL * level).flatten(1).sum(dim=1) / math.log(2)
        return own + self.prior.bits(_noisy(z) if self.training else whole, whole)

    def levels(self, z: Tensor) -> Tensor:
        """Return the number of each latent's scale, 0 to LEVELS - 1, (n, *grid) float64, exactly.

        Args:
            z: hyperlatents, whole numbers, (n, *their grid).
        """
        return torch.round(self._levels(z.double()))

    def pack(self, y: Tensor) -> list[bytes]:
        """Return one stream per sample's latents, (n, *grid)."""
        z = torch.round(self._hyperlatents(y)).cpu()
        prior, places, own = self.prior.coder(), self.prior.places(), _scale_coder()
        streams = []
        for latents, hyperlatents, levels in zip(_whole(y), _whole(z), _whole(self.levels(z)), strict=True):
            writer = entropy.Writer()
            writer.write(hyperlatents, places, prior)
            writer.write(latents, levels, own)
            streams.append(writer.stream())
        return streams

    def unpack(self, streams: Sequence[bytes]) -> list[np.ndarray]:
        """Return the latents of each stream, (latents,)."""
        prior, places, own = self.prior.coder(), self.prior.places(), _scale_coder()
        codes = []
        for stream in streams:
            reader = entropy.Reader(stream)
            z = torch.from_numpy(reader.read(places, prior)).reshape(1, *self.prior.grid)
            codes.append(reader.read(_whole(self.levels(z))[0], own))
            reader.close()
        return codes

    def _hyperlatents(self, rounded: Tensor) -> Tensor:
        # Logarithms, since that is what levels are of.
        z: Tensor = self.analysis(torch.log1p(rounded.abs())).float() * GAIN
        return z.clamp(-LARGEST, LARGEST)

    def _levels(self, z: Tensor) -> Tensor:
        # Activations have 10 binary digits before the point and 8 behind it, weights 3 and 14: a product has 35, and a
        # sum of 2^17 of them 52, of the 53 that float64 holds.
        with torch.autocast(z.device.type, enabled=False):
            value = _fixed(z / GAIN, 10, 8)
            for layer in self.doubling:
                value = functional.conv_transpose2d(value, *_coefficients(layer, value), stride=2, padding=1)
                value = _fixed(functional.relu(value), 10, 8)
            value = functional.conv2d(value, *_coefficients(self.last, value), padding=1)
        level = functional.pad(value, self.cropping) * STRIDE + LEVELS / 2
        # A slope that fades below the least level: without one there is no way back up, with a full one no end down.
        return _straight_through(functional.softplus(level), level.clamp(0, LEVELS - 1))


def _coefficients(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias with few binary digits, of the type of `like` and where it is."""
    weight, bias = (_fixed(p.to(like), 3, 14) for p in layer.parameters())
    return weight, bias


def _fixed(value: Tensor, before: int, behind: int) -> Tensor:
    """Return the nearest numbers with so many binary digits before and behind the point."""
    held = value.clamp(-(2.0**before), 2.0**before)
    return _straight_through(held, torch.round(held * 2.0**behind) / 2.0**behind)


@functools.cache
def _scale_coder() -> entropy.Coder:
    scales = LEAST_SCALE * entropy.exp(LEVEL * np.arange(LEVELS))
    return entropy.Coder(entropy.logistic_tables(np.ones((LEVELS, 1)), np.zeros((LEVELS, 1)), scales[:, None]))


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
    """(n, *grid) -> (n, latents) int64"""
    whole: np.ndarray = torch.round(y).flatten(1).cpu().numpy().astype(np.int64)
    return whole


def _halved(edges: Sequence[int], times: int) -> tuple[int, ...]:
    return tuple(math.ceil(edge / 2**times) for edge in edges)


def _border(edges: Sequence[int], halvings: int) -> tuple[int, int, int, int]:
    """Return what is missing from a multiple of all halvings: left, right, top and bottom, on both sides alike."""
    down, right = (-edge % 2**halvings for edge in edges)
    return right // 2, right - right // 2, down // 2, down - down // 2


def _cropping(border: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the padding that takes a border off again."""
    left, right, top, bottom = (-size for size in border)
    return left, right, top, bottom
