"""What every variant in models/ promises, on tables, on tables with gaps, and on images."""

import copy
import json
import re

import numpy as np
import pytest
import torch

import samples
from sevenfold import bundles, modules
from sevenfold.layouts import Layout
from sevenfold.models import base
from sevenfold.models.base import Autoencoder, Compressor, Imputer, ModelSpec, Restorer, Selector, Standardiser

VARIANTS = modules.names("models")

ABILITIES = (Compressor, Imputer, Restorer, Selector)

OVERCOMPLETE = ("compressive", "masked", "residual", "sparse")
"""Variants whose code may have more values than the sample."""


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(params=samples.DATASETS)
def kind(request, variant):
    if reason := samples.refusal(variant, samples.dataset(request.param).schema.shape):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def small(variant):
    """The shape of a sample of six values that the variant takes: a row of a table, else an image."""
    return next(shape for shape in [(6,), (1, 2, 3)] if not samples.refusal(variant, shape))


@pytest.fixture
def model(variant, kind):
    return copy.deepcopy(samples.trained(variant, kind))


@pytest.fixture
def x(kind):
    return torch.from_numpy(samples.dataset(kind).test.x[:40])


@pytest.fixture
def observed(kind):
    seen = samples.dataset(kind).test.observed
    return None if seen is None else torch.from_numpy(seen[:40])


def test_there_are_variants_and_params_yaml_trains_each():
    assert VARIANTS
    assert all(samples.options(name) for name in VARIANTS)


def test_every_variant_takes_tables_or_images(variant):
    shapes = [tuple(samples.dataset(kind).schema.shape) for kind in samples.DATASETS]
    assert any(samples.refusal(variant, shape) is None for shape in shapes)
    # What it refuses depends on the kind of sample, and not on the size of the one at hand.
    for shape, larger in [((12,), (13,)), ((1, 6, 5), (1, 8, 8))]:
        assert (samples.refusal(variant, shape) is None) == (samples.refusal(variant, larger) is None)


def test_code_and_reconstruction_have_their_shapes(model, x):
    z = model.encode(x)
    assert z.shape == (len(x), model.code)
    assert model.decode(z).shape == x.shape
    torch.testing.assert_close(model(x), model.decode(z))
    assert model.encode(x[:0]).shape == (0, model.code)


def test_eval_mode_is_deterministic(model, x):
    assert not model.training
    assert torch.equal(model.encode(x), model.encode(x))
    assert torch.equal(model(x), model(x))


def test_each_sample_is_treated_on_its_own(model, x):
    one_by_one = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encode(x.flip(0)).flip(0), model.encode(x), rtol=1e-4, atol=1e-5)


def test_inputs_stay_untouched(model, x, observed):
    before, seen = x.clone(), None if observed is None else observed.clone()
    z = model.encode(x)
    code = z.detach().clone()
    model.decode(z)
    model.train()
    model.losses(x, observed)
    model.prepare(x, observed)
    assert torch.equal(x, before)
    assert torch.equal(z, code)
    assert observed is None or torch.equal(observed, seen)


def test_remarks_are_sentences_of_one_line_and_the_same_twice(model, x, observed):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    remarks = model.remarks(x, observed)
    assert isinstance(remarks, list)
    assert all(isinstance(remark, str) and remark.strip() == remark != "" for remark in remarks)
    assert all(remark.splitlines() == [remark] for remark in remarks)
    assert model.remarks(x, observed) == remarks
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("ability", ABILITIES)
def test_who_has_an_ability_says_so(ability):
    members = {name: modules.member("models", name, Autoencoder) for name in VARIANTS}
    wanted = ability.__abstractmethods__
    assert wanted
    able = {name for name, member in members.items() if any(hasattr(member, method) for method in wanted)}
    assert able
    assert able == {name for name, member in members.items() if issubclass(member, ability)}


def test_abilities_keep_their_promises(model, x, observed):
    if not isinstance(model, ABILITIES):
        pytest.skip("a variant without further abilities")
    with torch.inference_mode():
        if isinstance(model, Restorer):
            assert model.restore(x, 0.1).shape == x.shape
            levels = torch.full((len(x),), 0.1)
            torch.testing.assert_close(model.restore(x, levels), model.restore(x, 0.1))
        if isinstance(model, Compressor):
            streams = model.compress(x)
            assert [type(stream) for stream in streams] == [bytes] * len(x)
            torch.testing.assert_close(model.decompress(streams), model(x))
        if isinstance(model, Imputer):
            filled = model.impute(x, observed)
            assert filled.shape == x.shape
            assert torch.isfinite(filled).all()
            seen = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
            assert torch.equal(filled[seen], x[seen])
        if isinstance(model, Selector):
            assert model.selected.shape == (model.code,)
            assert model.selected.dtype == torch.int64
            assert len(model.selected.unique()) == model.code
            assert torch.equal(model.encode(x), x.flatten(1)[:, model.selected])


def test_losses_are_finite_scalars_of_the_same_names_in_both_modes(model, x, observed):
    model.train()
    training = model.losses(x, observed)
    model.eval()
    judging = model.losses(x, observed)
    assert training
    assert list(training) == list(judging)
    for value in [*training.values(), *judging.values()]:
        assert value.shape == ()
        assert torch.isfinite(value)


def test_losses_reach_every_parameter(model, x, observed):
    model.train()
    parameters = dict(model.named_parameters())
    if parameters:
        sum(model.losses(x, observed).values()).backward()
    lost = [name for name, p in parameters.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert lost == []


def test_observing_everything_is_the_same_as_no_mask(model, x):
    torch.testing.assert_close(model.losses(x, torch.ones_like(x, dtype=torch.bool)), model.losses(x, None))


def test_training_beats_the_mean(variant, kind):
    data = samples.dataset(kind)
    x = torch.from_numpy(data.validation.x)
    seen = torch.ones_like(x) if data.validation.observed is None else torch.from_numpy(data.validation.observed)
    with torch.inference_mode():
        error = ((samples.trained(variant, kind)(x) - x).square() * seen).sum()
    mean = torch.from_numpy(data.train.x).mean(dim=0)
    assert error < 0.5 * ((x - mean).square() * seen).sum()


def test_same_seed_gives_the_same_weights_bit_for_bit(variant, kind):
    data = samples.dataset(kind)
    one = samples.trained(variant, kind).state_dict()
    torch.rand(3)  # whatever was drawn before does not matter
    two, _ = samples.fit(samples.spec(variant, kind), data.train, data.validation)
    assert one.keys() == two.state_dict().keys()
    assert all(torch.equal(one[name], value) for name, value in two.state_dict().items())
    if dict(two.named_parameters()):
        other, _ = samples.fit(samples.spec(variant, kind), data.train, data.validation, seed=1)
        assert not all(torch.equal(one[name], value) for name, value in other.state_dict().items())


def test_a_saved_model_is_the_same_model(variant, kind, x, tmp_path):
    model, spec = samples.trained(variant, kind), samples.spec(variant, kind)
    bundles.save_model(tmp_path / "model", spec, model)
    again, loaded = bundles.load_model(tmp_path / "model")
    assert again == spec
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(loaded(x), model(x))
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_weights_of_another_shape_are_refused_by_name(variant, kind, tmp_path):
    spec = samples.spec(variant, kind)
    bundles.save_model(tmp_path / "model", spec, samples.trained(variant, kind))
    path = tmp_path / "model" / "model.json"
    # The option that decides the size of the code, for variants that have no other.
    smaller = {name: samples.smaller(value) for name, value in spec.options.items() if name in ("code", "channels")}
    other = ModelSpec.of(variant, Layout(spec.shape, spec.fields), {**spec.options, **smaller})
    path.write_text(json.dumps(other.to_json()))
    with pytest.raises(
        bundles.BundleError, match=rf"model.safetensors does not hold the weights of {variant} .*size mismatch"
    ):
        bundles.load_model(tmp_path / "model")


def test_every_wrong_option_is_named_at_once(variant):
    options = samples.options(variant)
    one = next(name for name in ("code", "channels") if name in options)
    others = {"hiden": 3, **{name: value for name, value in options.items() if name != one}}
    with pytest.raises(ValueError, match=rf"unknown option 'hiden'.*there are: .*{one}.*option missing: {one}"):
        ModelSpec(variant, (12,), others).build()
    with pytest.raises(ValueError, match=rf"option '{one}' is 'many'"):
        ModelSpec(variant, (12,), {**options, one: "many"}).build()


@pytest.mark.parametrize("code", [0, -1, 13])
def test_a_code_outside_the_sample_is_refused(variant, code):
    if "code" not in samples.options(variant):
        pytest.skip(f"the code of {variant} follows from its other options")
    options = {**samples.options(variant), "code": code}
    if code > 12 and variant in OVERCOMPLETE:
        assert ModelSpec(variant, (12,), options).build().code == code
        return
    wanted = "1 or more" if variant in OVERCOMPLETE else r"1 to 12, .* shape \(3, 4\)"
    with pytest.raises(ValueError, match=rf"code is {code}; expected {wanted}"):
        ModelSpec(variant, (3, 4), options).build()


def test_fewer_rows_than_code_values_are_refused(variant, small):
    spec = ModelSpec(variant, small, samples.options(variant))
    code = spec.build().code
    least = code
    few = samples.split(np.random.default_rng(0).normal(size=(min(code, 6) - 1, *small)))
    if code > 6:  # which something else than rows keeps from being a copy
        samples.fit(spec, few, few)
        return
    message = f"{least - 1} training rows for a code of {code}; expected at least {least}; .*smaller `code`"
    with pytest.raises(ValueError, match=message):
        samples.fit(spec, few, few)


@pytest.mark.parametrize("constant", [0.0, 7.0])
def test_constant_columns_do_no_harm(variant, small, constant):
    x = np.random.default_rng(0).normal(size=(120, 6))
    x[:, 2] = constant
    rows = samples.split(x.reshape(-1, *small))
    model, history = samples.fit(ModelSpec(variant, small, samples.options(variant)), rows, rows)
    assert np.isfinite(history.best.loss)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    with torch.inference_mode():
        assert (model(torch.from_numpy(rows.x)).flatten(1)[:, 2] - constant).abs().max() < 0.5


def test_data_without_any_spread_do_no_harm(variant, small):
    rows = samples.split(np.full((20, *small), 3.0))
    model, history = samples.fit(ModelSpec(variant, small, samples.options(variant)), rows, rows)
    assert np.isfinite(history.best.loss)
    with torch.inference_mode():
        torch.testing.assert_close(model(torch.from_numpy(rows.x)), torch.full((20, *small), 3.0), atol=1e-3, rtol=0)


def test_preparing_reads_the_rows_piece_by_piece_and_learns_the_same(variant, kind, monkeypatch):
    data = samples.dataset(kind)
    x = torch.from_numpy(data.train.x)
    seen = None if data.train.observed is None else torch.from_numpy(data.train.observed)

    def prepared():
        torch.manual_seed(0)
        model = samples.spec(variant, kind).build()
        model.prepare(x, seen)
        return model.state_dict()

    whole = prepared()
    monkeypatch.setattr(base, "PIECE", 7)
    for name, value in prepared().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-5)


def test_an_unknown_variant_is_named_with_a_near_match():
    with pytest.raises(ValueError, match=re.escape("no 'dep' in models/, did you mean 'deep'?; there are: ")):
        ModelSpec("dep", (12,), {}).build()


@pytest.mark.parametrize("gaps", [False, True])
def test_the_standardiser_centres_each_value_and_divides_by_one_spread(gaps):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(500, 3)) * [1, 5, 0.1] + [10, -3, 0]
    seen = generator.random(x.shape) > 0.2 * gaps
    layer = Standardiser((3,))
    layer.learn(torch.tensor(np.where(seen, x, 0), dtype=torch.float32), torch.from_numpy(seen) if gaps else None)
    masked = np.ma.masked_array(x, ~seen)
    center = masked.mean(axis=0)
    np.testing.assert_allclose(layer.center, center, rtol=1e-4, atol=1e-5)
    assert float(layer.spread) == pytest.approx(np.sqrt(((masked - center) ** 2).mean()), rel=1e-4)
    sample = torch.randn(4, 3)
    torch.testing.assert_close(layer.inverse(layer(sample)), sample, rtol=1e-4, atol=1e-4)
