"""Precision of what is found, the form of vectors, and indexes, against scikit-learn and brute force."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import decomposition

import samples
from sevenfold.applications import search
from sevenfold.models.base import Autoencoder

DATA = samples.dataset("table")
MODEL = "a" * 64
KINDS = ("exact", "inverted", "graph")


class Copy(Autoencoder):
    """Its code is the sample."""

    def prepare(self, x, observed):
        pass

    def encode(self, x, observed=None):
        return x.flatten(1)

    def decode(self, z):
        return z.reshape(-1, *self.shape)

    def losses(self, x, observed):
        return {}


def application(neighbours=10, recall=0.99):
    return search.Search(neighbours=neighbours, recall=recall)


def copy_of(split):
    from sevenfold.layouts import Layout

    return Copy(Layout(split.x.shape[1:]), int(np.prod(split.x.shape[1:]))).eval()


# What is judged.


def test_precision_is_the_share_of_the_nearest_training_rows_that_have_the_label():
    model = samples.trained("pca", "table")
    calibrated = application(7).calibrate(model, DATA.train, DATA.validation)
    scores = calibrated.evaluate(model, DATA.test, DATA.train)
    vectors, queries = (
        calibrated.predict(model, part.x, part.observed, DATA.schema)["vector"] for part in (DATA.train, DATA.test)
    )
    found, _ = samples.nearest(vectors, queries, 50)
    right = DATA.train.y[found] == DATA.test.y[:, None]
    np.testing.assert_allclose(scores.values["precision"], right[:, :7].mean(axis=1))
    for k in search.CURVE:
        assert scores.metrics[f"precision_at_{k}"] == pytest.approx(right[:, :k].mean())
    assert scores.metrics["recall"] == 1
    assert scores.metrics["bytes_per_vector"] == 4 * vectors.shape[1]


@pytest.mark.parametrize("labels", ["none", "all different"])
def test_without_a_label_to_share_what_is_near_in_the_raw_values_is_right(labels):
    def told(split):
        return replace(split, y=None if labels == "none" else np.array([f"name {i}" for i in split.ids]))

    train, validation, test = (told(part) for part in (DATA.train, DATA.validation, DATA.test))
    model = samples.trained("pca", "table")
    calibrated = application().calibrate(model, train, validation)
    scores = calibrated.evaluate(model, test, train)
    vectors, queries = (calibrated.predict(model, part.x, None, DATA.schema)["vector"] for part in (train, test))
    ours, raw = samples.nearest(vectors, queries, 10)[0], samples.nearest(train.x, test.x, 10)[0]
    assert scores.metrics["precision"] == pytest.approx(samples.overlap(ours, raw), abs=1e-3)  # near ties
    plain = application().with_state(search._forms(train.x, (0.0,))[0])
    assert plain.evaluate(copy_of(train), test, train).metrics["precision"] == 1


def planted(where, rows=600):
    """Ten columns of falling variance, the label told by the values at `where`."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(rows, 10)) * np.geomspace(10, 0.1, 10)
    y = np.where(x[:, where] > 0, "high", "low")
    every = samples.split(x + 5, y=y)
    return every.take(np.arange(0, rows, 2)), every.take(np.arange(1, rows, 2))


def test_vectors_are_whitened_where_the_validation_rows_find_better_by_it_and_only_there():
    for where, whitened in ((0, False), (9, True)):
        train, validation = planted(where)
        model = copy_of(train)
        calibrated = application().calibrate(model, train, validation)
        identity = np.array_equal(calibrated.state["matrix"], np.eye(10, dtype=np.float32))
        assert identity is not whitened
        plain = application().with_state(search._forms(train.x, (0.0,))[0])
        ours, theirs = (a.evaluate(model, validation, train).metrics["precision"] for a in (calibrated, plain))
        assert ours >= theirs + (0.05 if whitened else 0)


@pytest.mark.parametrize("power", [0.25, 0.5])
def test_whitening_takes_the_inverse_variances_to_its_power_and_keeps_the_size(power):
    z = samples.cloud(500)
    plain, unit = search._forms(z, (power,))
    pca = decomposition.PCA(random_state=0).fit(z)
    scaled = pca.transform(z) * (pca.explained_variance_ / pca.explained_variance_.mean()) ** -power
    got = search._formed(z, plain)
    distances = np.linalg.norm(got[:1] - got, axis=1)
    np.testing.assert_allclose(distances, np.linalg.norm(scaled[:1] - scaled, axis=1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(search._formed(z, unit), axis=1), 1, rtol=1e-5)


def test_codes_that_never_vary_have_vectors_too():
    z = np.full((30, 4), 2.5, np.float32)
    for form in search._forms(z, search.POWERS):
        assert np.array_equal(search._formed(z, form), np.zeros((30, 4)))
    z[:, 0] = np.arange(30)
    for form in search._forms(z, search.POWERS):
        assert np.isfinite(search._formed(z, form)).all()


def test_labels_of_training_rows_change_no_state_and_those_of_validation_rows_do():
    train, validation = planted(9)
    model = copy_of(train)
    state = application().calibrate(model, train, validation).state
    shuffled = replace(train, y=np.random.default_rng(0).permutation(train.y))
    again = application().calibrate(model, shuffled, validation).state
    assert all(np.array_equal(state[name], again[name]) for name in state)
    broad = replace(validation, y=np.where(validation.x[:, 0] > 5, "high", "low"))
    assert not np.array_equal(application().calibrate(model, train, broad).state["matrix"], state["matrix"])


def test_held_out_rows_are_judged_in_the_form_that_the_others_chose():
    train, validation = planted(9)
    # The rows of one fold know the label by the broadest column: alone, they would choose not to whiten.
    fold = np.arange(len(validation)) % search.FOLDS == 2
    odd = np.where(validation.x[:, 0] > 5, "high", "low")
    validation = replace(validation, y=np.where(fold, odd, validation.y))
    model = copy_of(train)
    scores = application().calibrate(model, train, validation).held_out(model, validation, train)
    others = validation.take(np.flatnonzero(~fold))
    judged = application().calibrate(model, train, others).evaluate(model, validation, train)
    np.testing.assert_allclose(scores.values["precision"][fold], judged.values["precision"][fold])
    assert application().statistic(scores.values) == scores.metrics["precision"]


def test_pca_takes_the_components_and_the_form_by_which_validation_rows_find_their_like():
    train, validation = planted(3)
    rival = application().rivals()["pca"]
    rival.fit(train, validation)
    pca = decomposition.PCA(random_state=0).fit(train.x)
    center, found = pca.transform(validation.x), []
    for count in (4, 8, 10):
        for power in search.POWERS:
            variance = pca.explained_variance_[:count]
            vectors = center[:, :count] * (variance / variance.mean()) ** -power
            for form in (vectors, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)):
                near = samples.nearest(form, form, 11)[0][:, 1:]
                found.append((validation.y[near] == validation.y[:, None]).mean())
    chosen = rival._vectors(validation)
    near = samples.nearest(chosen, chosen, 11)[0][:, 1:]
    assert (validation.y[near] == validation.y[:, None]).mean() == pytest.approx(max(found), abs=2e-3)


def test_rivals_search_exactly_or_through_a_graph():
    rivals = application().rivals()
    assert list(rivals) == ["raw", "pca", "pca_hnsw"]
    for rival in rivals.values():
        rival.fit(DATA.train, DATA.validation)
    scores = {name: rival.evaluate(DATA.test, DATA.train).metrics for name, rival in rivals.items()}
    assert scores["raw"]["recall"] == scores["pca"]["recall"] == 1
    assert scores["pca_hnsw"]["recall"] > 0.97
    assert scores["pca_hnsw"]["bytes_per_vector"] > scores["pca"]["bytes_per_vector"] + 4 * 32


def test_pictures_show_images_with_what_they_find_and_tables_by_label_or_distance():
    for kind, names in (("images", ["neighbours", "by_label"]), ("table", ["by_label"])):
        calibrated, _ = samples.judged("search", kind)
        data, model = samples.dataset(kind), samples.trained("pca", kind)
        assert [p.name for p in calibrated.pictures(model, data.test, data.train, data.schema)] == names
    bare = [replace(part, y=None) for part in (DATA.test, DATA.train)]
    made = samples.judged("search", "table")[0].pictures(samples.trained("pca", "table"), *bare, DATA.schema)
    assert [p.name for p in made] == ["by_distance"]
