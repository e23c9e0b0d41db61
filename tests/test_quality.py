"""PSNR and SSIM of each image equal scikit-image's; small, perfect and empty images have finite values too."""

import re

import numpy as np
import pytest
from skimage import data, metrics

from sevenfold import quality


def photographs(channels, count=3, edges=(40, 33)):
    """Crops of a photograph, and the same with noise of several strengths; each (n, channels, *edges) float32."""
    image = data.astronaut()[..., :channels].transpose(2, 0, 1) / 255
    truth = np.stack([image[:, 20 * i : 20 * i + edges[0], 60 * i : 60 * i + edges[1]] for i in range(count)])
    noise = np.random.default_rng(0).normal(size=truth.shape) * np.geomspace(0.01, 0.3, count)[:, None, None, None]
    return (truth + noise).astype(np.float32), truth.astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_is_that_of_scikit_image(channels):
    output, truth = photographs(channels)
    expected = [metrics.peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(output, truth, strict=True)]
    np.testing.assert_allclose(quality.psnr(output, truth), expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("edges", [(40, 33), (11, 11), (11, 64)])
def test_ssim_is_that_of_scikit_image_with_the_window_of_the_paper(channels, edges):
    output, truth = photographs(channels, edges=edges)
    paper = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    expected = [
        metrics.structural_similarity(b.astype(float), a.astype(float), channel_axis=0, **paper)
        for a, b in zip(output, truth, strict=True)
    ]
    np.testing.assert_allclose(quality.ssim(output, truth), expected, rtol=1e-6)


@pytest.mark.parametrize("edges", [(1, 1), (2, 9), (8, 8), (10, 30)])
def test_images_smaller_than_the_window_are_compared_through_a_smaller_one(edges):
    truth = np.random.default_rng(0).random((4, 1, *edges))
    noise = np.random.default_rng(1).normal(size=truth.shape)
    near, far = (quality.ssim(truth + level * noise, truth) for level in (0.01, 0.5))
    assert np.isfinite(near).all()
    assert (far < near).all()
    np.testing.assert_allclose(quality.ssim(truth, truth), 1)


def by_hand(x, y, weights):
    """MS-SSIM of two planes after the paper's equation 7, window by window."""
    g = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(g, g) / g.sum() ** 2
    result = 1.0
    for scale, weight in enumerate(weights):
        means, spreads, shared = [], [], 0.0
        for one in (x, y):
            tiles = np.lib.stride_tricks.sliding_window_view(one, (11, 11))
            means.append((tiles * window).sum(axis=(2, 3)))
            spreads.append(((tiles - means[-1][..., None, None]) ** 2 * window).sum(axis=(2, 3)))
        left, right = (np.lib.stride_tricks.sliding_window_view(one, (11, 11)) for one in (x, y))
        shared = ((left - means[0][..., None, None]) * (right - means[1][..., None, None]) * window).sum(axis=(2, 3))
        found = (2 * shared + 0.03**2) / (spreads[0] + spreads[1] + 0.03**2)
        if scale == len(weights) - 1:
            found *= (2 * means[0] * means[1] + 0.01**2) / (means[0] ** 2 + means[1] ** 2 + 0.01**2)
        result *= found.mean() ** weight
        x, y = (one.reshape(one.shape[0] // 2, 2, one.shape[1] // 2, 2).mean(axis=(1, 3)) for one in (x, y))
    return result


def test_ms_ssim_is_that_of_the_paper_over_as_many_scales_as_there_are_windows_for():
    _, truth = photographs(3, count=1, edges=(48, 64))
    output = np.clip(truth + 0.1 * np.random.default_rng(0).normal(size=truth.shape), 0, 1).astype(np.float32)
    weights = np.array(quality.SCALES[:3]) / sum(quality.SCALES[:3])  # 48 / 4 = 12 pixels hold a window, 6 do not
    expected = np.mean(
        [by_hand(*pair, weights) for pair in zip(output[0].astype(float), truth[0].astype(float), strict=True)]
    )
    assert quality.ms_ssim(output, truth)[0] == pytest.approx(expected, rel=1e-6)
    assert quality.ms_ssim(truth, truth)[0] == pytest.approx(1)
    assert sum(quality.SCALES) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("edges", [(21, 40), (8, 8)])
def test_ms_ssim_of_small_images_is_ssim(edges):
    output, truth = photographs(1, edges=edges)
    np.testing.assert_allclose(quality.ms_ssim(output, truth), quality.ssim(output, truth), rtol=1e-9)


def test_a_perfect_image_has_the_best_value_and_no_infinite_one():
    _, truth = photographs(1)
    assert np.array_equal(quality.psnr(truth, truth), [quality.BEST] * 3)
    assert np.array_equal(quality.ssim(truth, truth), [1] * 3)


def test_each_image_is_judged_on_its_own_however_many_there_are(monkeypatch):
    output, truth = photographs(3, count=7)
    for measure in (quality.psnr, quality.ssim):
        together = measure(output, truth)
        one_by_one = np.concatenate([measure(output[i : i + 1], truth[i : i + 1]) for i in range(7)])
        np.testing.assert_allclose(together, one_by_one, rtol=1e-12)
        assert measure(output[:0], truth[:0]).shape == (0,)
        monkeypatch.setattr(quality, "_PIXELS", 2 * truth[0].size)
        np.testing.assert_allclose(measure(output, truth), together, rtol=1e-12)


@pytest.mark.parametrize("measure", [quality.psnr, quality.ssim, quality.ms_ssim])
@pytest.mark.parametrize("shapes", [((2, 1, 8, 8), (3, 1, 8, 8)), ((8, 8), (8, 8)), ((2, 1, 0, 8), (2, 1, 0, 8))])
def test_what_are_no_pairs_of_images_is_refused(measure, shapes):
    output, truth = map(np.zeros, shapes)
    message = f"images are {re.escape(str(shapes[0]))} and {re.escape(str(shapes[1]))}; expected twice the same"
    with pytest.raises(ValueError, match=message):
        measure(output, truth)
