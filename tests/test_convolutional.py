"""Images of every size pass through unharmed, and convolutions need fewer parameters than full connections."""

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
    settings = {"code": 3, "channels": [4, 6], "hidden": [], "activation": "silu", "blocks": 0, "augment": []} | options
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
    encoder, decoder = networks.convolutional(shape, channels, [], 3, "tanh", blocks=0)
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
        (
            "deep",
            0.003,
            {
                "hidden": [256, 128],
                "blocks": 0,
                "tied": False,
                "augment": [],
                "numbers": "standard",
                "categories": "one-hot",
            },
        ),
        ("convolutional", 0.01, {"channels": [32, 64], "hidden": [], "blocks": 0, "augment": []}),
    ]:
        of = ModelSpec(variant, x.shape[1:], {"code": 8, "activation": "silu"} | options)
        settings = replace(samples.SETTINGS, epochs=30, patience=30, batch_size=64, learning_rate=rate)
        model, _ = samples.fit(of, data.train, data.validation, settings=settings)
        sizes[variant] = sum(p.numel() for p in model.parameters())
        with torch.inference_mode():
            errors[variant] = float((model(x) - x).square().mean())
    assert sizes["convolutional"] < 0.75 * sizes["deep"]
    assert errors["convolutional"] <= errors["deep"]


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


def test_hidden_layers_and_residual_blocks_stand_between_the_convolutions_and_the_code():
    model = build((1, 8, 8), hidden=[7, 5], blocks=1)
    widths = [(m.in_features, m.out_features) for m in model.encoder.modules() if isinstance(m, nn.Linear)]
    assert widths == [(6 * 2 * 2, 7), (7, 7), (7, 7), (7, 5), (5, 5), (5, 5), (5, 3)]
    widths = [(m.in_features, m.out_features) for m in model.decoder.modules() if isinstance(m, nn.Linear)]
    assert widths == [(3, 5), (5, 5), (5, 5), (5, 7), (7, 7), (7, 7), (7, 6 * 2 * 2)]
    x = torch.rand(4, 1, 8, 8)
    assert model(x).shape == x.shape
    with pytest.raises(ValueError, match=r"hidden is \[0\]; expected widths of 1 or more"):
        build((1, 8, 8), hidden=[0])
