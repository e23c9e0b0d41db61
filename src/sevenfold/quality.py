"""How close images come to the true ones, image by image: the measures of denoising and compression."""

import numpy as np

BEST = 100.0
"""Decibels of a perfect image. Without a bound one of them would make the mean of all infinite."""

WINDOW, DEVIATION = 11, 1.5
"""Edge and standard deviation, in pixels, of the window through which SSIM looks (Wang et al., 2004, sec. III-B)."""

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales, from the finest on (Wang et al., 2003, sec. 3.2); each has half the edges of the one before."""

_STABLE = (0.01**2, 0.03**2)  # C1 and C2 of that paper, for values from 0 to 1

_PIXELS = 2**21  # that are worked on at a time, some 16 MB for each of a handful of means


def psnr(output: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each image in decibels, (n,) float64, `BEST` at most.

    Args:
        output: (n, channels, height, width), as the truth; its values are taken as they are, beyond 0 and 1 too.
        truth: values from 0 to 1.

    Raises:
        ValueError: the shapes differ, or are not those of images.
    """
    _require_pairs(output, truth)
    # Through memory once, and in double precision: float32 squares of tiny errors would vanish beside large ones.
    error = np.array([np.square(a.astype(np.float64) - b).mean() for a, b in zip(output, truth, strict=True)])
    decibels: np.ndarray = -10 * np.log10(np.maximum(error.reshape(-1), 10 ** (-BEST / 10)))
    return decibels


def ssim(output: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each image (Wang et al., 2004), (n,) float64, 1 for equal ones.

    The window is a Gaussian of 11 x 11 pixels, only where it lies wholly inside; channels are averaged. Where an edge is
    shorter than that, the window has the largest odd number of pixels that fits.

    Args:
        output: (n, channels, height, width), as the truth; its values are taken as they are, beyond 0 and 1 too.
        truth: values from 0 to 1.

    Raises:
        ValueError: the shapes differ, or are not those of images.
    """
    _require_pairs(output, truth)
    return np.concatenate([np.zeros(0), *(similarity(*pair)[0] for pair in _pairs(output, truth))])


def ms_ssim(output: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the structural similarity over several scales of each image (Wang et al., 2003), (n,) float64.

    Of the five scales those count in which an edge has a whole window, their weights made to add up to 1; for images of
    less than 22 pixels that is one, and plain SSIM.

    Args:
        output: (n, channels, height, width), as the truth; its values are taken as they are, beyond 0 and 1 too.
        truth: values from 0 to 1.

    Raises:
        ValueError: the shapes differ, or are not those of images.
    """
    _require_pairs(output, truth)
    scales = sum(min(truth.shape[2:]) >> scale >= WINDOW for scale in range(len(SCALES))) or 1
    weights = np.array(SCALES[:scales]) / sum(SCALES[:scales])
    found = [np.zeros(0)]
    for pair in _pairs(output, truth):
        n, channels = pair[0].shape[:2]
        x, y = (part.astype(np.float64).reshape(n * channels, 1, *part.shape[2:]) for part in pair)
        total = np.ones(n * channels)
        for weight in weights[:-1]:
            total *= np.maximum(similarity(x, y)[1], 0) ** weight
            x, y = _halved(x), _halved(y)
        total *= np.maximum(similarity(x, y)[0], 0) ** weights[-1] if scales > 1 else similarity(x, y)[0]
        found.append(total.reshape(n, channels).mean(axis=1))
    return np.concatenate(found)


def _halved(x: np.ndarray) -> np.ndarray:
    """Return the means of each 2 x 2 pixels; what is left over at the end of an odd edge is dropped."""
    height, width = (edge // 2 * 2 for edge in x.shape[2:])
    x = x[:, :, :height, :width]
    mean: np.ndarray = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    return mean


def similarity(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return SSIM and its part without luminance, contrast and structure, each (n,); x and y (n, channels, H, W)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    light_x, light_y = _blurred(x), _blurred(y)
    spread_x = _blurred(x * x) - light_x**2
    spread_y = _blurred(y * y) - light_y**2
    shared = _blurred(x * y) - light_x * light_y
    structure = (2 * shared + _STABLE[1]) / (spread_x + spread_y + _STABLE[1])
    luminance = (2 * light_x * light_y + _STABLE[0]) / (light_x**2 + light_y**2 + _STABLE[0])
    over = (1, 2, 3)
    return (luminance * structure).mean(axis=over), structure.mean(axis=over)


def _blurred(x: np.ndarray) -> np.ndarray:
    """Return the weighted mean in each window that lies inside; (n, channels, H, W) -> the same, less the window's rim."""
    from scipy import ndimage

    for axis in (2, 3):
        reach = (min(WINDOW, x.shape[axis]) - 1) // 2
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / DEVIATION) ** 2)
        inside = [slice(None)] * 4
        inside[axis] = slice(reach, x.shape[axis] - reach)
        x = ndimage.correlate1d(x, weights / weights.sum(), axis=axis)[tuple(inside)]
    return x


def _pairs(output: np.ndarray, truth: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut both into equal parts of bounded size."""
    if not len(truth):
        return []
    size = max(1, _PIXELS // truth[0].size)
    return [(output[i : i + size], truth[i : i + size]) for i in range(0, len(truth), size)]


def _require_pairs(output: np.ndarray, truth: np.ndarray) -> None:
    if output.shape != truth.shape or truth.ndim != 4 or not np.prod(truth.shape[1:]):
        raise ValueError(
            f"images are {output.shape} and {truth.shape}; expected twice the same (n, channels, height, width); give a "
            "single image as `x[None]`"
        )
