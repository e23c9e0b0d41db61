"""Calibrate on validation rows, judge on test rows, and compare with the rivals on the same rows."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from sevenfold import files, gate
from sevenfold.applications.base import Application, Scores
from sevenfold.datasets.base import Dataset, Split
from sevenfold.models.base import Autoencoder

DRAWS = 2000
"""Bootstrap samples behind an interval."""

GROUP = "group"
"""Under this name a judgement keeps the number of each test row's group."""


@dataclass(frozen=True)
class Judgement:
    """The scores of one candidate or rival on the two splits that judge."""

    validation: Scores
    test: Scores
    replicates: dict[tuple[int, str], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def save(self, folder: Path, primary: str) -> None:
        """Write `scores.json`, for people, and `values.npz`, for comparisons, into an existing folder."""
        self.require_finite()
        metrics = {"validation": dict(self.validation.metrics), "test": dict(self.test.metrics)}
        files.write_json(folder / "scores.json", {"primary": primary, **metrics})
        arrays = {f"validation.{n}": v for n, v in self.validation.values.items()}
        arrays |= {f"test.{n}": v for n, v in self.test.values.items()}
        with files.whole(folder / "values.npz") as draft:
            np.savez(draft, **arrays)  # type: ignore[arg-type]

    def require_finite(self) -> None:
        """Raise an ArithmeticError that lists every metric without a finite value."""
        metrics = {f"{part}.{n}": v for part in ("validation", "test") for n, v in getattr(self, part).metrics.items()}
        if bad := [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]:
            raise ArithmeticError(
                f"{', '.join(bad)}; expected finite numbers; give the split a larger share or more rows of each class"
            )

    @classmethod
    def load(cls, folder: Path) -> "Judgement":
        metrics = files.read_json(folder / "scores.json")
        path = folder / "values.npz"
        try:
            # np.load leaves a damaged archive open if it opens it itself.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in arrays.files if isinstance(arrays[name], np.ndarray)}
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever an archive that is none makes NumPy say
            raise ValueError(f"{path} cannot be read ({error}); remove it and run `dvc repro`") from None
        if not values:
            raise ValueError(f"{path} holds no values of rows; remove it and run `dvc repro`")
        parts = {}
        for split in ("validation", "test"):
            own = {n.removeprefix(f"{split}."): v for n, v in values.items() if n.startswith(f"{split}.")}
            parts[split] = Scores(metrics[split], own)
        return cls(parts["validation"], parts["test"])


def learned_from(application: Application, dataset: Dataset) -> Split:
    """Return the training rows that this application's candidates and rivals may learn from."""
    return dataset.train.only_normal() if application.learns_from == "normal" else dataset.train


def judge(application: Application, model: Autoencoder, dataset: Dataset) -> tuple[Application, Judgement]:
    """Calibrate on the validation split and judge on both; returns the calibrated application too."""
    dataset = application.judged(dataset)
    train = learned_from(application, dataset)
    calibrated = application.calibrate(model, train, dataset.validation)
    validation = calibrated.held_out(model, dataset.validation, train)
    return calibrated, Judgement(validation, _grouped(calibrated.evaluate(model, dataset.test, train), dataset.test))


def rejudge(calibrated: Application, model: Autoencoder, dataset: Dataset) -> Judgement:
    """Judge a calibrated application as it is, as for a champion of an earlier day."""
    dataset = calibrated.judged(dataset)
    train = learned_from(calibrated, dataset)
    validation = calibrated.evaluate(model, dataset.validation, train)
    return Judgement(validation, _grouped(calibrated.evaluate(model, dataset.test, train), dataset.test))


def _grouped(scores: Scores, split: Split) -> Scores:
    """Return the scores with the number of each row's group beside its values, where rows come in groups."""
    if split.groups is None:
        return scores
    return Scores(scores.metrics, {**scores.values, GROUP: np.unique(split.groups, return_inverse=True)[1]})


class BudgetError(RuntimeError):
    """Something took longer than it was given."""


@contextmanager
def _budget(seconds: float) -> Iterator[None]:
    """Raise a BudgetError in what runs longer, as soon as Python has the word again.

    By a signal, which is all that stops a library's loop without a process of its own; so in the main thread alone,
    and elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise BudgetError(f"stopped after its {seconds:g} seconds; give rivals more by `rivals.seconds`")

    start = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # of somebody else's alarm, which has to ring in its own time
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 0.01))


def judge_rivals(
    application: Application, dataset: Dataset, *, seconds: float = math.inf
) -> tuple[dict[str, Judgement], dict[str, str]]:
    """Fit, tune and judge every rival; returns judgements, and the reason for each rival that has none.

    A rival that fails, or takes longer than its `seconds`, is in the second mapping and in every table: it is never
    left out silently.
    """
    dataset = application.judged(dataset)
    train = learned_from(application, dataset)
    judged, failed = {}, {}
    for name, rival in application.rivals().items():
        try:
            # A timer takes no infinity, and nothing here takes a year.
            with _budget(min(seconds, 3e7)):
                rival.fit(train, dataset.validation)
                validation, test = (rival.evaluate(split, train) for split in (dataset.validation, dataset.test))
            judgement = Judgement(validation, _grouped(test, dataset.test))
            judgement.require_finite()
            judged[name] = judgement
        except Exception as error:  # a classical library may fail in any way; the table says how
            failed[name] = f"{type(error).__name__}: {error}"
    return judged, failed


def interval(application: Application, ours: Judgement, theirs: Judgement, *, seed: int = 0) -> gate.Interval:
    """Return the difference of the primary metric on the test rows, ours minus theirs, with its 95 % interval.

    Paired bootstrap (Efron and Tibshirani, 1993, ch. 16): the same rows are drawn for both, so what makes a row hard
    for everybody does not widen the interval. Rows that come in groups, such as the patches of a photograph, are drawn
    by whole groups, since they resemble each other and are worth less than as many independent rows.

    Raises:
        ValueError: the two were judged on different numbers of rows.
    """
    counts = sorted({len(v) for one in (ours, theirs) for v in one.test.values.values()})
    if len(counts) > 1:
        raise ValueError(
            f"judged on {' and '.join(map(str, counts))} test rows; expected the same; evaluate both again"
        )
    drawn = _replicates(application, ours, seed) - _replicates(application, theirs, seed)
    # A draw may hold a single class, on which the metric is not defined.
    drawn = drawn[np.isfinite(drawn)]
    difference = ours.test.metrics[application.primary] - theirs.test.metrics[application.primary]
    if not len(drawn):
        return gate.Interval(difference, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return gate.Interval(float(difference), float(low), float(high))


def _replicates(application: Application, one: Judgement, seed: int) -> np.ndarray:
    """Return the primary metric of each bootstrap sample of the test rows, (DRAWS,); the samples depend on the rows alone.

    They are kept with the judgement, which is compared with several others.
    """
    if (seed, application.primary) in one.replicates:
        return one.replicates[seed, application.primary]
    values = one.test.values
    count, groups = len(next(iter(values.values()))), values.get(GROUP)
    members = [] if groups is None else [np.flatnonzero(groups == group) for group in np.unique(groups)]
    generator = np.random.default_rng(seed)
    found = np.empty(DRAWS)
    for draw in range(DRAWS):
        if members:
            rows = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        else:
            rows = generator.integers(count, size=count)
        found[draw] = application.statistic({n: v[rows] for n, v in values.items()})
    one.replicates[seed, application.primary] = found
    return found


@dataclass(frozen=True)
class Contest:
    """Everybody's scores in one application on one data set, and who stands for the autoencoders.

    chosen: the candidate best on validation; None where no candidate has a result.
    rival: the rival best on test, the hardest to beat; None where there is none.
    against: chosen minus rival on the test rows.
    missing: candidates and rivals without a result, and why.
    """

    dataset: str
    application: str
    primary: str
    candidates: Mapping[str, Judgement]
    rivals: Mapping[str, Judgement]
    missing: Mapping[str, str]
    chosen: str | None
    rival: str | None
    against: gate.Interval | None

    @property
    def name(self) -> str:
        """The name of the registered model."""
        return f"{self.dataset}-{self.application}"

    def score(self, name: str) -> float:
        """Return the primary metric on the test rows of a candidate or a rival."""
        return float({**self.candidates, **self.rivals}[name].test.metrics[self.primary])

    @property
    def verdict(self) -> str:
        """What a data team should take from it, in one sentence."""
        if self.chosen is None:
            return "no candidate has a result"
        if self.rival is None or self.against is None:
            return f"{self.chosen} has no rival to be compared with"
        ours, theirs = number(self.score(self.chosen)), number(self.score(self.rival))
        what, low, high = label(self.primary), self.against.low, self.against.high
        if ours == theirs:
            return f"no difference that matters between {self.chosen} and the best rival, {self.rival}: {what} {ours}"
        if low > 0:
            by = f"by {difference(low)} to {difference(high)}"
            return f"{self.chosen} beats the best rival, {self.rival}: {what} {ours} against {theirs} (higher is better), {by}"
        if high < 0:
            by = f"by {difference(-high)} to {difference(-low)}"
            return f"{self.rival} wins here: use it; {what} {theirs} against {ours} of {self.chosen} (higher is better), {by}"
        between = f"no proven difference between {self.chosen} and the best rival, {self.rival}"
        by = f", a difference of {difference(low)} to {difference(high)}" if math.isfinite(low) else ""
        return f"{between}: {what} {ours} against {theirs} (higher is better){by}"


_WRITTEN = {
    "auroc": "AUROC",
    "avif": "AVIF",
    "bd": "BD",
    "bpp": "bits per pixel",
    "jpeg": "JPEG",
    "knn": "k-NN",
    "mae": "MAE",
    "mar": "MAR",
    "mcar": "MCAR",
    "ms": "MS",
    "mse": "MSE",
    "mssim": "MS-SSIM",
    "pca": "PCA",
    "png": "PNG",
    "psnr": "PSNR",
    "r2": "R²",
    "rmse": "RMSE",
    "ssim": "SSIM",
    "webp": "WebP",
}


def label(metric: str) -> str:
    """Return a metric's name as people write it: `psnr_gain_25` is PSNR gain 25."""
    words = [_WRITTEN.get(word, word) for word in metric.split("_") if word]
    return " ".join(words).replace("MS SSIM", "MS-SSIM")


def number(value: float) -> str:
    """Return a metric with as many digits as a reader needs."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 1e-9:  # what rounding left of nothing, which needs no sign
        value = 0.0
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 10 else f"{value:.4g}"


def difference(value: float) -> str:
    """Return a difference of two metrics: as `number`, but for a small one two digits, and never an exponent."""
    if abs(value) < 1e-8:
        return number(0.0)
    if not abs(value) < 0.001:  # NaN too
        return number(value)
    return f"{value:.{1 - math.floor(math.log10(abs(value)))}f}"


def hold(
    dataset: str,
    name: str,
    application: Application,
    candidates: Mapping[str, Judgement],
    rivals: Mapping[str, Judgement],
    missing: Mapping[str, str],
) -> Contest:
    """Choose on validation, compare on test.

    Raises:
        ValueError: a candidate has the name of a rival.
    """
    if twice := sorted(set(candidates) & set(rivals)):
        raise ValueError(
            f"{dataset}-{name}: {', '.join(twice)} names both a candidate and a rival; rename the candidate"
        )
    primary = application.primary
    chosen = gate.best({n: j.validation.metrics[primary] for n, j in candidates.items()})
    rival = gate.best({n: j.test.metrics[primary] for n, j in rivals.items()})
    against = interval(application, candidates[chosen], rivals[rival]) if chosen and rival else None
    return Contest(dataset, name, primary, dict(candidates), dict(rivals), dict(missing), chosen, rival, against)


def summary(contest: Contest) -> dict[str, Any]:
    """Return the contest as plain numbers and words, for the metrics file."""
    result: dict[str, Any] = {"verdict": contest.verdict, "metric": contest.primary}
    if contest.chosen is not None:
        result["winner"] = contest.chosen
        result |= {
            "score": contest.score(contest.chosen),
            "test": dict(contest.candidates[contest.chosen].test.metrics),
        }
    if contest.rival is not None:
        result["rival"] = {
            "name": contest.rival,
            "score": contest.score(contest.rival),
            "test": dict(contest.rivals[contest.rival].test.metrics),
        }
    if contest.against is not None:
        result["difference"] = contest.against.to_json()
        result["beats_rivals"] = contest.against.low > 0
    return result
