"""Anomaly detection on sets of ADBench (Han et al., 2022), semi-supervised: normal rows teach, and no label does.

    python benchmarks/anomaly.py DATA --seeds 5

Half of the normal rows of a set teach, the other half and all anomalies judge (the protocol of vicliv/DTE). A fifth of the
former is validation: it ends the training and calibrates the score. Everything is scaled by the training rows. Of the
candidate and the application params.yaml gives all options, the same for every set, but for two: the length of the code is
the number of columns, and of references there are as many as `sevenfold dataset add` allows. The plain rivals have the
settings that PyOD has by default and learn from all of the half; the tuned ones are the application's own, whose settings
are chosen by planted anomalies among the validation rows, since there are no others.
"""

import argparse
import multiprocessing
import time
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import page
import torch
from sklearn import ensemble, metrics, neighbors

from sevenfold import modules, params, training
from sevenfold.applications import anomaly
from sevenfold.applications.base import Application
from sevenfold.datasets.base import Split
from sevenfold.layouts import Field, Layout
from sevenfold.models.base import ModelSpec

CANDIDATE, CONTEST = "wdbc-denoising", "wdbc"
OURS, KNN = "sevenfold", "kNN, mean of 5"
REFERENCES = 16_384
LARGEST = 20_000
"""Rows of a set; of a larger one, so many are drawn."""


def split(x: np.ndarray) -> Split:
    return Split(x.astype(np.float32), None, None, np.ones(len(x), bool), np.arange(len(x)))


def drawn(path: Path, rows: int, seed: int) -> tuple[Split, Split, Split]:
    """Return training, validation and test rows of a set, at most so many together."""
    with np.load(path) as arrays:
        x, odd = arrays["X"].astype(float), arrays["y"].astype(bool)
    generator = np.random.default_rng(seed)
    some = generator.permutation(len(x))[:rows]
    x, odd = x[some], odd[some]
    normal, strange = np.flatnonzero(~odd), np.flatnonzero(odd)
    half, fifth = len(normal) // 2, len(normal) // 10
    learned = x[normal[fifth:half]]
    spread = learned.std(axis=0)
    x = (x - learned.mean(axis=0)) / np.where(spread > 0, spread, 1)
    test = split(x[np.concatenate([normal[half:], strange])])
    test = replace(test, normal=np.arange(len(test)) < len(normal) - half)
    return split(x[normal[fifth:half]]), split(x[normal[:fifth]]), test


def ours(
    train: Split, validation: Split, test: Split, settings: params.Params, seed: int, references: int
) -> np.ndarray:
    """Return the score of each test row."""
    columns = tuple(Field(1, False) for _ in range(train.x.shape[1]))
    candidate = settings.candidates[CANDIDATE]
    options = {**candidate.options, "code": len(columns)}
    model, _ = training.fit(
        ModelSpec.of(candidate.variant, Layout(train.x.shape[1:], columns), options),
        train,
        validation,
        training.Settings(**settings.settings(CANDIDATE).model_dump()),
        seed=seed,
        device="cpu",
        on_epoch=lambda epoch: None,
    )
    calibrated = application(settings, references).calibrate(model, train, validation)
    return np.asarray(calibrated.evaluate(model, test, train).values["score"])


def application(settings: params.Params, references: int = REFERENCES) -> anomaly.Anomaly:
    kind: Any = modules.member("applications", "anomaly", Application)
    made: anomaly.Anomaly = kind(**settings.applications[CONTEST]["anomaly"] | {"references": references})
    return made


def plain(name: str, known: np.ndarray, x: np.ndarray, seed: int) -> np.ndarray:
    """Return the score of each row of x by a rival with default settings that learned from `known`."""
    if name == "isolation forest":
        return -np.asarray(ensemble.IsolationForest(random_state=seed).fit(known).score_samples(x))
    if name == "LOF":
        return -np.asarray(neighbors.LocalOutlierFactor(20, novelty=True).fit(known).score_samples(x))
    distances = neighbors.NearestNeighbors(n_neighbors=5).fit(known).kneighbors(x)[0]
    return np.asarray(distances.mean(axis=1) if name == KNN else distances[:, -1])


PLAIN = (KNN, "kNN, fifth", "isolation forest", "LOF")
TUNED = ("knn", "lof", "isolation_forest", "ecod", "pca_error")


def measured(
    path: Path, seed: int, rows: int, settings: params.Params, references: int
) -> dict[str, tuple[float, float, float]]:
    """Return AUROC, average precision and seconds of everybody on one split of a set."""
    torch.set_num_threads(settings.training.threads)
    train, validation, test = drawn(path, rows, seed)
    assert test.normal is not None
    odd = ~test.normal
    found = {}

    def note(name: str, score: np.ndarray, start: float) -> None:
        seconds = time.perf_counter() - start
        area, precision = metrics.roc_auc_score(odd, score), metrics.average_precision_score(odd, score)
        found[name] = (float(area), float(precision), seconds)

    start = time.perf_counter()
    note(OURS, ours(train, validation, test, settings, seed, references), start)
    known = np.concatenate([validation.x, train.x]).astype(float)
    for name in PLAIN:
        start = time.perf_counter()
        note(name, plain(name, known, test.x.astype(float), seed), start)
    rivals = application(settings).rivals()
    judging = anomaly.planted(validation, Layout(train.x.shape[1:]))
    for name in TUNED:
        start = time.perf_counter()
        rivals[name].fit(train, judging)
        note(f"{name}, tuned", rivals[name].evaluate(test, train).values["score"], start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", type=Path, help="folder of ADBench's npz files with X and y")
    parser.add_argument("--sets", nargs="+", metavar="SET", help="file names without .npz; by default all")
    parser.add_argument("--seeds", type=int, default=5, help="of split, weights and forests")
    parser.add_argument("--rows", type=int, default=LARGEST, help="of a set at most")
    parser.add_argument("--references", type=int, default=REFERENCES, help="codes that distances are taken to, at most")
    parser.add_argument("--workers", type=int, default=1, help="splits that are measured side by side")
    parser.add_argument("--params", type=Path, default=Path(__file__).parent.parent / "params.yaml")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    given = parser.parse_args()
    settings = params.load(given.params)
    paths = [given.data / f"{name}.npz" for name in given.sets] if given.sets else sorted(given.data.glob("*.npz"))
    names = [OURS, *PLAIN, *(f"{name}, tuned" for name in TUNED)]
    table: dict[str, np.ndarray] = {}  # (seeds, names, measures)
    with futures.ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = {
            path: [
                pool.submit(measured, path, seed, given.rows, settings, given.references) for seed in range(given.seeds)
            ]
            for path in paths
        }
        for path, some in jobs.items():
            table[path.stem] = np.array([[job.result()[name] for name in names] for job in some])
            mean = dict(zip(names, table[path.stem].mean(axis=0), strict=True))
            found = ", ".join(f"{n} {mean[n][0]:.4f}" for n in (OURS, KNN, "isolation forest"))
            print(f"{path.stem}: AUROC {found}; {mean[OURS][2]:.1f} s", flush=True)

    def lines(measure: int, digits: int) -> list[list[str]]:
        means = [table[path.stem][:, :, measure].mean(axis=0) for path in paths]
        heads = [*(path.stem.partition("_")[2] for path in paths), "mean"]
        return [
            [head, *(f"{value:.{digits}f}" for value in row)]
            for head, row in zip(heads, [*means, np.mean(means, axis=0)], strict=True)
        ]

    parts = [
        f"Mean over {given.seeds} seeds. Half of the normal rows teach, and no label of an anomaly does. Of a set of more than "
        f"{given.rows:,} rows so many are drawn. Tuned rivals are tuned by planted anomalies.",
        "AUROC:",
        page.table(["set", *names], lines(0, 4)),
        "Average precision:",
        page.table(["set", *names], lines(1, 4)),
        f"Seconds to learn from a set and to score its test rows, {given.workers} at a time:",
        page.table(["set", *names], lines(2, 2)),
    ]
    section = page.section("Anomaly detection", "\n\n".join(parts))
    print(f"\n{section}")
    if given.write:
        page.write("anomaly", section)


if __name__ == "__main__":
    main()
