"""Indexes of vectors: the nearest ones found fast, with the share that was asked for, under the user's own ids."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from sevenfold import files
from sevenfold.applications.base import require_at_least

Kind = Literal["exact", "inverted", "graph"]
"""How an index finds neighbours.

- "exact" compares with every vector.
- "inverted" looks into the lists whose centres are nearest, by 4 bits per dimension, and compares the best of what it meets
  exactly (product quantisation with one dimension each: Jegou et al., 2011; in registers: Andre et al., 2017).
- "graph" walks from neighbour to neighbour (HNSW: Malkov and Yashunin, 2020).
"""

FORMAT = 1
_FILES = ("ids.npy", "kept.npy", "vectors.faiss")

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
        require_recall(recall)
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


def nearest(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (n, k) and distances (n, k) of the truly nearest."""
    squares, found = _flat(vectors).search(queries, k)
    return found, np.sqrt(np.maximum(squares, 0))


def others(vectors: np.ndarray, k: int) -> np.ndarray:
    """Return the positions (n, k) of each vector's nearest other ones, k below n."""
    found, _ = nearest(vectors, vectors, k + 1)  # (n, k + 1)
    own = found == np.arange(len(found))[:, None]
    # Among vectors that are all alike it may not have found itself; then the farthest goes.
    own[~own.any(axis=1), -1] = True
    others: np.ndarray = found[~own].reshape(len(found), k)
    return others


def recalled(found: np.ndarray, distances: np.ndarray, truth: np.ndarray, near: np.ndarray) -> np.ndarray:
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
    truth = nearest(rest, queries, k)
    searcher, settings = _KINDS[kind](rest)
    widest = {name: min(WIDEST, settings["lists"] if name == "probes" else WIDEST) for name in _TUNED[kind]}
    counts: dict[str, float] = {}

    def look(**some: int) -> np.ndarray:
        _faiss().cvar.hnsw_stats.reset()
        squares, found = _search(searcher, kind, settings | widest | some, queries, k, k, None)
        counts["graph"] = _faiss().cvar.hnsw_stats.ndis / len(queries)
        return recalled(found, np.sqrt(np.maximum(squares, 0)), *truth)

    def enough(found: np.ndarray, least: float) -> bool:
        return bool(found.mean() - 2 * found.std() / np.sqrt(len(found)) >= least)

    def suffices(others: Mapping[str, int], name: str, least: float, value: int) -> bool:
        return enough(look(**others, **{name: value}), least)

    chosen: dict[str, int] = {}
    for place, name in enumerate(_TUNED[kind], start=1):
        # All settings but the last one use up a part of what may be missed.
        least = 1 - (1 - wanted) * place / len(_TUNED[kind])
        chosen[name] = _least(widest[name], functools.partial(suffices, {**chosen}, name, least))
    found = look(**chosen)
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


def require_recall(recall: float) -> None:
    if not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}; expected a share above 0 and at most 1; 0.99 is a start")
