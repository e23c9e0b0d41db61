"""Index folders answer as a dictionary and brute force do, whatever was added, removed, compacted, or killed meanwhile."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import samples
from sevenfold import files, index_folders, searchers, segments
from sevenfold.index_folders import Maker, Part, Reader

ROOT = Path(__file__).parents[1]
ELSEWHERE = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])}
"""The variables of a process of its own that imports what tests do."""
MAKER = Maker("shoes/3", "a" * 64)
OTHER = Maker("hats/1", "b" * 64)


def part(ids, vectors, labels=None):
    carried = None if labels is None else pd.DataFrame({"label": labels, "path": [f"{one}.png" for one in ids]})
    return Part(np.asarray(vectors, np.float32), ids, carried)


def build(folder, *parts, **options):
    return index_folders.build(folder, parts, maker=MAKER, **options)


def add(folder, *parts):
    return index_folders.add(folder, parts, maker=MAKER)


def contents(folder):
    """Return id -> (distance from the origin, label) of all that can be found."""
    reader = Reader(folder, maker=MAKER)
    found = reader.search(np.zeros((1, reader.manifest.form.dimensions)), 10**6)
    assert len(found.ids[0]) == len(reader)
    labels = found.carried["label"].tolist()
    return dict(zip(found.ids[0].tolist(), zip(found.distances[0].round(3).tolist(), labels, strict=True), strict=True))


# A dictionary.

coordinates = st.tuples(*[st.integers(-2, 2).map(float)] * 3)


class Life(RuleBasedStateMachine):
    """A folder beside a dictionary of what it should hold; vectors are few, so that many are equally near."""

    def __init__(self):
        super().__init__()
        self.folder = Path(os.environ["LIFE"]) / f"{id(self)}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.older = []

    @initialize(rows=st.dictionaries(st.integers(-5, 20), coordinates, min_size=1, max_size=6))
    def built(self, rows):
        self.rows = {one: (vector, abs(one) % 3) for one, vector in rows.items()}
        build(self.folder, *self._parts(rows))

    def _parts(self, rows):
        return [part([one], [vector], [abs(one) % 3]) for one, vector in rows.items()]

    @rule(rows=st.dictionaries(st.integers(-5, 20), coordinates, max_size=5))
    def added(self, rows):
        if there := sorted(rows.keys() & self.rows.keys()):
            with pytest.raises(ValueError, match=f"{there[0]}.* in .* already; expected new ones; remove those first"):
                add(self.folder, *self._parts(rows))
        else:
            add(self.folder, *self._parts(rows))
            self.rows |= {one: (vector, abs(one) % 3) for one, vector in rows.items()}

    @rule(ids=st.sets(st.integers(-5, 20), max_size=5))
    def removed(self, ids):
        if missing := [one for one in ids if one not in self.rows]:
            with pytest.raises(LookupError, match=f"{len(missing)} ids? .*not in .*; expected some of its"):
                index_folders.remove(self.folder, list(ids))
        else:
            index_folders.remove(self.folder, list(ids))
            self.rows = {one: row for one, row in self.rows.items() if one not in ids}

    @rule()
    def compacted(self):
        index_folders.compact(self.folder)
        assert index_folders.inspect(self.folder)["bytes"]["freed by compacting"] == 0

    @precondition(lambda self: len(self.older) < 4)
    @rule()
    def opened(self):
        self.older.append((Reader(self.folder), dict(self.rows)))

    @rule(query=coordinates, k=st.integers(1, 30), label=st.none() | st.integers(0, 3))
    def searched(self, query, k, label):
        for reader, rows in [(Reader(self.folder, maker=MAKER), self.rows), *self.older]:
            where = [] if label is None else [f"label = {label}"]
            found = reader.search(np.array([query]), k, where=where)
            right = {one: np.linalg.norm(np.subtract(v, query)) for one, (v, of) in rows.items() if label in (None, of)}
            np.testing.assert_allclose(found.distances[0], sorted(right.values())[:k], rtol=1e-6)
            assert len(set(found.ids[0])) == len(found.ids[0])
            np.testing.assert_allclose([right[one] for one in found.ids[0]], found.distances[0], rtol=1e-6)
            assert found.carried["label"].tolist() == [rows[one][1] for one in found.ids[0]]
            assert found.carried["path"].tolist() == [f"{one}.png" for one in found.ids[0]]

    @invariant()
    def counted(self):
        assert index_folders.inspect(self.folder)["count"] == len(self.rows)

    def teardown(self):
        assert index_folders.inspect(self.folder)["damage"] == []
        shutil.rmtree(self.folder)


def test_a_folder_finds_what_a_dictionary_holds_and_older_readers_what_it_held(tmp_path, monkeypatch):
    monkeypatch.setenv("LIFE", str(tmp_path))
    Life.TestCase.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
    Life.TestCase("runTest").runTest()


# Recall.

COUNT = 20_000
CENTRES = np.random.default_rng(9).normal(size=(50, 32)) * 2


def mixture(count, seed):
    generator = np.random.default_rng(seed)
    label = generator.integers(len(CENTRES), size=count)
    return (CENTRES[label] + generator.normal(size=(count, 32))).astype(np.float32), label


VECTORS, LABELS = mixture(COUNT, 0)
QUERIES, _ = mixture(300, 1)


@pytest.fixture(scope="module", params=[None, *searchers.KINDS])
def large(request, tmp_path_factory):
    """A folder of each kind: a large segment, a small one, and some rows removed from both."""
    folder = tmp_path_factory.mktemp("large") / "index"
    carried = pd.DataFrame({"label": LABELS, "turn": np.arange(COUNT) % 200})
    rows = [Part(VECTORS[a:b], np.arange(a, b), carried[a:b]) for a, b in [(0, 7000), (7000, 15000), (15000, COUNT)]]
    build(folder, *rows[:2], kind=request.param)
    add(folder, rows[2])
    index_folders.remove(folder, GONE)
    return folder


GONE = np.concatenate([np.flatnonzero(LABELS == 7), np.arange(0, COUNT, 41)])
GONE = np.unique(GONE)
KEPT = np.setdiff1d(np.arange(COUNT), GONE)


@pytest.mark.parametrize(
    ("where", "right"),
    [
        ("", np.ones(COUNT, bool)),
        ("turn < 100", np.arange(COUNT) % 200 < 100),
        ("turn = 3", np.arange(COUNT) % 200 == 3),
        ("label in 1, 2, 3", np.isin(LABELS, [1, 2, 3])),
        ("label not in 1, 2, 3", ~np.isin(LABELS, [1, 2, 3])),
        ("label > 24", LABELS > 24),
        ("label = 11", LABELS == 11),
    ],
)
def test_the_recall_asked_for_holds_under_any_condition_and_after_removals(large, where, right):
    found = index_folders.search(large, QUERIES, 10, where=[where] if where else [])
    places = KEPT[right[KEPT]]
    assert found.ids.shape == (300, 10)
    assert right[found.ids].all()
    assert not np.isin(found.ids, GONE).any()
    truth, _ = samples.nearest(VECTORS[places], QUERIES, 10)
    exact = Reader(large).manifest.kind == "exact"
    assert samples.overlap(found.ids, places[truth]) >= (1 if exact else 0.94)
    apart = np.linalg.norm(VECTORS[found.ids] - QUERIES[:, None], axis=2)
    np.testing.assert_allclose(found.distances, apart, rtol=1e-5)
    assert (np.diff(found.distances, axis=1) >= 0).all()


def test_a_query_is_answered_alike_alone_and_among_others(large):
    together = index_folders.search(large, QUERIES[:40], 10)
    for row in (0, 17, 39):
        alone = index_folders.search(large, QUERIES[[row]], 10)
        np.testing.assert_allclose(alone.distances[0], together.distances[row], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 10, 400, COUNT])
def test_any_number_of_neighbours_can_be_asked_for(large, k):
    found = index_folders.search(large, QUERIES[:3], k)
    assert found.ids.shape == (3, min(k, len(KEPT)))
    assert [len(set(line)) for line in found.ids.tolist()] == [min(k, len(KEPT))] * 3
    truth, far = samples.nearest(VECTORS[KEPT], QUERIES[:3], min(k, len(KEPT)))
    assert samples.overlap(found.ids, KEPT[truth]) >= 0.9
    np.testing.assert_allclose(found.distances.mean(), far.mean(), rtol=0.02)


def test_all_rows_of_a_narrow_condition_are_found_and_no_more(large):
    found = index_folders.search(large, QUERIES[:3], 500, where=["turn = 5", "label < 25"])
    right = KEPT[(KEPT % 200 == 5) & (LABELS[KEPT] < 25)]
    assert [sorted(line) for line in found.ids.tolist()] == [right.tolist()] * 3
    nothing = index_folders.search(large, QUERIES, 5, where="turn > 1000")
    assert nothing.ids.shape == nothing.distances.shape == (300, 0)
    assert nothing.table.empty


def test_compacting_keeps_what_is_found_and_frees_what_was_removed(large, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(large, folder)
    before = index_folders.inspect(folder)
    old = Reader(folder)
    answers = old.search(QUERIES, 10)
    index_folders.compact(folder)
    after = index_folders.inspect(folder)
    assert after["count"] == before["count"]
    assert after["bytes"]["total"] < before["bytes"]["total"] - len(GONE) * 32 * 4
    assert [one["rows"] for one in after["segments"]] == [len(KEPT)]
    assert sorted(p.name for p in folder.iterdir()) == ["columns.arrow", "index.json", "lock", "removed", "segments"]
    # Who had opened it before goes on as before.
    again = old.search(QUERIES, 10)
    assert np.array_equal(again.ids, answers.ids)
    assert again.carried.equals(answers.carried)
    truth, _ = samples.nearest(VECTORS[KEPT], QUERIES, 10)
    assert samples.overlap(index_folders.search(folder, QUERIES, 10).ids, KEPT[truth]) >= 0.94


def test_the_manifest_says_what_was_measured(large):
    told = json.loads((large / "index.json").read_text())
    assert (told["count"], told["dimensions"], told["ids"]) == (len(KEPT), 32, "integers")
    assert told["model"] == {"label": "shoes/3", "digest": "a" * 64}
    assert told["columns"] == {"label": "int64", "turn": "int64"}
    assert [one["what"] for one in told["generations"]] == ["build", "add", "remove"]
    for one in told["segments"]:
        assert 0.95 <= one["recall"] <= 1
        assert one["queries_per_second"] > 0
        assert one["kind"] == told["asked"]["kind"] or told["asked"]["kind"] is None
    text = index_folders.describe(index_folders.inspect(large))
    assert f"{len(KEPT):,} of 32 dimensions, {len(GONE):,} removed" in text
    assert text.count("segment ") == 2


def test_the_chosen_kind_takes_the_fewest_comparisons(tmp_path, monkeypatch):
    def kind(vectors, **options):
        return searchers.build(vectors, tmp_path / "file", neighbours=10, **{"recall": 0.95} | options).kind

    assert kind(VECTORS[: searchers.SMALL]) == "exact"
    assert kind(VECTORS, recall=1.0) == "exact"
    assert kind(VECTORS) == "inverted"
    # Where lists tell nothing apart, most of them have to be looked into.
    noise = np.random.default_rng(0).normal(size=(6000, 64)).astype(np.float32)
    assert kind(noise, recall=0.99) != "inverted"
    for name in ("product", "scalar", "graph"):
        cheap = dict.fromkeys(searchers.COSTS, 1.0) | {name: 1e-3, "candidate": 0.0}
        if name != "graph":
            cheap["inverted"] = 50.0
        monkeypatch.setattr(searchers, "COSTS", cheap)
        assert kind(VECTORS[:8000]) == name
    monkeypatch.setattr(searchers, "LARGEST", 8000 * 32 / 2)  # a graph takes more
    assert kind(VECTORS[:8000]) != "graph"


# Parts.


@pytest.mark.parametrize("size", [7, 999, 5000])
def test_the_same_rows_make_the_same_folder_in_whatever_parts_they_come(size, tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "BLOCK", 1024)
    carried = pd.DataFrame({"label": LABELS[:5000], "note": [None, "é", "", "long text"] * 1250})
    carried["gaps"] = np.where(np.arange(5000) % 3 == 0, np.nan, np.arange(5000))
    ids = [f"row {number}" for number in range(5000)]

    def made(name, step):
        rows = [slice(at, at + step) for at in range(0, 5000, step)]
        return build(tmp_path / name, *[Part(VECTORS[:5000][one], ids[one], carried[one]) for one in rows])

    one, other = made("one", 5000), made("other", size)
    assert one.digest == other.digest
    assert one.pieces[0].entry.files == other.pieces[0].entry.files


def test_memory_does_not_grow_with_what_is_indexed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_JSON", 1 << 20)  # else as much is set aside for the manifest, and not used

    def rows(count):
        for number in range(count):
            generator = np.random.default_rng(number)
            frame = pd.DataFrame({"path": [f"{number}/{row}.png" for row in range(5000)]})
            yield Part(generator.normal(size=(5000, 64)).astype(np.float32), np.arange(5000) + 5000 * number, frame)

    index_folders.build(tmp_path / "first", rows(1), maker=MAKER, kind="exact")
    tracemalloc.start()
    index_folders.build(tmp_path / "large", rows(60), maker=MAKER, kind="exact")
    reader = Reader(tmp_path / "large")
    reader.search(QUERIES.repeat(2, axis=1), 10, where="path != 3/3.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(size for size, _ in reader.manifest.pieces[0].entry.files.values()) > 80e6
    assert peak < 40e6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["graph", "scalar"])
def test_what_proposes_candidates_is_mapped_and_not_read(kind, tmp_path):
    build(tmp_path / "index", Part(np.tile(VECTORS, (1, 8)).reshape(-1, 128)), kind=kind)
    script = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom sevenfold.index_folders import Reader\n"
        "def anonymous():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('RssAnon'))\n"
        "import faiss; faiss.knn(np.zeros((1, 8), 'f4'), np.zeros((9, 8), 'f4'), 1)\n"
        "before = anonymous()\nreader = Reader(Path(sys.argv[1]))\n"
        "print(anonymous() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "index"], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "index/segments/000001/proposer.faiss").stat().st_size > 5e6
    assert int(done.stdout) * 1024 < 3e6


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (["Zoë", "b", "a much longer name"], "text"),
        (np.array(["x", "y", "z"]), "text"),
        (pd.Series(["x", "y", "z"], dtype="category"), "text"),
        (pa.array(["x", "y\0", "y"]), "text"),
        (np.array([2**40, -1, 0]), "integers"),
        (pd.Series([3, 4, 5], dtype="uint16"), "integers"),
        (None, "positions"),
    ],
)
def test_ids_come_back_as_they_were_given(given, kind, tmp_path):
    build(tmp_path / "index", Part(np.eye(3), given))
    found = index_folders.search(tmp_path / "index", np.eye(3), 1)
    expected = [0, 1, 2] if given is None else given.to_pylist() if isinstance(given, pa.Array) else list(given)
    assert found.ids[:, 0].tolist() == expected
    assert Reader(tmp_path / "index").manifest.form.ids == kind
    assert len(index_folders.remove(tmp_path / "index", found.ids[:1, 0]).pieces) == 1
    assert expected[0] not in index_folders.search(tmp_path / "index", np.eye(3), 3).ids


def test_positions_are_never_given_twice(tmp_path):
    folder = tmp_path / "index"
    build(folder, Part(np.eye(3)), Part(np.eye(3)))
    index_folders.remove(folder, [4, 5])
    index_folders.compact(folder)
    add(folder, Part(-np.eye(3)))
    assert sorted(index_folders.search(folder, np.zeros((1, 3)), 9).ids[0]) == [0, 1, 2, 3, 6, 7, 8]
    index_folders.compact(folder)
    add(folder, Part(2 * np.eye(3)[:1]))
    assert index_folders.search(folder, [[2, 0, 0]], 1).ids.tolist() == [[9]]


def test_an_id_that_was_removed_finds_its_new_vector_alone(tmp_path):
    folder = tmp_path / "index"
    build(folder, part(["a", "b"], np.eye(2), [0, 1]))
    index_folders.remove(folder, ["a"])
    add(folder, part(["a"], [[5, 5]], [2]))
    for _ in range(2):
        assert contents(folder) == {"b": (1.0, 1), "a": (pytest.approx(50**0.5, abs=1e-3), 2)}
        index_folders.compact(folder)


def test_what_is_not_ours_is_not_deleted(tmp_path):
    folder = tmp_path / "index"
    build(folder, Part(np.eye(3)))
    for name in ("segments/notes.txt", "removed/000x", "segments/.hidden"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    (tmp_path / ".index.mine").mkdir()
    index_folders.remove(folder, [0])
    index_folders.compact(folder)
    assert sorted(path.name for path in folder.glob("*/*")) == [".hidden", "000003", "000x", "notes.txt"]
    assert (tmp_path / ".index.mine").is_dir()


def test_an_empty_folder_finds_nothing_and_can_be_filled_again(tmp_path):
    folder = tmp_path / "index"
    build(folder, part(["a", "b"], np.eye(2), [0, 1]))
    index_folders.remove(folder, ["a", "b"])
    for _ in range(2):
        found = index_folders.search(folder, np.ones((4, 2)), 3, where="label = 1")
        assert found.ids.shape == (4, 0)
        assert found.carried.columns.tolist() == ["label", "path"]
        index_folders.compact(folder)
    assert index_folders.inspect(folder)["segments"] == []
    add(folder, part(["a"], [[2, 2]], [7]))
    assert index_folders.search(folder, np.ones((1, 2)), 3, where="label = 7").ids.tolist() == [["a"]]
    assert index_folders.search(folder, np.ones((0, 2)), 3).ids.shape == (0, 1)


def test_what_is_carried_comes_back_in_its_own_types(tmp_path):
    frame = pd.DataFrame(
        {
            "whole": [1, 2, 3],
            "share": np.array([0.5, np.nan, 1.5], np.float32),
            "kind": pd.Categorical(["a", "b", "a"]),
            "when": pd.to_datetime(["2026-01-01", "2026-01-02", None]),
            "sure": [True, False, True],
            "id": ["carried", "along", "too"],
        }
    )
    build(tmp_path / "index", Part(np.eye(3), None, frame))
    found = index_folders.search(tmp_path / "index", np.eye(3), 1)
    expected = frame.assign(kind=frame["kind"].astype(str))
    pd.testing.assert_frame_equal(found.carried, expected, check_dtype=False)
    assert found.table.columns.tolist() == ["query", "rank", "id", "distance", *frame.columns[:-1], "carried_id"]


def test_columns_may_show_their_type_late(tmp_path):
    rows = [
        pd.DataFrame({"a": [None, None], "b": [1, 2], "c": [None, None]}),
        pd.DataFrame({"c": [None, None], "b": [0.5, None], "a": ["x", None]}),
    ]
    made = build(tmp_path / "index", *[Part(np.eye(4)[2 * n : 2 * n + 2], None, one) for n, one in enumerate(rows)])
    assert [str(kind) for kind in made.form.columns.types] == ["large_string", "double", "large_string"]
    found = index_folders.search(tmp_path / "index", np.eye(4), 1)
    assert found.carried["b"].tolist()[:3] == [1, 2, 0.5]
    add(tmp_path / "index", Part(np.ones((1, 4)), None, pd.DataFrame({"a": ["y"], "b": [3], "c": [None]})))
    assert index_folders.search(tmp_path / "index", np.ones((1, 4)), 9, where="a = y").table["b"].tolist() == [3]


# What is refused.


def frame(**columns):
    return pd.DataFrame(columns)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "there are 0 vectors; expected 1 or more"),
        ([Part(np.zeros(3))], r"vectors have shape \(3,\); expected \(n, dimensions\)"),
        ([Part(np.eye(3)), Part(np.eye(4))], r"vectors have shape \(4, 4\); expected \(n, 3\)"),
        ([Part(np.eye(2)), Part([[0, 1], [np.nan, 1], [np.inf, 1e300]])], r"2 vectors are not finite \(first: row 3\)"),
        ([Part(np.eye(2), [1])], "there are 1 ids for 2 vectors; expected one each"),
        ([Part(np.eye(2), [4, 5]), Part(np.eye(2), [6, 4])], r"1 id \(4\) is there twice; expected each id once"),
        ([Part(np.eye(3), ["x", "y", "x"])], r"1 id \('x'\) is there twice; expected each id once"),
        ([Part(np.eye(2), [0.5, 1.5])], "ids are of type double; expected integers or text"),
        ([Part(np.eye(2), [True, False])], "ids are of type bool; expected integers or text"),
        ([Part(np.eye(2), ["a", None])], r"1 ids are missing \(first: row 1\)"),
        ([Part(np.eye(2), ["a", 1])], "ids are of mixed types"),
        (
            [Part(np.eye(2), ["a", "b"]), Part(np.eye(2), [1, 2])],
            "ids are integers; expected text, as those of the rows",
        ),
        ([Part(np.eye(2), ["a", "b"]), Part(np.eye(2))], "ids are not given; expected text"),
        ([Part(np.eye(2)), Part(np.eye(2), [1, 2])], "ids are integers; expected positions, .*; leave them out"),
        ([Part(np.eye(2), np.array([2**63, 1], np.uint64))], "ids reach 9223372036854775808; expected less"),
        ([Part(np.eye(2), None, frame(a=[1]))], "there are 1 rows of carried columns for 2 vectors"),
        (
            [Part(np.eye(2), None, frame(a=[1, 2])), Part(np.eye(2), None, frame(b=[1, 2]))],
            "carried columns differ: a is missing, b is new; expected a; give the same columns",
        ),
        ([Part(np.eye(2), None, frame(a=[1, 2])), Part(np.eye(2))], "a is missing; expected a"),
        (
            [Part(np.eye(2), None, frame(a=[1, 2])), Part(np.eye(2), None, frame(a=["x", "y"]))],
            "carried columns change their type from part to part .*a.*; expected one for each; convert them",
        ),
        ([Part(np.eye(2), None, frame(a=[1, "x"]))], "carried columns hold values of mixed types .*a.*; convert them"),
        (
            [Part(np.eye(2), None, pd.DataFrame(np.eye(2), columns=["a", "a"]))],
            r"carried columns are there twice \(a\); expected each once",
        ),
    ],
)
def test_what_no_folder_can_be_built_of_is_named_and_leaves_nothing(parts, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "index", *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recall": 1.5}, "recall is 1.5; expected a share above 0"),
        ({"neighbours": 0}, "neighbours is 0; expected 1 or more"),
        ({"kind": "ball"}, "kind is 'ball'; expected one of exact, graph, inverted, product, scalar"),
    ],
)
def test_options_that_mean_nothing_are_named(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "index", Part(np.eye(2)), **options)


def test_additions_that_do_not_fit_change_nothing(tmp_path):
    folder = tmp_path / "index"
    build(folder, part([1, 2], np.eye(2), [0, 1]))
    before = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
    for rows, message in [
        (part([2, 3], np.eye(2), [0, 1]), r"1 id \(2\) is in .* already; expected new ones; remove those first"),
        (part([3], np.eye(3)[:1], [0]), r"vectors have shape \(1, 3\); expected \(n, 2\)"),
        (part([3], np.eye(2)[:1]), "label is missing, path is missing; expected label, path"),
        (part([3], np.eye(2)[:1], [0.5]), "carried column 'label' is of type double .*; expected label: int64"),
        (part(["x"], np.eye(2)[:1], [0]), "ids are text; expected integers, as those of the rows before"),
    ]:
        with pytest.raises(ValueError, match=message):
            add(folder, rows)
    with pytest.raises(ValueError, match=r"1 id \('1'\) is no id of .*; expected integers"):
        index_folders.remove(folder, ["1"])
    with pytest.raises(LookupError, match=r"2 ids \(7, 8\) are not in .*; expected some of its 2"):
        index_folders.remove(folder, [1, 7, 8])
    with pytest.raises(LookupError, match="not in"):
        index_folders.remove(folder, [2**70])
    assert contents(folder) == {1: (1.0, 0), 2: (1.0, 1)}
    assert add(folder).generation == index_folders.remove(folder, []).generation == 1
    assert sorted(path for path in folder.rglob("*") if not path.name.startswith(".")) == before


def test_another_model_is_refused_with_the_labels_of_both(tmp_path):
    folder = tmp_path / "index"
    build(folder, Part(np.eye(2)))
    message = (
        r"holds vectors of shoes/3 \(aaaaaaaaaaaa\); expected those of hats/1 \(bbbbbbbbbbbb\), .*; name the first"
    )
    with pytest.raises(ValueError, match=message):
        index_folders.add(folder, [Part(np.eye(2))], maker=OTHER)
    with pytest.raises(ValueError, match=message):
        index_folders.search(folder, np.eye(2), 1, maker=OTHER)
    # The digest decides; the same bundle may be called otherwise.
    assert len(Reader(folder, maker=Maker("renamed", MAKER.digest))) == 2


@pytest.mark.parametrize(
    ("vectors", "k", "where", "message"),
    [
        (np.eye(3), 1, [], r"vectors have shape \(3, 3\); expected \(n, 2\)"),
        ([[0, np.inf]], 1, [], "1 vectors are not finite"),
        (np.eye(2), 0, [], "k is 0; expected 1 or more"),
        (np.eye(2), 1, ["label ~ 3"], "'label ~ 3' is no condition"),
        (np.eye(2), 1, "colour = red", "there is no column 'colour'; there are: label, path"),
    ],
)
def test_a_question_without_sense_is_named(vectors, k, where, message, tmp_path):
    build(tmp_path / "index", part([1], [[0, 0]], [0]))
    with pytest.raises(ValueError, match=message):
        index_folders.search(tmp_path / "index", np.asarray(vectors), k, where=where)


def test_a_folder_is_not_built_over_another_nor_read_where_there_is_none(tmp_path):
    build(tmp_path / "index", Part(np.eye(2)))
    with pytest.raises(FileExistsError, match="is there already; expected a new name"):
        build(tmp_path / "index", Part(np.eye(2)))
    for attempt in (Reader, index_folders.inspect, index_folders.compact):
        with pytest.raises(FileNotFoundError, match=r"holds no index\.json; expected an index folder"):
            attempt(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_damage_is_named(tmp_path):
    folder = tmp_path / "index"
    build(folder, part(range(100), VECTORS[:100], range(100)), kind="graph")
    index_folders.remove(folder, [3])
    segment = folder / "segments" / "000001"
    for file in [*segment.iterdir(), folder / "removed" / "000002-000001.bits"]:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert any(f"{file.name} is damaged" in problem for problem in index_folders.inspect(folder)["damage"])
        with pytest.raises(ValueError, match=f"is no sound index: .*{file.name} is damaged: its SHA-256"):
            index_folders.compact(folder)
        file.write_bytes(content[:-1])
        if file.parent == segment:
            with pytest.raises(ValueError, match=r"bytes; expected .*; it is damaged"):
                Reader(folder)
        file.unlink()
        with pytest.raises(ValueError, match=f"is no sound index: .*{file.name} is missing"):
            Reader(folder)
        file.write_bytes(content)
    assert index_folders.inspect(folder)["damage"] == []
    told = json.loads((folder / "index.json").read_text())
    for change in ({"format": 99}, {"model": 3}, {"segments": [{}]}, {"dimensions": "many"}):
        (folder / "index.json").write_text(json.dumps(told | change))
        with pytest.raises(ValueError, match=r"has index format 99; this version reads 1|is no sound index"):
            Reader(folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"is no sound index: index\.json is not valid JSON .*; build it again"):
        Reader(folder)
    told["segments"][0]["name"] = "../../outside"
    (folder / "index.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="is no sound index"):
        Reader(folder)


# Others at work.


def test_of_two_writers_one_waits_and_a_dead_one_holds_nothing(tmp_path):
    folder = tmp_path / "index"
    build(folder, Part(np.eye(2)))
    script = (
        "import sys\nfrom pathlib import Path\nfrom sevenfold import index_folders\n"
        "with index_folders._writing(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout.readline() == "held\n"
        for attempt in (lambda: add(folder, Part(np.eye(2))), lambda: index_folders.compact(folder)):
            with pytest.raises(
                RuntimeError, match=r"another process is writing to .*; wait for it, and run this again"
            ):
                attempt()
        assert len(Reader(folder)) == 2  # reading needs no lock
        other.kill()
    assert add(folder, Part(np.eye(2))).count == 4


CHANGES = """
import sys
from pathlib import Path
from sevenfold import index_folders
from tests.test_index_folders import batch, MAKER
folder = Path(sys.argv[1])
for number in range(1, 9):
    index_folders.add(folder, [batch(number)], maker=MAKER)
    index_folders.remove(folder, list(range(20 * (number - 1), 20 * (number - 1) + 10)))
    if number % 3 == 0:
        index_folders.compact(folder)
"""


def batch(number):
    ids = np.arange(20 * number, 20 * number + 20)
    return part(ids.tolist(), VECTORS[ids], (ids % 5).tolist())


@pytest.mark.slow
def test_searches_see_whole_generations_while_another_process_changes_the_folder(tmp_path):
    folder = tmp_path / "index"
    build(folder, batch(0))
    seen, wrong = {}, []
    done = threading.Event()

    def look():
        while not done.is_set():
            try:
                reader = Reader(folder, maker=MAKER)
                found = reader.search(VECTORS[:1], 1000)
                ids = frozenset(found.ids[0].tolist())
                if seen.setdefault(reader.manifest.generation, ids) != ids or len(ids) != len(reader):
                    wrong.append((reader.manifest.generation, ids))
                np.testing.assert_array_equal(found.carried["label"], found.ids[0] % 5)
            except Exception as error:
                wrong.append(error)
                raise

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        subprocess.run([sys.executable, "-c", CHANGES, folder], env=ELSEWHERE, check=True, timeout=300)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(seen) > 3
    rows, generation, expected = set(range(20)), 1, {}
    expected[1] = frozenset(rows)
    for number in range(1, 9):
        rows |= set(range(20 * number, 20 * number + 20))
        expected[generation := generation + 1] = frozenset(rows)
        rows -= set(range(20 * (number - 1), 20 * (number - 1) + 10))
        expected[generation := generation + 1] = frozenset(rows)
        if number % 3 == 0:
            expected[generation := generation + 1] = frozenset(rows)
    assert seen == {number: expected[number] for number in seen}


# Kills.

KILLS = """
import os, shutil, signal, sys
from pathlib import Path
from tests.test_index_folders import ACTS, start
room, act = Path(sys.argv[1]), sys.argv[2]
os.fsync = lambda handle: None  # a kill loses nothing that was written, and most of the time would be spent here
mutations = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}

def die_after(steps, folder):
    def hook(event, arguments):
        nonlocal steps
        touches = event == "open" and isinstance(arguments[0], str) and str(folder.parent) in arguments[0]
        if touches or event in mutations:
            steps -= 1
            if steps < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

steps = 0
while True:
    folder = room / f"{act}-{steps}" / "index"
    folder.parent.mkdir()
    if act != "build":
        shutil.copytree(room / "start", folder)
    if not (child := os.fork()):
        die_after(steps, folder)
        ACTS[act](folder)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    steps += 1
print(steps)
"""


def start(folder):
    build(folder, batch(0), batch(1))
    add(folder, batch(2))
    index_folders.remove(folder, [1, 2, 3, 41])


ACTS = {
    "build": lambda folder: build(folder, batch(0), batch(1)),
    "add": lambda folder: add(folder, batch(3), batch(4)),
    "remove": lambda folder: index_folders.remove(folder, [5, 42]),
    "compact": index_folders.compact,
}


@pytest.mark.slow
@pytest.mark.parametrize("act", ACTS)
def test_a_kill_at_any_step_leaves_the_old_generation_or_the_new(act, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    start(tmp_path / "start")
    old = None if act == "build" else contents(tmp_path / "start")
    if act != "build":
        shutil.copytree(tmp_path / "start", tmp_path / "new")
    ACTS[act](tmp_path / "new")
    new = contents(tmp_path / "new")
    done = subprocess.run(
        [sys.executable, "-c", KILLS, tmp_path, act], env=ELSEWHERE, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
    ends = {"old": 0, "new": 0}
    for number in range(int(done.stdout)):
        folder = tmp_path / f"{act}-{number}" / "index"
        if act == "build":
            ends["new" if folder.exists() else "old"] += 1
            with pytest.raises(FileExistsError) if folder.exists() else contextlib.nullcontext():
                ACTS[act](folder)
            assert contents(folder) == new
            assert index_folders.inspect(folder)["damage"] == []
            assert [path.name for path in folder.parent.iterdir()] == ["index"]
            continue
        found = contents(folder)
        assert found in (old, new)
        assert index_folders.inspect(folder)["damage"] == []
        ends["new" if Reader(folder).manifest.generation > 3 else "old"] += 1
        if act != "compact" and found == old:
            ACTS[act](folder)  # as if it had never been tried
        index_folders.compact(folder)
        assert contents(folder) == new
        assert index_folders.inspect(folder)["bytes"]["freed by compacting"] == 0
        assert not list(folder.glob(".*"))
    assert min(ends.values()) > 0
