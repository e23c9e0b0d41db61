"""Compression: how many bytes images take at equal quality, by real streams with all their headers.

Any autoencoder compresses: its code is quantised by uniform steps, and what is left goes through an entropy coder with
tables learned on training codes. A variant that is a `Compressor` brings quantiser and probabilities of its own.
"""

import hashlib
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch

from sevenfold import containers, entropy, pictures, quality
from sevenfold.applications.base import (
    Application,
    Columns,
    Rival,
    Scores,
    codes,
    in_batches,
    require_at_least,
    tensor,
)
from sevenfold.datasets.base import Schema, Split
from sevenfold.models.base import Autoencoder, Compressor
from sevenfold.pictures import Picture

SMALL = 64
"""Pixels of the longer edge up to which images are small: they share chunks and contact sheets, since a file for each would
be header for the most part, and their reference is the principal components. That of larger ones is JPEG."""

WHOLE, BLOCK = 32, 8
"""Pixels of the longer edge up to which an image has principal components as a whole; and the edge of the blocks that larger
ones are cut into, as codecs do."""

WORST = -9.0
"""The least primary metric, ten times the reference's bytes; that of a curve, too, that shares no quality with the reference's."""

MOST_VALUES = 1 << 22
"""Values of images in one chunk: about 16 MB while it is worked on."""

PROBES, PROBED = 8, 128
"""Random directions and training rows by which the decoder's slope is measured."""

LEAST_SLOPE = 1e-4
"""Of the steepest code value's, that of one which the decoder does not look at."""

REACHES = (0.5, 0.44, 0.38)
"""Rounding offsets to choose from: below 0.5 values nearer to 0 are taken, which costs less than it loses."""

QUALITIES: dict[str, tuple[float, float]] = {"JPEG": (5, 95), "WEBP": (0, 95), "AVIF": (10, 90)}
"""The lowest and the highest rung of a codec's ladder, in its own scale of 0 to 100."""

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "JPEG": [
        {"optimize": True, "progressive": progressive, "subsampling": colours}
        for colours in ("4:2:0", "4:4:4")
        for progressive in (False, True)
    ],
    "WEBP": [{"method": 6}, {"method": 6, "use_sharp_yuv": True}],
    "AVIF": [{"speed": 6, "max_threads": 1, "subsampling": colours} for colours in ("4:2:0", "4:4:4")],
}
"""What a codec can be told beside its quality; the first of JPEG is the reference."""


@dataclass(frozen=True)
class Measured:
    """One rung on some images.

    size: bytes of each, (n,), which add up to those that were written.
    error: mean squared error of each, (n,).
    output: (n, channels, height, width).
    """

    size: np.ndarray
    error: np.ndarray
    output: np.ndarray


@dataclass(frozen=True)
class Payload:
    """What stands for images of one size in a chunk.

    kind: one of `containers.KINDS`.
    bits: about how many of them each image takes, (n,).
    """

    content: bytes
    kind: str
    bits: np.ndarray


class Compression(Application):
    """Judges streams by the bytes that they save at equal quality (Bjontegaard, 2001) against a fixed reference."""

    primary = "bytes_saved"
    operation = "compress"
    learns_from = "all"

    def __init__(self, *, steps: list[float], decibels: float, chunk: int) -> None:
        """Set up the ladder.

        Args:
            steps: of quantisers, one for each rung, falling; as multiples of the spread of the images' values. A code
                value's step is such that its rounding changes the image as much as the others' do. A variant with a
                ladder of its own does not use them.
            decibels: the peak signal-to-noise ratio that jobs aim at: they use the first rung that reaches it on the
                validation images, or else the best one.
            chunk: small images that share a stream in an archive; damage to it loses so many.

        Raises:
            ValueError: an option is out of range.
        """
        require_at_least(1, chunk=chunk)
        if not 0 < decibels < quality.BEST:
            raise ValueError(f"decibels is {decibels}; expected a number between 0 and {quality.BEST:g}, such as 30")
        if len(steps) < 2 or not all(a > b > 0 for a, b in itertools.pairwise(steps)):
            raise ValueError(f"steps is {steps}; expected two numbers or more above 0, each lower than the one before")
        super().__init__({"steps": steps, "decibels": decibels, "chunk": chunk})
        self.steps = steps
        self.decibels = decibels
        self.chunk = chunk

    def unsuited(self, *, code: int | None, images: bool | None, labelled: bool, normal: bool) -> str | None:
        if images is False:
            return "compresses images, and these are tables; use `imputation` or `reduction` for tables"
        return None

    def calibrate(self, model: Autoencoder, train: Split, validation: Split) -> Self:
        """Learn quantisers and tables on the training codes; choose reference and rung by the validation images."""
        state: dict[str, np.ndarray] = {}
        if not isinstance(model, Compressor):
            z = codes(model, train.x, None).astype(np.float64)
            unit = _spread(train.x) / _slopes(model, z)
            state |= _Quantiser.learned(z, z.mean(axis=0), unit, self.steps, 0.5).state()
        if _small(train.x):
            state["reach"] = np.array([_Components(train, self).chosen_reach(validation)])
        calibrated = self.with_state(state)
        found = [
            calibrated._measured(model, validation.x, rung).error for rung in range(1, calibrated.rungs(model) + 1)
        ]
        good = [rung for rung, error in enumerate(found, 1) if decibels(error.mean()) >= self.decibels]
        return self.with_state(state | {"rung": np.array([good[0] if good else len(found)])})

    def rungs(self, model: Autoencoder) -> int:
        """Return how many rungs the ladder has."""
        return model.rungs if isinstance(model, Compressor) else len(self.steps)

    def evaluate(self, model: Autoencoder, split: Split, train: Split) -> Scores:
        rungs = range(1, self.rungs(model) + 1)
        return self.scores(
            split, [self._measured(model, split.x, rung) for rung in rungs], self._reference(split, train)
        )

    def _reference(self, split: Split, train: Split) -> list[Measured]:
        """Return what the reference makes of a split, rung by rung."""
        if _small(train.x):
            return _Components(train, self).ladder(split.x, float(self.state["reach"][0]))
        return _files("JPEG", split.x, len(self.steps))

    def scores(self, split: Split, ours: "list[Measured]", reference: "list[Measured]") -> Scores:
        """Judge a ladder: for each rung the bytes of each image and its decoded image, beside those of the reference."""
        pixels = len(split) * math.prod(split.x.shape[2:])
        values: dict[str, np.ndarray] = {}
        metrics: dict[str, float] = {}
        for rung, one in enumerate(ours, 1):
            values |= {f"bytes_{rung}": one.size, f"error_{rung}": one.error}
            metrics[f"bpp_{rung}"] = float(8 * one.size.sum() / pixels)
            metrics[f"psnr_{rung}"] = decibels(one.error.mean())
            metrics[f"ms_ssim_{rung}"] = float(quality.ms_ssim(one.output, split.x).mean())
        for rung, one in enumerate(reference, 1):
            values |= {f"reference_bytes_{rung}": one.size, f"reference_error_{rung}": one.error}
        metrics = {self.primary: self.statistic(values)} | metrics
        for name, count in _lossless(split.x).items():
            metrics[f"lossless_{name}_bpp"] = 8 * count / pixels
        return Scores(metrics, values)

    def statistic(self, values: Mapping[str, np.ndarray]) -> float:
        return bytes_saved(_curve(values, ""), _curve(values, "reference_"))

    def rivals(self) -> dict[str, Rival]:
        reference = _Reference(self)
        return {"principal_components": _Transform(self, reference)} | {
            name.lower(): _Codec(self, reference, name) for name in SETTINGS
        }

    def predict(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> Columns:
        """Return the stream of each image alone, which `restore` turns back."""
        streams = np.empty(len(x), object)
        rung = int(self.state["rung"][0])
        at = 0
        for part, _ in in_batches(x, None, self.together(x.shape[1:])):
            made = (
                model.compress(part, rung)
                if isinstance(model, Compressor)
                else self._quantiser().alone(codes(model, part.numpy(), None), rung)
            )
            for stream in made:
                streams[at] = stream
                at += 1
        return {"stream": streams}

    @torch.inference_mode()
    def restore(self, model: Autoencoder, streams: Sequence[bytes], schema: Schema) -> np.ndarray:
        """Return the images of streams that `predict` made, (n, *shape), values 0 to 1.

        Raises:
            entropy.DamagedStreamError: a stream is not as this very model wrote it.
        """
        rung = int(self.state["rung"][0])
        parts = [np.empty((0, *schema.shape), np.float32)]
        size = self.together(schema.shape)
        for start in range(0, len(streams), size):
            some = streams[start : start + size]
            if isinstance(model, Compressor):
                parts.append(model.decompress(list(some), rung).clamp(0, 1).numpy())
            else:
                quantiser = self._quantiser()
                whole = np.concatenate([quantiser.read(stream, 1, rung) for stream in some])
                parts.append(self._decoded(model, quantiser.values(whole, rung)))
        return np.concatenate(parts)

    def digest(self, model: Autoencoder) -> bytes:
        """Return what tells this model and its tables from all others, 32 bytes."""
        found = hashlib.sha256()
        arrays = {f"model.{n}": v.detach().cpu().numpy() for n, v in model.state_dict().items()}
        arrays |= {n: v for n, v in self.state.items() if n not in ("rung", "reach")}
        for name, value in sorted(arrays.items()):
            found.update(f"{name} {value.dtype} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes())
        return found.digest()

    def write(self, model: Autoencoder, images: Iterable[np.ndarray], out: BinaryIO, rung: int | None = None) -> None:
        """Write images as a `.7f` container to a file that is open for binary writing.

        Args:
            images: in parts (n, channels, height, width), values 0 to 1; the images of a part have one size, which has
                to be that of the training unless the model takes others.
            rung: from 1; None for that of `predict`.
        """
        rung = int(self.state["rung"][0]) if rung is None else rung
        if not 1 <= rung <= self.rungs(model):
            raise ValueError(f"rung is {rung}; expected 1 to {self.rungs(model)}, the rungs of this model's ladder")
        writer = containers.Writer(out, self.digest(model))
        for part in images:
            if not isinstance(model, Compressor) and part.shape[1:] != model.shape:
                raise ValueError(
                    f"images are {part.shape[1:]}; this model takes {model.shape} alone; resize them, or use a model of "
                    "the variant `compressive`, which takes any size"
                )
            size = self.together(part.shape[1:])
            for start in range(0, len(part), size):
                some = part[start : start + size]
                made = self.payload(model, some, rung)
                writer.add(made.content, len(some), _shape(some), rung, made.kind)
        writer.close()

    def read(self, model: Autoencoder, source: Path | bytes) -> "Iterator[np.ndarray | containers.Damage]":
        """Give the images of a container in parts (n, channels, height, width), values 0 to 1, and what is lost.

        Raises:
            FileNotFoundError: there is no such file.
            containers.ContainerError: it is no container that this model wrote.
        """
        digest = self.digest(model)
        found = containers.parse(source, digest) if isinstance(source, bytes) else containers.read(source, digest)
        for one in found:
            if isinstance(one, containers.Damage):
                yield one
                continue
            try:
                yield self.images(model, one)
            except (entropy.DamagedStreamError, containers.ContainerError) as error:
                yield containers.Damage(one.first, one.first + one.count - 1, str(error))

    def together(self, shape: Sequence[int]) -> int:
        """Return how many images share a chunk."""
        return min(self.chunk, max(1, MOST_VALUES // math.prod(shape))) if max(shape[1:]) <= SMALL else 1

    @torch.inference_mode()
    def payload(self, model: Autoencoder, x: np.ndarray, rung: int) -> Payload:
        """Return what stands for images (n, channels, height, width) of one size, values 0 to 1, in one chunk.

        One larger than a tile has to be alone.
        """
        if isinstance(model, Compressor):
            if model.tiles(x.shape[2:]) > 1:
                streams = containers.joined(model.compress_tiles(tensor(x), rung))
                return Payload(streams, "tiles", np.array([8.0 * len(streams)]))
            stream, bits = model.compress_together(tensor(x), rung)
            return Payload(stream, "stream", bits.double().numpy())
        quantiser = self._quantiser()
        whole = quantiser.whole(codes(model, x, None), rung)
        return Payload(quantiser.stream(whole, rung), "stream", quantiser.bits(whole, rung))

    @torch.inference_mode()
    def images(self, model: Autoencoder, chunk: containers.Chunk) -> np.ndarray:
        """Return the images of a chunk that `payload` made, (n, channels, height, width), values 0 to 1.

        Args:
            model: the one that made it, or its copy of double precision, in which sums round too finely to show.

        Raises:
            entropy.DamagedStreamError, containers.ContainerError: it is not as this very model wrote it.
        """
        if isinstance(model, Compressor):
            found = (
                model.decompress_tiles(containers.parted(chunk.payload), chunk.rung, chunk.shape[1:])
                if chunk.kind == "tiles"
                else model.decompress_together(chunk.payload, chunk.count, chunk.rung, chunk.shape[1:])
            )
            return np.asarray(found.clamp_(0, 1).numpy())
        quantiser = self._quantiser()
        return self._decoded(
            model, quantiser.values(quantiser.read(chunk.payload, chunk.count, chunk.rung), chunk.rung)
        )

    @torch.inference_mode()
    def _decoded(self, model: Autoencoder, z: np.ndarray) -> np.ndarray:
        weights = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
        given = torch.from_numpy(z).to(torch.double if weights == {torch.double} else torch.float32)
        return np.asarray(model.decode(given).clamp(0, 1).numpy())

    def _quantiser(self) -> "_Quantiser":
        return _Quantiser.from_state(self.state)

    def _measured(self, model: Autoencoder, x: np.ndarray, rung: int) -> Measured:
        """Return bytes and error of each image in a real container, and the images that come out of it."""
        out = io.BytesIO()
        self.write(model, [x], out, rung)
        archive = out.getvalue()
        size = self.together(x.shape[1:])
        bits = np.concatenate([self.payload(model, x[i : i + size], rung).bits for i in range(0, len(x), size)])
        parts = [part for part in self.read(model, archive) if isinstance(part, np.ndarray)]
        return _shared(len(archive), bits, x, np.concatenate(parts))

    def pictures(self, model: Autoencoder, split: Split, train: Split, schema: Schema) -> list[Picture]:
        """Draw some images beside what is left of them, by the model and by the reference at about equal bytes."""
        rung = int(self.state["rung"][0])
        ours, reference = self._measured(model, split.x, rung), self._reference(split, train)
        theirs = min(reference, key=lambda one: abs(math.log(one.size.sum() / ours.size.sum())))
        shown = np.linspace(0, len(split) - 1, min(len(split), 8 if _small(split.x) else 4)).astype(int)
        name = "principal components" if _small(train.x) else "JPEG"
        captions = [["" for _ in shown]]
        captions += [[f"{one.size[i]:.0f} B, {decibels(one.error[i]):.0f} dB" for i in shown] for one in (ours, theirs)]
        saved = f"{ours.size.mean():.1f} bytes an image, {decibels(ours.error.mean()):.1f} dB"
        return [
            pictures.grid(
                "decoded",
                f"Decoded images beside those of {name} at about equal bytes",
                f"Test images in the first row; below, decoded by the model from {saved}; and by {name} from "
                f"{theirs.size.mean():.1f} bytes, {decibels(theirs.error.mean()):.1f} dB.",
                [split.x[shown], ours.output[shown], theirs.output[shown]],
                ["original", "model", "reference"],
                captions,
            )
        ]

    def comparison(self, scores: Mapping[str, Scores], chosen: str) -> list[Picture]:
        """Draw quality over rate of all."""
        rivals = self.rivals()
        marks = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
        curves = {name: _points(one.metrics) for name, one in scores.items()}
        lossless = {
            n.split("_")[1]: v for n, v in next(iter(scores.values())).metrics.items() if n.startswith("lossless_")
        }

        def draw(ax: Any) -> None:
            for i, (name, (rate, psnr)) in enumerate(curves.items()):
                ours = name not in rivals
                ax.plot(
                    rate, psnr, marker=marks[i % len(marks)], markersize=4, label=name,
                    color=pictures.OURS if ours else pictures.THEIRS,
                    linewidth=2.2 if name == chosen else 1, linestyle="-" if ours else "--",
                )  # fmt: skip
            low, high = (end(r for rates, _ in curves.values() for r in rates) for end in (min, max))
            for mark, bpp in lossless.items():
                if bpp < 1.5 * high:
                    ax.axvline(bpp, color=pictures.THIRD, linewidth=0.8, linestyle=":")
                    ax.annotate(f"{mark}, lossless", (bpp, ax.get_ylim()[0]), (2, 4), textcoords="offset points",
                                rotation=90, fontsize=6, color=pictures.THIRD)  # fmt: skip
            ax.set(xscale="log", xlabel="bits per pixel, headers included", ylabel="PSNR in dB", xlim=(low / 1.2, None))
            ax.legend(frameon=False, fontsize=7)

        listed = ", ".join(f"{name} {one.metrics[self.primary]:+.1%}" for name, one in scores.items())
        beside = ", ".join(f"{name} takes {rate:.2f}" for name, rate in lossless.items())
        return [
            pictures.plot(
                "rate_distortion",
                "Quality by bits per pixel: what is higher up, or further left, is better",
                f"Autoencoders blue, rivals brown. Bytes saved at equal quality against the reference: {listed}. Bits per "
                f"pixel without loss: {beside}.",
                draw,
                size=(7.0, 4.2),
            )
        ]


def decibels(error: float) -> float:
    """Return the peak signal-to-noise ratio of a mean squared error, for values from 0 to 1, `quality.BEST` at most."""
    return -10 * math.log10(max(error, 10 ** (-quality.BEST / 10)))


def bytes_saved(ours: np.ndarray, reference: np.ndarray) -> float:
    """Return the share of bytes that one ladder saves against another at equal quality, 1 - (1 + BD-rate).

    The mean difference of logarithmic rates over the range of quality that both reach (Bjontegaard, 2001), between rungs by
    monotone cubics (`scipy`'s PCHIP). Nothing is extrapolated; where the two share no quality, it is `WORST`. A rung that
    another one of its ladder beats both in bytes and in quality does not count.

    Args:
        ours, reference: (rungs, 2), bytes and decibels.
    """
    from scipy import interpolate

    curves = [_frontier(curve) for curve in (ours, reference)]
    if min(map(len, curves)) < 2:
        return WORST
    low, high = max(c[0, 1] for c in curves), min(c[-1, 1] for c in curves)
    if not low < high:
        return WORST
    ours_area, their_area = (
        interpolate.PchipInterpolator(curve[:, 1], np.log(curve[:, 0])).integrate(low, high) for curve in curves
    )
    difference = float(ours_area - their_area) / (high - low)
    return max(-math.expm1(min(difference, 700.0)), WORST)


def _frontier(curve: np.ndarray) -> np.ndarray:
    """Return the rungs that no other one beats both in bytes and in quality, in rising order."""
    rising = curve[np.lexsort((-curve[:, 1], curve[:, 0]))]
    best = np.maximum.accumulate(rising[:, 1])
    frontier: np.ndarray = rising[np.diff(best, prepend=-np.inf) > 0]
    return frontier


def _curve(values: Mapping[str, np.ndarray], prefix: str) -> np.ndarray:
    """Return bytes and decibels of each rung, (rungs, 2)."""
    points: list[tuple[float, float]] = []
    while (name := f"{prefix}bytes_{len(points) + 1}") in values:
        error = values[f"{prefix}error_{len(points) + 1}"].mean()
        points.append((values[name].sum(), decibels(error)))
    return np.array(points).reshape(-1, 2)


def _points(metrics: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Return bits per pixel and decibels of each rung."""
    rungs = range(1, sum(name.startswith("psnr_") for name in metrics) + 1)
    return [metrics[f"bpp_{rung}"] for rung in rungs], [metrics[f"psnr_{rung}"] for rung in rungs]


def _shared(total: int, bits: np.ndarray, x: np.ndarray, output: np.ndarray) -> Measured:
    """Return a rung whose bytes are shared out as the bits of each image are, headers alike."""
    share = bits / bits.sum() if bits.sum() > 0 else np.full(len(bits), 1 / max(1, len(bits)))
    error = np.square(output.astype(np.float64) - x).reshape(len(x), -1).mean(axis=1)
    return Measured(total * share, error, output)


def _spread(x: np.ndarray) -> float:
    """Return the root mean square of what each value of an image differs from its mean; a bit more than nothing."""
    return float(np.sqrt(np.square(x - x.mean(axis=0)).mean(dtype=np.float64)) + 1e-6)


def _slopes(model: Autoencoder, z: np.ndarray) -> np.ndarray:
    """Return by how much the decoded image changes with each code value, (code,), as the root of the squared slopes' sum.

    At training codes, by random directions v of the image: the squares of what J'v gives for a code value are in the
    mean the sum of its squared slopes (Hutchinson, 1990).
    """
    generator = torch.Generator().manual_seed(0)
    rows = z[np.linspace(0, len(z) - 1, min(PROBED, len(z))).astype(int)]
    with torch.enable_grad():
        leaf = torch.from_numpy(rows.astype(np.float32)).requires_grad_()
        output = model.decode(leaf)
        if not output.requires_grad:
            return np.ones(z.shape[1])  # a decoder that does not look at its code
        total = torch.zeros(z.shape[1], dtype=torch.double)
        for _ in range(PROBES):
            direction = torch.randn(output.shape, generator=generator)
            (found,) = torch.autograd.grad(
                (output * direction).sum(), leaf, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            total += found.double().square().mean(dim=0)
    slopes = np.sqrt(total.numpy() / PROBES)
    return np.asarray(np.maximum(slopes, max(LEAST_SLOPE * float(slopes.max()), 1e-12)))


class _Quantiser:
    """Uniform steps on code values, one ladder of them, and how likely each whole number is at each rung."""

    def __init__(
        self,
        center: np.ndarray,
        steps: np.ndarray,
        reach: float,
        shifts: np.ndarray,
        tables: Sequence[Sequence[entropy.Table]],
    ) -> None:
        """Take what was learned.

        Args:
            center: (code,), what a whole number of 0 stands for.
            steps: (rungs, code).
            reach: what is added before rounding down: 0.5 rounds to the nearest.
            shifts: (rungs, 3), in steps: where in their cells values of 1, of 2, and of more than 2 steps lie in the mean.
            tables: for each rung one for each code value.
        """
        self._center = center
        self._steps = steps
        self._reach = reach
        self._shifts = shifts
        self._tables = tables
        self._coders: dict[int, entropy.Coder] = {}

    @classmethod
    def learned(
        cls, z: np.ndarray, center: np.ndarray, unit: np.ndarray | float, steps: Sequence[float], reach: float
    ) -> "_Quantiser":
        """Learn from training codes (n, code); `unit` is what a step of 1 is, for all code values or for each."""
        made = np.outer(steps, np.broadcast_to(unit, center.shape))
        shifts, tables = np.zeros((len(steps), 3)), []
        for rung, step in enumerate(made):
            size = np.abs(z - center) / step
            whole = np.floor(size + reach)
            for i in range(3):
                cell = whole == i + 1 if i < 2 else whole > 2
                shifts[rung, i] = (size - whole)[cell].mean() if cell.any() else 0.0
            tables.append(entropy.learned_tables(np.sign(z - center) * whole))
        return cls(center, made, reach, shifts, tables)

    def state(self) -> dict[str, np.ndarray]:
        flat = [table for tables in self._tables for table in tables]
        return {
            "quantiser_center": self._center,
            "quantiser_steps": self._steps,
            "quantiser_reach": np.array([self._reach]),
            "quantiser_shifts": self._shifts,
            "quantiser_lowest": np.array([table.lowest for table in flat]),
            "quantiser_sizes": np.array([len(table.weights) for table in flat]),
            "quantiser_weights": np.concatenate([table.weights for table in flat]).astype(np.int32),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> "_Quantiser":
        steps = state["quantiser_steps"]
        ends = np.cumsum(state["quantiser_sizes"])
        weights = np.split(state["quantiser_weights"].astype(np.int64), ends[:-1])
        flat = [entropy.Table(int(low), own) for low, own in zip(state["quantiser_lowest"], weights, strict=True)]
        tables = [flat[i : i + steps.shape[1]] for i in range(0, len(flat), steps.shape[1])]
        reach = float(state["quantiser_reach"][0])
        return cls(state["quantiser_center"], steps, reach, state["quantiser_shifts"], tables)

    def whole(self, z: np.ndarray, rung: int) -> np.ndarray:
        """Return the whole numbers that stand for codes (n, code)."""
        steps = (z - self._center) / self._steps[rung - 1]
        held = np.minimum(np.floor(np.abs(steps) + self._reach), entropy.LIMIT - 1)
        whole: np.ndarray = (np.sign(steps) * held).astype(np.int64)
        return whole

    def values(self, whole: np.ndarray, rung: int) -> np.ndarray:
        """Return the codes that whole numbers stand for."""
        shifts = np.concatenate([[0.0], self._shifts[rung - 1]])[np.minimum(np.abs(whole), 3)]
        return np.asarray((whole + np.sign(whole) * shifts) * self._steps[rung - 1] + self._center)

    def bits(self, whole: np.ndarray, rung: int) -> np.ndarray:
        """Return the information in each row, (n,) in bits."""
        return np.asarray(entropy.information(whole, self._tables[rung - 1]).sum(axis=1))

    def stream(self, whole: np.ndarray, rung: int) -> bytes:
        writer = entropy.Writer()
        writer.write(whole.reshape(-1), np.tile(np.arange(whole.shape[1]), len(whole)), self._coder(rung))
        return writer.stream()

    def alone(self, z: np.ndarray, rung: int) -> list[bytes]:
        """Return a stream for each row."""
        return [self.stream(row[None], rung) for row in self.whole(z, rung)]

    def read(self, stream: bytes, count: int, rung: int) -> np.ndarray:
        """Return the whole numbers of a stream of `count` rows.

        Raises:
            entropy.DamagedStreamError: it is none of this quantiser.
        """
        code = len(self._center)
        reader = entropy.Reader(stream)
        whole = reader.read(np.tile(np.arange(code), count), self._coder(rung))
        reader.close()
        return whole.reshape(count, code)

    def _coder(self, rung: int) -> entropy.Coder:
        if rung not in self._coders:
            self._coders[rung] = entropy.Coder(self._tables[rung - 1])
        return self._coders[rung]


class _Components:
    """Principal components of small images, or of the blocks of large ones, with uniform steps and an entropy coder.

    One step for all components gives each its best share of the bits (reverse water-filling; Cover and Thomas, 2006, ch.
    10): those that vary by less than a step become zeros and cost next to nothing, so none has to be left out.
    """

    def __init__(self, train: Split, application: Compression) -> None:
        blocks = _blocks(train.x).astype(np.float64)
        self._mean = blocks.mean(axis=0)
        left = blocks - self._mean
        self._axes = np.linalg.eigh(left.T @ left)[1]  # (size, components)
        self._z = left @ self._axes
        self._unit = _spread(train.x)
        self._steps = application.steps
        self._chunk = application.chunk if _small(train.x) else 1

    def quantise(self, reach: float) -> "_Quantiser":
        return _Quantiser.learned(self._z, np.zeros(self._z.shape[1]), self._unit, self._steps, reach)

    def chosen_reach(self, validation: Split) -> float:
        """Return the rounding offset with which they do best on the validation images."""
        z = self._transformed(validation.x)
        curves = []
        for reach in REACHES:
            quantiser, points = self.quantise(reach), []
            for rung in range(1, len(self._steps) + 1):
                whole = quantiser.whole(z, rung)
                error = np.square(self._images(quantiser.values(whole, rung), validation.x.shape) - validation.x)
                points.append((quantiser.bits(whole, rung).sum() / 8, decibels(error.mean(dtype=np.float64))))
            curves.append(np.array(points))
        return REACHES[int(np.argmax([bytes_saved(curve, curves[0]) for curve in curves]))]

    def ladder(self, x: np.ndarray, reach: float) -> list[Measured]:
        """Return what becomes of images, rung by rung, in real containers."""
        z, quantiser, shape = self._transformed(x), self.quantise(reach), (x.shape[1], x.shape[2], x.shape[3])
        per = len(z) // max(1, len(x))  # blocks of an image
        found = []
        for rung in range(1, len(self._steps) + 1):
            whole = quantiser.whole(z, rung)
            out = io.BytesIO()
            writer = containers.Writer(out, bytes(containers.DIGEST))
            for start in range(0, len(x), self._chunk):
                part = whole[start * per : (start + self._chunk) * per]
                writer.add(quantiser.stream(part, rung), len(part) // per, shape, rung)
            writer.close()
            bits = quantiser.bits(whole, rung).reshape(len(x), per).sum(axis=1)
            found.append(_shared(len(out.getvalue()), bits, x, self._images(quantiser.values(whole, rung), x.shape)))
        return found

    def _transformed(self, x: np.ndarray) -> np.ndarray:
        return np.asarray((_blocks(x) - self._mean) @ self._axes)

    def _images(self, z: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        images = _whole_images(z @ self._axes.T + self._mean, shape)
        return np.asarray(np.clip(images, 0, 1), np.float32)


class _Reference:
    """What everybody's bytes are compared with, made once for all who ask with the same rows."""

    def __init__(self, application: Compression) -> None:
        self._application = application
        self._train: Split | None = None
        self._found: list[tuple[Split, list[Measured]]] = []

    def fit(self, train: Split, validation: Split) -> None:
        if self._train is not train:
            self._train, self._found = train, []
            if _small(train.x):
                self._components = _Components(train, self._application)
                self._reach = self._components.chosen_reach(validation)

    def components(self, split: Split) -> list[Measured]:
        """Return the ladder of the principal components, which are the reference of small images alone."""
        return self._components.ladder(split.x, self._reach)

    def ladder(self, split: Split) -> list[Measured]:
        for known, found in self._found:
            if known is split:
                return found
        made = self.components(split) if _small(split.x) else _files("JPEG", split.x, len(self._application.steps))
        self._found.append((split, made))
        return made


class _Transform(Rival):
    """Principal components: the reference itself for small images."""

    def __init__(self, application: Compression, reference: _Reference) -> None:
        self._application = application
        self._reference = reference

    def fit(self, train: Split, validation: Split) -> None:
        self._reference.fit(train, validation)
        if not _small(train.x):
            self._components = _Components(train, self._application)
            self._reach = self._components.chosen_reach(validation)

    def evaluate(self, split: Split, train: Split) -> Scores:
        reference = self._reference.ladder(split)
        ours = reference if _small(train.x) else self._components.ladder(split.x, self._reach)
        return self._application.scores(split, ours, reference)


class _Codec(Rival):
    """A codec for photographs, its settings chosen on the validation images; small images share contact sheets."""

    def __init__(self, application: Compression, reference: _Reference, name: str) -> None:
        self._application = application
        self._reference = reference
        self._name = name

    def fit(self, train: Split, validation: Split) -> None:
        self._reference.fit(train, validation)
        ladders = [self._ladder(validation.x, choice) for choice in SETTINGS[self._name]]
        curves = [np.array([(one.size.sum(), decibels(one.error.mean())) for one in ladder]) for ladder in ladders]
        best = int(np.argmax([bytes_saved(curve, curves[0]) for curve in curves]))
        self._settings = SETTINGS[self._name][best]

    def _ladder(self, x: np.ndarray, settings: Mapping[str, Any]) -> list[Measured]:
        rungs = len(self._application.steps)
        if _small(x):
            return _sheets(self._name, x, rungs, self._application.chunk, settings)
        return _files(self._name, x, rungs, settings)

    def evaluate(self, split: Split, train: Split) -> Scores:
        ours = self._ladder(split.x, self._settings)
        return self._application.scores(split, ours, self._reference.ladder(split))


def _shape(x: np.ndarray) -> tuple[int, int, int]:
    _, channels, height, width = x.shape
    return channels, height, width


def _small(x: np.ndarray) -> bool:
    return bool(max(x.shape[2:]) <= SMALL)


def _padded(x: np.ndarray) -> np.ndarray:
    """Return images whose edges are multiples of `BLOCK`, their border repeated."""
    return np.pad(x, [(0, 0), (0, 0), *((0, -edge % BLOCK) for edge in x.shape[2:])], mode="edge")


def _blocks(x: np.ndarray) -> np.ndarray:
    """Return images as they are, larger ones cut into blocks, (n x blocks, size)."""
    if max(x.shape[2:]) <= WHOLE:
        return x.reshape(len(x), -1)
    x = _padded(x)
    n, channels, height, width = x.shape
    grid = x.reshape(n, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels * BLOCK * BLOCK)


def _whole_images(blocks: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return what `_blocks` cut, (n, channels, height, width)."""
    n, channels, height, width = shape
    if max(height, width) <= WHOLE:
        return blocks.reshape(shape)
    rows, columns = math.ceil(height / BLOCK), math.ceil(width / BLOCK)
    grid = blocks.reshape(n, rows, columns, channels, BLOCK, BLOCK).transpose(0, 3, 1, 4, 2, 5)
    return grid.reshape(n, channels, rows * BLOCK, columns * BLOCK)[:, :, :height, :width]


def _qualities(codec: str, rungs: int) -> list[int]:
    return [round(q) for q in np.linspace(*QUALITIES[codec], rungs)]


def encoded(codec: str, image: np.ndarray, **settings: Any) -> bytes:
    """Return an image as the bytes of a file.

    Args:
        codec: "JPEG", "WEBP", "AVIF" or "PNG".
        image: (height, width) or (height, width, 3) uint8.
    """
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, codec, **settings)
    return out.getvalue()


def decoded(data: bytes, like: np.ndarray) -> np.ndarray:
    """Return what a file holds, grey or in colours as `like` is."""
    from PIL import Image

    image = Image.open(io.BytesIO(data))
    return np.asarray(image.convert("L" if like.ndim == 2 else "RGB"))


def _planes(x: np.ndarray) -> np.ndarray:
    """Return images as codecs take them, (n, height, width) or (n, height, width, 3) uint8; others than grey and RGB as
    one grey image for each channel."""
    whole: np.ndarray = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
    if x.shape[1] == 3:
        return np.asarray(whole.transpose(0, 2, 3, 1))
    return np.asarray(whole.reshape(-1, *x.shape[2:]))


def _unplanes(planes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    x = planes.astype(np.float32) / 255
    return x.transpose(0, 3, 1, 2) if planes.ndim == 4 else x.reshape(shape)


def _files(codec: str, x: np.ndarray, rungs: int, settings: Mapping[str, Any] | None = None) -> list[Measured]:
    """Return a codec's ladder with a file for each image."""
    settings = SETTINGS[codec][0] if settings is None else settings
    planes = _planes(x)
    found = []
    for q in _qualities(codec, rungs):
        files = [encoded(codec, plane, quality=q, **settings) for plane in planes]
        output = np.stack([decoded(data, plane) for data, plane in zip(files, planes, strict=True)])
        size = np.array([len(data) for data in files], np.float64).reshape(len(x), -1).sum(axis=1)
        found.append(_shared(size.sum(), size, x, _unplanes(output, x.shape)))
    return found


def _sheets(codec: str, x: np.ndarray, rungs: int, chunk: int, settings: Mapping[str, Any]) -> list[Measured]:
    """Return a codec's ladder with contact sheets of `chunk` images each, whose bytes are shared out evenly."""
    _, _, height, width = x.shape
    found = []
    for q in _qualities(codec, rungs):
        total, outputs = 0, []
        for start in range(0, len(x), chunk):
            part = x[start : start + chunk]
            planes = _planes(_padded(part))
            sheet = _sheet(planes)
            data = encoded(codec, sheet, quality=q, **settings)
            total += len(data)
            shape = (*part.shape[:2], *planes.shape[1:3])
            outputs.append(_unplanes(_cut(decoded(data, sheet), planes.shape), shape)[:, :, :height, :width])
        found.append(_shared(total, np.ones(len(x)), x, np.concatenate(outputs)))
    return found


def _sheet(planes: np.ndarray) -> np.ndarray:
    """Lay out images (n, height, width, ...) in a square, the last one repeated where it is not full."""
    columns = math.ceil(math.sqrt(len(planes)))
    rows = math.ceil(len(planes) / columns)
    full = planes[np.minimum(np.arange(rows * columns), len(planes) - 1)].reshape(rows, columns, *planes.shape[1:])
    return np.concatenate(np.concatenate(full, axis=1), axis=1)


def _cut(sheet: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the images of a sheet, of this shape (n, height, width, ...)."""
    n, height, width = shape[:3]
    grid = sheet.reshape(sheet.shape[0] // height, height, sheet.shape[1] // width, width, *shape[3:])
    return np.swapaxes(grid, 1, 2).reshape(-1, *shape[1:])[:n]


def _lossless(x: np.ndarray) -> dict[str, int]:
    """Return the bytes of images without loss: as PNG, small ones on one sheet, and as values through Zstandard."""
    import pyarrow as pa

    planes = _planes(x)
    sheets = [_sheet(planes)] if _small(x) and len(planes) else planes
    zstd = pa.Codec("zstd", compression_level=19).compress(planes.tobytes(), asbytes=True)
    return {"png": sum(len(encoded("PNG", sheet, optimize=True)) for sheet in sheets), "zstd": len(zstd)}
