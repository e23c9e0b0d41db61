"""The fully connected bodies, and the deep autoencoder made of them."""

import copy
import typing
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import decomposition
from torch import nn
from torch.nn import functional

import samples
from sevenfold import networks
from sevenfold.models.base import ModelSpec

ACTIVATIONS = {
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "linear": lambda x: x,
}


def spec(size, **options):
    return ModelSpec(
        "deep",
        (size,),
        {
            "code": 3,
            "hidden": [],
            "activation": "linear",
            "blocks": 0,
            "tied": False,
            "augment": [],
            "numbers": "standard",
            "categories": "one-hot",
        }
        | options,
    )


def rows(count, size, seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 5)) @ np.random.default_rng(0).normal(size=(5, size))
    return samples.split(scale * (x + 0.3 * generator.normal(size=x.shape)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("hidden", [[], [8]])
def test_a_linear_one_reaches_the_error_of_principal_components(hidden, tied):
    train, validation, test = rows(2000, 10), rows(500, 10, seed=1), rows(2000, 10, seed=2)
    settings = replace(samples.SETTINGS, epochs=60, patience=60, learning_rate=0.02, weight_decay=0.0)
    model, _ = samples.fit(spec(10, hidden=hidden, tied=tied), train, validation, settings=settings)
    assert not any("bias" in name for name, _ in model.named_parameters())
    oracle = decomposition.PCA(3).fit(train.x)

    def errors(x):
        best = ((oracle.inverse_transform(oracle.transform(x)) - x) ** 2).mean()
        with torch.inference_mode():
            return float((model(torch.from_numpy(x)) - torch.from_numpy(x)).square().mean()), float(best)

    error, best = errors(train.x)
    assert best <= error * (1 + 1e-5)  # nothing linear does better
    error, best = errors(test.x)
    assert error == pytest.approx(best, rel=0.01)


def test_a_tied_decoder_is_the_encoder_transposed_and_saved_once():
    model = spec(4, code=2, hidden=[5], activation="tanh", tied=True).build()
    with torch.no_grad():
        for bias in model.decoder.biases:
            bias.normal_()
    first, second = (m.weight for m in model.encoder if isinstance(m, nn.Linear))
    z = torch.randn(7, 2)
    output = torch.tanh(z @ second + model.decoder.biases[0]) @ first + model.decoder.biases[1]
    torch.testing.assert_close(model.decode(z), output)
    assert sum(p.numel() for p in model.parameters()) == 4 * 5 + 5 * 2 + (5 + 2) + (5 + 4)
    assert not any("decoder" in name and "weight" in name for name in model.state_dict())
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.encoder[0].weight.zero_()
    assert torch.equal(moved.decode(z), moved.decoder.biases[1].expand(7, -1))  # its own encoder, not the original's


def test_one_learning_rate_suits_data_of_any_scale():
    losses = [
        samples.fit(spec(10, hidden=[8], activation="silu"), rows(200, 10, scale=s), rows(99, 10, 1, s))[1].best.loss
        for s in (1.0, 1000.0, 0.001)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=0.01)


def test_the_large_network_is_one_line_of_options():
    with torch.device("meta"):
        model = spec(3000, code=200, hidden=[1500], activation="relu").build()
    widths = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert widths == [(3000, 1500), (1500, 200), (200, 1500), (1500, 3000)]


def test_every_activation_stands_between_layers_and_not_after_the_last():
    assert set(ACTIVATIONS) == set(typing.get_args(networks.Activation))
    for name, activation in ACTIVATIONS.items():
        body = networks.dense([4, 6, 5, 2], name)
        first, second, third = (m for m in body if isinstance(m, nn.Linear))
        x = torch.randn(7, 4)
        torch.testing.assert_close(body(x), third(activation(second(activation(first(x))))))


def test_an_unknown_activation_and_impossible_widths_are_named():
    with pytest.raises(ValueError, match=r"deep: option 'activation' is 'swish': input should be 'relu', 'silu'"):
        spec(10, activation="swish").build()
    with pytest.raises(ValueError, match=r"hidden is \[64, 0\]; expected widths of 1 or more"):
        spec(10, hidden=[64, 0]).build()


def test_cells_without_a_value_do_not_count_in_the_loss():
    model = spec(4).build()
    x = torch.randn(6, 4)
    seen = torch.rand(6, 4) > 0.3
    errors = np.ma.masked_array((model(x, seen) - x).square().detach().numpy(), ~seen.numpy())
    assert model.losses(x, seen)["reconstruction"].item() == pytest.approx(errors.mean(), rel=1e-5)
    assert model.losses(x, torch.zeros_like(seen))["reconstruction"].item() == 0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_residual_block_adds_what_two_layers_make_of_its_input(name):
    body = networks.dense([4, 6, 2], name, blocks=2)
    first, one, other, last = (m for m in body if not isinstance(m, networks.ACTIVATIONS[name]))
    activation = ACTIVATIONS[name]
    for layer in (one.change[3], other.change[3]):
        assert not layer.weight.any()  # at the start a block changes nothing
        nn.init.normal_(layer.weight)
    x = torch.randn(7, 4)
    h = first(x)
    for block in (one, other):
        up, down = block.change[1], block.change[3]
        h = h + down(activation(up(activation(h))))
    torch.testing.assert_close(body(x), last(activation(h)))


def test_blocks_stand_at_every_hidden_width_of_both_halves():
    model = spec(10, hidden=[8, 6], activation="silu", blocks=2).build()
    widths = [(m.in_features, m.out_features) for m in model.encoder.modules() if isinstance(m, nn.Linear)]
    assert widths == [(10, 8), *[(8, 8)] * 4, (8, 6), *[(6, 6)] * 4, (6, 3)]
    widths = [(m.in_features, m.out_features) for m in model.decoder.modules() if isinstance(m, nn.Linear)]
    assert widths == [(3, 6), *[(6, 6)] * 4, (6, 8), *[(8, 8)] * 4, (8, 10)]


def test_impossible_blocks_are_refused():
    with pytest.raises(ValueError, match=r"blocks is -1; expected 0 or more; give 0 for plain layers"):
        spec(10, blocks=-1).build()
    with pytest.raises(
        ValueError, match=r"blocks is 2 with tied weights; expected 0; set `blocks: 0` or `tied: false`"
    ):
        spec(10, blocks=2, tied=True).build()
