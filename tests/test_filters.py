"""The classical denoisers, on many images at once, do what scikit-image does to each of them."""

import functools
import sys

import numpy as np
import pytest
from scipy import ndimage
from skimage import data, restoration

from sevenfold import filters, quality

LEVELS = np.array([0.05, 0.1, 0.2])


@functools.cache
def photographs(channels=1, edges=(53, 40)):
    """Three crops and the same with noise of `LEVELS`, each (3, channels, *edges) float32."""
    image = data.astronaut()[:, :, :channels].transpose(2, 0, 1) / 255
    clean = np.stack([image[:, 10 + 60 * i : 10 + 60 * i + edges[0], 180 : 180 + edges[1]] for i in range(3)])
    noise = np.random.default_rng(0).normal(size=clean.shape)
    return clean.astype(np.float32), (clean + LEVELS.reshape(-1, 1, 1, 1) * noise).astype(np.float32)


FILTERS = {
    "gaussian": lambda x, level: filters.gaussian(x, 8 * level),
    "median": lambda x, level: filters.median(x, np.full(len(x), 3)),
    "total_variation": lambda x, level: filters.total_variation(x, level),
    "wavelet_bayes": lambda x, level: filters.wavelet(x, level, "bayes", name="haar", scales=3, shifts=1),
    "wavelet_visu": lambda x, level: filters.wavelet(x, 0.4 * level, "universal", name="haar", scales=3, shifts=1),
    "non_local_means": lambda x, level: filters.non_local_means(x, level, 0.7 * level),
}


def test_total_variation_is_that_of_scikit_image_for_each_weight():
    _, noisy = photographs()
    output = filters.total_variation(noisy, LEVELS)
    for image, weight, found in zip(noisy, LEVELS, output, strict=True):
        expected = restoration.denoise_tv_chambolle(
            image[0].astype(float), weight=weight, eps=0, max_num_iter=filters.ITERATIONS + 1
        )
        np.testing.assert_allclose(found[0], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["haar", "db2", "sym4"])
@pytest.mark.parametrize(("method", "other"), [("bayes", "BayesShrink"), ("universal", "VisuShrink")])
def test_wavelet_shrinkage_is_that_of_scikit_image_for_each_level(method, other, name):
    _, noisy = photographs()
    output = filters.wavelet(noisy, LEVELS, method, name=name, scales=2, shifts=0)
    for image, level, found in zip(noisy, LEVELS, output, strict=True):
        expected = restoration.denoise_wavelet(
            image[0].astype(float), sigma=level, method=other, wavelet=name, wavelet_levels=2, mode="soft"
        )
        np.testing.assert_allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize(("method", "factor"), [("bayes", 1.0), ("universal", 0.4)])
def test_moving_the_grid_of_wavelets_and_taking_the_mean_gains(method, factor):
    clean, noisy = photographs()

    def found(shifts):
        output = filters.wavelet(noisy, factor * LEVELS, method, name="haar", scales=3, shifts=shifts)
        return quality.psnr(output, clean).mean()

    assert found(3) > found(0) + 0.3


def test_opponent_colours_are_an_orthonormal_basis_and_gain_where_channels_are_alike():
    np.testing.assert_allclose(filters._OPPONENTS @ filters._OPPONENTS.T, np.eye(3), atol=1e-12)
    clean, noisy = photographs(3)
    one = {"method": "bayes", "name": "haar", "scales": 3, "shifts": 1}
    alone = np.concatenate([filters.wavelet(noisy[:, [i]], LEVELS, **one) for i in range(3)], axis=1)
    together = filters.wavelet(noisy, LEVELS, **one)
    assert (quality.psnr(together, clean) > quality.psnr(alone, clean) + 1).all()


def test_gaussian_and_median_are_those_of_scipy_for_each_strength():
    _, noisy = photographs(3)
    output = filters.gaussian(noisy, np.array([0.0, 0.6, 1.5]))
    assert np.array_equal(output[0], noisy[0])
    for i, width in ((1, 0.6), (2, 1.5)):
        np.testing.assert_allclose(output[i], ndimage.gaussian_filter(noisy[i], (0, width, width)), atol=1e-6)
    output = filters.median(noisy, np.array([1.4, 2.3, 5.0]))
    assert np.array_equal(output[0], noisy[0])
    for i, edge in ((1, 3), (2, 5)):
        assert np.array_equal(output[i], ndimage.median_filter(noisy[i], (1, edge, edge)))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_filter_takes_noise_off_and_treats_each_image_on_its_own(name, channels):
    clean, noisy = photographs(channels)
    before = noisy.copy()
    output = FILTERS[name](noisy, LEVELS)
    assert output.dtype == np.float32
    assert np.array_equal(noisy, before)
    assert (quality.psnr(output, clean) > quality.psnr(noisy, clean) + 1).all()
    one_by_one = [FILTERS[name](noisy[i : i + 1], LEVELS[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(output, np.concatenate(one_by_one), atol=1e-5)
    assert FILTERS[name](noisy[:0], LEVELS[:0]).shape == noisy[:0].shape


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 6, 5), (1, 8, 8), (2, 5, 17)])
def test_every_filter_takes_small_images(name, shape):
    x = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    output = FILTERS[name](x, LEVELS[:2])
    assert output.shape == x.shape
    assert np.isfinite(output).all()


def test_bm3d_gets_each_image_as_its_package_wants_it(tmp_path, monkeypatch):
    """A stand-in: the package is free for research alone, and not installed with this one."""
    (tmp_path / "bm3d.py").write_text(
        "def bm3d(z, sigma_psd):\n    assert z.ndim == 2\n    return z[..., None] + sigma_psd\n"
        "def bm3d_rgb(z, sigma_psd):\n    assert z.shape[-1] == 3\n    return z - sigma_psd\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bm3d", raising=False)
    for channels, sign in ((1, 1), (2, 1), (3, -1)):
        x = np.random.default_rng(0).random((3, channels, 9, 8)).astype(np.float32)
        expected = x + sign * LEVELS.reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(filters.bm3d(x, LEVELS), expected, rtol=1e-5)
    sys.modules.pop("bm3d", None)
