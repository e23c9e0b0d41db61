"""Classical denoisers, many images at a time, each image with a strength of its own: the rivals of denoising.

All take images x (n, channels, height, width) and return as many, float32.
"""

import itertools
from typing import Any, Literal

import numpy as np

ITERATIONS = 60
"""Of Chambolle's projection; more change nothing that matters."""

SEARCHED = 7
"""Pixels on each side among which non-local means looks for similar patches."""

PATCH = 5
"""Edge of the patches that non-local means compares."""

_OPPONENTS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
"""Brightness and two colours, as an orthonormal basis: noise that is alike in all channels stays so."""


def gaussian(x: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Blur by a Gaussian of a standard deviation of `width` pixels, (n,), to a twentieth of one."""
    from scipy import ndimage

    output = np.array(x, np.float32)
    steps = np.rint(20 * np.asarray(width)).astype(int)
    for step in np.unique(steps[steps > 0]):
        rows = steps == step
        for axis in (2, 3):
            output[rows] = ndimage.gaussian_filter1d(output[rows], step / 20, axis=axis, mode="reflect")
    return output


def median(x: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Take the median over squares of pixels; `edge` (n,) is rounded to the nearest odd number."""
    from scipy import ndimage

    output = np.array(x, np.float32)
    edges = 2 * np.rint((np.asarray(edge) - 1) / 2).astype(int) + 1
    for one in np.unique(edges[edges > 1]):
        rows = edges == one
        output[rows] = ndimage.median_filter(output[rows], size=(1, 1, one, one), mode="reflect")
    return output


def total_variation(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Minimise half the squared change plus `weight` (n,) times the total variation, each channel on its own.

    Chambolle's projection (2004, sec. 4), as scikit-image's `denoise_tv_chambolle` takes it.
    """
    x = np.asarray(x, np.float32)
    step = np.float32(0.25)  # the largest that converges, in two dimensions
    scale = (step / np.maximum(weight, 1e-9)).astype(np.float32).reshape(-1, 1, 1, 1)
    down, right = np.zeros_like(x), np.zeros_like(x)
    output = x.copy()
    for _ in range(ITERATIONS):
        slope = np.diff(output, axis=2, append=output[:, :, -1:])
        lean = np.diff(output, axis=3, append=output[..., -1:])
        norm = 1 + scale * np.sqrt(slope**2 + lean**2)
        down = (down - step * slope) / norm
        right = (right - step * lean) / norm
        output = x - down - right
        output[:, :, 1:] += down[:, :, :-1]
        output[..., 1:] += right[..., :-1]
    return output


def wavelet(
    x: np.ndarray, level: np.ndarray, method: Literal["bayes", "universal"], *, name: str, scales: int, shifts: int
) -> np.ndarray:
    """Shrink wavelet coefficients towards 0, for noise of a standard deviation of `level` (n,).

    By a threshold for each image and scale (BayesShrink; Chang et al., 2000), or the universal one (VisuShrink; Donoho and
    Johnstone, 1994), as scikit-image's `denoise_wavelet` does; averaged over grids moved by up to `shifts` pixels in both
    directions (cycle spinning; Coifman and Donoho, 1995). Colours are taken apart into opponents before.

    Args:
        name: of the wavelet, as PyWavelets has it.
        scales: how many; in a small image fewer, down to coefficients of 2 x 2 pixels.
        shifts: 0 for none.
    """
    colour = x.shape[1] == 3
    x = np.einsum("oc,nchw->nohw", _OPPONENTS, x) if colour else np.asarray(x, np.float64)
    output = np.zeros_like(x)
    height, width = x.shape[2:]
    scales = max(1, min(scales, int(np.log2(min(height, width))) - 1))
    for down, right in itertools.product(range(shifts + 1), repeat=2):
        # Mirrored at the edges and not rolled around them: opposite edges have nothing to do with each other.
        grown = np.pad(x, [(0, 0), (0, 0), (down, shifts - down), (right, shifts - right)], mode="symmetric")
        shrunk = _shrunk(grown, np.asarray(level), method, name, scales)
        output += shrunk[:, :, down : down + height, right : right + width] / (shifts + 1) ** 2
    if colour:
        output = np.einsum("oc,nohw->nchw", _OPPONENTS, output)
    return output.astype(np.float32)


def _shrunk(x: np.ndarray, level: np.ndarray, method: str, name: str, scales: int) -> np.ndarray:
    import pywt

    edges = x.shape[2:]
    variance = np.square(level, dtype=np.float64).reshape(-1, 1, 1, 1)
    coarse, detail = x, []
    for _ in range(scales):
        coarse, parts = pywt.dwt2(coarse, name, axes=(2, 3))
        detail.append(tuple(_towards_zero(part, variance, method, edges) for part in parts))
    for parts in reversed(detail):
        coarse = coarse[:, :, : parts[0].shape[2], : parts[0].shape[3]]  # an odd edge comes back one longer
        coarse = pywt.idwt2((coarse, parts), name, axes=(2, 3))
    output: np.ndarray = coarse[:, :, : edges[0], : edges[1]]
    return output


def _towards_zero(part: np.ndarray, variance: np.ndarray, method: str, edges: tuple[int, ...]) -> np.ndarray:
    if method == "bayes":
        energy = np.square(part).mean(axis=(2, 3), keepdims=True)
        threshold = variance / np.sqrt(np.maximum(energy - variance, np.finfo(np.float64).eps))
    else:
        threshold = np.sqrt(variance * 2 * np.log(np.prod(edges)))
    shrunk: np.ndarray = np.sign(part) * np.maximum(np.abs(part) - threshold, 0)
    return shrunk


def non_local_means(x: np.ndarray, level: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Average similar patches (Buades et al., 2005), by scikit-image; `level` and the filter's `strength` are (n,)."""
    from skimage import restoration

    output = np.empty(x.shape, np.float32)
    for i, image in enumerate(x):
        # One channel alone is an image of two axes.
        channels, axis = (image[0], None) if len(image) == 1 else (image, 0)
        output[i] = restoration.denoise_nl_means(
            np.ascontiguousarray(channels, dtype=np.float32),
            patch_size=PATCH,
            patch_distance=SEARCHED,
            h=float(strength[i]),
            sigma=float(level[i]),
            fast_mode=True,
            channel_axis=axis,
        )
    return output


def bm3d(x: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Filter groups of similar blocks together (Dabov et al., 2007), by the package bm3d; `level` is (n,)."""
    module: Any = __import__("bm3d")
    output = np.empty(x.shape, np.float32)
    for i, image in enumerate(x):
        told = max(float(level[i]), 1e-4)
        if len(image) == 3:
            output[i] = module.bm3d_rgb(image.transpose(1, 2, 0), sigma_psd=told).transpose(2, 0, 1)
        else:
            for channel, values in enumerate(image):
                output[i, channel] = module.bm3d(values, sigma_psd=told).reshape(values.shape)
    return output
