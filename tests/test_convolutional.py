"""Images of every size pass through unharmed, and convolutions need fewer parameters than full connections."""

import collections
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import samples
from sevenfold import networks, preparation
from sevenfold.datasets import digits
from sevenfold.models.base import ModelSpec


def build(shape, **options):
    settings = {"code": 3, "channels": [4, 6], "activation": "silu", "augment": []} | options
    torch.manual_seed(0)
    return ModelSpec("convolutional", shape, settings).build()


SIZES = [(1, 1), (1, 9), (2, 3), (5, 7), (8, 8), (13, 6), (17, 31)]


@pytest.mark.parametrize("edges", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("halvings", [[4], [4, 6], [4, 6, 5]])
def test_an_image_of_any_size_and_channels_comes_back_in_its_size(edges, channels, halvings):
    shape = (channels, *edges)
    model = build(shape, code=1, channels=halvings).eval()
    x = torch.randn(5, *shape)
    model.prepare(x, None)
    assert model.encode(x).shape == (5, 1)
    assert model(x).shape == x.shape


@pytest.mark.parametrize("edges", [(5, 7), (8, 8), (3, 4)])
def test_the_bodies_are_what_torch_computes_step_by_step(edges):
    shape, channels = (2, *edges), [4, 6]
    encoder, decoder = networks.convolutional(shape, channels, 3, "tanh")
    x = torch.randn(5, *shape)
    (first, second), (down,), (up,), (third, fourth) = (
        [m for m in body.modules() if isinstance(m, kind)]
        for body, kind in [
            (encoder, nn.Conv2d),
            (encoder, nn.Linear),
            (decoder, nn.Linear),
            (decoder, nn.ConvTranspose2d),
        ]
    )
    bottom, side = -edges[0] % 4, -edges[1] % 4
    rows = np.pad(np.arange(edges[0]), (bottom // 2, bottom - bottom // 2), mode="edge")
    columns = np.pad(np.arange(edges[1]), (side // 2, side - side // 2), mode="edge")
    padded = x[:, :, rows][..., columns]  # the border repeated, in equal parts on both sides
    fine = torch.tanh(first(padded))
    coarse = torch.tanh(second(fine))
    assert [t.shape[2:] for t in (padded, fine, coarse)] == [tuple(n // d for n in padded.shape[2:]) for d in (1, 2, 4)]
    z = encoder(x)
    torch.testing.assert_close(z, down(coarse.flatten(1)))
    output = fourth(torch.tanh(third(torch.tanh(up(z)).reshape(coarse.shape))))
    top, left = bottom // 2, side // 2
    torch.testing.assert_close(decoder(z), output[..., top : top + edges[0], left : left + edges[1]])


def test_fewer_parameters_than_the_deep_one_reach_its_error_on_digits():
    data = preparation.prepare(
        "digits",
        digits.fetch(),
        label="label",
        normal=None,
        identifier=None,
        group=None,
        drop=(),
        categorical=(),
        value_range=(0, 16),
        duplicates="error",
        validation=0.2,
        test=0.2,
        seed=0,
    )
    x = torch.from_numpy(np.array(data.test.x))
    sizes, errors = {}, {}
    for variant, rate, options in [
        ("deep", 0.003, {"hidden": [256, 128], "tied": False, "numbers": "standard", "categories": "one-hot"}),
        ("convolutional", 0.01, {"channels": [32, 64], "augment": []}),
    ]:
        of = ModelSpec(variant, x.shape[1:], {"code": 8, "activation": "silu"} | options)
        settings = replace(samples.SETTINGS, epochs=30, patience=30, batch_size=64, learning_rate=rate)
        model, _ = samples.fit(of, data.train, data.validation, settings=settings)
        sizes[variant] = sum(p.numel() for p in model.parameters())
        with torch.inference_mode():
            errors[variant] = float((model(x) - x).square().mean())
    assert sizes["convolutional"] < 0.75 * sizes["deep"]
    assert errors["convolutional"] <= errors["deep"]


def images(height=4, width=4, count=400):
    """Images whose cells all differ, and which of them were observed."""
    generator = np.random.default_rng(0)
    shape = (count, 2, height, width)
    x = torch.from_numpy(generator.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32))
    return x, torch.from_numpy(generator.random(shape) < 0.8)


CHANGES = {
    "mirror": lambda image, mean: image[..., ::-1],
    "flip": lambda image, mean: image[..., ::-1, :],
    "transpose": lambda image, mean: np.swapaxes(image, -1, -2),
    "negative": lambda image, mean: mean + (mean - image),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_done_to_half_of_the_images_and_takes_the_gaps_along(change):
    x, seen = images()
    model = build(x.shape[1:], augment=[change])
    model.prepare(x, None)
    varied, where = model.vary(x, seen)
    changed = CHANGES[change](x.numpy(), x.numpy().mean(axis=0))
    moved = CHANGES[change](seen.numpy(), None) if change != "negative" else seen.numpy()
    done = np.array([not torch.equal(one, other) for one, other in zip(varied, x, strict=True)])
    chosen = done[:, None, None, None]
    np.testing.assert_allclose(varied, np.where(chosen, changed, x), rtol=1e-6)
    np.testing.assert_array_equal(where, np.where(chosen, moved, seen))
    assert done.mean() == pytest.approx(0.5, abs=0.1)  # four standard deviations


def test_three_changes_make_the_eight_symmetries_of_a_square_alike_often():
    x = images()[0][:1].expand(4000, -1, -1, -1)
    varied, _ = build(x.shape[1:], augment=["mirror", "flip", "transpose"]).vary(x, None)
    one = x[0].numpy()
    eight = {np.rot90(side, turns, (-2, -1)).tobytes() for side in (one, one[..., ::-1]) for turns in range(4)}
    found = collections.Counter(image.numpy().tobytes() for image in varied)
    assert set(found) == eight
    assert max(abs(count - 500) for count in found.values()) < 4 * np.sqrt(4000 * 1 / 8 * 7 / 8)


def test_images_are_changed_in_training_only_and_the_target_with_them():
    x, seen = images(6, 5)
    model = build(x.shape[1:], augment=["mirror", "negative"])
    model.prepare(x, seen)
    before = x.clone()
    for training in (True, False):
        model.train(training)
        torch.manual_seed(3)
        loss = model.losses(x, seen)["reconstruction"].item()
        torch.manual_seed(3)
        shown, where = model.vary(x, seen) if training else (x, seen)
        errors = np.ma.masked_array((model(shown) - shown).square().detach().numpy(), ~where.numpy())
        rest = np.ma.masked_array(x.numpy(), ~seen.numpy())
        assert loss == pytest.approx(errors.mean() / ((rest - rest.mean(axis=0)) ** 2).mean(), rel=1e-4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(30,), (6, 5), (1, 2, 3, 4)])
def test_what_is_no_image_is_refused_with_its_shape_and_a_remedy(shape):
    message = (
        rf"shape is {re.escape(str(shape))}; expected that of an image, .*; use a fully connected variant for tables"
    )
    with pytest.raises(ValueError, match=message):
        build(shape)


@pytest.mark.parametrize("channels", [[], [8, 0], [-4]])
def test_impossible_channels_are_refused(channels):
    with pytest.raises(
        ValueError, match=rf"channels is {re.escape(str(channels))}; expected one number or more, each 1"
    ):
        build((1, 8, 8), channels=channels)


def test_only_square_images_can_be_transposed():
    with pytest.raises(ValueError, match=r"augment holds 'transpose' for images of 6 x 5; expected square ones"):
        build((1, 6, 5), augment=["transpose"])


def test_an_unknown_change_is_named():
    with pytest.raises(ValueError, match=r"option 'augment' is \['turn'\]: input should be 'mirror', 'flip'"):
        build((1, 8, 8), augment=["turn"])
