"""Dimensionality reduction: how much of the data a short code keeps."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from sevenfold.applications.base import (
    Application,
    Columns,
    Rival,
    Scores,
    code_columns,
    codes,
    flat,
    reconstructions,
    require_at_least,
)
from sevenfold.datasets.base import Schema, Split
from sevenfold.models.base import Autoencoder

LARGEST_SAMPLE = 2000
"""Rows that the neighbourhood metrics look at: their distances between all pairs grow with the square."""


class Reduction(Application):
    """Judges codes of one given size by the variance of the test rows that they explain."""

    primary = "explained_variance"
    operation = "encode"
    learns_from = "all"

    def __init__(self, *, code: int, neighbours: int) -> None:
        """Set up the contest.

        Args:
            code: the number of code values that candidates and rivals alike may use.
            neighbours: for trustworthiness and continuity (Venna and Kaski, 2001).

        Raises:
            ValueError: an option is out of range.
        """
        require_at_least(1, code=code, neighbours=neighbours)
        super().__init__({"code": code, "neighbours": neighbours})
        self.code = code
        self.neighbours = neighbours

    def unsuited(self, *, code: int | None, images: bool | None, labelled: bool, normal: bool) -> str | None:
        if code not in (None, self.code):
            return f"has a code of {code}, and is compared at a code of {self.code}; give both the same `code`"
        return None

    def calibrate(self, model: Autoencoder, train: Split, validation: Split) -> Self:
        return self.with_state({})

    def evaluate(self, model: Autoencoder, split: Split, train: Split) -> Scores:
        z, reference = codes(model, split.x, split.observed), codes(model, train.x, train.observed)
        return self.scores(split, z, reconstructions(model, split.x, split.observed), train, reference)

    def scores(self, split: Split, z: np.ndarray, output: np.ndarray, train: Split, reference: np.ndarray) -> Scores:
        """Judge codes (n, code) and reconstructions (n, *shape) of a split; `reference` are the codes of `train`."""
        x = flat(split)
        seen = np.ones_like(x) if split.observed is None else split.observed.reshape(x.shape)
        count = np.maximum(seen.sum(axis=0), 1)
        mean = (x * seen).sum(axis=0) / count
        error = ((x - output.reshape(x.shape)) ** 2 * seen).sum(axis=1)
        total = ((x - mean) ** 2 * seen).sum(axis=1)
        values = {"error": error, "total": total}
        metrics = {self.primary: self.statistic(values), "mse": float(error.sum() / seen.sum())}
        metrics |= _neighbourhoods(x, z, self.neighbours)
        if split.y is not None and train.y is not None:
            metrics["knn_accuracy"] = _knn_accuracy(reference, train.y, z, split.y)
        return Scores(metrics, values)

    def statistic(self, values: Mapping[str, np.ndarray]) -> float:
        total = values["total"].sum()
        return float(1 - values["error"].sum() / total) if total > 0 else float("nan")

    def rivals(self) -> dict[str, Rival]:
        from sklearn import decomposition, random_projection

        def random(code: int) -> Any:
            return random_projection.GaussianRandomProjection(code, compute_inverse_components=True, random_state=0)

        return {
            "pca": _Projection(self, lambda k: decomposition.PCA(k, random_state=0)),
            "truncated_svd": _Projection(self, lambda k: decomposition.TruncatedSVD(k, random_state=0)),
            "random_projection": _Projection(self, random),
        }

    def predict(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> Columns:
        return code_columns(model, x, observed)


class _Projection(Rival):
    """A linear method of scikit-learn with `transform` and `inverse_transform`. Nothing in it wants tuning."""

    def __init__(self, application: Reduction, method: Callable[[int], Any]) -> None:
        self._application = application
        self._method = method

    def fit(self, train: Split, validation: Split) -> None:
        self._fitted = self._method(self._application.code).fit(flat(train))

    def evaluate(self, split: Split, train: Split) -> Scores:
        z = self._fitted.transform(flat(split))
        output = self._fitted.inverse_transform(z)
        return self._application.scores(split, z, output, train, self._fitted.transform(flat(train)))


def _neighbourhoods(x: np.ndarray, z: np.ndarray, neighbours: int) -> dict[str, float]:
    """Return trustworthiness (no false neighbours in the code) and continuity (none lost), each 0 to 1."""
    from sklearn import manifold

    rows = np.linspace(0, len(x) - 1, min(len(x), LARGEST_SAMPLE)).astype(int)
    # scikit-learn wants fewer neighbours than half the rows.
    k = min(neighbours, (len(rows) - 1) // 2)
    if k < 1:
        return {}
    # Continuity is trustworthiness with the two spaces exchanged.
    return {
        "trustworthiness": float(manifold.trustworthiness(x[rows], z[rows], n_neighbors=k)),
        "continuity": float(manifold.trustworthiness(z[rows], x[rows], n_neighbors=k)),
    }


def _knn_accuracy(reference: np.ndarray, labels: np.ndarray, z: np.ndarray, y: np.ndarray) -> float:
    """Return the share of rows whose label is that of most of their 5 nearest training codes."""
    from sklearn import neighbors

    classifier = neighbors.KNeighborsClassifier(min(5, len(reference))).fit(reference, labels.astype(str))
    return float((classifier.predict(z) == y.astype(str)).mean())
