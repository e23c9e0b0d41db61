"""What finds the nearest of many vectors that lie on a disk: some kinds of search, tuned by what held-out vectors find.

A kind other than the exact one proposes candidates, which are then compared exactly with the vectors themselves, memory-mapped:
distances are true whatever the kind, and what was proposed in vain only costs time. `indexes` has those that a contest uses.
"""

import bisect
import errno
import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from sevenfold import indexes

Kind = Literal["exact", "graph", "inverted", "product", "scalar"]
"""How candidates are found.

- "exact" compares with every vector.
- "graph" walks from neighbour to neighbour (HNSW: Malkov and Yashunin, 2020).
- "inverted" looks into the lists whose centres are nearest, by 4 bits per dimension (IVF-PQ: Jegou et al., 2011).
- "product" looks at all vectors by 4 bits per dimension (product quantisation, in registers: Andre et al., 2017).
- "scalar" looks at all vectors by 8 bits per dimension.
"""

KINDS: tuple[Kind, ...] = get_args(Kind)

FEWEST = 64
"""Vectors below which every search is exact: quantisers want some to learn from."""

SMALL = 4096
"""Vectors up to which the exact search is chosen."""

QUERIES = 1000
"""Vectors that are held back, at most, to measure the recall of what is built of the others."""

SAMPLE = 1 << 18
"""Vectors that a quantiser learns from, at most."""

LARGEST = 1 << 30
"""Bytes of memory that a kind may take while it is built, for it to be chosen. One that is asked for may take more."""

LONGEST = 1 << 18
"""Vectors up to which a graph is tried unasked: to build one of a million takes minutes, and of ten million an hour."""

LINKS, BREADTH = 16, 100
"""Of a graph: each vector's links, and the candidates among which they are chosen."""

WIDEST = 1024
"""Lists, candidates of a walk, and candidates per neighbour that are looked at, at most."""

COSTS: Mapping[str, float] = {
    "exact": 1.0,
    "picked": 2.0,
    "scalar": 0.75,
    "product": 0.25,
    "inverted": 0.4,
    "graph": 12.0,
    "candidate": 10.0,
}
"""What a look at one vector takes, in comparisons of a scan that compares with all of them.

"picked" is one of those that a condition leaves, "candidate" one that is compared after it was proposed. As found on one
processor; a stopwatch would choose another kind for the same vectors every day.
"""

WALK = 200
"""Vectors that a walk through a graph looks at, at least: no graph is tried where that would not pay."""

BLOCK = 1 << 14
"""Vectors that are copied out of a file at a time."""

ROOM = 1 << 24
"""Numbers that candidates may take in memory at a time."""

_TOGETHER = 16
"""Queries per pass. From 20 on FAISS takes a difference of large numbers, which is less exact and here no faster."""


@dataclass(frozen=True)
class Tuned:
    """A kind of search as it was built of some vectors.

    settings: "factor" (candidates per neighbour), "lists" and "probes", "breadth" and "visits" (vectors that a walk looks at).
    neighbours: how many a search was tuned for.
    recall: the share of their nearest that held-out vectors found; 1 for the exact kind, which misses none.
    queries_per_second: as the stopwatch said, on one thread. It decides nothing.
    """

    kind: Kind
    settings: Mapping[str, int]
    neighbours: int
    recall: float
    queries_per_second: float


class Searcher:
    """The nearest of vectors (n, dimensions) by Euclidean distance; positions count from 0.

    Everything runs on one thread, and a query's answer does not depend on the others'.
    """

    def __init__(self, vectors: np.ndarray, tuned: Tuned, proposer: Any) -> None:
        """Take the parts; `build` and `open` make them. proposer: FAISS's index of all vectors; None for the exact kind."""
        self.vectors, self.tuned = vectors, tuned
        self._proposer = proposer

    @classmethod
    def open(cls, vectors: np.ndarray, tuned: Tuned, file: Path) -> Self:
        """Read what `build` wrote; memory-mapped, but for the codes of 4 bits, which FAISS reads into memory.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: FAISS cannot read it.
        """
        if tuned.kind == "exact":
            return cls(vectors, tuned, None)
        faiss = _faiss()
        try:
            return cls(vectors, tuned, faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC))
        except RuntimeError as error:
            if not file.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file)) from None
            raise ValueError(f"{file} is damaged ({str(error).splitlines()[0]}); build the index again") from None

    def nearest(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return positions and distances (queries, k), nearest first; fewer columns where fewer may be found.

        Where only some may be found, more are looked for until enough of them are among what was found: what is promised
        of the nearest of all then holds for the nearest of these. Where that would take long beside comparing with each that
        may be found, it is that which is done.

        Args:
            queries: (queries, dimensions) float32, finite.
            allowed: (n,) bool, which may be found; None for all.
        """
        count = len(self.vectors)
        there = count if allowed is None else int(allowed.sum())
        k = min(k, there)
        found, distances = np.zeros((len(queries), k), np.int64), np.full((len(queries), k), np.inf, np.float32)
        if not found.size:
            return found, distances
        # A look that may find too few is worth a part of the time only that comparing with all takes.
        most = COSTS["exact"] * count if allowed is None else COSTS["picked"] * there / 4
        wanted, unanswered = math.ceil(k * count / there), np.arange(len(queries))
        while len(unanswered) and self._cost(wanted) < most:
            near, far = self._compared(queries[unanswered], wanted)
            if allowed is not None:
                far[~allowed[near]] = np.inf
                near, far = _sorted(near, far, k)
            answered = np.isfinite(far[:, k - 1])
            found[unanswered[answered]] = near[answered, :k]
            distances[unanswered[answered]] = far[answered, :k]
            unanswered, wanted = unanswered[~answered], 4 * wanted
        if len(unanswered):
            found[unanswered], distances[unanswered] = exactly(self.vectors, queries[unanswered], k, allowed)
        return found, distances

    def _cost(self, wanted: int) -> float:
        """Return what it takes to find so many, in comparisons of a scan."""
        if self.tuned.kind == "exact":
            return math.inf
        return _cost(self.tuned.kind, self.tuned.settings, len(self.vectors), wanted, self.tuned.neighbours)

    def _compared(self, queries: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Return positions and true distances (queries, wanted) of the nearest candidates; infinite where none was met."""
        tuned = self.tuned
        return _compared(self.vectors, self._proposer, tuned.kind, tuned.settings, queries, wanted, tuned.neighbours)


def build(vectors: np.ndarray, file: Path, *, recall: float, neighbours: int, kind: Kind | None = None) -> Tuned:
    """Build the kind of search that takes the fewest comparisons of those that find enough; write it to a file.

    Some of the vectors are held back, look for their neighbours among the others, and join them at the end. The recall
    that they have to reach is `recall` by two standard errors of what was measured. Memory is that of one or two kinds,
    see `LARGEST`, however long the file of the vectors is.

    Args:
        vectors: (n, dimensions) float32, finite, memory-mapped where they are many.
        file: what `Searcher.open` will read; not written for the exact kind.
        recall: share of the truly nearest that a search has to find; 1 asks for the exact search.
        neighbours: how many a search asks for.
        kind: take this one, whether or not it finds enough or another would be faster; fewer than `FEWEST` are exact still.
    """
    count = len(vectors)
    held = _held(count)
    exact = _Trial("exact", {}, 1.0, COSTS["exact"] * count, None)
    best = exact
    if kind != "exact" and count >= FEWEST and (kind or (count > SMALL and recall < 1)):
        apart = np.zeros(count, bool)
        apart[held] = True
        queries = np.ascontiguousarray(vectors[held])
        truth = exactly(vectors, queries, min(neighbours, count - len(held)), ~apart)
        for one in [kind] if kind else ("inverted", "product", "scalar", "graph"):
            too_large = _memory(one, vectors.shape) > LARGEST or (one == "graph" and count > LONGEST)
            if not kind and (too_large or _floor(one, count) >= best.cost):
                continue
            trial = _tried(vectors, apart, queries, truth, one, wanted=recall, neighbours=neighbours)
            # One that was asked for is taken even if it misses what was wanted: its recall says by how much.
            if kind or trial.cost < best.cost:
                best = trial
        if best.proposer is not None:
            best.proposer.add(queries)
            _faiss().write_index(best.proposer, str(file))
    tuned = Tuned(best.kind, best.settings, neighbours, best.recall, 0.0)
    searcher = Searcher(vectors, tuned, best.proposer)
    asked = np.ascontiguousarray(vectors[held[:100]] if len(held) else vectors[:1])
    start = time.perf_counter()
    searcher.nearest(asked, neighbours)
    speed = len(asked) / max(time.perf_counter() - start, 1e-9)
    return Tuned(best.kind, best.settings, neighbours, best.recall, float(f"{speed:.3g}"))


def exactly(
    vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and distances (queries, k) of the truly nearest, compared with every vector that may be found.

    Args:
        allowed: (n,) bool, of which at least k are True; None for all.
    """
    faiss = _faiss()
    rows, selector = None, None
    if allowed is not None:
        rows = np.flatnonzero(allowed)
        if 8 * len(rows) <= len(allowed) and len(rows) * vectors.shape[1] <= ROOM:
            vectors = vectors[rows]
        else:
            # Where they lie: to copy most of a file takes longer than to compare with it.
            bits = np.packbits(allowed, bitorder="little")
            rows, selector = None, faiss.IDSelectorBitmap(bits)
    vectors = np.ascontiguousarray(vectors)
    found, squares = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float32)
    for start in range(0, len(queries), _TOGETHER):
        some = np.ascontiguousarray(queries[start : start + _TOGETHER])
        near, far = found[start : start + len(some)], squares[start : start + len(some)]
        sizes = (vectors.shape[1], len(some), len(vectors), k)
        pointers = [faiss.swig_ptr(one) for one in (some, vectors, far, near)]
        faiss.knn_L2sqr(*pointers[:2], *sizes, *pointers[2:], None, selector)
    return found if rows is None else rows[found], np.sqrt(squares)


def _sorted(found: np.ndarray, distances: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest, nearest first; of equal ones the one that came first."""
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(distances, order, axis=1)


def _faiss() -> Any:
    """Return FAISS, on one thread: with more, a graph is another one every time."""
    import faiss

    faiss.omp_set_num_threads(1)
    return faiss


# Candidates.


def _held(count: int) -> np.ndarray:
    """Return the positions that are held back of so many, evenly spread. They come last in what FAISS builds."""
    return np.linspace(0, count - 1, min(QUERIES, count // 4)).astype(np.int64)


def _places(found: np.ndarray, count: int) -> np.ndarray:
    """Return positions for FAISS's numbers; -1 stays."""
    held = _held(count)
    first = count - len(held)
    # How many that were held back come before the one that is the n-th of the others.
    before = np.searchsorted(held - np.arange(len(held)), found, side="right")
    return np.where(found < 0, -1, np.where(found < first, found + before, held[np.clip(found - first, 0, None)]))


def _proposed(
    proposer: Any, kind: Kind, settings: Mapping[str, int], queries: np.ndarray, wanted: int, neighbours: int
) -> np.ndarray:
    """Return FAISS's numbers of candidates (queries, wanted or more), -1 for none.

    Args:
        neighbours: what the settings were tuned for: fewer are chosen from as many candidates, and more by more effort.
    """
    faiss = _faiss()
    effort = -(-wanted // neighbours)
    if kind == "graph":
        given = faiss.SearchParametersHNSW(efSearch=max(wanted, settings["breadth"] * effort))
        return np.asarray(proposer.search(queries, wanted, params=given)[1])
    count = min(proposer.ntotal, settings["factor"] * max(wanted, neighbours))
    if kind == "inverted":
        given = faiss.SearchParametersIVF(nprobe=min(settings["lists"], settings["probes"] * effort))
        return np.asarray(proposer.search(queries, count, params=given)[1])
    return np.asarray(proposer.search(queries, count)[1])


def _compared(
    vectors: np.ndarray,
    proposer: Any,
    kind: Kind,
    settings: Mapping[str, int],
    queries: np.ndarray,
    wanted: int,
    neighbours: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and true distances (queries, wanted) of the nearest candidates; infinite where none was met."""
    wide = max(wanted, neighbours) * settings.get("factor", 1) * vectors.shape[1]
    some = max(1, ROOM // wide)
    found = np.zeros((len(queries), wanted), np.int64)
    distances = np.full((len(queries), wanted), np.inf, np.float32)
    for start in range(0, len(queries), some):
        rows = slice(start, start + some)
        proposed = _proposed(proposer, kind, settings, queries[rows], wanted, neighbours)
        places = np.sort(_places(proposed, len(vectors)), axis=1)  # equals come in the order of their positions
        apart = vectors[places] - queries[rows][:, None]  # (some, candidates, dimensions)
        far = np.sqrt(np.einsum("qcd,qcd->qc", apart, apart))
        far[places < 0] = np.inf
        near, far = _sorted(np.maximum(places, 0), far, wanted)
        found[rows, : near.shape[1]], distances[rows, : far.shape[1]] = near, far
    return found, distances


def _cost(kind: Kind, settings: Mapping[str, int], count: int, wanted: int, neighbours: int) -> float:
    """Return what it takes to find so many of so many, in comparisons of a scan."""
    effort = -(-wanted // neighbours)
    if kind == "graph":
        return COSTS["graph"] * settings["visits"] * effort
    candidates = COSTS["candidate"] * settings["factor"] * max(wanted, neighbours)
    if kind == "inverted":
        read = count * min(1.0, settings["probes"] * effort / settings["lists"])
        return settings["lists"] + COSTS["inverted"] * read + candidates
    return COSTS[kind] * count + candidates


def _floor(kind: Kind, count: int) -> float:
    """Return what a search of a kind takes at least."""
    return COSTS["graph"] * WALK if kind == "graph" else 0.0 if kind == "inverted" else COSTS[kind] * count


def _memory(kind: Kind, shape: tuple[int, ...]) -> float:
    """Return the bytes that a kind takes while it is built of vectors of a shape."""
    count, dimensions = shape
    each = {
        "graph": 4 * dimensions + 4 * (2 * LINKS + LINKS / (LINKS - 1)),
        "inverted": dimensions / 2 + 8,
        "product": dimensions / 2,
        "scalar": dimensions,
    }
    return count * each[kind]


# Kinds.


@dataclass(frozen=True)
class _Trial:
    """What came of a kind. cost: of a search, in comparisons of a scan; infinite where it does not find enough."""

    kind: Kind
    settings: Mapping[str, int]
    recall: float
    cost: float
    proposer: Any


def _tried(
    vectors: np.ndarray,
    apart: np.ndarray,
    queries: np.ndarray,
    truth: tuple[np.ndarray, np.ndarray],
    kind: Kind,
    *,
    wanted: float,
    neighbours: int,
) -> _Trial:
    """Build a kind of the vectors that were not set apart; choose its cheapest settings by which `queries` find enough."""
    k = truth[0].shape[1]
    proposer, settings = _built(kind, vectors, apart)
    for start in range(0, len(vectors), BLOCK):
        proposer.add(vectors[start : start + BLOCK][~apart[start : start + BLOCK]])
    widest = {name: min(WIDEST, settings["lists"] if name == "probes" else WIDEST) for name in _TUNED[kind]}

    def look(**some: int) -> np.ndarray:
        return indexes.recalled(*_compared(vectors, proposer, kind, settings | widest | some, queries, k, k), *truth)

    def enough(found: np.ndarray, least: float) -> bool:
        return bool(found.mean() - 2 * found.std() / np.sqrt(len(found)) >= least)

    def suffices(others: Mapping[str, int], name: str, least: float, value: int) -> bool:
        return enough(look(**others, **{name: value}), least)

    chosen: dict[str, int] = {}
    for place, name in enumerate(_TUNED[kind], start=1):
        # All settings but the last one use up a part of what may be missed.
        least = 1 - (1 - wanted) * place / len(_TUNED[kind])
        chosen[name] = _least(widest[name], functools.partial(suffices, {**chosen}, name, least))
    if kind == "graph":
        _faiss().cvar.hnsw_stats.reset()
    found = look(**chosen)
    if kind == "graph":
        settings = settings | {"visits": math.ceil(_faiss().cvar.hnsw_stats.ndis / len(queries))}
    settings = settings | chosen
    cost = _cost(kind, settings, len(vectors), k, k) if enough(found, wanted) else math.inf
    return _Trial(kind, settings, float(found.mean()), cost, proposer)


_TUNED: Mapping[Kind, Sequence[str]] = {
    "graph": ("breadth",),
    "inverted": ("factor", "probes"),
    "product": ("factor",),
    "scalar": ("factor",),
}


def _least(most: int, enough: Callable[[int], bool]) -> int:
    """Return the least whole number, from 1, that is enough; `most` where none below it is."""
    # By doubling, since large ones take long, and then by halving what is between the last two.
    tried = 1
    while tried < most and not enough(tried):
        tried *= 2
    low, high = tried // 2 + 1, min(tried, most)
    return low + bisect.bisect_left(range(low, high), True, key=enough)


def _built(kind: Kind, vectors: np.ndarray, apart: np.ndarray) -> tuple[Any, dict[str, int]]:
    """Return FAISS's empty index of a kind, with what it learned from a sample, and its fixed settings."""
    faiss = _faiss()
    dimensions = vectors.shape[1]
    if kind == "graph":
        graph = faiss.IndexHNSWFlat(dimensions, LINKS)
        graph.hnsw.efConstruction = BREADTH
        return graph, {}
    others = np.flatnonzero(~apart)
    sample = vectors[others[np.linspace(0, len(others) - 1, min(SAMPLE, len(others))).astype(np.int64)]]
    settings: dict[str, int] = {}
    if kind == "scalar":
        made = faiss.IndexScalarQuantizer(dimensions, faiss.ScalarQuantizer.QT_8bit)
    elif kind == "product":
        made = faiss.IndexPQFastScan(dimensions, dimensions, 4)
        made.pq.cp.min_points_per_centroid = 1  # else it warns on the terminal
    else:
        settings = {"lists": 2 ** max(0, round(math.log2(math.sqrt(len(others)) / 2)))}
        made = faiss.IndexIVFPQFastScan(faiss.IndexFlatL2(dimensions), dimensions, settings["lists"], dimensions, 4)
        made.cp.min_points_per_centroid = made.pq.cp.min_points_per_centroid = 1
    made.train(sample)
    return made, settings
