"""Dimensionality reduction: how much of the data a short code keeps."""

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from sevenfold import pictures
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
from sevenfold.pictures import Picture

LARGEST_SAMPLE = 2000
"""Rows that the neighbourhood metrics and pictures look at: distances between all pairs grow with the square."""

MOST_COMPONENTS = 8
"""Times as many principal components as code values are drawn, at most."""


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
            "kernel_pca": _KernelComponents(self),
            "truncated_svd": _Projection(self, lambda k: decomposition.TruncatedSVD(k, random_state=0)),
            "random_projection": _Projection(self, random),
        }

    def predict(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> Columns:
        return code_columns(model, x, observed)

    def pictures(self, model: Autoencoder, split: Split, train: Split, schema: Schema) -> list[Picture]:
        """Draw the codes in two dimensions, and how many principal components keep as much."""
        rows = split.take(_sample(len(split)))
        z = codes(model, rows.x, rows.observed)
        maps = {"the code" if z.shape[1] == 2 else "the code, by its two principal components": _in_two(z)}
        if z.shape[1] == 1:
            maps = {"the code, against chance": np.column_stack([z, np.random.default_rng(0).random(len(z))])}
        if importlib.util.find_spec("umap") is not None and len(rows) > self.neighbours + 2:
            maps["raw values, by UMAP"] = _umap(flat(rows), self.neighbours)
        found = reconstructions(model, rows.x, rows.observed)
        return [_map(maps, rows), self._by_size(z.shape[1], found, rows, train)]

    def _by_size(self, code: int, output: np.ndarray, split: Split, train: Split) -> Picture:
        """Draw the error of principal components by their number, and where the code stands among them."""
        x = flat(split)
        seen = np.ones_like(x) if split.observed is None else split.observed.reshape(x.shape)
        ours = float(((x - output.reshape(x.shape)) ** 2 * seen).sum() / seen.sum())
        errors = _component_errors(flat(train), x, seen, MOST_COMPONENTS * code)
        enough = np.flatnonzero(errors <= ours)
        needed = f"{enough[0] + 1}" if len(enough) else f"more than {len(errors)}"

        def draw(ax: Any) -> None:
            counts = np.arange(1, len(errors) + 1)
            ax.plot(counts, errors, color=pictures.THEIRS, label="principal components")
            ax.plot([code], [ours], "o", color=pictures.OURS, label="this code")
            ax.axhline(ours, color=pictures.OURS, linewidth=0.8, linestyle=":")
            ax.set(xlabel="values in the code", ylabel="mean squared error", ylim=(0, None))
            ax.legend(frameon=False)

        return pictures.plot(
            "error_by_size",
            f"A code of {code} with the error of {needed} principal components",
            f"Mean squared error of 1 to {len(errors)} principal components on test rows, falling from {errors[0]:.4g} to "
            f"{errors[-1]:.4g}; the code of {code} has {ours:.4g}, for which {needed} components are needed.",
            draw,
        )

    def comparison(self, scores: Mapping[str, Scores], chosen: str) -> list[Picture]:
        """Draw how much each one's code explains, and how well it keeps neighbours."""
        rivals = self.rivals()
        colours = {name: pictures.THEIRS if name in rivals else pictures.OURS for name in scores}
        explained = {name: one.metrics[self.primary] for name, one in scores.items()}
        near = {name: one.metrics for name, one in scores.items() if "trustworthiness" in one.metrics}
        # A method below this explains less than nothing; how much less would press all others together.
        lowest = max(-0.1, min(0.0, *explained.values()))

        def draw(bars: Any, points: Any) -> None:
            names = [*scores][::-1]
            shown = [max(explained[name], lowest) for name in names]
            bars.barh(names, shown, color=[colours[name] for name in names])
            for place, (name, value) in enumerate(zip(names, shown, strict=True)):
                bars.text(max(value, 0) + 0.01, place, f"{explained[name]:.3f}", va="center", fontsize=7)
            for tick, name in zip(bars.get_yticklabels(), names, strict=True):
                tick.set(fontsize=7, weight="bold" if name == chosen else "normal")
            bars.set(xlabel="explained variance", xlim=(lowest, 1.12))
            for metric, marker in (("trustworthiness", "o"), ("continuity", "x")):
                found = {names.index(name): one[metric] for name, one in near.items()}
                points.scatter(
                    [*found.values()], [*found], marker=marker, label=metric, color=[colours[names[i]] for i in found]
                )
            # In the order of the bars, whose names they share.
            points.set(xlabel="neighbours kept", yticks=[], ylim=bars.get_ylim())
            if near:
                points.legend(frameon=False, fontsize=7)

        listed = ", ".join(f"{name} {value:.3f}" for name, value in explained.items())
        return [
            pictures.plot(
                "explained",
                f"What a code of {self.code} values keeps: variance, and who is near whom",
                f"Autoencoders blue, rivals brown. Explained variance: {listed}.",
                draw,
                panels=2,
                size=(9.0, 1.4 + 0.22 * len(scores)),
            )
        ]


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


class _KernelComponents(Rival):
    """Principal components of a Gaussian kernel (Schölkopf et al., 1998), and kernel ridge regression back from them
    (Bakır et al., 2004): a curved code for those who train no network.

    Widths and penalty are chosen by the squared error on the validation rows.
    """

    ENCODER = (0.03, 0.3, 1.0)
    DECODER = (0.3, 1.0, 3.0)
    """Of the kernels, as the exponent at the mean squared distance of two rows, or of their codes."""
    PENALTIES = (0.01, 0.1, 1.0)

    def __init__(self, application: Reduction) -> None:
        self._application = application

    def fit(self, train: Split, validation: Split) -> None:
        from sklearn import decomposition, kernel_ridge

        x, held_out = flat(train), flat(validation)
        x = x[_sample(len(x))]  # the kernel of all pairs of rows
        self._mean = x.mean(axis=0)
        seen = 1.0 if validation.observed is None else validation.observed.reshape(held_out.shape)
        least = np.inf
        for width in self.ENCODER:
            components = decomposition.KernelPCA(
                self._application.code, kernel="rbf", gamma=width / _mean_distance(x), eigen_solver="dense"
            ).fit(x - self._mean)
            z, judged = components.transform(x - self._mean), components.transform(held_out - self._mean)
            for back, penalty in itertools.product(self.DECODER, self.PENALTIES):
                ridge = kernel_ridge.KernelRidge(alpha=penalty, kernel="rbf", gamma=back / _mean_distance(z))
                output = ridge.fit(z, x - self._mean).predict(judged) + self._mean
                if (error := float(((output - held_out) ** 2 * seen).sum())) < least:
                    least, self._components, self._ridge = error, components, ridge

    def evaluate(self, split: Split, train: Split) -> Scores:
        z, reference = (self._components.transform(flat(one) - self._mean) for one in (split, train))
        return self._application.scores(split, z, self._ridge.predict(z) + self._mean, train, reference)


def _mean_distance(x: np.ndarray) -> float:
    """Return the mean squared distance of two rows of x (n, size), which is not 0."""
    return max(2 * float(x.var(axis=0).sum()), 1e-12)


def _neighbourhoods(x: np.ndarray, z: np.ndarray, neighbours: int) -> dict[str, float]:
    """Return trustworthiness (no false neighbours in the code) and continuity (none lost), each 0 to 1."""
    from sklearn import manifold

    rows = _sample(len(x))
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


def _sample(count: int) -> np.ndarray:
    """Return at most `LARGEST_SAMPLE` of `count` rows, evenly spread."""
    return np.linspace(0, count - 1, min(count, LARGEST_SAMPLE)).astype(int)


def _component_errors(train: np.ndarray, x: np.ndarray, seen: np.ndarray, most: int) -> np.ndarray:
    """Return the mean squared error over seen cells of x (n, size) by 1, 2, ... principal components of `train`."""
    from sklearn import decomposition

    pca = decomposition.PCA(min(most, *train.shape), random_state=0).fit(train)
    left = x - pca.mean_
    z = left @ pca.components_.T  # (n, components)
    errors = []
    for values, component in zip(z.T, pca.components_, strict=True):
        left = left - np.outer(values, component)
        errors.append((left**2 * seen).sum() / seen.sum())
    return np.array(errors)


def _in_two(z: np.ndarray) -> np.ndarray:
    """Return codes (n, code) of two values or more in two, (n, 2)."""
    from sklearn import decomposition

    if z.shape[1] <= 2:
        return z
    return np.asarray(decomposition.PCA(2, svd_solver="full").fit_transform(z.astype(np.float64)))


def _umap(x: np.ndarray, neighbours: int) -> np.ndarray:
    """Return rows (n, size) in two dimensions, (n, 2), by UMAP (McInnes et al., 2018), an optional library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about TensorFlow, which only another part of it wants
        import umap

        # One thread: with several its numbers differ from time to time, and so does the picture.
        return np.asarray(umap.UMAP(n_neighbors=max(2, neighbours), random_state=0, n_jobs=1).fit_transform(x))


def _map(maps: Mapping[str, np.ndarray], split: Split) -> Picture:
    """Draw rows in two dimensions, coloured by their label where there is one."""
    labels = None if split.y is None else split.y.astype(str)
    names: list[str] = [] if labels is None else sorted(set(labels), key=lambda name: -(labels == name).sum())
    coloured = names[:10]  # there are no more colours that can be told apart
    if labels is not None and 2 * np.isin(labels, coloured).sum() < len(labels):
        coloured = []  # numbers, say, of which a few in colour tell nothing

    def draw(*axes: Any) -> None:
        for ax, (title, points) in zip(axes, maps.items(), strict=True):
            rest = np.ones(len(points), bool) if labels is None else ~np.isin(labels, coloured)
            ax.scatter(*points[rest].T, s=5, color=pictures.THIRD, linewidths=0, label="others" if coloured else None)
            for index, name in enumerate(sorted(coloured)):
                ax.scatter(*points[labels == name].T, s=5, color=f"C{index}", linewidths=0, label=name)
            ax.set(xticks=[], yticks=[])
            ax.set_title(title, fontsize=9)
        if coloured:
            handles, texts = axes[-1].get_legend_handles_labels()
            if not rest.any():
                handles, texts = handles[1:], texts[1:]
            axes[-1].legend(
                handles, texts, frameon=False, fontsize=7, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5)
            )

    by = ", coloured by label" if coloured else ""
    return pictures.plot(
        "map",
        f"Test rows as the code arranges them{by}",
        f"{len(split)} test rows as points in two dimensions: {' and '.join(maps)}.",
        draw,
        panels=len(maps),
        size=(4.8 * len(maps), 3.8),
    )
