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


class Watched(Autoencoder):
    """One weight, losses of the test's choosing, and a memory of all that it was given."""

    def __init__(self, fitting, judging):
        super().__init__(Layout((3,)), 1)
        self.weight = nn.Parameter(torch.zeros(()))
        self._fitting, self._judging = fitting, judging
        self.batches, self.weights, self.gradients = [], [], []

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
        self.gradients.append(self.weight.grad)
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


def test_gradients_are_clipped():
    model, _ = fit(replace(SETTINGS, gradient_clip=0.5), fitting=lambda w, x: -1000 * w)
    assert {round(float(g), 4) for g in model.gradients if g is not None} == {-0.5}


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


def test_a_diverging_validation_loss_is_told_too():
    message = r"loss term 'validation drift' is nan after step 3 \(epoch 1, learning rate"
    with pytest.raises(training.DivergenceError, match=message):
        fit(judging=lambda w, x: w * math.nan)


def test_data_too_large_for_the_numbers_are_told():
    options = {
        "code": 2,
        "hidden": [4],
        "activation": "relu",
        "tied": False,
        "numbers": "standard",
        "categories": "one-hot",
    }
    rows = samples.split(np.random.default_rng(0).normal(size=(40, 3)) * 1e30)
    with pytest.raises(training.DivergenceError, match=r"'reconstruction' is (nan|inf) in step 1 "):
        samples.fit(ModelSpec("deep", (3,), options), rows, rows)


def test_an_empty_validation_split_is_refused():
    options = {
        "code": 2,
        "hidden": [4],
        "activation": "relu",
        "tied": False,
        "numbers": "standard",
        "categories": "one-hot",
    }
    with pytest.raises(
        ValueError, match=r"no validation rows; expected at least one, .* larger share, or mend .*`normal`"
    ):
        samples.fit(ModelSpec("deep", (3,), options), ROWS, samples.split(np.zeros((0, 3))))


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


def test_the_number_of_threads_is_the_settings_own_and_restored_even_after_an_error():
    before = torch.get_num_threads()
    inside = []
    torch.set_num_threads(3)
    try:
        fit(replace(SETTINGS, threads=2), on_epoch=lambda e: inside.append(torch.get_num_threads()))
        assert set(inside) == {2}
        assert torch.get_num_threads() == 3
        with pytest.raises(training.DivergenceError):
            fit(fitting=lambda w, x: w * math.nan)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_rows_of_a_split_on_disk_are_not_written_to(tmp_path):
    np.save(tmp_path / "x.npy", ROWS.x)
    on_disk = replace(ROWS, x=np.load(tmp_path / "x.npy", mmap_mode="r"))
    options = {
        "code": 2,
        "hidden": [4],
        "activation": "relu",
        "tied": False,
        "numbers": "standard",
        "categories": "one-hot",
    }
    one, _ = samples.fit(ModelSpec("deep", (3,), options), on_disk, on_disk)
    two, _ = samples.fit(ModelSpec("deep", (3,), options), ROWS, ROWS)
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
