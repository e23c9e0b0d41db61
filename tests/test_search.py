"""Precision of what is found, the form of vectors, and indexes, against scikit-learn and brute force."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import decomposition, neighbors

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


def nearest(reference, rows, k):
    distances, found = neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute").fit(reference).kneighbors(rows)
    return found, distances


def cloud(count, dimensions=16, seed=0):
    """Vectors around 40 centres."""
    generator = np.random.default_rng(seed)
    centers = np.random.default_rng(9).normal(size=(40, dimensions))
    x = centers[generator.integers(40, size=count)] + 0.4 * generator.normal(size=(count, dimensions))
    return x.astype(np.float32)


VECTORS, QUERIES = cloud(6000), cloud(500, seed=1)


@pytest.fixture(scope="module", params=KINDS)
def built(request):
    return search.Index.build(VECTORS, np.arange(6000) * 7, model=MODEL, recall=0.95, neighbours=10, kind=request.param)


@pytest.fixture
def index(built, tmp_path):
    """One that may be changed."""
    built.save(tmp_path / "index")
    return search.Index.load(tmp_path / "index", model=MODEL)


def overlap(ids, truth):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(ids.tolist(), truth.tolist(), strict=True)])


# What is judged.


def test_precision_is_the_share_of_the_nearest_training_rows_that_have_the_label():
    model = samples.trained("pca", "table")
    calibrated = application(7).calibrate(model, DATA.train, DATA.validation)
    scores = calibrated.evaluate(model, DATA.test, DATA.train)
    vectors, queries = (
        calibrated.predict(model, part.x, part.observed, DATA.schema)["vector"] for part in (DATA.train, DATA.test)
    )
    found, _ = nearest(vectors, queries, 50)
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
    ours, raw = nearest(vectors, queries, 10)[0], nearest(train.x, test.x, 10)[0]
    assert scores.metrics["precision"] == pytest.approx(overlap(ours, raw), abs=1e-3)  # near ties
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
    z = cloud(500)
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
                near = nearest(form, form, 11)[0][:, 1:]
                found.append((validation.y[near] == validation.y[:, None]).mean())
    chosen = rival._vectors(validation)
    near = nearest(chosen, chosen, 11)[0][:, 1:]
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


# The index.


def test_an_index_finds_what_it_promised_with_true_distances_nearest_first(built):
    ids, distances = built.query(QUERIES, 10)
    truth, far = nearest(VECTORS, QUERIES, 10)
    assert overlap(ids, truth * 7) >= (1 if built.kind == "exact" else 0.95)
    assert built.recall >= 0.95
    pairs = np.linalg.norm(VECTORS[ids // 7] - QUERIES[:, None], axis=2)
    np.testing.assert_allclose(distances, pairs, rtol=1e-3, atol=1e-3)
    assert (np.diff(distances, axis=1) >= 0).all()
    np.testing.assert_allclose(distances[:, 0].mean(), far[:, 0].mean(), rtol=0.02)


def test_one_neighbour_is_found_as_surely_as_ten(built):
    assert overlap(built.query(QUERIES, 1)[0], nearest(VECTORS, QUERIES, 1)[0] * 7) >= 0.95


def test_the_same_vectors_make_the_same_bytes(built, tmp_path):
    built.save(tmp_path / "one")
    again = search.Index.build(VECTORS, np.arange(6000) * 7, model=MODEL, recall=0.95, neighbours=10, kind=built.kind)
    again.save(tmp_path / "two")
    for file in ("index.json", *search._FILES):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_bytes_per_vector_are_those_of_the_file(built, tmp_path):
    built.save(tmp_path / "index")
    size = (tmp_path / "index" / "vectors.faiss").stat().st_size
    assert built.bytes_per_vector == pytest.approx(size / 6000, rel=0.1)
    assert json.loads((tmp_path / "index" / "index.json").read_text())["bytes_per_vector"] == built.bytes_per_vector


def test_a_loaded_index_answers_as_the_one_that_was_saved(built, index):
    assert len(index) == len(built) == 6000
    assert (index.kind, index.settings, index.recall) == (built.kind, built.settings, built.recall)
    for one, other in zip(index.query(QUERIES, 12), built.query(QUERIES, 12), strict=True):
        assert np.array_equal(one, other)


def test_what_was_removed_is_not_found_and_what_was_added_is(index):
    gone = index.query(QUERIES[:1], 30)[0][0]
    index.remove(gone)
    assert len(index) == 5970
    left = np.flatnonzero(~np.isin(np.arange(6000) * 7, gone))
    ids, _ = index.query(QUERIES, 10)
    assert not np.isin(ids, gone).any()
    assert overlap(ids, left[nearest(VECTORS[left], QUERIES, 10)[0]] * 7) >= (1 if index.kind == "exact" else 0.94)
    index.add(QUERIES[:2], np.array([gone[0], -1]))  # one that was there before, and a new one
    ids, distances = index.query(QUERIES[:2], 1)
    assert ids[:, 0].tolist() == [gone[0], -1]
    np.testing.assert_allclose(distances, 0, atol=2e-3)
    assert np.isin(ids, index.ids).all()


def test_an_index_is_built_anew_when_a_quarter_is_gone_and_finds_the_rest(index):
    index.remove(np.arange(0, 2000) * 7)
    assert len(index) == len(index._ids) == 4000
    assert (np.sort(index.ids) == np.arange(2000, 6000) * 7).all()
    truth = (nearest(VECTORS[2000:], QUERIES, 10)[0] + 2000) * 7
    assert overlap(index.query(QUERIES, 10)[0], truth) >= 0.94


def test_an_index_is_built_anew_when_it_has_more_than_doubled():
    small = search.Index.build(VECTORS[:2500], np.arange(2500), model=MODEL, recall=0.95, neighbours=10)
    assert small.kind == "exact"
    small.add(VECTORS[2500:4900], np.arange(2500, 4900))
    assert small.kind == "exact"
    small.add(VECTORS[4900:], np.arange(4900, 6000))
    assert small.kind == "inverted"
    assert overlap(small.query(QUERIES, 10)[0], nearest(VECTORS, QUERIES, 10)[0]) >= 0.94


def test_removals_and_additions_are_saved(index, tmp_path):
    index.remove(np.arange(100) * 7)
    index.add(QUERIES, np.arange(500) * 7 + 1)
    index.save(tmp_path / "changed")
    again = search.Index.load(tmp_path / "changed", model=MODEL)
    assert len(again) == 6400
    for one, other in zip(index.query(QUERIES, 5), again.query(QUERIES, 5), strict=True):
        assert np.array_equal(one, other)


def test_all_that_there_is_is_found_even_where_lists_or_walks_meet_less(index):
    kept = np.arange(4600, 6000) * 7
    for part in np.array_split(np.arange(4600) * 7, 3):
        index._kept &= ~np.isin(index._ids, part)  # without the renewal, so that hardly any of a list is left
    index._kept &= np.isin(index._ids, kept[:60])
    ids, _ = index.query(QUERIES, 100)
    assert ids.shape == (500, 60)
    assert all(len(set(line)) == 60 for line in ids.tolist())


def test_the_kind_follows_from_comparisons_that_are_counted(monkeypatch):
    monkeypatch.setattr(search, "QUERIES", 500)

    def kind(vectors, recall=0.95):
        ids = np.arange(len(vectors))
        return search.Index.build(vectors, ids, model=MODEL, recall=recall, neighbours=10).kind

    assert kind(VECTORS[: search.SMALL]) == "exact"
    assert kind(VECTORS) == "inverted"
    assert kind(VECTORS, recall=1.0) == "exact"
    # Where lists tell nothing apart, most of them have to be looked into.
    noise = np.random.default_rng(0).normal(size=(6000, 48)).astype(np.float32)
    assert kind(noise, recall=0.999) == "exact"
    monkeypatch.setattr(search, "WORTH_A_GRAPH", 0.0)
    assert kind(VECTORS) == "inverted"
    monkeypatch.setattr(search, "COSTS", {"exact": 1.0, "list": 1.0, "candidate": 1.0, "graph": 0.1})
    assert kind(VECTORS) == "graph"


@pytest.mark.parametrize("most", [1, 2, 50, 64])
def test_the_least_setting_that_is_enough_is_found(most):
    for least in range(1, most + 1):
        assert search._least(most, lambda value, least=least: value >= least) == least
    assert search._least(most, lambda value: False) == most


@pytest.mark.parametrize(
    "ids", [np.array(["Zoë", "b", "c"]), np.array(["Zoë", "b", "c"], object), np.array([2**40, -1, 0])]
)
def test_ids_come_back_as_they_were_given(ids, tmp_path):
    index = search.Index.build(np.eye(3), ids, model=MODEL, recall=0.99, neighbours=10)
    index.save(tmp_path / "index")
    found, distances = search.Index.load(tmp_path / "index", model=MODEL).query(np.eye(3), 10)
    assert found.shape == distances.shape == (3, 3)
    assert found[:, 0].tolist() == ids.tolist()
    index.add(np.ones((1, 3)), np.array(["a much longer name"]) if found.dtype.kind == "U" else np.array([5]))
    assert index.query(np.ones((1, 3)), 1)[0][0, 0] in ("a much longer name", 5)


def test_no_vectors_find_nothing(built):
    ids, distances = built.query(np.zeros((0, 16)), 5)
    assert ids.shape == distances.shape == (0, 5)


def test_an_index_is_not_asked_with_another_model(built, tmp_path):
    built.save(tmp_path / "index")
    with pytest.raises(
        ValueError, match=f"was built with model {MODEL}; expected {'b' * 64}, whose vectors .*build the index again"
    ):
        search.Index.load(tmp_path / "index", model="b" * 64)


@pytest.mark.parametrize("file", search._FILES)
def test_a_damaged_or_missing_file_is_named_before_it_is_read(file, tmp_path):
    index = search.Index.build(np.eye(3), np.arange(3), model=MODEL, recall=0.99, neighbours=10)
    index.save(tmp_path / "index")
    path = tmp_path / "index" / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"no sound index: {file} is damaged: .*; build it again"):
        search.Index.load(tmp_path / "index", model=MODEL)
    path.unlink()
    with pytest.raises(ValueError, match=f"no sound index: {file} is missing; build it again"):
        search.Index.load(tmp_path / "index", model=MODEL)


def test_another_format_or_no_index_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no index\.json; expected the folder of an index; build one first"
    ):
        search.Index.load(tmp_path, model=MODEL)
    (tmp_path / "index.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has index format 99; this version reads 1; build the index again"):
        search.Index.load(tmp_path, model=MODEL)
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(ValueError, match="has index format None; this version reads 1"):
        search.Index.load(tmp_path, model=MODEL)


def test_an_index_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    index = search.Index.build(np.eye(3), np.arange(3), model=MODEL, recall=0.99, neighbours=10)
    index.save(tmp_path / "index")

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full)
    index.add(np.ones((1, 3)), np.array([3]))
    with pytest.raises(OSError, match="no space left"):
        index.save(tmp_path / "index")
    monkeypatch.undo()
    assert len(search.Index.load(tmp_path / "index", model=MODEL)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recall": 1.5}, "recall is 1.5; expected a share above 0 and at most 1"),
        ({"neighbours": 0}, "neighbours is 0; expected 1 or more"),
        ({"kind": "ball"}, "kind is 'ball'; expected one of exact, inverted, graph; leave it out to have one chosen"),
        ({"kind": "inverted"}, "there are 3 vectors; expected 16 or more"),
        ({"vectors": np.zeros((0, 3))}, "there are 0 vectors; expected 1 or more"),
        ({"vectors": np.zeros(3)}, r"vectors have shape \(3,\); expected \(n, dimensions\)"),
        ({"vectors": [[0, 1, 2], [0, 1, np.nan], [0, 1, np.inf]]}, r"2 vectors are not finite \(first: row 1\)"),
        ({"ids": np.arange(2)}, "there are 2 ids for 3 vectors; expected one each"),
        ({"ids": np.array([4, 5, 4])}, r"1 ids are there twice \(first: 4\); expected each once"),
        ({"ids": np.array([0.5, 1.5, 2.5])}, "ids are of type float64; expected integers or text"),
        (
            {"ids": np.array([2**63, 1, 2], np.uint64)},
            "ids reach 9223372036854775808; expected less .* give them as text",
        ),
    ],
)
def test_what_no_index_can_be_built_of_is_named(change, message):
    given = {"vectors": np.eye(3), "ids": np.arange(3), "model": MODEL, "recall": 0.99, "neighbours": 10}
    with pytest.raises(ValueError, match=message):
        search.Index.build(**given | change)


def test_wrong_additions_removals_and_questions_are_named_and_change_nothing():
    index = search.Index.build(np.eye(4), np.arange(4), model=MODEL, recall=0.99, neighbours=10)
    with pytest.raises(
        ValueError, match=r"vectors have shape \(2, 3\); expected \(n, 4\); make them by the index's own"
    ):
        index.add(np.eye(3)[:2], np.array([8, 9]))
    with pytest.raises(ValueError, match=r"1 ids are in the index already \(first: 3\); expected new ones"):
        index.add(np.eye(4)[:2], np.array([8, 3]))
    with pytest.raises(ValueError, match="ids are text; this index has integers; convert them"):
        index.add(np.eye(4)[:1], np.array(["a"]))
    with pytest.raises(KeyError, match=r"2 ids are not in the index \(first: 7\); expected some of its 4"):
        index.remove(np.array([1, 7, 8]))
    with pytest.raises(ValueError, match="all 4 vectors would be removed; expected at least one to stay"):
        index.remove(np.arange(4))
    with pytest.raises(ValueError, match=r"vectors have shape \(1, 3\); expected \(n, 4\)"):
        index.query(np.eye(3)[:1], 2)
    with pytest.raises(ValueError, match="k is 0; expected 1 or more"):
        index.query(np.eye(4), 0)
    assert index.ids.tolist() == [0, 1, 2, 3]
