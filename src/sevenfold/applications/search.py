"""Similarity search: whether the rows that are nearest in the code are the right ones, and an index that finds them fast.

The vectors are the codes, centred and, where the validation rows find better by it, whitened by some power and brought to
length 1. Nearness of networks' codes is dominated by their few widest directions; the powers give the others a say.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from sevenfold import files, pictures
from sevenfold.applications.base import (
    Application,
    Columns,
    Rival,
    Scores,
    codes,
    flat,
    require_at_least,
)
from sevenfold.datasets.base import ImageSchema, Schema, Split
from sevenfold.models.base import Autoencoder
from sevenfold.pictures import Picture

CURVE = (1, 5, 20, 50)
"""Numbers of neighbours at which precision is told beside the primary metric."""

LARGEST_SAMPLE = 10_000
"""Validation rows by which the form of the vectors is chosen; each is compared with all others."""

POWERS = (0.0, 0.25, 0.5)
"""Of the inverse variances by which whitening scales the principal directions: 0 leaves them, 0.5 makes them alike."""

DIMENSIONS = (4, 8, 16, 32, 64, 128)
"""Of the principal components that rivals choose from."""

FOLDS = 5
"""Parts of the validation rows; each is judged by the form that the others chose."""

Kind = Literal["exact", "inverted", "graph"]
"""How an index finds neighbours.

- "exact" compares with every vector.
- "inverted" looks into the lists whose centres are nearest, by 4 bits per dimension, and compares the best of what it meets
  exactly (product quantisation with one dimension each: Jegou et al., 2011; in registers: Andre et al., 2017).
- "graph" walks from neighbour to neighbour (HNSW: Malkov and Yashunin, 2020).
"""

FORMAT = 1
_FILES = ("ids.npy", "kept.npy", "vectors.faiss")


class Search(Application):
    """Judges the nearest training rows of each row: by its label or, without one, by its neighbours in the raw values."""

    primary = "precision"
    operation = "index"
    learns_from = "all"

    def __init__(self, *, neighbours: int, recall: float) -> None:
        """Set up the contest.

        Args:
            neighbours: how many of the nearest training rows are judged, and how many an index is tuned to find.
            recall: share of the truly nearest vectors that the index has to find, above 0 and at most 1.

        Raises:
            ValueError: an option is out of range.
        """
        require_at_least(1, neighbours=neighbours)
        _require_recall(recall)
        super().__init__({"neighbours": neighbours, "recall": recall})
        self.neighbours = neighbours
        self.recall = recall

    def unsuited(self, *, code: int | None, images: bool | None, labelled: bool, normal: bool) -> str | None:
        return None

    def calibrate(self, model: Autoencoder, train: Split, validation: Split) -> Self:
        """Choose the form of the vectors: that by which validation rows find their like among the other ones.

        Among each other, so that labels of training rows judge alone, and teach nothing.
        """
        forms = _forms(codes(model, train.x, train.observed), POWERS)
        return self.with_state(forms[self._best(self._likeness(model, forms, validation, train))])

    def held_out(self, model: Autoencoder, validation: Split, train: Split) -> Scores:
        """Judge each fifth of the rows in the form that the other four chose; all alike where only some of them chose."""
        forms = _forms(codes(model, train.x, train.observed), POWERS)
        found = self._likeness(model, forms, validation, train)
        if found.shape[1] < FOLDS or found.shape[1] < len(validation):
            return self.evaluate(model, validation, train)
        fold = np.arange(len(validation)) % FOLDS
        chosen = [self._best(found[:, fold != part]) for part in range(FOLDS)]
        judged = {form: self.with_state(forms[form]).evaluate(model, validation, train) for form in set(chosen)}
        if len(judged) == 1:
            return judged[chosen[0]]
        parts = [judged[form] for form in chosen]
        values = {n: np.choose(fold, [one.values[n] for one in parts]) for n in parts[0].values}
        metrics = {n: float(np.mean([one.metrics[n] for one in parts])) for n in parts[0].metrics}
        return Scores(metrics | {self.primary: self.statistic(values)}, values)

    def _likeness(
        self, model: Autoencoder, forms: Sequence[Mapping[str, np.ndarray]], validation: Split, train: Split
    ) -> np.ndarray:
        """Return (forms, n): the precision of some rows in each form, each row looking among the others."""
        rows = _some(validation)
        z = codes(model, rows.x, rows.observed)
        return self.likeness([_formed(z, form) for form in forms], rows, _tells(train, self.neighbours))

    def likeness(self, candidates: Sequence[np.ndarray], rows: Split, labelled: bool) -> np.ndarray:
        """Return (candidates, n): the precision of each row's nearest other rows, by vectors (n, dimensions) of each.

        Args:
            labelled: whether the label says what is right.
        """
        k = min(self.neighbours, len(rows) - 1)
        if k < 1:
            return np.zeros((len(candidates), len(rows)))
        right = _judge(labelled, rows, rows, k, apart=True)
        return np.stack([right(_others(vectors, k)).mean(axis=1) for vectors in candidates])

    @staticmethod
    def _best(found: np.ndarray) -> int:
        """Return the first of the best forms; rounded, since where no row differs the order of sums should not decide."""
        return int(np.argmax(np.round(found.mean(axis=1), 9)))

    def evaluate(self, model: Autoencoder, split: Split, train: Split) -> Scores:
        return self.scores(self._vectors(model, split), split, self._vectors(model, train), train, None)

    def scores(self, queries: np.ndarray, split: Split, vectors: np.ndarray, train: Split, kind: Kind | None) -> Scores:
        """Judge the vectors of a split, (n, dimensions), that look for those of `train` in an index of some kind."""
        index = Index.build(
            vectors, np.arange(len(train)), model="", recall=self.recall, neighbours=self.neighbours, kind=kind
        )
        most = min(max(self.neighbours, *CURVE), len(train))
        right = _judge(_tells(train, self.neighbours), split, train, most, apart=False)
        found, distances = index.query(queries, self.neighbours)
        values = {"precision": right(found).mean(axis=1)}
        metrics = {
            self.primary: self.statistic(values),
            "recall": float(_recalled(found, distances, *_nearest(vectors, queries, found.shape[1])).mean()),
            "bytes_per_vector": index.bytes_per_vector,
        }
        longer = index.query(queries, most)[0]
        metrics |= {f"precision_at_{k}": float(right(longer[:, :k]).mean()) for k in CURVE if k <= most}
        return Scores(metrics, values)

    def statistic(self, values: Mapping[str, np.ndarray]) -> float:
        return float(values["precision"].mean())

    def rivals(self) -> dict[str, Rival]:
        return {
            "raw": _Linear(self, (None,), "exact"),
            "pca": _Linear(self, DIMENSIONS, "exact"),
            "pca_hnsw": _Linear(self, DIMENSIONS, "graph"),
        }

    def _vectors(self, model: Autoencoder, split: Split) -> np.ndarray:
        return _formed(codes(model, split.x, split.observed), self.state)

    def predict(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> Columns:
        """Return the column `vector`, (n, dimensions) float32: what an `Index` holds, and what it is asked for."""
        return {"vector": _formed(codes(model, x, observed), self.state)}

    def pictures(self, model: Autoencoder, split: Split, train: Split, schema: Schema) -> list[Picture]:
        """Show what some rows find, where they are images, and how the precision depends on label or distance."""
        rows = np.linspace(0, len(split) - 1, min(6, len(split))).astype(int)
        queries, vectors = self._vectors(model, split), self._vectors(model, train)
        found, distances = _nearest(vectors, queries, min(self.neighbours, len(train)))
        labelled = _tells(train, self.neighbours)
        right = _judge(labelled, split, train, found.shape[1], apart=False)(found)
        made = [_by_label(split, right) if labelled else _by_distance(distances, right)]
        if isinstance(schema, ImageSchema):
            shown = found[rows, :8]
            images = [np.concatenate([split.x[[row]], train.x[line]]) for row, line in zip(rows, shown, strict=True)]
            captions = [
                [
                    "asked",
                    *(f"{'right' if ok else 'wrong'}{_label(train, at)}" for at, ok in zip(line, marks, strict=True)),
                ]
                for line, marks in zip(shown, right[rows, :8], strict=True)
            ]
            names = [f"row {split.ids[row]}{_label(split, row)}" for row in rows]
            what = "have its label" if labelled else "are among the nearest in the raw values"
            description = (
                f"Each line begins with a test image; its nearest training images follow, right where they {what}."
            )
            made.insert(
                0, pictures.grid("neighbours", "Test images and what they find", description, images, names, captions)
            )
        return made

    def comparison(self, scores: Mapping[str, Scores], chosen: str) -> list[Picture]:
        """Draw the precision by the number of neighbours, and against the memory that a vector takes."""
        rivals = self.rivals()

        def draw(left: Any, right: Any) -> None:
            alike: dict[tuple[float, float], list[str]] = {}  # those whose names would lie upon each other
            for name, one in scores.items():
                of = {k: one.metrics[f"precision_at_{k}"] for k in CURVE if f"precision_at_{k}" in one.metrics}
                of[self.neighbours] = one.metrics[self.primary]
                colour = pictures.OURS if name == chosen else pictures.THEIRS if name in rivals else pictures.THIRD
                style = {
                    "color": colour,
                    "linestyle": "--" if name in rivals else "-",
                    "linewidth": 2 if name == chosen else 1,
                }
                left.plot(sorted(of), [of[k] for k in sorted(of)], marker="o", markersize=3, **style)
                at = (one.metrics["bytes_per_vector"], one.metrics[self.primary])
                right.plot(*at, "s" if name in rivals else "o", color=colour)
                alike.setdefault((at[0], round(at[1], 3)), []).append(name)
            for at, names in alike.items():
                right.annotate(", ".join(names), at, xytext=(4, 3), textcoords="offset points", fontsize=7)
            left.set(xlabel="neighbours", ylabel="precision")
            right.set(xlabel="bytes per vector", ylabel=f"precision of {self.neighbours}")
            right.set_xscale("log", base=2)
            right.xaxis.set_major_formatter("{x:.0f}")
            right.margins(x=0.25)

        description = (
            f"Precision on the test rows, by the number of neighbours and by bytes per vector; blue is {chosen}, grey the other "
            "candidates, brown and dashed the rivals. "
            + "; ".join(
                f"{n}: {s.metrics[self.primary]:.3f} at {s.metrics['bytes_per_vector']:.0f} bytes"
                for n, s in scores.items()
            )
        )
        return [pictures.plot("precision", "How many of the rows found are right", description, draw, panels=2)]


def _require_recall(recall: float) -> None:
    if not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}; expected a share above 0 and at most 1; 0.99 is a start")


def _some(rows: Split) -> Split:
    """Return at most `LARGEST_SAMPLE` of the rows, evenly spread."""
    if len(rows) <= LARGEST_SAMPLE:
        return rows
    return rows.take(np.linspace(0, len(rows) - 1, LARGEST_SAMPLE).astype(int))


def _label(split: Split, row: int) -> str:
    return "" if split.y is None else f": {split.y[row]}"


# What vectors are made of codes.


def _forms(z: np.ndarray, powers: Sequence[float]) -> list[dict[str, np.ndarray]]:
    """Return every form that vectors of these codes (n, code) may have, the plainest first: arrays for `_formed`."""
    center = z.mean(axis=0, dtype=np.float64)
    centred = z - center
    variance, directions = np.linalg.eigh(centred.T @ centred / len(z))
    # Directions in which codes do not vary hold rounding errors alone, and are not to be blown up.
    variance = np.maximum(variance, 1e-6 * variance.max())
    mean = variance.mean()
    made = []
    for power in powers if mean > 0 else (0.0,):
        # In units of the mean variance, so that vectors keep their size.
        matrix = directions * (variance / mean) ** -power if power else np.eye(len(center))  # (code, dimensions)
        for unit in (False, True):
            form = {"center": center, "matrix": matrix, "unit": np.array([float(unit)])}
            made.append({name: value.astype(np.float32) for name, value in form.items()})
    return made


def _formed(z: np.ndarray, form: Mapping[str, np.ndarray]) -> np.ndarray:
    """Turn codes (n, code) into vectors (n, dimensions) float32 of a form."""
    vectors = (z - form["center"]) @ form["matrix"]
    if form["unit"][0]:
        # A code at the very center has no direction, and stays there.
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.ascontiguousarray(vectors, np.float32)


# What is right.


def _tells(train: Split, neighbours: int) -> bool:
    """Say whether there is a label that rows can share: most rows' classes have more than `neighbours` rows."""
    if train.y is None:
        return False
    _, counts = np.unique(train.y.astype(str), return_counts=True)
    return bool(2 * counts[counts > neighbours].sum() > len(train))


def _judge(labelled: bool, split: Split, train: Split, most: int, *, apart: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Return the verdict on what the rows of a split found: positions in `train` (n, k) -> (n, k) bool, k up to `most`.

    Args:
        labelled: whether the label says what is right; else it is what is near in the raw values.
        apart: whether both are the same rows, of which none is its own neighbour.
    """
    if labelled:
        assert train.y is not None
        assert split.y is not None
        theirs, own = train.y.astype(str), split.y.astype(str)
        return lambda found: theirs[found] == own[:, None]
    reference, rows = flat(train).astype(np.float32), flat(split).astype(np.float32)
    raw = _others(rows, most) if apart else _nearest(reference, rows, most)[0]  # (n, most)

    def among_the_nearest(found: np.ndarray) -> np.ndarray:
        equal = (found == raw[:, [j]] for j in range(found.shape[1]))
        return functools.reduce(np.logical_or, equal, np.zeros(found.shape, bool))

    return among_the_nearest


# The index.

SMALL = 4096
"""Vectors up to which none but the exact search is worth its while."""

QUERIES = 2000
"""Vectors that are held back, at most, to measure the recall of what is built of the others."""

LINKS, BREADTH = 16, 100
"""Of a graph: each vector's links, and the candidates among which they are chosen."""

WIDEST = 1024
"""Candidates that a walk through a graph keeps, and candidates per neighbour that are compared exactly, at most."""

COSTS: Mapping[str, float] = {"exact": 1 / 16, "list": 1 / 8, "candidate": 2.0, "graph": 2.5}
"""What a comparison takes, in comparisons of two float32 vectors that lie in the cache.

A matrix product compares with all, lists are read in order and 4 bits at a time, candidates and a graph's vectors lie anywhere.
As found on one processor; a stopwatch would choose another index of the same vectors every day.
"""

WORTH_A_GRAPH = 4000.0
"""Comparisons from which on a graph is tried, since it takes so long to build."""


class Index:
    """Vectors under the user's own ids, and the nearest of them by Euclidean distance.

    Everything runs on one thread: the same vectors and ids in the same order make the same index.

    kind: how it searches.
    settings: what was tuned: "lists", "probes" and "factor" of an inverted one, "breadth" of a graph.
    model: the digest of the model that made the vectors. Vectors of another one mean something else.
    dimensions: of a vector.
    wanted, neighbours: the share of the nearest `neighbours` that a search has to find.
    recall: the share that held-out vectors found when the index was built.
    """

    def __init__(
        self,
        *,
        kind: Kind,
        settings: Mapping[str, int],
        model: str,
        wanted: float,
        neighbours: int,
        recall: float,
        built: int,
        forced: bool,
        ids: np.ndarray,
        kept: np.ndarray,
        searcher: Any,
    ) -> None:
        """Take the parts; `build` and `load` make them. kept: (n,) bool, False for what was removed; searcher: of FAISS."""
        self.kind: Kind = kind
        self.settings = dict(settings)
        self.model = model
        self.wanted, self.neighbours, self.recall = wanted, neighbours, recall
        self._built, self._forced = built, forced
        self._ids, self._kept, self._searcher = ids, kept, searcher

    @property
    def dimensions(self) -> int:
        return int(self._searcher.d)

    def __len__(self) -> int:
        return int(self._kept.sum())

    @property
    def ids(self) -> np.ndarray:
        """The ids that can be found, (n,), in the order in which they are kept."""
        kept: np.ndarray = self._ids[self._kept]
        return kept

    @property
    def bytes_per_vector(self) -> float:
        """Memory that the index takes for each vector, its id not counted."""
        return _bytes(self.kind, self.settings, self.dimensions, len(self._ids)) / max(1, len(self))

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        ids: np.ndarray,
        *,
        model: str,
        recall: float,
        neighbours: int,
        kind: Kind | None = None,
    ) -> Self:
        """Build the index that takes the fewest comparisons of those that find enough.

        Some of the vectors are held back, look for their neighbours among the others, and join them at the end. The
        recall that they have to reach is `recall` by two standard errors of what was measured.

        Args:
            vectors: (n, dimensions), finite.
            ids: (n,) integers or text, none twice.
            model: the digest of the model that made the vectors.
            recall: share of the truly nearest that a search has to find; 1 asks for the exact search.
            neighbours: how many a search asks for. Fewer are found as surely, more less so.
            kind: take this one, whether or not another would be faster.

        Raises:
            ValueError: vectors, ids or an option are not as above.
        """
        require_at_least(1, neighbours=neighbours)
        _require_recall(recall)
        if kind not in (None, *get_args(Kind)):
            raise ValueError(
                f"kind is {kind!r}; expected one of {', '.join(get_args(Kind))}; leave it out to have one chosen"
            )
        if not len(vectors):
            raise ValueError("there are 0 vectors; expected 1 or more; give the rows that are to be found")
        vectors = _vectors(vectors, None)
        ids = _checked_ids(ids, len(vectors))
        count = len(vectors)
        held = np.zeros(count, bool)
        held[np.linspace(0, count - 1, min(QUERIES, count // 4)).astype(int)] = True
        rest, queries = vectors[~held], vectors[held]
        exact = _Tuned("exact", {}, 1.0, COSTS["exact"] * count, None)
        tuned = [exact]
        if kind in ("inverted", "graph") or (kind is None and count > SMALL and recall < 1):
            tune = functools.partial(_tuned, rest, queries, wanted=recall, neighbours=neighbours)
            tuned = [tune(one) for one in ("inverted", "graph") if kind == one]
            if kind is None:
                tuned = [exact, tune("inverted")]
                if min(one.cost for one in tuned) > WORTH_A_GRAPH:
                    tuned.append(tune("graph"))
        # One that was asked for is given even if it misses what was wanted: its `recall` says by how much.
        best = min(tuned, key=lambda one: one.cost)
        if best.searcher is None:
            order, searcher = np.arange(count), _flat(vectors)
        else:
            order, searcher = np.concatenate([np.flatnonzero(~held), np.flatnonzero(held)]), best.searcher
            searcher.add(queries)
        return cls(
            kind=best.kind,
            settings=best.settings,
            model=model,
            wanted=recall,
            neighbours=neighbours,
            recall=best.recall,
            built=count,
            forced=kind is not None,
            ids=ids[order],
            kept=np.ones(count, bool),
            searcher=searcher,
        )

    def add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        """Take in more vectors (n, dimensions) under new ids; one that was removed is new again.

        The index is built anew when it holds more than twice what it was built with: what was tuned then has worn out.

        Raises:
            ValueError: the vectors have another size, or an id is there already.
        """
        vectors = _vectors(vectors, self.dimensions)
        ids = _checked_ids(ids, len(vectors))
        if ids.dtype.kind != self._ids.dtype.kind:
            kinds = {"i": "integers", "U": "text"}
            raise ValueError(
                f"ids are {kinds[ids.dtype.kind]}; this index has {kinds[self._ids.dtype.kind]}; convert them"
            )
        if len(there := ids[np.isin(ids, self.ids)]):
            raise ValueError(
                f"{len(there)} ids are in the index already (first: {there[0]}); expected new ones; remove those first"
            )
        self._searcher.add(vectors)
        self._ids = np.concatenate([self._ids, ids])
        self._kept = np.concatenate([self._kept, np.ones(len(ids), bool)])
        self._renew()

    def remove(self, ids: np.ndarray) -> None:
        """Take out these ids; no search finds them from then on.

        Their vectors stay, unseen, until they are a quarter of all: a graph cannot let go of single ones. Then the index is
        built anew from the others.

        Raises:
            KeyError: one of them is not there.
            ValueError: none would be left.
        """
        ids = np.unique(np.asarray(ids))
        hit = self._kept & np.isin(self._ids, ids)
        if hit.sum() < len(ids):
            missing = ids[~np.isin(ids, self._ids[hit])]
            raise KeyError(
                f"{len(missing)} ids are not in the index (first: {missing[0]}); expected some of its {len(self)}"
            )
        if hit.sum() == len(self):
            raise ValueError(
                f"all {len(self)} vectors would be removed; expected at least one to stay; delete the index instead"
            )
        self._kept = self._kept & ~hit
        self._renew()

    def _renew(self) -> None:
        worn = len(self._ids) > 2 * self._built or 4 * len(self) < 3 * len(self._ids)
        if not worn:
            return
        vectors = self._searcher.reconstruct_n(0, len(self._ids))[self._kept]
        kind = self.kind if self._forced else None
        made = self.build(
            vectors, self.ids, model=self.model, recall=self.wanted, neighbours=self.neighbours, kind=kind
        )
        vars(self).update(vars(made))

    def query(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (n, k) and distances (n, k) float32 of the nearest, nearest first; fewer where there are fewer.

        Args:
            vectors: (n, dimensions), made by the same model.

        Raises:
            ValueError: the vectors have another size or are not finite, or k is below 1.
        """
        require_at_least(1, k=k)
        vectors = _vectors(vectors, self.dimensions)
        k = min(k, len(self))
        if not len(vectors):
            return self._ids[np.zeros((0, k), np.int64)], np.zeros((0, k), np.float32)
        bits = None if self._kept.all() else np.packbits(self._kept, bitorder="little")
        squares, found = _search(self._searcher, self.kind, self.settings, vectors, k, self.neighbours, bits)
        if (short := (found < 0).any(axis=1)).any():
            # The lists or the walk met fewer than were asked for.
            stored = self._searcher.reconstruct_n(0, len(self._ids))
            squares[short], found[short] = _search(_flat(stored), "exact", {}, vectors[short], k, k, bits)
        return self._ids[found], np.sqrt(np.maximum(squares, 0))

    def save(self, folder: Path) -> None:
        """Write the index as a folder, whole or not at all: a manifest, the ids as they are, and what FAISS reads."""
        with files.whole(folder) as draft:
            draft.mkdir()
            _faiss().write_index(self._searcher, str(draft / "vectors.faiss"))
            np.save(draft / "ids.npy", self._ids, allow_pickle=False)
            np.save(draft / "kept.npy", self._kept, allow_pickle=False)
            manifest = {
                "format": FORMAT,
                "faiss": _faiss().__version__,
                "metric": "euclidean",
                "kind": self.kind,
                "settings": self.settings,
                "forced": self._forced,
                "model": self.model,
                "dimensions": self.dimensions,
                "rows": len(self),
                "removed": int((~self._kept).sum()),
                "built": self._built,
                "recall": {"wanted": self.wanted, "neighbours": self.neighbours, "measured": self.recall},
                "bytes_per_vector": self.bytes_per_vector,
                "sha256": {name: files.digest(draft / name) for name in _FILES},
            }
            files.write_json(draft / "index.json", manifest)

    @classmethod
    def load(cls, folder: Path, *, model: str) -> Self:
        """Read what `save` wrote. Nothing is parsed before its digest is that of the manifest.

        Args:
            model: the digest of the model whose vectors the index will be asked for.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: files are missing or damaged, the format is another, or another model made the vectors.
        """
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"{folder} holds no index.json; expected the folder of an index; build one first")
        manifest = files.read_json(folder / "index.json")
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found != FORMAT:
            raise ValueError(f"{folder} has index format {found!r}; this version reads {FORMAT}; build the index again")
        sums = manifest["sha256"]
        problems = [f"{name} is missing" for name in _FILES if not (folder / name).is_file()]
        problems = problems or [
            f"{name} is damaged: its SHA-256 is another"
            for name in _FILES
            if files.digest(folder / name) != sums.get(name)
        ]
        if problems:
            raise ValueError(f"{folder} is no sound index: {'; '.join(problems)}; build it again")
        if manifest["model"] != model:
            raise ValueError(
                f"{folder} was built with model {manifest['model']}; expected {model}, whose vectors it is asked for; "
                "build the index again with this model, or name the other one"
            )
        recall = manifest["recall"]
        return cls(
            kind=manifest["kind"],
            settings=manifest["settings"],
            model=model,
            wanted=recall["wanted"],
            neighbours=recall["neighbours"],
            recall=recall["measured"],
            built=manifest["built"],
            forced=manifest["forced"],
            ids=np.load(folder / "ids.npy", allow_pickle=False),
            kept=np.load(folder / "kept.npy", allow_pickle=False),
            searcher=_faiss().read_index(str(folder / "vectors.faiss")),
        )


def _faiss() -> Any:
    """Return FAISS, on one thread: with more, a graph is another one every time."""
    import faiss

    faiss.omp_set_num_threads(1)
    return faiss


def _vectors(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """Return vectors as FAISS wants them, or say what is wrong with them."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or not vectors.shape[1] or dimensions not in (None, vectors.shape[1]):
        wanted = f"(n, {'dimensions' if dimensions is None else dimensions})"
        raise ValueError(f"vectors have shape {vectors.shape}; expected {wanted}; make them by the index's own model")
    if not (finite := np.isfinite(vectors).all(axis=1)).all():
        raise ValueError(
            f"{(~finite).sum()} vectors are not finite (first: row {finite.argmin()}); expected numbers; leave them out"
        )
    return vectors


def _checked_ids(ids: np.ndarray, count: int) -> np.ndarray:
    """Return ids as (n,) int64 or Unicode, which need no pickle, or say what is wrong with them."""
    ids = np.asarray(ids)
    if ids.dtype.kind == "O" and all(isinstance(one, str) for one in ids.flat):
        ids = ids.astype(np.str_)
    if ids.dtype.kind not in "iuU":
        raise ValueError(f"ids are of type {ids.dtype}; expected integers or text; convert them")
    if ids.shape != (count,):
        raise ValueError(
            f"there are {ids.size} ids for {count} vectors; expected one each; give both from the same rows"
        )
    unique, times = np.unique(ids, return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"{(times > 1).sum()} ids are there twice (first: {unique[times > 1][0]}); expected each once; rename some"
        )
    if ids.dtype.kind == "u" and count and ids.max() > np.iinfo(np.int64).max:
        raise ValueError(f"ids reach {ids.max()}; expected less than 2 to the power of 63; give them as text")
    return ids if ids.dtype.kind == "U" else ids.astype(np.int64)


def _flat(vectors: np.ndarray) -> Any:
    searcher = _faiss().IndexFlatL2(vectors.shape[1])
    searcher.add(vectors)
    return searcher


def _nearest(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (n, k) and distances (n, k) of the truly nearest."""
    squares, found = _flat(vectors).search(queries, k)
    return found, np.sqrt(np.maximum(squares, 0))


def _others(vectors: np.ndarray, k: int) -> np.ndarray:
    """Return the positions (n, k) of each vector's nearest other ones, k below n."""
    found, _ = _nearest(vectors, vectors, k + 1)  # (n, k + 1)
    own = found == np.arange(len(found))[:, None]
    # Among vectors that are all alike it may not have found itself; then the farthest goes.
    own[~own.any(axis=1), -1] = True
    others: np.ndarray = found[~own].reshape(len(found), k)
    return others


def _recalled(found: np.ndarray, distances: np.ndarray, truth: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return (n,): the share of the nearest that were found; what is as near as the last of them is one of them."""
    same = functools.reduce(np.logical_or, (found == truth[:, [j]] for j in range(truth.shape[1])))
    return np.asarray((same | (distances <= near[:, -1:] * (1 + 1e-5))).mean(axis=1))


def _search(
    searcher: Any,
    kind: Kind,
    settings: Mapping[str, int],
    vectors: np.ndarray,
    k: int,
    neighbours: int,
    bits: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return squared distances (n, k) and positions (n, k), -1 for what was not found.

    Args:
        neighbours: what the settings were tuned for: fewer are chosen from as many candidates.
        bits: which vectors may be found, eight to a byte; None for all.
    """
    faiss = _faiss()
    only = None if bits is None else faiss.IDSelectorBitmap(bits)
    if kind == "exact":
        given = None if only is None else faiss.SearchParameters(sel=only)
    elif kind == "graph":
        breadth = settings["breadth"] * max(1, -(-k // neighbours))
        given = faiss.SearchParametersHNSW(efSearch=breadth, sel=only)
    else:
        lists = faiss.SearchParametersIVF(nprobe=settings["probes"], sel=only)
        factor = settings["factor"] * max(1, -(-neighbours // k))
        given = faiss.IndexRefineSearchParameters(k_factor=float(factor), base_index_params=lists)
    squares, found = searcher.search(vectors, k, params=given)
    return squares, found


def _bytes(kind: Kind, settings: Mapping[str, int], dimensions: int, count: int) -> float:
    """Return the memory that an index takes."""
    total = 4.0 * dimensions * count
    if kind == "graph":
        # Twice as many links at the lowest level, and above it some for one vector in so many.
        total += 4 * (2 * LINKS + LINKS / (LINKS - 1)) * count
    if kind == "inverted":
        # Half a byte per dimension, the position of each vector, and the centres of the lists.
        total += (-(-dimensions // 2) + 8) * count + 4 * dimensions * settings["lists"]
    return total


@dataclass(frozen=True)
class _Tuned:
    """What came of a kind.

    recall: what held-out vectors found.
    cost: comparisons per query, see `COSTS`.
    searcher: of FAISS; None where nothing was built.
    """

    kind: Kind
    settings: Mapping[str, int]
    recall: float
    cost: float
    searcher: Any


def _tuned(rest: np.ndarray, queries: np.ndarray, kind: Kind, *, wanted: float, neighbours: int) -> _Tuned:
    """Build one kind of index of `rest`, and choose its cheapest settings by which `queries` find enough.

    Where none does, the cost is infinite.
    """
    k = min(neighbours, len(rest))
    truth = _nearest(rest, queries, k)
    searcher, settings = _KINDS[kind](rest)
    widest = {name: min(WIDEST, settings["lists"] if name == "probes" else WIDEST) for name in _TUNED[kind]}
    counts: dict[str, float] = {}

    def recalled(**some: int) -> np.ndarray:
        _faiss().cvar.hnsw_stats.reset()
        squares, found = _search(searcher, kind, settings | widest | some, queries, k, k, None)
        counts["graph"] = _faiss().cvar.hnsw_stats.ndis / len(queries)
        return _recalled(found, np.sqrt(np.maximum(squares, 0)), *truth)

    def enough(found: np.ndarray, least: float) -> bool:
        return bool(found.mean() - 2 * found.std() / np.sqrt(len(found)) >= least)

    def suffices(others: Mapping[str, int], name: str, least: float, value: int) -> bool:
        return enough(recalled(**others, **{name: value}), least)

    chosen: dict[str, int] = {}
    for place, name in enumerate(_TUNED[kind], start=1):
        # All settings but the last one use up a part of what may be missed.
        least = 1 - (1 - wanted) * place / len(_TUNED[kind])
        chosen[name] = _least(widest[name], functools.partial(suffices, {**chosen}, name, least))
    found = recalled(**chosen)
    settings = settings | chosen
    cost = COSTS["graph"] * counts["graph"]
    if kind == "inverted":
        read = settings["probes"] * len(rest) / settings["lists"]
        cost = settings["lists"] + COSTS["list"] * read + COSTS["candidate"] * neighbours * settings["factor"]
    return _Tuned(kind, settings, float(found.mean()), cost if enough(found, wanted) else float("inf"), searcher)


def _least(most: int, enough: Callable[[int], bool]) -> int:
    """Return the least whole number, from 1, that is enough; `most` where none below it is."""
    # By doubling, since large ones take long, and then by halving what is between the last two.
    tried = 1
    while tried < most and not enough(tried):
        tried *= 2
    low, high = tried // 2 + 1, min(tried, most)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _inverted(vectors: np.ndarray) -> tuple[Any, dict[str, int]]:
    """Build lists of vectors of 4 bits per dimension, half as many as their root, and the vectors themselves beside them."""
    faiss = _faiss()
    if len(vectors) < 16:
        raise ValueError(
            f"there are {len(vectors)} vectors; expected 16 or more, which 4 bits tell apart; use kind='exact'"
        )
    dimensions = vectors.shape[1]
    lists = 2 ** max(0, round(np.log2(np.sqrt(len(vectors)) / 2)))
    base = faiss.IndexIVFPQFastScan(faiss.IndexFlatL2(dimensions), dimensions, lists, dimensions, 4)
    base.cp.min_points_per_centroid = base.pq.cp.min_points_per_centroid = 1  # else it warns on the terminal
    base.train(vectors)
    searcher = faiss.IndexRefineFlat(base)
    searcher.add(vectors)
    return searcher, {"lists": lists}


def _graph(vectors: np.ndarray) -> tuple[Any, dict[str, int]]:
    searcher = _faiss().IndexHNSWFlat(vectors.shape[1], LINKS)
    searcher.hnsw.efConstruction = BREADTH
    searcher.add(vectors)
    return searcher, {}


_KINDS: Mapping[Kind, Callable[[np.ndarray], tuple[Any, dict[str, int]]]] = {"inverted": _inverted, "graph": _graph}
_TUNED: Mapping[Kind, Sequence[str]] = {"inverted": ("factor", "probes"), "graph": ("breadth",)}


# Rivals.


class _Linear(Rival):
    """Raw values, or their principal components, in the form and the number that the validation rows find best by.

    They choose among the same forms as codes do; but raw values are not whitened: that is what components are for.
    """

    def __init__(self, application: Search, dimensions: Sequence[int | None], kind: Kind) -> None:
        self._application = application
        self._dimensions = dimensions
        self._kind: Kind = kind

    def fit(self, train: Split, validation: Split) -> None:
        from sklearn import decomposition

        rows, some = flat(train), _some(validation)
        labelled = _tells(train, self._application.neighbours)
        # The mean alone of raw values: nothing but their center is learned.
        powers: Sequence[float] = (0.0,)
        self._project: Callable[[np.ndarray], np.ndarray] = lambda x: x
        counts = list(self._dimensions)
        if counts != [None]:
            most = min(rows.shape)
            counts = sorted({min(count, most) for count in counts if count is not None})
            self._project = decomposition.PCA(counts[-1], svd_solver="full", random_state=0).fit(rows).transform
            powers = POWERS
        found = self._project(flat(some))
        reference = self._project(rows)
        best = -1.0
        for count in counts:
            for form in _forms(reference[:, :count], powers):
                precision = self._application.likeness([_formed(found[:, :count], form)], some, labelled).mean()
                if precision > best + 1e-9:
                    best, self._count, self._form = precision, count, form

    def _vectors(self, split: Split) -> np.ndarray:
        return _formed(self._project(flat(split))[:, : self._count], self._form)

    def evaluate(self, split: Split, train: Split) -> Scores:
        return self._application.scores(self._vectors(split), split, self._vectors(train), train, self._kind)


# Pictures.


def _by_label(split: Split, right: np.ndarray) -> Picture:
    assert split.y is not None
    labels, counts = np.unique(split.y.astype(str), return_counts=True)
    labels = labels[np.argsort(-counts, kind="stable")][:20]  # the largest ones, where there are many
    labels = np.sort(labels)
    precision = [float(right[split.y.astype(str) == label].mean()) for label in labels]

    def draw(ax: Any) -> None:
        ax.bar([str(label) for label in labels], precision, color=pictures.OURS)
        ax.axhline(right.mean(), color=pictures.THIRD, linewidth=1)
        ax.set(ylim=(0, 1), ylabel="precision", xlabel="label of the row that asks")
        if len(labels) > 10 or max(map(len, labels)) > 8:
            ax.tick_params(axis="x", labelrotation=45)

    told = ", ".join(f"{label}: {value:.2f}" for label, value in zip(labels, precision, strict=True))
    description = (
        f"Share of the rows found that have the label of the row that asks, by that label; grey is the mean. {told}."
    )
    return pictures.plot("by_label", "Which labels find their like", description, draw)


def _by_distance(distances: np.ndarray, right: np.ndarray) -> Picture:
    order = np.argsort(distances[:, 0], kind="stable")
    parts = [part for part in np.array_split(order, 10) if len(part)]
    x = [float(distances[part, 0].mean()) for part in parts]
    y = [float(right[part].mean()) for part in parts]

    def draw(ax: Any) -> None:
        ax.plot(x, y, "o-", color=pictures.OURS)
        ax.set(xlabel="distance of the nearest vector", ylabel="precision", ylim=(0, 1))

    told = ", ".join(f"{a:.3g}: {b:.2f}" for a, b in zip(x, y, strict=True))
    description = (
        f"Share of the rows found that are nearest in the raw values too, by distance, in tenths of the rows. {told}."
    )
    return pictures.plot("by_distance", "What is found, by how near it is", description, draw)
