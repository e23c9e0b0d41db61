"""The contract of every application: it judges a model, and does the work that was judged."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sevenfold.datasets.base import Dataset, Schema, Split
from sevenfold.models.base import Autoencoder
from sevenfold.pictures import Picture

Columns = dict[str, np.ndarray]
"""What a job writes: a name and (n,) values for each column, or (n, ...) where a value is an image or a vector."""


@dataclass(frozen=True)
class Scores:
    """What was measured on one split.

    metrics: by name, each a number; among them the application's `primary`. One that is not finite counts as a failure.
    values: (n,) arrays, one entry per row, from which `Application.statistic` computes the primary metric again; two
        models judged on the same rows are compared by drawing these rows with replacement.
    """

    metrics: Mapping[str, float]
    values: Mapping[str, np.ndarray]


class Rival(ABC):
    """A classical method for the same task, fitted on the same training rows and tuned on the same validation rows."""

    @abstractmethod
    def fit(self, train: Split, validation: Split) -> None: ...

    @abstractmethod
    def evaluate(self, split: Split, train: Split) -> Scores:
        """Judge on `split` as `Application.evaluate` does, with the same names."""


class Application(ABC):
    """One use of an autoencoder.

    A file in `applications/` with one subclass. Its options are keyword-only arguments of `__init__` without defaults.
    What calibration learns is in `state`, as named arrays, and travels in the bundle.
    """

    primary: ClassVar[str]
    """The deciding metric; higher is better."""

    operation: ClassVar[str]
    """The batch job that runs `predict`: "encode", "denoise", "compress", "index", "score" or "impute"."""

    learns_from: ClassVar[Literal["all", "normal"]]
    """Which training rows a candidate may learn from: all, or the normal class only where the data set names one."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self.state: dict[str, np.ndarray] = {}

    def with_state(self, state: Mapping[str, np.ndarray]) -> Self:
        """Return a copy that was calibrated to `state`."""
        calibrated = copy(self)
        calibrated.state = dict(state)
        return calibrated

    @abstractmethod
    def unsuited(self, *, code: int | None, images: bool | None, labelled: bool, normal: bool) -> str | None:
        """Return why the application cannot judge such a candidate on such data, and what would suit; else None.

        Args:
            code: number of values in the candidate's code; None where that is not known before the data are read.
            images: whether the samples are images; None where that is not known before the data are read.
            labelled: whether the data set has a label.
            normal: whether it names a normal class.
        """

    def judged(self, dataset: Dataset) -> Dataset:
        """Return the data set whose validation and test rows this application judges by; by default as it is.

        Everybody is judged by these rows, candidates and rivals alike, and they are the same every time.
        """
        return dataset

    @abstractmethod
    def calibrate(self, model: Autoencoder, train: Split, validation: Split) -> Self:
        """Return a copy with thresholds and normalisers; `train` holds the rows that the model learned from."""

    @abstractmethod
    def evaluate(self, model: Autoencoder, split: Split, train: Split) -> Scores:
        """Judge `predict` on `split`; `train` serves as reference for neighbours, never as something to judge."""

    def held_out(self, model: Autoencoder, validation: Split, train: Split) -> Scores:
        """Judge on the validation rows, by which candidates are chosen.

        An application whose calibration learns from labels of these rows judges each row by what the others taught,
        since what fits them best is not what is best.
        """
        return self.evaluate(model, validation, train)

    @abstractmethod
    def statistic(self, values: Mapping[str, np.ndarray]) -> float:
        """Return the primary metric of these per-row values; NaN where it is not defined on them."""

    def within(self, values: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the per-row values by which a slice of the test rows is judged; by default those of its rows.

        Args:
            rows: positions of the slice's rows.
        """
        return {name: value[rows] for name, value in values.items()}

    @abstractmethod
    def rivals(self) -> dict[str, Rival]:
        """Return the rivals by name, not yet fitted."""

    @abstractmethod
    def predict(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> Columns:
        """Return what a job writes for these samples, one entry per row."""

    def pictures(self, model: Autoencoder, split: Split, train: Split, schema: Schema) -> list[Picture]:
        """Draw what the calibrated application makes of some rows of `split`; the report shows the chosen candidate's."""
        return []

    def comparison(self, scores: Mapping[str, Scores], chosen: str) -> list[Picture]:
        """Draw candidates and rivals side by side.

        Args:
            scores: on the test rows, by the name of a candidate or rival, in the order of their primary metric.
            chosen: the candidate that stands for the autoencoders.
        """
        return []


def tensor(x: np.ndarray) -> Tensor:
    """Return the array as a tensor; memory-mapped and read-only arrays are copied, since torch writes where it likes."""
    return torch.from_numpy(x if x.flags.writeable else np.array(x))


def require_at_least(lowest: int, **options: int) -> None:
    """Raise a ValueError that names every option below `lowest`."""
    if low := [f"{name} is {value}" for name, value in options.items() if value < lowest]:
        raise ValueError(f"{', '.join(low)}; expected {lowest} or more")


def in_batches(x: np.ndarray, observed: np.ndarray | None, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Cut samples into at most `size` at a time; no rows make one empty batch, so that results have a shape."""
    for start in range(0, max(len(x), 1), size):
        rows = slice(start, start + size)
        yield tensor(x[rows]), None if observed is None else tensor(observed[rows])


@torch.inference_mode()
def codes(model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, batch: int = 4096) -> np.ndarray:
    """Return (n, code) float32."""
    return np.concatenate([model.encode(*cells).numpy() for cells in in_batches(x, observed, batch)])


@torch.inference_mode()
def reconstructions(model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, batch: int = 4096) -> np.ndarray:
    """Return (n, *shape) float32."""
    return np.concatenate([model(*cells).numpy() for cells in in_batches(x, observed, batch)])


def code_columns(model: Autoencoder, x: np.ndarray, observed: np.ndarray | None) -> Columns:
    """Return one column per code value: code_0, code_1, ..."""
    z = codes(model, x, observed)
    return {f"code_{i}": z[:, i] for i in range(z.shape[1])}


def flat(split: Split) -> np.ndarray:
    """Return (n, size) float64, for the classical methods; gaps are 0, the mean of a standardised column."""
    return np.asarray(split.x, np.float64).reshape(len(split), -1)
