"""Denoising: how much white noise an autoencoder takes off images, beside filters that need no training.

Noise is additive, Gaussian, independent from pixel to pixel and not clipped. A batch job is not told how strong it is, and
measures it in each image.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sevenfold import filters, pictures, quality
from sevenfold.applications.base import Application, Columns, Rival, Scores, flat
from sevenfold.datasets.base import Schema, Split
from sevenfold.models.base import Autoencoder, Restorer
from sevenfold.pictures import Picture

SMALLEST = 3
"""Edge, in pixels, of an image whose noise can be measured."""

LEAST = 1e-3
"""Noise below it is none, as a share of the range: a quarter of a step of 8 bits."""

DRAWS = 8
"""Levels at which each validation image teaches how to measure noise."""

TAUGHT = 1024
"""Validation images that teach it at most."""

BLOCK = 8
"""Edge, in pixels, of the blocks in which noise is measured."""

FREQUENCIES = (0.3, 0.6, 0.9, 1.2)
"""Sums of both directions' frequencies, each 0 to 1, from which on a block is mostly noise."""

TUNED_PIXELS, TUNED = 2**15, 8
"""What rivals take, and what a restorer is told, is tuned on validation images of so many pixels together, and on no fewer
images than the second number."""

CAUTIONS = (0.9, 1.0, 1.1, 1.2, 1.35)
"""Multiples of the measured level that a restorer may be told."""

MIXES = np.linspace(0, 1, 21)
"""Shares of the noisy image itself that are tried beside the reconstruction."""

LARGEST_PCA = 4096
"""Values of the largest image whose principal components are taken."""

TILE = 512
"""Edge, in pixels, of the pieces in which a large image is restored, without the margin around them."""

STEADY = 2**16
"""Pixels that a job gives a model at a time, or one tile: always as many images, since sums may depend on how many there are."""

STRIPE = 2**20
"""Values in which noise is measured at a time."""

_PIXELS = 2**19  # of all channels, that go through a model or a filter at a time

Filter = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(noisy images, the noise level of each, the parameter of each) -> images."""


class Denoising(Application):
    """Judges by the mean gain in PSNR over the noisy image, in decibels."""

    primary = "psnr_gain"
    operation = "denoise"
    learns_from = "all"

    def __init__(self, *, levels: Sequence[float], known: bool) -> None:
        """Set up the contest.

        Args:
            levels: standard deviations of the noise, as shares of the images' range; all count the same.
            known: whether the level is told to all, as in the literature, where the contest is decided; both are measured.
                With a single known level a batch job takes its images to have just that; else it measures.

        Raises:
            ValueError: there is no level, or one that is no share of the range.
        """
        if not levels or not all(LEAST <= level <= 1 for level in levels) or len(set(levels)) < len(levels):
            raise ValueError(
                f"levels is {levels}; expected one or more different shares of the images' range, from {LEAST:g} to 1; set "
                "`levels: [0.06, 0.1, 0.2]`, for example"
            )
        super().__init__({"levels": list(levels), "known": known})
        self.levels = np.sort(np.asarray(levels, np.float64))
        self.known = known

    def unsuited(self, *, code: int | None, images: bool | None, labelled: bool, normal: bool) -> str | None:
        if images is False:
            return (
                "takes noise off images, and these are rows of a table; leave it out, or judge tables by `imputation`, "
                "`anomaly` or `reduction`"
            )
        return None

    def calibrate(self, model: Autoencoder, train: Split, validation: Split) -> Self:
        """Learn how to measure noise, and for each level what a model is to be told, or how much of the noisy image to keep.

        A restorer is told a multiple of the level that was measured, since to take it for too low costs more than for too
        high; of a reconstruction and the noisy image the best mean is taken.

        Raises:
            ValueError: there is no validation image, or the images are too small.
        """
        draft = self.measuring(validation)
        draft.state |= {"caution": np.ones(len(self.levels)), "kept": np.zeros(len(self.levels))}
        if isinstance(model, Restorer):
            chosen = [draft._best_caution(model, validation, level) for level in self.levels]
            return draft.with_state(draft.state | {"caution": np.array(chosen)})
        chosen = [draft._best_mix(model, validation, level) for level in self.levels]
        return draft.with_state(draft.state | {"kept": np.array(chosen)})

    def measuring(self, validation: Split) -> Self:
        """Return a copy that has learned from clean images how to measure noise; the same for all models and rivals."""
        if not len(validation) or min(validation.x.shape[2:]) < SMALLEST:
            raise ValueError(
                f"{len(validation)} validation images of {' x '.join(map(str, validation.x.shape[2:]))} pixels; expected one "
                f"or more of {SMALLEST} x {SMALLEST} or more; give that split a larger share, or take larger images"
            )
        rows = _spread(len(validation), TAUGHT)
        lowest, highest = self.levels[0] / 4, 1.5 * self.levels[-1]
        chance = np.random.default_rng(0)
        levels = lowest * (highest / lowest) ** chance.random((DRAWS, len(rows)))
        signs = []
        for some in levels:
            clean = np.asarray(validation.x[rows], np.float64)
            signs.append(_signs(clean + some.reshape(-1, 1, 1, 1) * chance.normal(size=clean.shape)))
        return self.with_state(_regression(np.concatenate(signs), np.log(levels).reshape(-1)))

    def measured(self, x: np.ndarray) -> np.ndarray:
        """Return the standard deviation of the noise in each image, (n,), as a share of the range; see `_signs`."""
        state = self.state
        if not len(x):
            return np.zeros(0)
        found = ((_signs(x) - state["center"]) / state["scale"]) @ state["slope"] + state["offset"]
        # What images far from those of the validation split seem to have is kept within reason.
        kept: np.ndarray = np.clip(np.exp(found), self.levels[0] / 8, min(2 * self.levels[-1], 1.0))
        return kept

    def evaluate(self, model: Autoencoder, split: Split, train: Split) -> Scores:
        return self.scores(split, lambda noisy, told: self.restored(model, noisy, told))

    def scores(self, split: Split, restore: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Scores:
        """Judge a way of restoring noisy images (n, channels, height, width) whose levels are told, (n,)."""
        gains: dict[bool, list[np.ndarray]] = {False: [], True: []}
        metrics: dict[str, float] = {}
        errors = []
        for level in self.levels:
            found = [
                self._compared(*part, level, restore) for part in _parts(split, level)
            ]  # a dictionary of (n,) arrays for each part
            whole = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
            gains[False].append(whole["measured"] - whole["noisy"])
            gains[True].append(whole["told"] - whole["noisy"])
            metrics[f"psnr_{level:g}"] = float(whole["told" if self.known else "measured"].mean())
            metrics[f"gain_{level:g}"] = float(gains[self.known][-1].mean())
            metrics[f"ssim_{level:g}"] = float(whole["ssim"].mean())
            errors.append(whole["error"])
        values = {"gain": np.mean(gains[self.known], axis=0)}
        return Scores(
            {
                self.primary: self.statistic(values),
                "gain_measured": float(np.mean(gains[False])),
                "gain_known": float(np.mean(gains[True])),
                "level_error": float(np.mean(errors)),
            }
            | metrics,
            values,
        )

    def _compared(
        self,
        clean: np.ndarray,
        noisy: np.ndarray,
        level: float,
        restore: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> dict[str, np.ndarray]:
        """Return PSNR before and after, by the measured level and by the true one, and the error of measuring; (n,) each."""
        found, true = self.measured(noisy), np.full(len(noisy), level)
        measured = restore(noisy, found)
        told = restore(noisy, true)
        return {
            "noisy": quality.psnr(noisy, clean),
            "measured": quality.psnr(measured, clean),
            "told": quality.psnr(told, clean),
            "ssim": quality.ssim(told if self.known else measured, clean),
            "error": np.abs(found / level - 1),
        }

    def statistic(self, values: Mapping[str, np.ndarray]) -> float:
        return float(values["gain"].mean())

    def rivals(self) -> dict[str, Rival]:
        """Return filters, and projections that are learned; BM3D only where its package is installed.

        `bm3d` is free for research alone, and no part of this program. Where somebody has installed it, it takes part.
        """

        def scaled(method: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Filter:
            return lambda x, level, factor: method(x, factor * level)

        def shrinking(method: Literal["bayes", "universal"]) -> Filter:
            # Of Haar's, Daubechies' and Symlets', with 1 to 4 scales, these were best on photographs, and for small images.
            return scaled(lambda x, level: filters.wavelet(x, level, method, name="haar", scales=4, shifts=3))

        found: dict[str, Rival] = {
            "gaussian": _Filter(self, lambda x, _, width: filters.gaussian(x, width), np.geomspace(0.3, 3, 14)),
            "median": _Filter(self, lambda x, _, edge: filters.median(x, edge), [1, 3, 5, 7]),
            "total_variation": _Filter(self, scaled(filters.total_variation), np.geomspace(0.4, 2, 8)),
            "wavelet_bayes": _Filter(self, shrinking("bayes"), [0.6, 0.8, 0.9, 1, 1.1, 1.25]),
            "wavelet_visu": _Filter(self, shrinking("universal"), [0.2, 0.3, 0.4, 0.5, 0.7, 1]),
            "nl_means": _Filter(
                self,
                lambda x, level, factor: filters.non_local_means(x, level, factor * level),
                [0.4, 0.55, 0.7, 0.85, 1],
            ),
            "pca": _Projection(self, shrinks=False),
            "wiener": _Projection(self, shrinks=True),
        }
        if importlib.util.find_spec("bm3d"):
            found["bm3d"] = _Filter(self, scaled(filters.bm3d), [1])
        return found

    def predict(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> Columns:
        """Return `image`, (n, channels, height, width), without the noise that is measured in each.

        Images may be larger or smaller than those of the training, and each comes out the same in whatever company.
        """
        output, at = np.empty(x.shape, np.float32), 0
        for (part,) in _in_parts(x):
            told = np.full(len(part), self.levels[0]) if self.known and len(self.levels) == 1 else self.measured(part)
            output[at : at + len(part)] = self.restored(model, part, told, steady=True)
            at += len(part)
        return {"image": output}

    def restored(self, model: Autoencoder, noisy: np.ndarray, told: np.ndarray, *, steady: bool = False) -> np.ndarray:
        """Return images within their range, (n, channels, height, width) float32, for noise of the told levels, (n,).

        Args:
            steady: give the model always as many images at a time, so that each comes out the same to the last bit in
                whatever company. That costs time where there are few.
        """
        if isinstance(model, Restorer):
            cautious = told * np.interp(told, self.levels, self.state["caution"])
            output = _in_pieces(model, noisy, cautious, steady=steady)
        else:
            share = np.interp(told, self.levels, self.state["kept"]).reshape(-1, 1, 1, 1)
            output = share * noisy + (1 - share) * _reconstructed(model, noisy, steady=steady)
        return _within_range(output)

    def _best_caution(self, model: Restorer, validation: Split, level: float) -> float:
        """Return by how much to multiply the level that is told for the best PSNR."""
        rows = _tuning_rows(validation)
        clean, noisy = _with_noise(validation, rows, level)
        told = np.full(len(rows), level) if self.known else self.measured(noisy)
        found = [
            quality.psnr(_within_range(_in_pieces(model, noisy, factor * told)), clean).mean() for factor in CAUTIONS
        ]
        return float(CAUTIONS[int(np.argmax(found))])

    def _best_mix(self, model: Autoencoder, validation: Split, level: float) -> float:
        """Return the share of the noisy image to keep that gives the best PSNR."""
        decibels = np.zeros(len(MIXES))
        for clean, noisy in _parts(validation, level):
            output = _reconstructed(model, noisy)
            for i, share in enumerate(MIXES):
                mixed = np.clip(share * noisy + (1 - share) * output, 0, 1)
                decibels[i] += quality.psnr(mixed, clean).sum()
        return float(MIXES[decibels.argmax()])

    def pictures(self, model: Autoencoder, split: Split, train: Split, schema: Schema) -> list[Picture]:
        rows = _spread(len(split), 6)
        middle = self.levels[len(self.levels) // 2]
        clean, noisy = _with_noise(split, rows, middle)
        output = self.predict(model, noisy, None, schema)["image"]
        before, after = quality.psnr(noisy, clean), quality.psnr(output, clean)
        captions = [
            [f"{value:.1f} dB" for value in before],
            [f"{value:.1f} dB" for value in after],
            [""] * len(rows),
            [""] * len(rows),
        ]
        removed = 0.5 + (noisy - output) / (6 * middle)
        made = [
            pictures.grid(
                "denoised",
                f"Noise of {middle:.3g} of the range, and what is left of it",
                f"{len(rows)} test images with noise (mean PSNR {before.mean():.1f} dB), denoised ({after.mean():.1f} dB), "
                "as they were, and what was taken off, which should look like noise and not like the image.",
                [noisy, output, clean, removed],
                ["noisy", "denoised", "clean", "taken off"],
                captions,
            )
        ]
        steps = np.geomspace(self.levels[0] / 2, 1.4 * self.levels[-1], 9)
        some = _spread(len(split), 128)
        found = np.stack([self.measured(_with_noise(split, some, level)[1]) for level in steps])  # (levels, n)
        low, middle_half, high = np.quantile(found, [0.1, 0.5, 0.9], axis=1)

        def draw(ax: Any) -> None:
            ax.fill_between(steps, low, high, color=pictures.OURS, alpha=0.2, lw=0, label="8 of 10 images")
            ax.plot(steps, middle_half, color=pictures.OURS, label="median")
            ax.plot(steps, steps, color=pictures.THIRD, lw=0.8, ls="--", label="right")
            ax.set(xlabel="level of the noise, share of the range", ylabel="level that is measured")
            ax.legend(frameon=False)

        worst = np.abs(middle_half / steps - 1).max()
        made.append(
            pictures.plot(
                "levels",
                "How well the level of the noise is measured",
                f"The level measured in {len(some)} test images by its true value; the median is off by {worst:.0%} at most.",
                draw,
            )
        )
        return made

    def comparison(self, scores: Mapping[str, Scores], chosen: str) -> list[Picture]:
        names = [f"gain_{level:g}" for level in self.levels]
        lines = {who: [found.metrics[name] for name in names] for who, found in scores.items()}
        rivals = set(self.rivals())

        def draw(ax: Any) -> None:
            for who, line in lines.items():
                colour = pictures.THEIRS if who in rivals else pictures.OURS
                ours = who == chosen
                ax.plot(self.levels, line, "o-", ms=3, color=colour, lw=2.2 if ours else 0.9, alpha=1 if ours else 0.6)
            # Names beside the last points, moved apart where they would lie on each other.
            ends = sorted(lines, key=lambda who: lines[who][-1])
            low, high = ax.get_ylim()
            at = -np.inf
            for who in ends:
                at = max(at + 0.065 * (high - low), lines[who][-1])
                ax.annotate(
                    who,
                    (self.levels[-1], lines[who][-1]),
                    xytext=(1.03, at),
                    textcoords=ax.get_yaxis_transform(),
                    va="center",
                    fontsize=7,
                    color=pictures.THEIRS if who in rivals else pictures.OURS,
                    annotation_clip=False,
                )
            ax.set(xlabel="level of the noise, share of the range", ylabel="gain in PSNR, dB", xticks=self.levels)
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")

        best = max(lines, key=lambda who: scores[who].metrics[self.primary])
        told = "known" if self.known else "measured in each image"
        return [
            pictures.plot(
                "gains",
                "What each method gains at each level of noise",
                f"Mean gain in PSNR over the noisy test images by the level of the noise, which is {told}. "
                f"{chosen}: {', '.join(f'{v:.2f} dB at {level:.3g}' for v, level in zip(lines[chosen], self.levels, strict=True))}; "
                f"the best on average is {best}.",
                draw,
                size=(7.0, 3.8),
            )
        ]


class _Filter(Rival):
    """A filter with one parameter, chosen at each noise level on validation images with the knowledge that counts."""

    def __init__(self, application: Denoising, method: Filter, choices: Sequence[float] | np.ndarray) -> None:
        self._application = application
        self._method = method
        self._choices = np.asarray(choices, np.float64)

    def fit(self, train: Split, validation: Split) -> None:
        self._application = contest = self._application.measuring(validation)
        self._learn(train)
        rows = _tuning_rows(validation)
        self._chosen = []
        for level in contest.levels:
            clean, noisy = _with_noise(validation, rows, level)
            told = np.full(len(rows), level) if contest.known else contest.measured(noisy)
            found = [
                quality.psnr(self._filtered(noisy, told, np.full(len(rows), choice)), clean).mean()
                for choice in self._choices
            ]
            self._chosen.append(float(self._choices[int(np.argmax(found))]))

    def _learn(self, train: Split) -> None:
        """Take from the training images what the filter needs of them: nothing."""

    def evaluate(self, split: Split, train: Split) -> Scores:
        return self._application.scores(split, self._restored)

    def _restored(self, noisy: np.ndarray, told: np.ndarray) -> np.ndarray:
        # Between two levels the parameter is between theirs.
        parameter = np.interp(np.log(told), np.log(self._application.levels), self._chosen)
        return self._filtered(noisy, told, parameter)

    def _filtered(self, noisy: np.ndarray, told: np.ndarray, parameter: np.ndarray) -> np.ndarray:
        return _within_range(self._method(noisy, told, parameter))


class _Projection(_Filter):
    """The principal components of the training images, for small images.

    Either the first few of them, as many as is best at a level; or all, each shrunk by the share of its variance that is
    no noise: of all linear methods the one with the least error (Wiener's filter, learned).
    """

    def __init__(self, application: Denoising, *, shrinks: bool) -> None:
        super().__init__(
            application, self._shrunk if shrinks else self._projected, [0.7, 0.85, 1, 1.2] if shrinks else []
        )
        self._shrinks = shrinks

    def _learn(self, train: Split) -> None:
        from sklearn import decomposition

        size = int(np.prod(train.x.shape[1:]))
        if size > LARGEST_PCA:
            raise ValueError(
                f"images have {size} values; expected {LARGEST_PCA} at most for principal components; cut smaller patches"
            )
        self._pca = decomposition.PCA(svd_solver="covariance_eigh" if len(train) > size else "full").fit(flat(train))
        if not self._shrinks:
            # As of now the choices are the data's: numbers of components up to all of them.
            most = len(self._pca.components_)
            self._choices = np.unique(np.rint(np.geomspace(1, most, min(most, 24))))

    def _projected(self, x: np.ndarray, level: np.ndarray, count: np.ndarray) -> np.ndarray:
        return self._weighted(x, np.arange(len(self._pca.components_)) < np.rint(count).reshape(-1, 1))

    def _shrunk(self, x: np.ndarray, level: np.ndarray, factor: np.ndarray) -> np.ndarray:
        variance = self._pca.explained_variance_
        return self._weighted(x, variance / (variance + np.square(factor * level).reshape(-1, 1)))

    def _weighted(self, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the images from their components, (n, components), each times its weight."""
        z = (x.reshape(len(x), -1) - self._pca.mean_) @ self._pca.components_.T
        output: np.ndarray = (z * weights) @ self._pca.components_ + self._pca.mean_
        return output.reshape(x.shape)


def _within_range(x: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.clip(x, 0, 1).astype(np.float32, copy=False)
    return clipped


def _spread(count: int, most: int) -> np.ndarray:
    """Return the places of at most so many rows, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def _tuning_rows(validation: Split) -> np.ndarray:
    return _spread(len(validation), max(TUNED, TUNED_PIXELS // int(np.prod(validation.x.shape[1:]))))


def _with_noise(split: Split, rows: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return clean and noisy images; a row has the same noise at a level whenever and by whomever it is drawn."""
    clean = np.asarray(split.x[rows], np.float32)
    noise = [np.random.default_rng([int(i), round(1e6 * level)]).normal(size=clean.shape[1:]) for i in split.ids[rows]]
    return clean, (clean + level * np.asarray(noise).reshape(clean.shape)).astype(np.float32)


def _parts(split: Split, level: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for (rows,) in _in_parts(np.arange(len(split)), size=int(np.prod(split.x.shape[1:]))):
        yield _with_noise(split, rows, level)


def _in_parts(*arrays: np.ndarray, size: int | None = None) -> Iterator[tuple[np.ndarray, ...]]:
    """Cut arrays into parts of a bounded number of values; `size` is that of a row, by default of the first array's."""
    step = max(1, _PIXELS // (size or int(np.prod(arrays[0].shape[1:]))))
    for start in range(0, len(arrays[0]), step):
        yield tuple(array[start : start + step] for array in arrays)


def _signs(x: np.ndarray) -> np.ndarray:
    """Return what tells the noise in images (n, channels, height, width) from their content, (n, signs), logarithms.

    White noise is alike in all frequencies and places, and images are not: the energy of a block's cosine transform is taken
    from several frequencies on, over all blocks, over the smoother ones, and in the smoothest (as do Pyatykh et al., 2013,
    by principal components).
    """
    n, channels, height, width = x.shape
    tall, wide = min(BLOCK, height), min(BLOCK, width)
    lines = max(1, STRIPE // max(1, n * channels * tall * width)) * tall
    stripes = [
        _energies(x[:, :, top : min(top + lines, height // tall * tall), : width // wide * wide], tall, wide)
        for top in range(0, height // tall * tall, lines)
    ]
    signs = []
    for energy in np.concatenate(stripes, axis=3).reshape(len(FREQUENCIES), n, -1):  # (n, blocks)
        signs += [np.sqrt(np.square(energy).mean(axis=1)), np.quantile(energy, 0.15, axis=1), energy.min(axis=1)]
    return np.log(np.stack(signs, axis=1) + LEAST)


def _energies(x: np.ndarray, tall: int, wide: int) -> np.ndarray:
    """Return the energy of each block from several frequencies on, (frequencies, n, channels, rows, columns of blocks)."""
    from scipy import fft

    n, channels, height, width = x.shape
    grid = (n, channels, height // tall, width // wide)
    blocks = np.asarray(x, np.float64).reshape(n, channels, grid[2], tall, grid[3], wide).swapaxes(3, 4)
    waves = np.square(fft.dctn(blocks, axes=(4, 5), norm="ortho")).reshape(n, -1, tall * wide)
    frequency = np.add.outer(np.arange(tall) / tall, np.arange(wide) / wide).reshape(-1)  # 0 to nearly 2
    kept = np.stack([frequency >= min(least, frequency[-1]) for least in FREQUENCIES])
    # Several times as fast as to pick the frequencies; and unlike a product by BLAS it adds those of a block in one order.
    means = np.einsum("nbk,fk->fnb", waves, kept / kept.sum(axis=1, keepdims=True))
    energies: np.ndarray = np.sqrt(means).reshape(-1, *grid)
    return energies


def _regression(signs: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """Return a ridge regression of the target (n,) on signs (n, k)."""
    center, scale = signs.mean(axis=0), np.maximum(signs.std(axis=0), 1e-6)
    whitened = (signs - center) / scale
    offset = target.mean()
    inner = whitened.T @ whitened + 1e-4 * len(signs) * np.eye(signs.shape[1])
    slope = np.linalg.solve(inner, whitened.T @ (target - offset))
    return {"center": center, "scale": scale, "slope": slope, "offset": np.array([offset])}


def _reconstructed(model: Autoencoder, x: np.ndarray, *, steady: bool = False) -> np.ndarray:
    """Return what a model makes of images of its own size, or of others by overlapping tiles of that size."""
    height, width = model.shape[1:]
    if x.shape[2:] == (height, width):
        return _through(model, x, steady=steady)
    # Smaller ones are mirrored to the size of a tile.
    grown = _mirrored(x, height, width)
    output = np.zeros_like(grown)
    total = np.zeros(grown.shape[2:], np.float32)
    window = np.outer(*(np.minimum(np.arange(edge) + 1, np.arange(edge, 0, -1)) for edge in (height, width)))
    window = window.astype(np.float32)
    for top in _starts(grown.shape[2], height):
        # A whole row of tiles at a time: one by one they would be too few for the model to be fast.
        lefts = _starts(grown.shape[3], width)
        tiles = np.stack([grown[:, :, top : top + height, left : left + width] for left in lefts], axis=1)
        made = _through(model, tiles.reshape(-1, *tiles.shape[2:]), steady=steady).reshape(tiles.shape)
        for i, left in enumerate(lefts):
            place = (slice(top, top + height), slice(left, left + width))
            output[:, :, *place] += window * made[:, i]
            total[place] += window
    whole: np.ndarray = output / total
    return whole[:, :, : x.shape[2], : x.shape[3]]


def _through(model: Autoencoder, x: np.ndarray, *, steady: bool) -> np.ndarray:
    return _in_turn(lambda part, _: model(part), x, np.zeros(len(x)), steady=steady)


@torch.inference_mode()
def _in_turn(act: Callable[[Tensor, Tensor], Tensor], x: np.ndarray, told: np.ndarray, *, steady: bool) -> np.ndarray:
    """Return what a model makes of images of one size, some at a time.

    Args:
        told: one number for each image, (n,).
        steady: always as many of them, the last ones with copies beside them.
    """
    pixels = int(np.prod(x.shape[1:]))
    size = max(1, (STEADY if steady else _PIXELS) // pixels)
    output = np.empty(x.shape, np.float32)
    for start in range(0, len(x), size):
        rows = np.arange(start, min(start + size, len(x)))
        taken = np.pad(rows, (0, size - len(rows)), mode="edge") if steady else rows
        given = torch.from_numpy(np.ascontiguousarray(x[taken], dtype=np.float32))
        made = act(given, torch.from_numpy(told[taken].astype(np.float32)))
        output[rows] = made[: len(rows)].numpy()
    return output


def _starts(edge: int, tile: int) -> list[int]:
    """Return where tiles begin that overlap by half and end with the image."""
    step = max(1, tile // 2)
    return [*range(0, edge - tile, step), edge - tile]


def _mirrored(x: np.ndarray, height: int, width: int) -> np.ndarray:
    extra = [
        (0, 0),
        (0, 0),
        *((0, max(0, least - edge)) for least, edge in zip((height, width), x.shape[2:], strict=True)),
    ]
    return np.pad(x, extra, mode="symmetric")


def _in_pieces(model: Restorer, x: np.ndarray, told: np.ndarray, *, steady: bool = False) -> np.ndarray:
    """Restore images of any size; large ones in pieces of one size, each with as much around it as the model looks at."""
    output = np.empty(x.shape, np.float32)
    down, across = (_windows(edge, model) for edge in x.shape[2:])
    for window_down, piece_down in down:
        for window_across, piece_across in across:
            given = x[:, :, window_down, window_across]
            made = _in_turn(model.restore, given, told, steady=steady)
            above, before = piece_down.start - window_down.start, piece_across.start - window_across.start
            height, width = piece_down.stop - piece_down.start, piece_across.stop - piece_across.start
            output[:, :, piece_down, piece_across] = made[:, :, above : above + height, before : before + width]
    return output


def _windows(edge: int, model: Restorer) -> list[tuple[slice, slice]]:
    """Return what a model is given of an edge, and which piece of what it makes is taken.

    Windows have one size, but for the last one, which ends with the image: the model itself fills up what is missing there
    to a multiple of its stride, as it does for the whole image.
    """
    tile = max(model.stride, TILE // model.stride * model.stride)
    size, full = tile + 2 * model.margin, -(-edge // model.stride) * model.stride
    found, done = [], 0
    while done < edge:
        begin = max(0, min(done - model.margin, full - size))
        end = min(begin + size, edge)
        until = edge if end == edge else end - model.margin
        found.append((slice(begin, end), slice(done, until)))
        done = until
    return found
