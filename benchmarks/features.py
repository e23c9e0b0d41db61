"""What a short code is worth: reduction and features on digits over several splits, and on Fashion-MNIST.

    python benchmarks/features.py DATA --rows 10000

Digits come with scikit-learn, and are judged by the contests of params.yaml: a candidate is chosen on validation rows
in each split, and every number is measured on test rows. Fashion-MNIST lies in DATA/fashion-mnist as its four files;
its candidates are those of params/fashion-mnist.yaml, trained on the first `--rows` of its training images.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import page
import study
import torch
from sklearn import neighbors

from sevenfold import evaluation, params, stages, training
from sevenfold.applications.base import Application
from sevenfold.applications.features import Features
from sevenfold.applications.reduction import Reduction
from sevenfold.datasets import digits
from sevenfold.datasets.base import Dataset
from sevenfold.evaluation import Judgement
from sevenfold.models.base import Autoencoder, ModelSpec
from sevenfold.params import Params

ROOT = Path(__file__).parents[1]

TITLES = {
    "reduction": "Reduction: digits",
    "features": "Features: digits",
    "fashion-mnist": "Reduction and features: Fashion-MNIST",
}

CHOSEN = "sevenfold"
"""The row of the candidate that each split's validation rows choose."""

Found = dict[str, dict[str, list[float]]]
"""Name -> metric -> one number per split."""


def trained(settings: Params, candidate: str, data: Dataset, epochs: int | None = None) -> tuple[Autoencoder, float]:
    """Train a candidate; return it and the seconds."""
    what = settings.candidates[candidate]
    options = settings.settings(candidate).model_dump() | ({"epochs": epochs} if epochs else {})
    start = time.perf_counter()
    model, _ = training.fit(
        ModelSpec.of(what.variant, data.schema.layout, what.options),
        data.train,
        data.validation,
        training.Settings(**options),
        seed=settings.seed,
        device="cpu",
        on_epoch=lambda epoch: None,
    )
    return model, time.perf_counter() - start


def rivals(application: Application, data: Dataset) -> dict[str, tuple[Judgement, float]]:
    """Fit, tune and judge every rival; return what was found and the seconds, and say which have no result."""
    found = {}
    for name, rival in application.rivals().items():

        class One(type(application)):  # type: ignore[misc]
            def rivals(self, name: str = name, rival: Any = rival) -> dict[str, Any]:
                return {name: rival}

        start = time.perf_counter()
        judged, failed = evaluation.judge_rivals(One(**application.options), data)
        if failed:
            print(f"{name} has no result: {failed[name]}", file=sys.stderr)
        found |= {one: (judgement, time.perf_counter() - start) for one, judgement in judged.items()}
    return found


def contest(settings: Params, dataset: str, name: str, splits: Sequence[Dataset], epochs: int | None) -> Found:
    """Hold one contest of params.yaml on each split; return test metrics and seconds by name."""
    found: Found = {}

    def note(who: str, judgement: Judgement, seconds: float) -> None:
        for metric, value in {**judgement.test.metrics, "seconds": seconds}.items():
            found.setdefault(who, {}).setdefault(metric, []).append(value)

    for number, data in enumerate(splits, start=1):
        print(f"{dataset}-{name}: split {number} of {len(splits)}", file=sys.stderr)
        application = stages.application(settings, dataset, name)
        candidates = {}
        for candidate, what in settings.of_dataset(dataset).items():
            if name in what.applications:
                model, seconds = trained(settings, candidate, data, epochs)
                start = time.perf_counter()
                judgement = evaluation.judge(application, model, data)[1]
                candidates[candidate] = judgement, seconds + time.perf_counter() - start
                note(candidate, *candidates[candidate])
        best = max(candidates, key=lambda c: candidates[c][0].validation.metrics[application.primary])
        note(CHOSEN, candidates[best][0], sum(seconds for _, seconds in candidates.values()))
        for rival, (judgement, seconds) in rivals(application, data).items():
            note(rival, judgement, seconds)
    return found


def table(found: Found, metrics: Sequence[str], shown: Mapping[str, Callable[[float], str]] | None = None) -> str:
    """Return means over the splits, best first by the first metric, which has its range too."""
    shown, rows = shown or {}, []
    for name in sorted(found, key=lambda n: -np.mean(found[n][metrics[0]])):
        cells = []
        for metric in metrics:
            values = found[name].get(metric)
            if values is None:
                cells.append("-")
                continue
            text = shown.get(metric, lambda value: f"{value:.3f}")(float(np.mean(values)))
            if metric == metrics[0]:
                text += f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(text)
        rows.append([name, *cells])
    return page.table(["", *(m.replace("_", " ") for m in metrics)], rows)


SHOWN: Mapping[str, Callable[[float], str]] = {
    "mse": lambda value: f"{value:.5f}",
    "share of PCA's error": lambda value: f"{value:.2f}",
    "seconds": lambda value: f"{value:.1f}",
}


def on_digits(name: str, seeds: int, epochs: int | None) -> str:
    """Return the table of one contest on digits."""
    settings = params.load(ROOT / "params.yaml")
    splits = [stages.of_rows(digits.fetch(), settings, "digits", seed=seed) for seed in range(seeds)]
    found = contest(settings, "digits", name, splits, epochs)
    sizes = " / ".join(str(len(part)) for part in (splits[0].train, splits[0].validation, splits[0].test))
    text = (
        f"{sizes} rows to train on, to choose by and to judge by; means over {seeds} splits (and the range over them). "
        f"`{CHOSEN}` is the candidate that each split's validation rows choose."
    )
    if name == "reduction":
        for metrics in found.values():
            metrics["share of PCA's error"] = [float(np.mean(metrics["mse"]) / np.mean(found["pca"]["mse"]))]
        columns = ["explained_variance", "mse", "share of PCA's error", "trustworthiness", "knn_accuracy", "seconds"]
    else:
        text += (
            " `probe` is the accuracy of a logistic regression on the code; `boosting` that of gradient-boosted trees."
        )
        columns = ["probe", "probe_10_labels", "probe_100_labels", "boosting", "boosting_with_raw", "seconds"]
    code = settings.applications["digits"][name]["code"]
    return f"Codes of {code} values. {text}\n\n{table(found, columns, SHOWN)}"


def _knn(train: np.ndarray, data: Dataset, test: np.ndarray) -> float:
    assert data.train.y is not None
    assert data.test.y is not None
    classifier = neighbors.KNeighborsClassifier(5).fit(train, data.train.y.astype(str))
    return float(classifier.score(test, data.test.y.astype(str)))


def on_fashion_mnist(folder: Path, rows: int, sizes: Sequence[int], epochs: int | None) -> str:
    settings = params.load(ROOT / "params" / "fashion-mnist.yaml")
    everything = study.fashion_mnist(folder)
    side = everything.frame["part"].to_numpy()
    judged = np.flatnonzero(side == "test")
    taken = everything.take(np.concatenate([np.flatnonzero(side == "train")[:rows], judged[: max(rows // 2, 100)]]))
    parts = []
    for size in sizes:
        name = f"fashion-mnist-{size}"
        data = stages.of_rows(taken, settings, name, seed=0)
        features, reduction = Features(code=size), Reduction(code=size, neighbours=12)
        found: Found = {}

        def note(
            who: str,
            judgements: Sequence[Judgement],
            seconds: float,
            found: Found = found,
        ) -> None:
            metrics = {m: v for one in judgements for m, v in one.test.metrics.items()} | {"seconds": seconds}
            found[who] = {metric: [value] for metric, value in metrics.items()}

        compared = rivals(reduction, data)
        for rival, (judgement, seconds) in rivals(features, data).items():
            note(rival, [judgement, *([compared[rival][0]] if rival in compared else [])], seconds)
        flat = [part.x.reshape(len(part), -1) for part in (data.train, data.test)]
        found["raw"]["knn_accuracy"] = [_knn(flat[0], data, flat[1])]
        for candidate in settings.of_dataset(name):
            model, seconds = trained(settings, candidate, data, epochs)
            start = time.perf_counter()
            both = [evaluation.judge(application, model, data)[1] for application in (features, reduction)]
            note(candidate, both, seconds + time.perf_counter() - start)
        parts += [
            f"### Codes of {size} values",
            f"{len(data.train):,} / {len(data.validation):,} / {len(data.test):,} images to train on, to choose by and to "
            "judge by.",
            table(
                found,
                ["probe", "probe_10_labels", "probe_100_labels", "boosting", "knn_accuracy", "mse", "seconds"],
                SHOWN,
            ),
        ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds fashion-mnist/")
    parser.add_argument("--sets", nargs="+", choices=[*TITLES], default=[*TITLES], help="which tables; by default all")
    parser.add_argument("--seeds", type=int, default=5, help="splits of digits")
    parser.add_argument("--rows", type=int, default=10_000, help="training images of Fashion-MNIST; half as many judge")
    parser.add_argument("--codes", type=int, nargs="+", choices=[16, 32], default=[16, 32], help="of Fashion-MNIST")
    parser.add_argument("--epochs", type=int, help="in place of those of the settings, for a trial")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    given = parser.parse_args()
    folder = given.data / "fashion-mnist"
    if "fashion-mnist" in given.sets and not folder.is_dir():
        parser.error(f"{given.data} holds no fashion-mnist; name another folder, or give `--sets reduction features`")
    torch.set_num_threads(1)
    for name in given.sets:
        if name == "fashion-mnist":
            body = on_fashion_mnist(folder, given.rows, given.codes, given.epochs)
        else:
            body = on_digits(name, given.seeds, given.epochs)
        section = page.section(TITLES[name], body)
        print(section)
        if given.write:
            page.write(f"features-{name}", section)


if __name__ == "__main__":
    main()
