"""Search Fashion-MNIST by codes, by raw values and by principal components; and measure the index beside hnswlib.

    python benchmarks/search.py DATA [--rows N] [--epochs 8] [--rounds 5] [--write]

DATA holds a folder fashion-mnist with the four files as they are distributed. The network learns from 50,000 of the 60,000
training rows, and the other 10,000 choose what is to be chosen; then all 60,000 are searched for the neighbours of the 10,000
test rows. hnswlib needs the extra `bench`; where it is not installed it is left out. Seconds are those of one thread's or a
training's processor time, so that other work on the machine counts little.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import page

from sevenfold import formats, training
from sevenfold.applications.search import Search
from sevenfold.datasets.base import Split
from sevenfold.indexes import Index, Kind
from sevenfold.layouts import Layout
from sevenfold.models.base import ModelSpec

CODE = 64
OPTIONS = {"channels": [32, 64], "hidden": [512], "activation": "gelu", "blocks": 1, "augment": ["mirror"]}
"""Of the variant `convolutional`, as in params/fashion-mnist.yaml."""

BAR, SPEED, RECALL = 0.828, 0.9, 0.99
"""Precision of ten neighbours, queries per second against hnswlib, and the recall at which they are compared."""


def fashion_mnist(folder: Path, rows: int | None) -> tuple[Split, Split, Split]:
    """Return training, validation and test rows, values 0 to 1; with `rows`, so many of training and a sixth of testing."""
    parts = []
    for stem in ("train", "t10k"):
        read = formats.read(folder / f"{stem}-images-idx3-ubyte.gz", labels=folder / f"{stem}-labels-idx1-ubyte.gz")
        assert read.images is not None
        x = read.images.astype(np.float32)[:, None] / 255  # (n, 1, 28, 28)
        parts.append(Split(x, None, read.frame["label"].astype(str).to_numpy(), None, np.arange(len(x))))
    every, test = parts
    if rows is not None:
        every, test = every.take(np.arange(rows)), test.take(np.arange(rows // 6))
    order = np.random.default_rng(0).permutation(len(every))
    cut = len(every) // 6
    return every.take(np.sort(order[cut:])), every.take(np.sort(order[:cut])), test


def joined(one: Split, other: Split) -> Split:
    """Return the rows of both, without identity."""
    assert one.y is not None
    assert other.y is not None
    x, y = np.concatenate([one.x, other.x]), np.concatenate([one.y, other.y])
    return Split(x, None, y, None, np.arange(len(x)))


def quality(train: Split, validation: Split, test: Split, epochs: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Return a table of the contest, and the vectors of database and queries."""
    application, database = Search(neighbours=10, recall=RECALL), joined(train, validation)
    settings = training.Settings(
        epochs=epochs,
        patience=epochs,
        batch_size=256,
        learning_rate=0.0015,
        warmup=0.05,
        weight_decay=0.01,
        gradient_clip=1.0,
        threads=2,
    )
    spec = ModelSpec.of("convolutional", Layout((1, 28, 28)), {"code": CODE, **OPTIONS})
    rows: list[list[str]] = []

    def tell(name: str, metrics: Any, seconds: float) -> None:
        shown = [f"{metrics[n]:.4f}" for n in ("precision", "precision_at_1", "precision_at_50", "recall")]
        rows.append([name, *shown, f"{metrics['bytes_per_vector']:,.0f}", f"{seconds:,.0f}"])

    start = time.process_time()
    model, _ = training.fit(spec, train, validation, settings, seed=0, device="cpu", on_epoch=lambda epoch: None)
    calibrated = application.calibrate(model, train, validation)
    fitted = time.process_time() - start
    tell(f"**convolutional, code {CODE}**", calibrated.evaluate(model, test, database).metrics, fitted)
    for name, rival in application.rivals().items():
        start = time.process_time()
        rival.fit(train, validation)
        fitted = time.process_time() - start
        tell(name, rival.evaluate(test, database).metrics, fitted)
    head = ["", "P@10", "P@1", "P@50", "recall@10", "bytes per vector", "seconds to fit and tune"]
    vectors, queries = (calibrated._vectors(model, part) for part in (database, test))
    return page.table(head, rows), vectors, queries


Asked = Callable[[], np.ndarray]
"""Ask for all queries, and return positions (n, 10)."""


def ours(vectors: np.ndarray, kind: Kind | None) -> tuple[Index, str]:
    index = Index.build(vectors, np.arange(len(vectors)), model="", recall=RECALL, neighbours=10, kind=kind)
    return index, ", ".join(f"{name} {value}" for name, value in index.settings.items())


def peer(vectors: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> tuple[Any, str]:
    """Build hnswlib's graph with its own defaults, at the least `ef` by which these very queries find enough."""
    import hnswlib

    graph = hnswlib.Index("l2", vectors.shape[1])
    graph.init_index(len(vectors), M=16, ef_construction=200, random_seed=0)
    graph.add_items(vectors, num_threads=1)
    low, high = 10, 500
    while low < high:
        middle = (low + high) // 2
        graph.set_ef(middle)
        found = graph.knn_query(queries, 10, num_threads=1)[0]
        low, high = (low, middle) if recalled(found, truth) >= RECALL else (middle + 1, high)
    graph.set_ef(low)
    return graph, f"ef {low}"


def recalled(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


def speed(vectors: np.ndarray, queries: np.ndarray, rounds: int) -> tuple[str, str]:
    """Return a table of indexes of the same vectors, and the ratio to hnswlib in words."""
    contenders: dict[str, tuple[Asked, list[str]]] = {}
    for name, kind in (("chosen by sevenfold", None), ("exact", "exact"), ("graph", "graph")):
        start = time.process_time()
        index, settings = ours(vectors, kind)
        facts = [f"{index.kind}; {settings}" if settings else index.kind, f"{index.bytes_per_vector:,.0f}"]
        facts.append(f"{time.process_time() - start:.1f}")
        contenders[name] = (lambda index=index: index.query(queries, 10)[0], facts)
    truth = contenders["exact"][0]()
    try:
        start = time.process_time()
        graph, settings = peer(vectors, queries, truth)
        built = time.process_time() - start
        size = 4 * vectors.shape[1] + 4 * 2 * 16
        facts = [settings, f"{size:,.0f}", f"{built:.1f}"]
        contenders["hnswlib"] = (lambda: graph.knn_query(queries, 10, num_threads=1)[0], facts)
    except ImportError:
        pass
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    recalls = {name: recalled(ask(), truth) for name, (ask, _) in contenders.items()}
    for _ in range(rounds):  # in turn, so that what slows the machine down slows all of them down
        for name, (ask, _) in contenders.items():
            start = time.process_time()
            ask()
            rates[name].append(len(queries) / max(time.process_time() - start, 1e-9))
    median = {name: float(np.median(some)) for name, some in rates.items()}
    rows = [
        [
            name,
            facts[0],
            f"{recalls[name]:.4f}",
            f"{median[name]:,.0f} ({min(rates[name]):,.0f} to {max(rates[name]):,.0f})",
            *facts[1:],
        ]
        for name, (_, facts) in contenders.items()
    ]
    head = ["", "how", "recall@10", "queries/s, median (range)", "bytes per vector", "seconds to build and tune"]
    words = "hnswlib is not installed: nothing to compare with."
    if "hnswlib" in median:
        ratio = median["chosen by sevenfold"] / median["hnswlib"]
        met = "met" if ratio >= SPEED and recalls["chosen by sevenfold"] >= RECALL else "missed"
        words = (
            f"Queries per second of the chosen index against hnswlib's: {ratio:.2f} "
            f"(bar {SPEED} at a recall of {RECALL}: {met})."
        )
    return page.table(head, rows), words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds fashion-mnist")
    parser.add_argument("--rows", type=int, help="training rows to use; all by default")
    parser.add_argument("--epochs", type=int, default=8, help="of the training; the time of 8 is about 2 minutes")
    parser.add_argument("--rounds", type=int, default=5, help="times that each index is asked")
    parser.add_argument("--write", action="store_true", help="put the result into docs/benchmarks.md")
    given = parser.parse_args()
    folder = given.data / "fashion-mnist"
    if not folder.is_dir():
        parser.error(f"{folder} is no folder; name the one that holds fashion-mnist")
    train, validation, test = fashion_mnist(folder, given.rows)
    contest, vectors, queries = quality(train, validation, test, given.epochs)
    first = float(contest.splitlines()[2].split("|")[2])
    indexes, words = speed(vectors, queries, given.rounds)
    body = (
        f"{len(vectors):,} images of clothes are searched for the ten nearest of each of {len(queries):,} others; one with "
        "the same label is right. The rivals choose components, whitening and length of their vectors on the same validation "
        f"rows. Seconds are processor time.\n\n{contest}\n\nPrecision of ten neighbours: {first:.4f} (bar {BAR}: "
        f"{'met' if first >= BAR else 'missed'}).\n\nIndexes of the codes of the first line, one thread:\n\n{indexes}\n\n{words} "
        "hnswlib is tuned on the very queries that are timed, sevenfold on vectors held back from the database."
    )
    text = page.section("Search", body, ["faiss-cpu"])
    print(text)
    if given.write:
        page.write("search", text)


if __name__ == "__main__":
    main()
