"""The training loop, watched from inside by a model of one number."""

import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import samples
from sevenfold import training
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, ModelSpec

SETTINGS = training.Settings(
    epochs=12, patience=12, batch_size=4, learning_rate=0.1, warmup=0.0, weight_decay=0.0, gradient_clip=1e9, threads=1
)
ROWS = samples.split(np.arange(30.0).reshape(10, 3))

DEEP = {
    "code": 2,
    "hidden": [4],
    "activation": "relu",
    "blocks": 0,
    "tied": False,
    "augment": [],
    "numbers": "standard",
    "categories": "one-hot",
}


class Watched(Autoencoder):
    """One weight, losses of the test's choosing, and a memory of all that it was given."""

    def __init__(self, fitting, judging):
        super().__init__(Layout((3,)), 1)
        self.weight = nn.Parameter(torch.zeros(()))
        self._fitting, self._judging = fitting, judging
        self.batches, self.weights = [], []

    def prepare(self, x, observed):
        pass

    def encode(self, x, observed=None):
        return x[:, :1]

    def decode(self, z):
        return z.expand(-1, 3)

    def losses(self, x, observed):
        if not self.training:
            return {"drift": self._judging(self.weight, x)}
        self.batches.append(x)
        self.weights.append(self.weight.item())
        return {"drift": self._fitting(self.weight, x)}


def away(weight, x):
    """A loss that pushes the weight up by about the learning rate at each step."""
    return -weight + 0 * x.sum()


def fit(settings=SETTINGS, *, fitting=away, judging=lambda weight, x: weight**2, rows=ROWS, on_epoch=lambda e: None):
    class Spec(ModelSpec):
        def build(self):
            return Watched(fitting, judging)

    return samples.fit(Spec("watched", (3,)), rows, ROWS, settings=settings, on_epoch=on_epoch)


def test_early_stopping_restores_the_best_weights():
    seen = []
    settings = replace(SETTINGS, patience=3)
    model, history = fit(settings, judging=lambda w, x: (w - 0.8) ** 2, on_epoch=seen.append)
    losses = [epoch.loss for epoch in history.epochs]
    assert seen == list(history.epochs)
    assert [epoch.number for epoch in seen] == list(range(1, len(seen) + 1))
    assert history.best.number == 1 + int(np.argmin(losses))
    assert len(seen) == history.best.number + settings.patience < settings.epochs
    assert (model.weight.item() - 0.8) ** 2 == pytest.approx(min(losses), rel=1e-5)
    assert [epoch.best for epoch in seen] == [loss < min([math.inf, *losses[:i]]) for i, loss in enumerate(losses)]
    assert not model.training


def test_a_loss_that_stays_the_same_is_no_better():
    _, history = fit(replace(SETTINGS, patience=2), judging=lambda w, x: 0 * w + 1)
    assert len(history.epochs) == 3
    assert history.best.number == 1


def test_every_row_is_seen_once_an_epoch_in_a_new_order():
    model, _ = fit(replace(SETTINGS, epochs=2))
    assert [len(batch) for batch in model.batches] == [4, 4, 2] * 2
    one, two = torch.cat(model.batches[:3]), torch.cat(model.batches[3:])
    for seen in (one, two):
        assert torch.equal(seen[seen[:, 0].argsort()], torch.from_numpy(ROWS.x))
    assert not torch.equal(one, two)


def test_reported_losses_are_means_over_rows_whatever_the_batches():
    _, history = fit(fitting=lambda w, x: 0 * w + x.mean(), judging=lambda w, x: 0 * w + x.mean())
    assert history.epochs[0].train["drift"] == pytest.approx(ROWS.x.mean())
    assert history.epochs[0].validation["drift"] == pytest.approx(ROWS.x.mean())


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    settings = replace(SETTINGS, epochs=20, batch_size=99, warmup=0.25, patience=20)
    _, history = fit(settings)
    rising = 0.1 * np.arange(1, 6) / 5
    falling = 0.1 * (0.01 + 0.99 * (1 + np.cos(np.pi * np.arange(15) / 15)) / 2)
    assert [epoch.learning_rate for epoch in history.epochs] == pytest.approx([*rising, *falling])


def test_a_training_takes_the_steps_of_torchs_adamw_with_clipped_gradients():
    data = samples.dataset("table")
    settings = replace(samples.SETTINGS, epochs=4, patience=4, gradient_clip=0.1, weight_decay=0.1, warmup=0.2)
    seen = []
    found, history = samples.fit(samples.spec("deep", "table"), data.train, data.validation, settings=settings, seed=7)
    torch.manual_seed(7)
    model = samples.spec("deep", "table").build()
    x, held_out = torch.from_numpy(data.train.x.copy()), torch.from_numpy(data.validation.x.copy())
    model.prepare(x, None)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=settings.weight_decay)
    order = torch.Generator().manual_seed(7)
    steps = settings.epochs * math.ceil(len(x) / settings.batch_size)
    rising, step = round(0.2 * steps), 0
    for _ in range(settings.epochs):
        model.train()
        for rows in torch.split(torch.randperm(len(x), generator=order), settings.batch_size):
            falling = 0.01 + 0.99 * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * ((step + 1) / rising if step < rising else falling)
            optimizer.zero_grad()
            sum(model.losses(x[rows], None).values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimizer.step()
            step += 1
        model.eval()
        seen.append(float(sum(model.losses(held_out, None).values()).detach()))
    assert [epoch.loss for epoch in history.epochs] == pytest.approx(seen, rel=1e-4)
    assert history.best.number == len(seen) == 1 + int(np.argmin(seen))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_weight_decay_shrinks_what_no_loss_holds():
    class Spec(ModelSpec):
        def build(self):
            model = Watched(lambda w, x: 0 * w, lambda w, x: -1 / (1 + w**2) + w)
            nn.init.ones_(model.weight)
            return model

    settings = replace(SETTINGS, epochs=3, batch_size=10, weight_decay=0.5)
    model, history = samples.fit(Spec("watched", (3,)), ROWS, ROWS, settings=settings)
    rates = np.array([epoch.learning_rate for epoch in history.epochs])
    assert model.weights == pytest.approx([1, *np.cumprod(1 - 0.5 * rates)[:2]])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverging_loss_names_step_term_and_learning_rate(value):
    calls = []

    def fitting(weight, x):
        calls.append(1)
        return -weight * (value if len(calls) == 5 else 1) + (value if len(calls) == 5 else 0)

    message = r"loss term 'drift' is (nan|inf) in step 5 \(epoch 2, learning rate 0\.098\); expected a finite number; lower `learning_rate`"
    with pytest.raises(training.DivergenceError, match=message):
        fit(fitting=fitting)


def test_a_diverging_training_keeps_the_last_good_weights():
    judged = []

    def fitting(weight, x):
        return away(weight, x) * (math.nan if len(judged) == 7 else 1)

    def judging(weight, x):
        judged.append(float(weight))
        return (weight - 0.8).square()

    with pytest.raises(training.DivergenceError, match="epoch 8") as caught:
        fit(fitting=fitting, judging=judging)
    best = min(judged, key=lambda weight: abs(weight - 0.8))
    assert caught.value.model.weight.item() == best != judged[-1]
    assert not caught.value.model.training
    with pytest.raises(training.DivergenceError) as caught:
        fit(fitting=lambda w, x: w * math.nan)
    assert caught.value.model is None


def test_a_diverging_validation_loss_is_told_too():
    message = r"loss term 'validation drift' is nan after step 3 \(epoch 1, learning rate"
    with pytest.raises(training.DivergenceError, match=message):
        fit(judging=lambda w, x: w * math.nan)


def test_an_empty_validation_split_is_refused():
    with pytest.raises(
        ValueError, match=r"no validation rows; expected at least one, .* larger share, or mend .*`normal`"
    ):
        samples.fit(ModelSpec("deep", (3,), DEEP), ROWS, samples.split(np.zeros((0, 3))))


def test_the_history_is_a_table_of_every_epoch_without_times():
    _, history = fit(replace(SETTINGS, epochs=4))
    table = pd.read_csv(io.StringIO(history.to_csv()))
    assert list(table) == ["epoch", "learning_rate", "validation_loss", "train_drift", "validation_drift"]
    assert list(table["epoch"]) == [1, 2, 3, 4]
    assert list(table["validation_loss"]) == pytest.approx([e.loss for e in history.epochs], rel=1e-5)
    assert list(table["train_drift"]) == pytest.approx([e.train["drift"] for e in history.epochs], rel=1e-5)
    assert fit(replace(SETTINGS, epochs=4))[1].to_csv() == history.to_csv()


def test_a_variant_without_weights_has_one_epoch():
    seen = []
    model, history = samples.fit(ModelSpec("pca", (3,), {"code": 1}), ROWS, ROWS, on_epoch=seen.append)
    assert seen == list(history.epochs)
    assert len(seen) == 1
    loss = (model(torch.from_numpy(ROWS.x)) - torch.from_numpy(ROWS.x)).square().mean()
    assert history.best.loss == pytest.approx(float(loss))


@pytest.mark.parametrize(("hidden", "used"), [(4, 1), (8192, 2)])
def test_threads_go_by_the_size_of_the_network_and_are_put_back(hidden, used):
    options = {**samples.options("deep"), "code": 2, "hidden": [hidden]}
    settings = replace(SETTINGS, threads=2, epochs=1, batch_size=512)
    before = torch.get_num_threads()
    inside = []
    torch.set_num_threads(3)
    try:
        spec = ModelSpec("deep", (3,), options)
        samples.fit(spec, ROWS, ROWS, settings=settings, on_epoch=lambda e: inside.append(torch.get_num_threads()))
        assert inside == [used]
        assert torch.get_num_threads() == 3
        with pytest.raises(training.DivergenceError):
            fit(fitting=lambda w, x: w * math.nan)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_rows_of_a_split_on_disk_are_not_written_to(tmp_path):
    np.save(tmp_path / "x.npy", ROWS.x)
    on_disk = replace(ROWS, x=np.load(tmp_path / "x.npy", mmap_mode="r"))
    one, _ = samples.fit(ModelSpec("deep", (3,), DEEP), on_disk, on_disk)
    two, _ = samples.fit(ModelSpec("deep", (3,), DEEP), ROWS, ROWS)
    assert all(torch.equal(one.state_dict()[n], v) for n, v in two.state_dict().items())
    assert np.array_equal(np.load(tmp_path / "x.npy"), ROWS.x)


def towards(weight, x):
    """A mean over rows of what pulls the weight to each row's mean."""
    return (weight - x.mean(dim=1)).square().mean()


def test_a_batch_that_does_not_fit_the_memory_goes_through_in_parts_with_the_same_outcome():
    def scarce(weight, x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return towards(weight, x)

    settings = replace(SETTINGS, epochs=3)
    plenty, expected = fit(settings, fitting=towards)
    model, history = fit(settings, fitting=scarce)
    assert model.weight.item() == pytest.approx(plenty.weight.item(), rel=1e-5)
    for one, other in zip(history.epochs, expected.epochs, strict=True):
        assert one.train["drift"] == pytest.approx(other.train["drift"], rel=1e-5)
    assert history.notes == ("batches go through cpu in parts of 2 rows, for want of memory",)
    assert expected.notes == ()


def test_a_row_that_does_not_fit_the_memory_is_told():
    def nothing(weight, x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match=r"a single row does not fit the memory of cpu; .* use a smaller model"):
        fit(fitting=nothing)


@pytest.mark.parametrize("settled", [0.0, 0.5, 1.0])
def test_epochs_count_from_where_the_model_has_settled(settled):
    """Validation is best at the start, so that a training without patience would stop and a comparison take epoch 1."""

    class Spec(ModelSpec):
        def build(self):
            model = Watched(away, lambda w, x: w.square())
            model.settled = settled
            return model

    settings = replace(SETTINGS, epochs=10, patience=3)
    model, history = samples.fit(Spec("watched", (3,)), ROWS, ROWS, settings=settings)
    first = max(1, round(10 * settled))
    assert history.best.number == first
    assert [epoch.best for epoch in history.epochs] == [epoch.number == first for epoch in history.epochs]
    assert len(history.epochs) == min(10, first + 3)
    assert model.weight.item() ** 2 == pytest.approx(history.best.loss)


@pytest.mark.parametrize("kind", ["table", "gaps", "images"])
def test_rows_read_from_disk_give_the_very_weights_of_rows_in_memory(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("sevenfold.loader.STRETCH", 3000)
    data = samples.dataset(kind)
    data.save(tmp_path / "data")
    on_disk = type(data).load(tmp_path / "data")
    assert isinstance(on_disk.train.x, np.memmap)
    spec = samples.spec("denoising", kind)
    settings = replace(samples.SETTINGS, epochs=3)
    expected, history = samples.fit(spec, data.train, data.validation, settings=settings)
    model, found = training.fit(
        spec, on_disk.train, on_disk.validation, settings, seed=0, device="cpu", on_epoch=lambda e: None, room=0
    )
    assert found.to_csv() == history.to_csv()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.state_dict().items())


def test_the_precision_that_is_wanted_and_not_there_is_told(monkeypatch):
    monkeypatch.setattr("sevenfold.arithmetic.has_bfloat16", lambda device: False)
    with pytest.raises(ValueError, match=r"precision is bfloat16; cpu has no fast one; .*; set `precision: auto`"):
        fit(replace(SETTINGS, precision="bfloat16"))
    fit(replace(SETTINGS, precision="auto", epochs=1))


def test_what_is_learned_from_data_too_large_for_the_numbers_is_told():
    rows = samples.split(np.random.default_rng(0).normal(size=(40, 3)) * 1e30)
    options = {**samples.options("deep"), "code": 2, "hidden": [4]}
    with pytest.raises(training.DivergenceError, match=r"is not finite, .* look for extreme values in the data"):
        samples.fit(ModelSpec("deep", (3,), options), rows, rows)
