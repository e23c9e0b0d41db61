"""Impute tables as published comparisons do, beside the same rivals as in a contest.

    python benchmarks/imputation.py DATA [--tables wdbc wine letter] [--seeds 5] [--write]

DATA holds wdbc.data, winequality-white.csv and letter.csv, as the UCI repository has them, or a folder `tables` with them.

Protocol: 20 % of all cells are hidden completely at random. Everybody gets the table with its gaps, learns from it, and
fills them; the error is the RMSE over the hidden cells, each column scaled to 0..1 by its known cells. Settings are chosen
on further cells, hidden among the known ones: for the rivals a tenth of those of some rows, after which they are fitted
to all known cells of all rows; for sevenfold a share of the rows is the validation split, by which its training stops and
its weights are learned, and neither network nor neighbours learn from these rows.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import page
import pandas as pd
import torch
from sklearn import ensemble, impute
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401

from sevenfold import training
from sevenfold.applications import imputation
from sevenfold.datasets.base import Split
from sevenfold.layouts import Field, Layout
from sevenfold.models.base import ModelSpec

HIDDEN = 0.2
TUNED_ROWS = 2000
"""Rows by which a rival's setting is chosen."""


@dataclass(frozen=True)
class Case:
    """A table, how it is read, and how sevenfold is trained on it; seeds: how often at most it is repeated."""

    title: str
    file: str
    read: dict[str, Any]
    options: dict[str, Any]
    training: dict[str, Any]
    validation: float
    seeds: int
    drop: list[int] = field(default_factory=list)


CASES = {
    "wdbc": Case(
        "WDBC 569x30",
        "wdbc.data",
        {"header": None},
        {"code": 32, "hidden": [128], "blocks": 0, "bins": 8, "share": 0.2},
        {"epochs": 200, "batch_size": 64, "learning_rate": 0.003},
        0.2,
        5,
        [0, 1],
    ),
    "wine": Case(
        "white wine 4898x12",
        "winequality-white.csv",
        {"sep": ";"},
        {"code": 64, "hidden": [256], "blocks": 1, "bins": 16, "share": 0.2},
        {"epochs": 60, "batch_size": 256, "learning_rate": 0.003},
        0.1,
        5,
    ),
    "letter": Case(
        "letter 20000x16",
        "letter.csv",
        {},
        {"code": 64, "hidden": [256], "blocks": 1, "bins": 15, "share": 0.2},
        {"epochs": 40, "batch_size": 256, "learning_rate": 0.003},
        0.1,
        1,
    ),
}


def table(data: Path, case: Case) -> np.ndarray:
    """Return the numbers of a table, (n, columns)."""
    path = next((p for p in (data / case.file, data / "tables" / case.file) if p.is_file()), None)
    if path is None:
        raise SystemExit(f"there is no {case.file} in {data}; expected the file of the UCI repository there")
    frame = pd.read_csv(path, **case.read)
    numbers: np.ndarray = frame.drop(columns=frame.columns[case.drop]).to_numpy(np.float64)
    return numbers


def sevenfold(x: np.ndarray, seen: np.ndarray, case: Case, seed: int, epochs: int | None) -> dict[str, np.ndarray]:
    """Return x, standardised, with its gaps filled: by the network alone, and joined with its aids."""
    order = np.random.default_rng(seed).permutation(len(x))
    count = int(case.validation * len(x))
    known = np.where(seen, x, 0).astype(np.float32)

    def split(rows: np.ndarray) -> Split:
        return Split(known[rows], seen[rows], None, None, rows)

    held_out, train = split(np.sort(order[:count])), split(np.sort(order[count:]))
    options = {"activation": "silu", "visible": 0.1, "numbers": "standard", "categories": "one-hot"} | case.options
    settings = {
        "patience": 40,
        "warmup": 0.05,
        "weight_decay": 1e-4,
        "gradient_clip": 1.0,
        "threads": torch.get_num_threads(),
    } | case.training
    model, _ = training.fit(
        ModelSpec.of("masked", Layout((x.shape[1],), (Field(1, True),) * x.shape[1]), options),
        train,
        held_out,
        training.Settings(**settings | ({"epochs": epochs} if epochs else {})),
        seed=0,
        device="cpu",
        on_epoch=lambda epoch: None,
    )
    found = {}
    for name, aids in (("network alone", []), ("network, linear model and neighbours", ["linear", "neighbours"])):
        application = imputation.Imputation(share=HIDDEN, passes=5, aids=aids, draws=None, flags=False)  # type: ignore[arg-type]
        found[name] = application.calibrate(model, train, held_out).fill(model, known, seen)
    return found


class Iterated:
    """scikit-learn's IterativeImputer, by BayesianRidge."""

    def fit(self, x: np.ndarray, owner: np.ndarray) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.filled = impute.IterativeImputer(max_iter=30, random_state=0).fit_transform(x)


def rivals(trees: int) -> dict[str, tuple[Callable[[Any], Any], list[Any]]]:
    """Return each rival with the settings to choose from."""

    def forest(leaf: int) -> Any:
        regressor = ensemble.ExtraTreesRegressor
        return imputation.Chain(
            lambda: regressor(trees, min_samples_leaf=leaf, random_state=0, n_jobs=torch.get_num_threads()), rounds=5
        )

    neighbours = [(k, weights) for weights in ("uniform", "distance") for k in (3, 5, 10, 20, 40)]
    return {
        "mean": (lambda _: imputation.Mean(), [None]),
        "KNNImputer": (lambda s: imputation.Neighbours(*s), neighbours),
        "IterativeImputer": (lambda _: Iterated(), [None]),
        "missForest of ExtraTrees": (forest, [1, 3]),
    }


def rival(make: Callable[[Any], Any], settings: list[Any], x: np.ndarray, seed: int) -> tuple[np.ndarray, Any]:
    """Choose a setting on cells hidden among the known ones, fit to all, and fill; x (n, columns) with NaN for gaps."""
    owner = np.arange(x.shape[1])
    generator = np.random.default_rng([seed, 1])
    chosen = settings[0]
    if len(settings) > 1:
        rows = np.sort(generator.permutation(len(x))[:TUNED_ROWS])
        hidden = np.zeros(x.shape, bool)
        hidden[rows] = generator.random((len(rows), x.shape[1])) < 0.1
        hidden &= ~np.isnan(x)
        # Copying needs all rows to copy from; what is fitted, and takes its time, shows its setting on these rows.
        lean = isinstance(make(chosen), imputation.Neighbours)
        open_ = np.where(hidden, np.nan, x) if lean else np.where(hidden, np.nan, x)[rows]
        errors = []
        for setting in settings:
            method = make(setting)
            method.fit(open_, owner)
            filled = method.fill(open_[rows] if lean else open_)
            errors.append(((filled - x[rows]) ** 2)[hidden[rows]].mean())
        chosen = settings[int(np.argmin(errors))]
    method = make(chosen)
    method.fit(x, owner)
    return (method.filled if hasattr(method, "filled") else method.fill(x)), chosen


def measure(
    whole: np.ndarray, case: Case, seed: int, epochs: int | None, trees: int, leave_out: list[str]
) -> dict[str, tuple[float, float, Any]]:
    """Return the RMSE, the seconds and the setting of everybody, for one draw of the hidden cells."""
    seen = np.random.default_rng(seed).random(whole.shape) >= HIDDEN
    known = np.where(seen, whole, np.nan)
    low, high = np.nanmin(known, axis=0), np.nanmax(known, axis=0)
    mean, spread = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    x = (whole - mean) / spread

    def rmse(filled: np.ndarray) -> float:
        error = ((filled - x) * spread / (high - low))[~seen]
        return float(np.sqrt((error**2).mean()))

    found = {}
    start = time.perf_counter()
    for name, filled in sevenfold(x, seen, case, seed, epochs).items():
        found[name] = (rmse(filled), time.perf_counter() - start, "")
    for name, (make, settings) in rivals(trees).items():
        if name in leave_out:
            continue
        start = time.perf_counter()
        filled, chosen = rival(make, settings, np.where(seen, x, np.nan), seed)
        found[name] = (rmse(filled), time.perf_counter() - start, chosen)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--tables", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument("--seeds", type=int, default=5, help="draws of the hidden cells at most; letter has one")
    parser.add_argument("--rows", type=int, help="only so many rows of each table, for a trial")
    parser.add_argument("--epochs", type=int, help="of each training, for a trial")
    parser.add_argument("--trees", type=int, default=100, help="of each forest")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without", nargs="+", default=[], metavar="RIVAL", help="rivals to leave out, for a trial")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines, notes = [], []
    for name in arguments.tables:
        case = CASES[name]
        whole = table(arguments.data, case)[: arguments.rows]
        seeds = min(case.seeds, arguments.seeds)
        runs = []
        for seed in range(seeds):
            runs.append(measure(whole, case, seed, arguments.epochs, arguments.trees, arguments.without))
            shown = ", ".join(f"{n} {r:.4f} ({s:.0f} s)" for n, (r, s, _) in runs[-1].items())
            print(f"{name}, seed {seed}: {shown}", flush=True)
        average = {n: np.mean([run[n][:2] for run in runs], axis=0) for n in runs[0]}
        for contender, (error, seconds) in sorted(average.items(), key=lambda item: item[1][0]):
            chosen = sorted({str(run[contender][2]) for run in runs if run[contender][2] not in ("", None)})
            lines.append([case.title, contender, f"{error:.4f}", f"{seconds:.1f}", " ".join(chosen)])
        notes.append(f"{case.title}: {seeds} draw{'s' * (seeds > 1)}")
    body = page.table(["table", "", "RMSE", "seconds", "settings chosen"], lines)
    explained = (
        "20 % of the cells hidden at random, columns scaled to 0..1 by their known cells, RMSE over the hidden cells, lower "
        "is better. Everybody learns from the table with its gaps and fills them; settings are chosen on further cells, "
        f"hidden among the known ones. Means over draws ({'; '.join(notes)}); seconds are those of one draw, training and "
        "tuning included."
    )
    section = page.section("Imputation", f"{explained}\n\n{body}")
    print(f"\n{section}")
    if arguments.write:
        page.write("imputation", section)


if __name__ == "__main__":
    main()
