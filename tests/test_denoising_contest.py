"""Denoising is judged by the same noise for all, in decibels; what a job does without being told is what was measured."""

import functools
import importlib.util
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from skimage import color, data, metrics, restoration

import samples
from sevenfold import evaluation, filters
from sevenfold.applications import denoising
from sevenfold.applications.denoising import Denoising
from sevenfold.datasets.base import ImageSchema
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, ModelSpec, Restorer

LEVELS = [0.05, 0.1, 0.2]


@functools.cache
def photographs(edge=24, channels=1):
    """Training, validation and test patches, each of other photographs."""
    splits = []
    for first, names in ((0, ("brick", "coffee")), (1000, ("chelsea", "camera")), (2000, ("astronaut", "rocket"))):
        patches = []
        for name in names:
            image = getattr(data, name)()
            grey = color.rgb2gray(image) if image.ndim == 3 else image / 255
            colours = image / 255 if image.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)
            chosen = grey[..., None] if channels == 1 else colours
            for top in range(30, 280 - edge, 43):
                patches += [chosen[top : top + edge, left : left + edge] for left in range(20, 280 - edge, 51)]
        x = np.stack(patches).transpose(0, 3, 1, 2)
        splits.append(replace(samples.split(x), ids=np.arange(first, first + len(x))))
    return tuple(splits)


def schema(split):
    return ImageSchema(split.x.shape[1:], 0.0, 255.0, "uint8")


def contest(levels=LEVELS, known=False):
    return Denoising(levels=levels, known=known)


class Plain(Autoencoder):
    """Gives every sample back; its code is the sample."""

    def __init__(self, shape):
        super().__init__(Layout(shape), 1)

    def prepare(self, x, observed):
        pass

    def encode(self, x, observed=None):
        return x.flatten(1)

    def decode(self, z):
        return z.reshape(-1, *self.shape)

    def losses(self, x, observed):
        return {}


class Silent(Plain):
    """Says 0 of every sample."""

    def decode(self, z):
        return torch.zeros(len(z), *self.shape)


class TotalVariation(Plain, Restorer):
    """Restores by a filter, and remembers what it was told."""

    # It looks at the whole image.
    stride, margin = 1, 1 << 16

    def __init__(self, shape):
        super().__init__(shape)
        self.told = []

    def restore(self, x, level):
        self.told.append(level.numpy())
        return torch.from_numpy(filters.total_variation(x.numpy(), 0.8 * level.numpy()))


def noise_of(split, level):
    """Return the noisy images of a split as a way of restoring sees them."""
    seen = []

    def restore(noisy, told):
        seen.append(noisy)
        return noisy

    contest([level]).measuring(photographs()[1]).scores(split, restore)
    return np.concatenate(seen[::2])


@pytest.mark.parametrize("level", LEVELS)
def test_noise_is_white_gaussian_of_the_level_and_not_clipped(level):
    test = photographs()[2]
    noise = (noise_of(test, level) - test.x) / level
    assert stats.kstest(noise[:, :, ::3, ::3].ravel(), stats.norm.cdf).pvalue > 0.001
    assert abs(noise.std() - 1) < 0.01
    assert abs(np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]) < 0.02
    assert noise_of(test, level).min() < 0


def test_a_row_has_the_same_noise_in_whatever_company_and_another_at_another_level(monkeypatch):
    test = photographs()[2]
    whole = noise_of(test, 0.1)
    rows = np.array([5, 2, 9])
    some = replace(test, x=test.x[rows], ids=test.ids[rows])
    assert np.array_equal(noise_of(some, 0.1), whole[rows])
    monkeypatch.setattr(denoising, "_PIXELS", 3 * test.x[0].size)
    assert np.array_equal(noise_of(test, 0.1), whole)
    one, other = (whole - test.x) / 0.1, (noise_of(test, 0.2) - test.x) / 0.2
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(one[0].ravel(), one[1].ravel())[0, 1]) < 0.2


def test_the_gain_is_that_of_scikit_images_psnr_per_image_then_averaged():
    _, validation, test = photographs()
    application = contest().measuring(validation)
    found = application.scores(test, lambda noisy, told: filters.total_variation(noisy, told))
    gains = []
    for level in LEVELS:
        noisy = noise_of(test, level)
        output = filters.total_variation(noisy, application.measured(noisy))
        pairs = [
            [metrics.peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(test.x, images, strict=True)]
            for images in (output, noisy)
        ]
        gains.append(np.subtract(*pairs))
        assert found.metrics[f"psnr_{level:g}"] == pytest.approx(np.mean(pairs[0]), rel=1e-4)
        assert found.metrics[f"gain_{level:g}"] == pytest.approx(gains[-1].mean(), rel=1e-3)
    np.testing.assert_allclose(found.values["gain"], np.mean(gains, axis=0), rtol=1e-3, atol=1e-3)
    assert found.metrics["psnr_gain"] == found.values["gain"].mean()


@pytest.mark.parametrize("known", [True, False])
def test_what_counts_is_the_true_level_where_it_is_known_and_the_measured_one_else(known):
    _, validation, test = photographs()
    told = []

    def restore(noisy, levels):
        told.append(levels)
        return filters.total_variation(noisy, 0.8 * levels)

    found = contest(known=known).measuring(validation).scores(test, restore).metrics
    assert found["psnr_gain"] == pytest.approx(found["gain_known" if known else "gain_measured"])
    true, measured = told[1::2], told[::2]
    assert [set(levels) for levels in true] == [{level} for level in LEVELS]
    errors = [np.abs(m / t - 1).mean() for m, t in zip(measured, true, strict=True)]
    assert found["level_error"] == pytest.approx(np.mean(errors))


@pytest.mark.parametrize("edge", [16, 48])
def test_noise_is_measured_as_well_as_by_scikit_image_or_better(edge):
    _, validation, test = photographs(edge)
    application = contest().measuring(validation)
    for level in LEVELS:
        noisy = noise_of(test, level)
        other = np.array([restoration.estimate_sigma(image[0]) for image in noisy])
        error = np.abs(np.log(application.measured(noisy) / level)).mean()
        assert error < 0.13
        assert error < np.abs(np.log(other / level)).mean() + 0.005  # in large images both are good


def test_a_job_does_what_was_judged():
    train, validation, test = photographs()
    model = TotalVariation(test.x.shape[1:])
    calibrated = contest([0.1]).calibrate(model, train, validation)
    images = calibrated.predict(model, noise_of(test, 0.1), None, schema(test))["image"]
    gain = denoising.quality.psnr(images, test.x) - denoising.quality.psnr(noise_of(test, 0.1), test.x)
    assert np.array_equal(calibrated.evaluate(model, test, train).values["gain"], gain)
    assert images.min() >= 0
    assert images.max() <= 1


def test_a_single_known_level_is_what_a_job_goes_by():
    train, validation, test = photographs()
    for levels, measures in (([0.1], False), (LEVELS, True)):
        model = TotalVariation(test.x.shape[1:])
        calibrated = contest(levels, known=True).calibrate(model, train, validation)
        model.told.clear()
        calibrated.predict(model, test.x, None, schema(test))
        assert (len(set(np.concatenate(model.told))) > 1) is measures


@pytest.mark.parametrize("expected", denoising.CAUTIONS)
def test_a_restorer_is_told_the_multiple_of_the_level_that_serves_it_best(expected):
    """One that changes nothing where it is told a certain level, and is the worse the farther that is off."""
    train, validation, _ = photographs()

    class Particular(TotalVariation):
        def restore(self, x, level):
            return x + (level.view(-1, 1, 1, 1) / (0.1 * expected) - 1)

    model = Particular(validation.x.shape[1:])
    assert contest([0.1], known=True).calibrate(model, train, validation).state["caution"] == [expected]


def test_of_a_reconstruction_as_much_is_taken_as_is_best_at_each_level():
    train, validation, test = photographs()
    silent = contest().calibrate(Silent(test.x.shape[1:]), train, validation)
    assert silent.state["kept"].min() > 0.8
    model = ModelSpec("pca", test.x.shape[1:], {"code": 40}).build().eval()
    model.prepare(torch.from_numpy(train.x), None)
    calibrated = contest(known=True).calibrate(model, train, validation)
    kept = calibrated.state["kept"]
    assert 0 < kept[2] < kept[1] < kept[0] < 1
    found = calibrated.evaluate(model, test, train).metrics["psnr_gain"]
    for other in (0.0, 1.0):
        fixed = calibrated.with_state(calibrated.state | {"kept": np.full(3, other)})
        assert fixed.evaluate(model, test, train).metrics["psnr_gain"] < found - 0.05


@pytest.mark.parametrize("edges", [(24, 24), (50, 37), (24, 25), (10, 30), (7, 5), (100, 24)])
def test_a_reconstruction_of_any_size_is_laid_from_tiles_without_seams(edges):
    train, validation, _ = photographs()
    model = Plain((1, 24, 24))
    x = np.random.default_rng(0).random((2, 1, *edges)).astype(np.float32)
    np.testing.assert_allclose(denoising._reconstructed(model, x), x, atol=1e-6)
    calibrated = contest().calibrate(model, train, validation)
    assert calibrated.predict(model, x, None, schema(train))["image"].shape == x.shape


@pytest.mark.parametrize("edges", [(24, 24), (90, 61), (5, 70)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_image_restored_in_pieces_is_the_whole_restored(edges, channels, monkeypatch):
    options = {"channels": [4, 5], "blocks": 1, "activation": "relu", "shuffle": 2, "levels": [0.0, 0.2]}
    torch.manual_seed(0)
    model = ModelSpec("residual", (channels, 24, 24), options | {"doubt": 0.0, "augment": []}).build().eval()
    torch.nn.init.normal_(model.tail.weight, std=0.1)
    x = np.random.default_rng(0).random((3, channels, *edges)).astype(np.float32)
    told = np.array([0.05, 0.1, 0.2])
    with torch.inference_mode():
        whole = model.restore(torch.from_numpy(x), torch.from_numpy(told)).numpy()
    monkeypatch.setattr(denoising, "TILE", 18)
    monkeypatch.setattr(denoising, "_PIXELS", 2 * 24 * 24)
    np.testing.assert_allclose(denoising._in_pieces(model, x, told), whole, atol=1e-5)


@functools.cache
def restorer(channels=1, scale=0.1):
    options = {"channels": [4, 6], "blocks": 1, "activation": "relu", "shuffle": 2, "levels": [0.0, 0.2]}
    torch.manual_seed(0)
    model = ModelSpec("residual", (channels, 24, 24), options | {"doubt": 0.0, "augment": []}).build().eval()
    torch.nn.init.normal_(model.tail.weight, std=scale)
    return model


@pytest.mark.parametrize("edges", [(1, 700), (700, 1), (1031, 517), (560, 560)])
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_have_one_size_and_leave_no_seam_at_their_real_size(edges, channels):
    model = restorer(channels)
    x = np.random.default_rng(0).random((1, channels, *edges)).astype(np.float32)
    sizes = set()

    class Watching(type(model)):
        def restore(self, x, level):
            sizes.add(tuple(x.shape[2:]))
            return super().restore(x, level)

    with torch.inference_mode():
        whole = model.restore(torch.from_numpy(x), 0.1).numpy()
        model.__class__ = Watching
        try:
            found = denoising._in_pieces(model, x, np.full(1, 0.1))
        finally:
            model.__class__ = Watching.__bases__[0]
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert np.array_equal(np.rint(found * 255), np.rint(whole * 255))
    full = denoising.TILE + 2 * model.margin
    # The last window of an edge may end with the image, short of a multiple of the stride.
    assert all(full - size[i] < model.stride or size[i] == edges[i] for size in sizes for i in (0, 1))


@pytest.mark.parametrize("restores", [True, False])
@pytest.mark.parametrize("edges", [(24, 24), (31, 50)])
def test_a_job_gives_each_image_to_the_last_bit_in_whatever_company(restores, edges, monkeypatch):
    monkeypatch.setattr(denoising, "STEADY", 5 * 24 * 24)
    train, validation, _ = photographs()
    if restores:
        model = restorer()
    else:
        model = ModelSpec("pca", (1, 24, 24), {"code": 40}).build().eval()
        model.prepare(torch.from_numpy(train.x), None)
    calibrated = contest().calibrate(model, train, validation)
    x = np.random.default_rng(0).random((23, 1, *edges)).astype(np.float32)
    together = calibrated.predict(model, x, None, schema(train))["image"]
    for size in (1, 2, 7):
        parts = [
            calibrated.predict(model, x[i : i + size], None, schema(train))["image"] for i in range(0, len(x), size)
        ]
        assert np.array_equal(np.concatenate(parts), together)


def test_noise_is_measured_in_stripes_as_in_the_whole(monkeypatch):
    _, validation, _ = photographs()
    application = contest().measuring(validation)
    x = np.random.default_rng(0).random((2, 3, 170, 131)).astype(np.float32)
    whole = application.measured(x)
    monkeypatch.setattr(denoising, "STRIPE", 1)
    assert np.array_equal(application.measured(x), whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_rival_gains_on_photographs_and_blind_hardly_less_than_told(channels):
    train, validation, test = photographs(channels=channels)
    few, tuning = (replace(part, x=part.x[::5], ids=part.ids[::5]) for part in (test, validation))
    for name, rival in contest().rivals().items():
        rival.fit(train, tuning)
        found = rival.evaluate(few, train).metrics
        assert found["psnr_gain"] > 3, name
        assert found["gain_known"] - found["gain_measured"] < 0.6, name
        assert 0 < found["ssim_0.2"] < found["ssim_0.05"] < 1


def test_rivals_are_tuned_at_each_level_and_between_two_take_what_is_between():
    train, validation, _ = photographs()
    seen = []

    def method(x, level, parameter):
        seen.append((level, parameter))
        return filters.gaussian(x, parameter)

    rival = denoising._Filter(contest(known=True), method, [0.4, 0.8, 1.2, 1.6])
    rival.fit(train, validation)
    assert {float(p[0]) for _, p in seen} == {0.4, 0.8, 1.2, 1.6}
    assert rival._chosen == sorted(rival._chosen)
    assert rival._chosen[0] < rival._chosen[2]
    seen.clear()
    told = np.array([0.01, 0.05, np.sqrt(0.1 * 0.2), 0.2, 0.4])
    rival._restored(validation.x[:5], told)
    low, middle, high = rival._chosen
    np.testing.assert_allclose(seen[0][1], [low, low, (middle + high) / 2, high, high])
    assert np.array_equal(seen[0][0], told)


def test_wieners_filter_is_the_best_linear_one_where_training_rows_are_like_the_test_rows():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(36, 36)) * np.geomspace(1, 0.01, 36)[:, None] * 0.05
    x = (0.5 + generator.normal(size=(3000, 36)) @ mixing).reshape(-1, 1, 6, 6)
    train, validation, test = (samples.split(part) for part in np.split(x, 3))
    rival = contest([0.1], known=True).rivals()["wiener"]
    rival.fit(train, validation)
    covariance = mixing.T @ mixing
    best = covariance @ np.linalg.inv(covariance + 0.01 * np.eye(36))
    noisy = test.x + 0.1 * np.random.default_rng(1).normal(size=test.x.shape).astype(np.float32)
    expected = 0.5 + (noisy.reshape(-1, 36) - 0.5) @ best
    found = rival._restored(noisy, np.full(len(noisy), 0.1)).reshape(-1, 36)
    error = np.mean((expected - test.x.reshape(-1, 36)) ** 2)
    assert np.mean((found - test.x.reshape(-1, 36)) ** 2) < 1.1 * error


def test_principal_components_are_for_small_images_and_the_reason_is_in_the_table():
    x = np.zeros((8, 1, 65, 64))
    with pytest.raises(ValueError, match=r"images have 4160 values; expected 4096 at most .*; cut smaller patches"):
        contest().rivals()["pca"].fit(samples.split(x), samples.split(x))


def test_bm3d_takes_part_where_somebody_has_installed_it(tmp_path, monkeypatch):
    assert ("bm3d" in contest().rivals()) is (importlib.util.find_spec("bm3d") is not None)
    (tmp_path / "bm3d.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert "bm3d" in contest().rivals()


def test_no_rows_give_no_images_and_a_table_is_refused_with_what_suits():
    train, validation, test = photographs()
    model = TotalVariation(test.x.shape[1:])
    calibrated = contest().calibrate(model, train, validation)
    assert calibrated.predict(model, test.x[:0], None, schema(test))["image"].shape == (0, 1, 24, 24)
    reason = contest().unsuited(code=4, images=False, labelled=True, normal=True)
    assert reason is not None
    assert "imputation" in reason
    assert contest().unsuited(code=None, images=None, labelled=False, normal=False) is None


@pytest.mark.parametrize("levels", [[], [0.0], [-0.1, 0.1], [25], [0.1, 0.1], [float("nan")]])
def test_levels_out_of_range_are_refused(levels):
    message = rf"levels is {re.escape(str(levels))}; expected one or more different shares .* set `levels: \[0.06, "
    with pytest.raises(ValueError, match=message):
        contest(levels)


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (9, 1, 2, 8)])
def test_noise_cannot_be_measured_without_images_or_in_tiny_ones(shape):
    with pytest.raises(ValueError, match=r"validation images of .* pixels; expected one or more of 3 x 3 or more"):
        contest().measuring(samples.split(np.zeros(shape)))


def test_a_dataset_of_photographs_is_judged_from_end_to_end_and_pictured():
    """On small patches, with the rivals of a real contest."""
    dataset = samples.dataset("images")
    model = samples.trained("pca", "images")
    calibrated, judgement = evaluation.judge(contest(), model, dataset)
    made = calibrated.pictures(model, dataset.test, dataset.train, dataset.schema)
    made += calibrated.comparison({"ours": judgement.test, "median": judgement.validation}, "ours")
    assert [picture.name for picture in made] == ["denoised", "levels", "gains"]
    assert "dB" in made[0].description
