"""Noise of any told level is taken off images of any size, whole or by tiles, and a clean image stays clean."""

import functools
import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from skimage import color, data, filters, metrics
from torch import nn

import samples
from sevenfold.datasets import photos
from sevenfold.models.base import ModelSpec

OPTIONS = {
    "channels": [5, 6],
    "blocks": 1,
    "activation": "relu",
    "shuffle": 2,
    "levels": [0.05, 0.2],
    "doubt": 0.0,
    "augment": [],
}
BODIES = [
    {"channels": [5], "shuffle": 1},
    {"channels": [5], "shuffle": 2, "blocks": 2},
    {"channels": [5, 6], "shuffle": 1},
    {"channels": [5, 6], "shuffle": 3, "blocks": 2},
    {"channels": [4, 5, 6], "shuffle": 1, "blocks": 2},
    {"channels": [4, 5, 6], "shuffle": 2},
]


def build(shape=(1, 16, 16), *, seed=0, **options):
    """A model that predicts something: as it is built, it predicts no noise."""
    torch.manual_seed(seed)
    model = ModelSpec("residual", shape, OPTIONS | options).build()
    nn.init.normal_(model.tail.weight, std=0.1)
    return model.eval()


def images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


PHOTOGRAPHS = {"camera": (170, 60), "chelsea": (90, 110), "coffee": (60, 200)}
"""Kept from training, and where a crop begins that shows something."""


@functools.cache
def photographs():
    """Crops of an odd height and a width that no stride divides, each (1, 1, 95, 122)."""
    crops = []
    for name, (top, left) in PHOTOGRAPHS.items():
        image = getattr(data, name)()
        grey = color.rgb2gray(image) if image.ndim == 3 else image / 255
        crops.append(torch.from_numpy(grey[top : top + 95, left : left + 122]).float()[None, None])
    return crops


@functools.cache
def trained():
    """A small model of patches from the other photographs."""
    rows = photos.fetch(size=24, patches=80, seed=0)
    kept = ~rows.frame["photograph"].isin(PHOTOGRAPHS).to_numpy()
    x = rows.images[kept][:, None] / np.float32(255)
    order = np.random.default_rng(0).permutation(len(x))
    train, validation = samples.split(x[order[64:]]), samples.split(x[order[:64]])
    options = {
        "channels": [16, 32],
        "blocks": 1,
        "activation": "relu",
        "shuffle": 2,
        "levels": [0.0, 0.2],
        "doubt": 0.0,
        "augment": [],
    }
    settings = samples.training.Settings(25, 25, 16, 0.01, 0.05, 0.0001, 1.0, 1)
    return samples.fit(ModelSpec("residual", (1, 24, 24), options), train, validation, settings=settings)[0]


def noisy(image, level):
    return image + level * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))


def psnr(output, truth):
    return metrics.peak_signal_noise_ratio(truth.numpy(), output.numpy(), data_range=1)


def mean_psnr(change, level):
    """Return the mean over the photographs after `change` of the noisy ones."""
    with torch.inference_mode():
        return np.mean([psnr(change(noisy(image, level)), image) for image in photographs()])


@pytest.mark.parametrize("level", [0.05, 0.1, 0.2])
def test_one_model_removes_noise_of_several_levels_better_than_the_best_gaussian_filter(level):
    model = trained()
    found = mean_psnr(lambda y: model.restore(y, level), level)

    def smoothed(width):
        return mean_psnr(lambda y: torch.from_numpy(filters.gaussian(y.numpy(), (0, 0, width, width))), level)

    # The width is chosen on the very images: no filter of this kind does better.
    rival = max(smoothed(width) for width in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5))
    assert found > mean_psnr(lambda y: y, level) + 6
    assert found > rival + 1


def test_noise_half_as_strong_again_as_in_training_is_removed_too():
    model = trained()
    assert max(model.levels) == 0.2
    assert mean_psnr(lambda y: model.restore(y, 0.3), 0.3) > mean_psnr(lambda y: y, 0.3) + 10


def test_without_noise_a_clean_image_stays_within_40_decibels():
    model = trained()
    for image in photographs():
        with torch.inference_mode():
            restored = model.restore(image, 0.0)
        assert not torch.equal(restored, image)  # learned, and not wired
        assert psnr(restored, image) > 40


def test_the_level_that_is_told_counts_and_the_true_one_serves_best():
    model = trained()
    found = {told: mean_psnr(lambda y, told=told: model.restore(y, told), 0.1) for told in (0.0, 0.05, 0.1, 0.2)}
    assert max(found, key=found.get) == 0.1
    assert mean_psnr(lambda y: y, 0.1) < found[0.0] < found[0.05] - 1  # what is told is less, and less is taken off


def test_an_untrained_model_gives_the_image_back():
    torch.manual_seed(0)
    model = ModelSpec("residual", (1, 16, 16), OPTIONS).build()
    x = images(3, 1, 16, 16)
    model.prepare(x, None)
    assert torch.equal(model.restore(x, 0.1), x)
    assert torch.equal(model(x), x)


@pytest.mark.parametrize("edges", [(1, 1), (1, 9), (2, 3), (16, 16), (17, 31), (13, 6), (50, 40)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("body", BODIES)
def test_an_image_of_any_size_and_channels_comes_back_in_its_size(edges, channels, body):
    x = images(2, channels, *edges)
    for trained_on in [(channels, 16, 16), (channels, *edges)]:
        model = build(trained_on, **body)
        model.prepare(images(9, *trained_on), None)
        restored = model.restore(x, 0.1)
        assert restored.shape == x.shape
        assert not torch.allclose(restored, x)
    assert model.encode(x).shape == (2, model.code)
    assert model(x).shape == x.shape


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_code_alone_decodes_to_the_restoration_at_level_0(body, channels):
    shape = (channels, 13, 10)
    model, x = build(shape, **body), images(4, *shape)
    model.prepare(x, None)
    expected = model.restore(x, 0.0)
    assert not torch.allclose(expected, x)
    z = model.encode(x).clone()
    model.restore(images(2, channels, 30, 30), 0.2)  # nothing is remembered
    torch.testing.assert_close(model.decode(z), expected)
    torch.testing.assert_close(model(x), expected)


def test_the_code_holds_the_image_and_every_scale():
    # 13 x 10 fills up to 16 x 12; as channels of squares 8 x 6, and at the second scale 4 x 3.
    model = build((3, 13, 10), channels=[5, 6], shuffle=2)
    assert model.code == 3 * 13 * 10 + 5 * 8 * 6 + 6 * 4 * 3
    x = images(2, 3, 13, 10)
    torch.testing.assert_close(model.encode(x)[:, : x[0].numel()], x.flatten(1))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("edges", [(16, 16), (13, 17), (1, 3), (7, 24)])
def test_what_is_missing_to_a_multiple_of_the_stride_is_mirrored(body, edges):
    model = build(**body)
    x = images(1, 1, *edges)
    extra = [(0, 0), (0, 0), *((0, -edge % model.stride) for edge in edges)]
    whole = torch.from_numpy(np.pad(x.numpy(), extra, mode="symmetric"))
    torch.testing.assert_close(model.restore(x, 0.1), model.restore(whole, 0.1)[..., : edges[0], : edges[1]])


@pytest.mark.parametrize("body", BODIES)
def test_tiles_equal_the_whole_image_but_for_the_margin(body):
    model = build(**body)
    margin, stride = model.margin, model.stride
    assert margin % stride == 0
    edges = (2 * margin + 3 * stride + 1, 2 * margin + 2 * stride + 3)
    x = images(1, 1, *edges)
    with torch.inference_mode():
        whole = model.restore(x, 0.1)
        pieced = torch.full_like(whole, math.nan)
        for top in range(0, edges[0], 2 * stride):
            for left in range(0, edges[1], 2 * stride):
                # A tile is a piece and the margin around it, as far as the image goes.
                above, before = min(top, margin), min(left, margin)
                rows = slice(top - above, top + 2 * stride + margin)
                columns = slice(left - before, left + 2 * stride + margin)
                tile = model.restore(x[..., rows, columns], 0.1)
                piece = tile[..., above : above + 2 * stride, before : before + 2 * stride]
                pieced[..., top : top + 2 * stride, left : left + 2 * stride] = piece
    torch.testing.assert_close(pieced, whole, rtol=1e-5, atol=1e-5)
    # At the seams themselves they differ: a tile knows less.
    seam = model.restore(x[..., margin:, :], 0.1)[..., :1, :]
    assert not torch.allclose(seam, whole[..., margin : margin + 1, :], atol=1e-4)


@pytest.mark.parametrize("body", BODIES)
def test_the_margin_is_as_far_as_a_pixel_reaches_and_no_stride_more(body):
    model = build(activation="linear", **body)
    with torch.no_grad():
        for weights in model.parameters():
            weights.fill_(1 / weights[0].numel())  # all of one sign: no path cancels another
    begin, size = model.margin + model.stride, model.stride
    for shape, dim in [((1, 1, 5, 2 * begin + size), 3), ((1, 1, 2 * begin + size, 5), 2)]:
        x = torch.zeros(shape, requires_grad=True)
        model.restore(x, 0.1).narrow(dim, begin, size).sum().backward()
        places = (x.grad != 0).any(dim=5 - dim).flatten().nonzero().flatten()
        first, last = int(places[0]), int(places[-1])
        assert begin - model.margin <= first < begin - model.margin + model.stride
        assert 0 <= begin + size - 1 + model.margin - last < model.stride


@pytest.mark.parametrize("factor", [0.01, 0.5, 3.0])
def test_brightness_about_the_mean_and_noise_may_grow_together(factor):
    model, x = build((3, 16, 16)), images(6, 3, 16, 16)
    model.prepare(x, None)
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    grown = model.restore(mean + factor * (x - mean), factor * 0.1)
    torch.testing.assert_close((grown - mean) / factor, model.restore(x, 0.1) - mean, rtol=1e-3, atol=1e-4)


def test_each_image_has_its_own_level():
    model, x = build(), images(3, 1, 20, 11)
    levels = torch.tensor([0.0, 0.1, 0.3])
    together = model.restore(x, levels)
    one_by_one = torch.cat([model.restore(row[None], float(level)) for row, level in zip(x, levels, strict=True)])
    torch.testing.assert_close(together, one_by_one)
    torch.testing.assert_close(model.restore(x, torch.tensor(0.1)), model.restore(x, 0.1))
    assert not torch.allclose(model.restore(x, 0.1), model.restore(x, 0.3))


def shown(model, x, **gaps):
    """Return what `losses` has restored: images, levels, and the losses themselves."""
    seen = []

    def restore(y, level):
        seen.append((y.detach(), level))
        return type(model).restore(model, y, level)

    model.restore = restore
    try:
        losses = model.losses(x, gaps.get("observed"))
    finally:
        del model.restore
    ((y, level),) = seen
    return y, level, losses


def test_training_draws_the_level_of_each_sample_uniformly_and_noise_to_match():
    model, x = build(levels=[0.1, 0.3]).train(), images(2000, 1, 16, 16)
    torch.manual_seed(0)
    y, level, _ = shown(model, x)
    assert stats.kstest(level.numpy(), stats.uniform(0.1, 0.2).cdf).pvalue > 0.01
    unit = ((y - x) / level.view(-1, 1, 1, 1)).numpy()
    assert stats.kstest(unit[::10].ravel(), stats.norm.cdf).pvalue > 0.01
    np.testing.assert_allclose(unit.std(axis=(1, 2, 3)), 1, atol=5 / math.sqrt(2 * 256))  # five standard errors
    assert not torch.equal(shown(model, x)[1], level)


def test_judging_adds_the_same_noise_of_the_middle_level_to_each_sample_every_time():
    model, x = build(levels=[0.1, 0.3]), images(50, 1, 16, 16)
    y, level, losses = shown(model, x)
    torch.testing.assert_close(level, torch.full((50,), 0.2))
    noise = (y - x)[:1]
    torch.testing.assert_close(y - x, noise.expand(50, -1, -1, -1), rtol=0, atol=1e-6)
    assert float(noise.std()) == pytest.approx(0.2, rel=0.2)
    torch.rand(3)
    assert torch.equal(shown(model, x)[0], y)
    alone = torch.stack([model.losses(row[None], None)["reconstruction"] for row in x])
    torch.testing.assert_close(alone.mean(), losses["reconstruction"])


def test_the_level_that_training_tells_is_off_by_as_much_as_is_asked_and_judging_tells_the_truth():
    x = images(2000, 1, 8, 8)
    for training in (True, False):
        model = build((1, 8, 8), levels=[0.1, 0.1], doubt=0.2).train(training)
        torch.manual_seed(0)
        y, told, _ = shown(model, x)
        if training:
            assert float((y - x).std()) == pytest.approx(0.1, rel=0.03)
            assert stats.kstest(np.log(told.numpy() / 0.1), stats.norm(0, 0.2).cdf).pvalue > 0.01
        else:
            torch.testing.assert_close(told, torch.full((2000,), 0.1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gaps", [True, False])
def test_the_loss_is_the_mean_logarithm_of_what_is_left_of_the_noise_in_each_image(training, gaps):
    model, x = build(levels=[0.0, 0.3]).train(training), images(40, 1, 16, 16)
    observed = torch.from_numpy(np.random.default_rng(1).random(x.shape) < 0.7) if gaps else None
    model.prepare(x, observed)
    y, level, losses = shown(model, x, observed=observed)
    masked = np.ma.masked_array(x.numpy(), ~observed.numpy() if gaps else False)
    with torch.inference_mode():
        errors = (model.restore(y, level).numpy() - masked) ** 2
    assert float(model.standardise.spread) == pytest.approx(masked.std(), rel=1e-4)
    left = errors.reshape(40, -1).mean(axis=1) / (level.numpy() ** 2 + (0.1 * masked.std()) ** 2)
    expected = np.mean(np.log1p(left / 0.01)) / math.log(101)
    assert losses["reconstruction"].item() == pytest.approx(expected, rel=1e-4)


def test_a_decibel_is_worth_the_same_in_smooth_and_in_textured_images():
    """Two images that lose half their noise count alike, and not by how much noise is left in each."""
    model, x = build(levels=[0.2, 0.2]), torch.zeros(2, 1, 16, 16)
    found = []
    for gains in ((0.5, 0.1), (0.25, 0.1), (0.5, 0.05)):
        model.restore = lambda y, level, gains=gains: y * torch.tensor(gains).sqrt().view(-1, 1, 1, 1)
        found.append(model.losses(x, None)["reconstruction"].item())
    del model.restore
    assert found[0] - found[1] == pytest.approx(found[0] - found[2], rel=0.2)


def test_the_scale_of_the_data_does_not_change_the_loss():
    x, found = images(40, 2, 9, 11), []
    for factor in (1.0, 0.001, 255.0):
        model = build((2, 9, 11), levels=[0.0, 0.2 * factor]).train()
        model.prepare(factor * x, None)
        torch.manual_seed(1)
        found.append(model.losses(factor * x, None)["reconstruction"].item())
    assert found == pytest.approx([found[0]] * 3, rel=1e-3)


@pytest.mark.parametrize("gaps", [False, True])
def test_an_image_has_one_mean_per_channel(gaps):
    x = images(30, 3, 8, 9) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    seen = np.random.default_rng(1).random(x.shape) < 1 - 0.3 * gaps
    model = build((3, 8, 9))
    model.prepare(torch.from_numpy(x.numpy() * seen), torch.from_numpy(seen) if gaps else None)
    masked = np.ma.masked_array(x.numpy(), ~seen)
    center = masked.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(model.standardise.center.flatten(), center, rtol=1e-4)
    spread = (masked - center[:, None, None]).std()
    assert float(model.standardise.spread) == pytest.approx(spread, rel=1e-4)


def test_restoring_and_training_compile_into_one_graph():
    model, x = build().train(), images(4, 1, 17, 11)
    compiled = torch.compile(model.restore, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, torch.full((4,), 0.1)), model.restore(x, 0.1))
    torch.testing.assert_close(compiled(x, 0.1), model.restore(x, 0.1))
    losses = torch.compile(model.losses, fullgraph=True, backend="eager")
    torch.manual_seed(3)
    expected = model.losses(x, None)["reconstruction"]
    torch.manual_seed(3)
    torch.testing.assert_close(losses(x, None)["reconstruction"], expected)


@pytest.mark.parametrize("shape", [(30,), (6, 5), (1, 2, 3, 4)])
def test_what_is_no_image_is_refused_with_its_shape_and_a_remedy(shape):
    message = (
        rf"shape is {re.escape(str(shape))}; expected that of an image, .*; use a fully connected variant for tables"
    )
    with pytest.raises(ValueError, match=message):
        build(shape)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(("channels", value, "expected one number or more, each 1 or more") for value in ([], [8, 0], [-4])),
        *((name, value, "expected 1 or more") for name in ("blocks", "shuffle") for value in (0, -1)),
        ("doubt", -0.1, "expected 0 or more, and finite"),
        *(
            ("levels", value, "expected the lowest and the highest noise, .*0.2.*, for example")
            for value in ([], [0.1], [0.2, 0.1], [-0.1, 0.1], [0.0, 0.0], [0.1] * 3)
        ),
    ],
)
def test_an_option_out_of_range_is_refused(option, value, message):
    with pytest.raises(ValueError, match=rf"^{option} is {re.escape(str(value))}; {message}"):
        build(**{option: value})


def test_all_options_out_of_range_are_named_at_once():
    with pytest.raises(ValueError, match=r"channels is \[\];.* blocks is 0;.* shuffle is 0;.* levels is \[\];"):
        build(channels=[], blocks=0, shuffle=0, levels=[])


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 3, 8, 8), (2, 1, 0, 8)])
def test_what_are_no_images_of_the_channels_is_refused(shape):
    message = rf"images are {re.escape(str(shape))}; expected \(n, 1, height, width\), .*`x\[None\]`"
    with pytest.raises(ValueError, match=message):
        build().restore(torch.zeros(shape), 0.1)


@pytest.mark.parametrize("level", [-0.1, math.inf, math.nan])
def test_an_impossible_level_is_refused(level):
    with pytest.raises(ValueError, match=rf"level is {level}; expected a finite standard deviation of 0 or more"):
        build().restore(torch.zeros(2, 1, 8, 8), level)


@pytest.mark.parametrize("count", [1, 3])
def test_levels_for_other_images_are_refused(count):
    with pytest.raises(ValueError, match=rf"level is a tensor of shape \({count},\); expected .* each image, \(2,\)"):
        build().restore(torch.zeros(2, 1, 8, 8), torch.full((count,), 0.1))
