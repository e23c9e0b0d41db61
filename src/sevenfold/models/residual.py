"""Residual encoder-decoder with skips and a noise-level map, for images of any size.

RED-Net (Mao et al., 2016) gives the skips, FFDNet (Zhang et al., 2018) the level map and the unshuffled pixels, and DRUNet
(Zhang et al., 2021) residual blocks without biases (Mohan et al., 2020) between them.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from sevenfold import augmentation, layouts, networks
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, Restorer, Standardiser

LEAST_SCALE = 0.1
"""Of the loss, as a share of the data's spread: errors relative to no noise at all would have no bound."""

LEAST_LEFT = 0.01
"""Share of the noise's power below which less of it hardly counts: logarithms would have no bound either."""

BRANCH = 0.2
"""Weight of a residual block beside its input, as in EDSR (Lim et al., 2017, sec. 3.3): without normalisation, a
training with a high learning rate diverges else."""


class ResidualAutoencoder(Autoencoder, Restorer):
    """Convolutions that predict the noise in an image, which is told by its standard deviation, and take it off.

    What the decoder needs is the encoder's output at every scale and the image itself: the code is several times as long
    as the image, and no compression. `encode` and `decode` are the halves of `restore` at a level of 0 and for images of
    the training samples' size; `restore` takes any level and any size.

    There are no biases: with `relu`, brightness about the mean and noise may grow by a common factor, and so does the
    restored image. That carries the model to levels it has not seen.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        channels: list[int],
        blocks: int,
        activation: networks.Activation,
        shuffle: int,
        levels: list[float],
        doubt: float,
        augment: list[augmentation.Change],
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample; its shape is that of an image, (channels, height, width).
            channels: at each scale: the first at that of the shuffled pixels, each further one at half its edges.
            blocks: residual blocks at each scale, on the way down and again on the way up.
            activation: within the blocks.
            shuffle: edge of the squares of pixels that become channels before the first layer; 1 leaves pixels as they
                are, 2 is four times as fast per layer.
            levels: lowest and highest standard deviation of the noise that training adds, in the unit of the samples.
            doubt: by how much the level that training tells is off, as the standard deviation of its logarithm. Whoever
                measures noise errs, in a small image by a tenth, and a model that was always told the truth believes it.
            augment: what training does to images, each to half of them by chance.

        Raises:
            ValueError: the sample is no image, or options are out of range.
        """
        layout.require_image()
        _require_options(channels, blocks, shuffle, levels, doubt)
        augmentation.require(augment, layout.shape)
        stride = shuffle << (len(channels) - 1)
        depth, *edges = layout.shape
        height, width = (math.ceil(edge / stride) * (stride // shuffle) for edge in edges)  # at the first scale
        grids = [(c, height >> scale, width >> scale) for scale, c in enumerate(channels)]
        super().__init__(layout, sum(map(math.prod, [layout.shape, *grids])), overcomplete=True)
        self.levels = levels
        self.doubt = doubt
        self.augment = augment
        self.shuffle = shuffle
        self.stride = stride
        self.margin = _reach(len(channels), blocks, shuffle)
        self.grids = grids
        # One mean per channel: an image of any size has no other place for it.
        self.standardise = Standardiser((depth, 1, 1))
        self.head = _convolution(depth * shuffle**2 + 1, channels[0])
        self.encoder = nn.ModuleList(_Blocks(width, blocks, activation) for width in channels)
        self.down = nn.ModuleList(
            nn.Conv2d(finer, coarser, 2, stride=2, bias=False) for finer, coarser in itertools.pairwise(channels)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarser, finer, 2, stride=2, bias=False)
            for finer, coarser in itertools.pairwise(channels)
        )
        self.decoder = nn.ModuleList(_Blocks(width, blocks, activation) for width in channels[:-1])
        self.tail = _convolution(channels[0], depth * shuffle**2)
        # At first it predicts no noise, and an image comes back as it is: the best guess of who knows nothing.
        nn.init.zeros_(self.tail.weight)

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.standardise.learn(_pixels(x), None if observed is None else _pixels(observed))

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return the image and what the decoder needs beside it, (n, code): the encoder's output, scale by scale."""
        features = self._analyse(x, self._levels_of(x, 0.0))
        return torch.cat([part.flatten(1) for part in (x, *features)], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        shapes = [self.shape, *self.grids]
        parts = torch.split(z, [math.prod(shape) for shape in shapes], dim=1)
        x, *features = (part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))
        return self._synthesise(x, features)  # (n, *shape)

    def restore(self, x: Tensor, level: float | Tensor) -> Tensor:
        """Return the images without their noise, in their own size.

        Args:
            x: (n, channels, height, width), of any height and width.
            level: standard deviation of the noise in the unit of x, for all images or one per image, (n,); 0 or more.

        Raises:
            ValueError: x are no images of these channels, or level is below 0 or fits neither all nor each of them.
                (The values of a tensor are not looked at: that would make the device wait.)
        """
        if x.ndim != 4 or x.shape[1] != self.shape[0] or not x.shape[2:].numel():
            raise ValueError(
                f"images are {tuple(x.shape)}; expected (n, {self.shape[0]}, height, width), the channels those of the "
                "training; give a single image as `x[None]`"
            )
        return self._synthesise(x, self._analyse(x, self._levels_of(x, level)))

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        """Return how much noise is left, as the mean logarithm of each image's squared error; about 1 where none is removed.

        So a decibel is worth the same in a smooth image, where little can be left, and in a textured one, as it is in a mean
        of PSNR. Of the squared errors themselves the textured images would have nearly all.
        """
        low, high = self.levels
        if self.training:
            x, observed = augmentation.vary(self.augment, x, observed, self.standardise.center)
            level = low + (high - low) * torch.rand(len(x), device=x.device, dtype=x.dtype)
            noise = torch.randn_like(x)
            told = level * torch.exp(self.doubt * torch.randn_like(level)) if self.doubt else level
        else:
            # One draw and one level for all samples and every epoch: losses differ by nothing else than the weights.
            told = level = torch.full((len(x),), (low + high) / 2, device=x.device, dtype=x.dtype)
            generator = torch.Generator(x.device).manual_seed(0)
            noise = torch.randn(self.shape, generator=generator, device=x.device, dtype=x.dtype)
        error = (self.restore(x + level.view(-1, 1, 1, 1) * noise, told) - x).square().flatten(1)
        if observed is None:
            error = error.mean(dim=1)
        else:
            seen = observed.flatten(1)
            error = (error * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
        # Relative to each sample's noise: the level decides little.
        left = error / (level.square() + (LEAST_SCALE * self.standardise.spread).square())
        return {"reconstruction": torch.log1p(left / LEAST_LEFT).mean() / math.log1p(1 / LEAST_LEFT)}

    def _levels_of(self, x: Tensor, level: float | Tensor) -> Tensor:
        """Return the noise level of each image, (n, 1, 1, 1)."""
        if isinstance(level, Tensor):
            if level.shape not in [(), (len(x),)]:
                raise ValueError(
                    f"level is a tensor of shape {tuple(level.shape)}; expected a number, or one for each image, "
                    f"({len(x)},)"
                )
            return level.to(x).reshape(-1, 1, 1, 1).expand(len(x), 1, 1, 1)
        if not 0 <= level < math.inf:
            raise ValueError(f"level is {level}; expected a finite standard deviation of 0 or more, in the unit of x")
        return x.new_full((len(x), 1, 1, 1), level)

    def _analyse(self, x: Tensor, level: Tensor) -> list[Tensor]:
        """Return the encoder's output at each scale, (n, channels of the scale, height / stride, width / stride)."""
        grid = _to_cells(self._padded(self.standardise(x)), self.shuffle)
        level_map = (level / self.standardise.spread).expand(-1, 1, *grid.shape[2:])
        signal = self.head(torch.cat([grid, level_map], dim=1))
        features = [self.encoder[0](signal)]
        for down, blocks in zip(self.down, self.encoder[1:], strict=True):
            features.append(blocks(down(features[-1])))
        return features

    def _synthesise(self, x: Tensor, features: list[Tensor]) -> Tensor:
        """Return x without the noise that the decoder makes out in the encoder's output."""
        *finer, signal = features
        for up, blocks, skip in reversed(list(zip(self.up, self.decoder, finer, strict=True))):
            signal = blocks(skip + up(signal))
        noise = _to_pixels(self.tail(signal), self.shuffle)[..., : x.shape[2], : x.shape[3]]
        return x - self.standardise.spread * noise

    def _padded(self, x: Tensor) -> Tensor:
        """Mirror the images at their lower and right edges, to multiples of `stride`.

        Mirrored noise is still noise; repeated, it would be stripes. The other edges stay, so that the grid begins at
        the first pixel.
        """
        for dim in (2, 3):
            size = x.shape[dim]
            places = torch.arange(math.ceil(size / self.stride) * self.stride, device=x.device) % (2 * size)
            x = x.index_select(dim, torch.minimum(places, 2 * size - 1 - places))
        return x


class _Blocks(nn.Sequential):
    """Residual blocks of two convolutions each, without normalisation; (n, channels, height, width) -> the same."""

    def __init__(self, width: int, blocks: int, activation: networks.Activation) -> None:
        super().__init__(*(_Block(width, activation) for _ in range(blocks)))


class _Block(nn.Module):
    def __init__(self, width: int, activation: networks.Activation) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(width, width), networks.ACTIVATIONS[activation](), _convolution(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + BRANCH * self.body(x)
        return output


def _convolution(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=False)


def _reach(scales: int, blocks: int, shuffle: int) -> int:
    """Return the margin: how far beyond an edge on the grid of the stride the layers look, from the last to the first."""
    cells = [shuffle << scale for scale in range(scales)]  # edge of a cell at each scale, in pixels
    reach = shuffle  # a convolution takes in one cell more, and the tail is one
    for cell in cells:
        # What takes in a part of a coarser cell takes in all of it; each block is two convolutions.
        reach = math.ceil(reach / cell) * cell + 2 * blocks * cell
    # Up again and out by the head: finer cells fit into coarser ones.
    reach += sum(2 * blocks * cell for cell in cells[:-1]) + shuffle
    return math.ceil(reach / cells[-1]) * cells[-1]


def _require_options(channels: list[int], blocks: int, shuffle: int, levels: list[float], doubt: float) -> None:
    problems = layouts.channel_problems(channels)
    for name, value in (("blocks", blocks), ("shuffle", shuffle)):
        if value < 1:
            problems.append(f"{name} is {value}; expected 1 or more; set `{name}: 2`, for example")
    if len(levels) != 2 or not 0 <= levels[0] <= levels[1] < math.inf or not levels[1] > 0:
        problems.append(
            f"levels is {levels}; expected the lowest and the highest noise, 0 or more and finite, the highest above 0; "
            "set `levels: [0.0, 0.2]`, for example"
        )
    if not 0 <= doubt < math.inf:
        problems.append(f"doubt is {doubt}; expected 0 or more, and finite; set `doubt: 0.1`, for example")
    if problems:
        raise ValueError("; ".join(problems))


def _pixels(x: Tensor) -> Tensor:
    """(n, channels, height, width) -> (n * height * width, channels, 1, 1)"""
    return x.movedim(1, -1).reshape(-1, x.shape[1], 1, 1)


def _to_cells(x: Tensor, edge: int) -> Tensor:
    """(n, c, height, width) -> (n, c * edge^2, height / edge, width / edge), each square of pixels as channels.

    As torch's `pixel_unshuffle`, which leaves an empty batch as it is.
    """
    n, channels, height, width = x.shape
    squares = x.reshape(n, channels, height // edge, edge, width // edge, edge).permute(0, 1, 3, 5, 2, 4)
    return squares.reshape(n, channels * edge**2, height // edge, width // edge)


def _to_pixels(x: Tensor, edge: int) -> Tensor:
    """Undo `_to_cells`, as torch's `pixel_shuffle`."""
    n, channels, height, width = x.shape
    squares = x.reshape(n, channels // edge**2, edge, edge, height, width).permute(0, 1, 4, 2, 5, 3)
    return squares.reshape(n, channels // edge**2, height * edge, width * edge)
