"""Indexes find what they promised, against brute force, and come back from disk as they were or not at all."""

import json

import numpy as np
import pytest

import samples
from sevenfold import indexes

MODEL = "a" * 64
KINDS = ("exact", "inverted", "graph")


VECTORS, QUERIES = samples.cloud(6000), samples.cloud(500, seed=1)


@pytest.fixture(scope="module", params=KINDS)
def built(request):
    return indexes.Index.build(
        VECTORS, np.arange(6000) * 7, model=MODEL, recall=0.95, neighbours=10, kind=request.param
    )


@pytest.fixture
def index(built, tmp_path):
    """One that may be changed."""
    built.save(tmp_path / "index")
    return indexes.Index.load(tmp_path / "index", model=MODEL)


def test_an_index_finds_what_it_promised_with_true_distances_nearest_first(built):
    ids, distances = built.query(QUERIES, 10)
    truth, far = samples.nearest(VECTORS, QUERIES, 10)
    assert samples.overlap(ids, truth * 7) >= (1 if built.kind == "exact" else 0.95)
    assert built.recall >= 0.95
    pairs = np.linalg.norm(VECTORS[ids // 7] - QUERIES[:, None], axis=2)
    np.testing.assert_allclose(distances, pairs, rtol=1e-3, atol=1e-3)
    assert (np.diff(distances, axis=1) >= 0).all()
    np.testing.assert_allclose(distances[:, 0].mean(), far[:, 0].mean(), rtol=0.02)


def test_one_neighbour_is_found_as_surely_as_ten(built):
    assert samples.overlap(built.query(QUERIES, 1)[0], samples.nearest(VECTORS, QUERIES, 1)[0] * 7) >= 0.95


def test_the_same_vectors_make_the_same_bytes(built, tmp_path):
    built.save(tmp_path / "one")
    again = indexes.Index.build(VECTORS, np.arange(6000) * 7, model=MODEL, recall=0.95, neighbours=10, kind=built.kind)
    again.save(tmp_path / "two")
    for file in ("index.json", *indexes._FILES):
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
    assert samples.overlap(ids, left[samples.nearest(VECTORS[left], QUERIES, 10)[0]] * 7) >= (
        1 if index.kind == "exact" else 0.94
    )
    index.add(QUERIES[:2], np.array([gone[0], -1]))  # one that was there before, and a new one
    ids, distances = index.query(QUERIES[:2], 1)
    assert ids[:, 0].tolist() == [gone[0], -1]
    np.testing.assert_allclose(distances, 0, atol=2e-3)
    assert np.isin(ids, index.ids).all()


def test_an_index_is_built_anew_when_a_quarter_is_gone_and_finds_the_rest(index):
    index.remove(np.arange(0, 2000) * 7)
    assert len(index) == len(index._ids) == 4000
    assert (np.sort(index.ids) == np.arange(2000, 6000) * 7).all()
    truth = (samples.nearest(VECTORS[2000:], QUERIES, 10)[0] + 2000) * 7
    assert samples.overlap(index.query(QUERIES, 10)[0], truth) >= 0.94


def test_an_index_is_built_anew_when_it_has_more_than_doubled():
    small = indexes.Index.build(VECTORS[:2500], np.arange(2500), model=MODEL, recall=0.95, neighbours=10)
    assert small.kind == "exact"
    small.add(VECTORS[2500:4900], np.arange(2500, 4900))
    assert small.kind == "exact"
    small.add(VECTORS[4900:], np.arange(4900, 6000))
    assert small.kind == "inverted"
    assert samples.overlap(small.query(QUERIES, 10)[0], samples.nearest(VECTORS, QUERIES, 10)[0]) >= 0.94


def test_removals_and_additions_are_saved(index, tmp_path):
    index.remove(np.arange(100) * 7)
    index.add(QUERIES, np.arange(500) * 7 + 1)
    index.save(tmp_path / "changed")
    again = indexes.Index.load(tmp_path / "changed", model=MODEL)
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
    monkeypatch.setattr(indexes, "QUERIES", 500)

    def kind(vectors, recall=0.95):
        ids = np.arange(len(vectors))
        return indexes.Index.build(vectors, ids, model=MODEL, recall=recall, neighbours=10).kind

    assert kind(VECTORS[: indexes.SMALL]) == "exact"
    assert kind(VECTORS) == "inverted"
    assert kind(VECTORS, recall=1.0) == "exact"
    # Where lists tell nothing apart, most of them have to be looked into.
    noise = np.random.default_rng(0).normal(size=(6000, 48)).astype(np.float32)
    assert kind(noise, recall=0.999) == "exact"
    monkeypatch.setattr(indexes, "WORTH_A_GRAPH", 0.0)
    assert kind(VECTORS) == "inverted"
    monkeypatch.setattr(indexes, "COSTS", {"exact": 1.0, "list": 1.0, "candidate": 1.0, "graph": 0.1})
    assert kind(VECTORS) == "graph"


@pytest.mark.parametrize("most", [1, 2, 50, 64])
def test_the_least_setting_that_is_enough_is_found(most):
    for least in range(1, most + 1):
        assert indexes._least(most, lambda value, least=least: value >= least) == least
    assert indexes._least(most, lambda value: False) == most


@pytest.mark.parametrize(
    "ids", [np.array(["Zoë", "b", "c"]), np.array(["Zoë", "b", "c"], object), np.array([2**40, -1, 0])]
)
def test_ids_come_back_as_they_were_given(ids, tmp_path):
    index = indexes.Index.build(np.eye(3), ids, model=MODEL, recall=0.99, neighbours=10)
    index.save(tmp_path / "index")
    found, distances = indexes.Index.load(tmp_path / "index", model=MODEL).query(np.eye(3), 10)
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
        indexes.Index.load(tmp_path / "index", model="b" * 64)


@pytest.mark.parametrize("file", indexes._FILES)
def test_a_damaged_or_missing_file_is_named_before_it_is_read(file, tmp_path):
    index = indexes.Index.build(np.eye(3), np.arange(3), model=MODEL, recall=0.99, neighbours=10)
    index.save(tmp_path / "index")
    path = tmp_path / "index" / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"no sound index: {file} is damaged: .*; build it again"):
        indexes.Index.load(tmp_path / "index", model=MODEL)
    path.unlink()
    with pytest.raises(ValueError, match=f"no sound index: {file} is missing; build it again"):
        indexes.Index.load(tmp_path / "index", model=MODEL)


def test_another_format_or_no_index_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no index\.json; expected the folder of an index; build one first"
    ):
        indexes.Index.load(tmp_path, model=MODEL)
    (tmp_path / "index.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has index format 99; this version reads 1; build the index again"):
        indexes.Index.load(tmp_path, model=MODEL)
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(ValueError, match="has index format None; this version reads 1"):
        indexes.Index.load(tmp_path, model=MODEL)


def test_an_index_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    index = indexes.Index.build(np.eye(3), np.arange(3), model=MODEL, recall=0.99, neighbours=10)
    index.save(tmp_path / "index")

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full)
    index.add(np.ones((1, 3)), np.array([3]))
    with pytest.raises(OSError, match="no space left"):
        index.save(tmp_path / "index")
    monkeypatch.undo()
    assert len(indexes.Index.load(tmp_path / "index", model=MODEL)) == 3
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
        indexes.Index.build(**given | change)


def test_wrong_additions_removals_and_questions_are_named_and_change_nothing():
    index = indexes.Index.build(np.eye(4), np.arange(4), model=MODEL, recall=0.99, neighbours=10)
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
