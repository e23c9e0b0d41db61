"""The penalty is the norm of the encoder's Jacobian, and makes the code change little where the sample does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import func, nn

import samples
from sevenfold.models.base import ModelSpec

SHAPE = (3, 4)
X = 5 * torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0)) + 2
SEEN = torch.rand(X.shape, generator=torch.Generator().manual_seed(1)) > torch.tensor([0.7, 0.1, 0.1])[:, None]


def build(shape=SHAPE, **options):
    wanted = {
        "code": 5,
        "hidden": [16, 8],
        "activation": "silu",
        "weight": 0.1,
        "probes": 1,
        "numbers": "standard",
        "categories": "one-hot",
    } | options
    torch.manual_seed(0)
    return ModelSpec("contractive", shape, wanted).build()


def exact(model, x, observed):
    """Squared norm of the whole Jacobian by the standardised sample, per observed cell."""
    seen = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
    jacobian = func.vmap(func.jacrev(lambda row, known: model.encode(row[None], known[None])[0]))(x, seen)
    squares = (jacobian * model.cells.numbers.spread).square().sum(dim=1).detach()  # of (n, code, *shape)
    return float(squares.mean() if observed is None else squares[observed].mean())


@pytest.mark.parametrize("observed", [None, SEEN], ids=["whole", "gaps"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_estimate_is_unbiased_against_the_exact_jacobian(observed, mode):
    model = build(probes=8000)
    model.prepare(X, observed)
    with torch.no_grad():
        model.encoder[0].weight[:, :4] *= 3  # so that it matters which cells are left out
    model.train(mode == "train")
    with torch.no_grad():
        estimate = float(model.sensitivity(X, observed))
    assert estimate == pytest.approx(exact(model, X, observed), rel=0.02)


def test_one_probe_is_right_on_average_and_so_is_its_slope():
    model = build().train()
    model.prepare(X, None)
    weight = model.encoder[0].weight
    draws, slope = [], torch.zeros(weight.shape)
    for _ in range(1500):
        estimate = model.sensitivity(X, None)
        slope += torch.autograd.grad(estimate, weight)[0] / 1500
        draws.append(estimate.detach())
    assert torch.stack(draws).mean().item() == pytest.approx(exact(model, X, None), rel=0.02)
    assert torch.stack(draws).std() > 0

    def norm(values):
        def code(row):
            return func.functional_call(model.encoder, {"0.weight": values}, (row,))

        return func.vmap(func.jacrev(code))(model.cells.numbers(X).flatten(1)).square().sum(dim=1).mean()

    expected = func.grad(norm)(weight.detach()).detach()
    assert (slope.detach() - expected).norm() < 0.05 * expected.norm()


def test_a_linear_encoder_has_the_norm_of_its_weights():
    model = build(hidden=[], probes=4000)
    model.prepare(X, None)
    norm = model.encoder[0].weight.square().sum().item() / X[0].numel()
    assert model.sensitivity(X, None).item() == pytest.approx(norm, rel=0.02)


def test_the_loss_is_weighted_and_the_same_every_time_in_eval_mode():
    light, heavy = build(weight=0.1).eval(), build(weight=0.4).eval()
    state = torch.get_rng_state()
    with torch.inference_mode():
        losses = [model.losses(X, SEEN)["contraction"].item() for model in (light, light, heavy)]
    assert losses == pytest.approx([losses[0], losses[0], 4 * losses[0]], rel=1e-6)
    assert losses[0] > 0
    assert torch.equal(torch.get_rng_state(), state)  # judging does not change what is drawn in training


def test_the_decoder_has_the_transposed_weights_of_the_encoder():
    model = build(activation="tanh")
    with torch.no_grad():
        for bias in model.decoder.biases:
            bias.normal_()
    first, second, third = (m.weight for m in model.encoder if isinstance(m, nn.Linear))
    z = torch.randn(7, 5)
    up = torch.tanh(z @ third + model.decoder.biases[0])
    output = torch.tanh(up @ second + model.decoder.biases[1]) @ first + model.decoder.biases[2]
    torch.testing.assert_close(model.decode(z), output.reshape(7, *SHAPE))


def test_the_penalty_makes_the_code_change_less_with_noise():
    generator = np.random.default_rng(0)
    x = np.tanh(generator.normal(size=(600, 3)) @ generator.normal(size=(3, 20))).astype(np.float32)
    x += 0.1 * generator.normal(size=x.shape).astype(np.float32)
    train, validation = samples.split(x[:400]), samples.split(x[400:])
    settings = replace(samples.SETTINGS, epochs=40, patience=40)
    clean, noise = torch.from_numpy(x[400:]), 0.1 * torch.randn(200, 20, generator=torch.Generator().manual_seed(0))

    def change(weight):
        """Of the code, relative to its own variance: a shrunken code gains nothing. Nine of its values are free for noise."""
        options = {
            "code": 12,
            "hidden": [32],
            "activation": "silu",
            "weight": weight,
            "probes": 1,
            "numbers": "standard",
            "categories": "one-hot",
        }
        model, _ = samples.fit(ModelSpec("contractive", (20,), options), train, validation, settings=settings)
        with torch.inference_mode():
            z = model.encode(clean)
            return float((model.encode(clean + noise) - z).square().sum() / (z - z.mean(dim=0)).square().sum())

    assert change(0.3) < 0.8 * change(0.0)


def test_an_impossible_weight_is_refused():
    with pytest.raises(ValueError, match=r"weight is -0\.1; expected a finite number of 0 or more; 0\.1 is a start"):
        build(weight=-0.1)


def test_no_probes_are_refused():
    with pytest.raises(ValueError, match=r"probes is 0; expected 1 or more; 1 is enough"):
        build(probes=0)
