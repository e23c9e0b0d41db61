"""Similarity search: whether the rows that are nearest in the code are the right ones.

The vectors are the codes, centred and, where the validation rows find better by it, whitened by some power and brought to
length 1. Nearness of networks' codes is dominated by their few widest directions; the powers give the others a say.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from sevenfold import indexes, pictures
from sevenfold.applications.base import (
    Application,
    Columns,
    Rival,
    Scores,
    codes,
    flat,
    require_at_least,
)
from sevenfold.datasets.base import ImageSchema, Schema, Split
from sevenfold.models.base import Autoencoder
from sevenfold.pictures import Picture

CURVE = (1, 5, 20, 50)
"""Numbers of neighbours at which precision is told beside the primary metric."""

LARGEST_SAMPLE = 10_000
"""Validation rows by which the form of the vectors is chosen; each is compared with all others."""

POWERS = (0.0, 0.25, 0.5)
"""Of the inverse variances by which whitening scales the principal directions: 0 leaves them, 0.5 makes them alike."""

DIMENSIONS = (4, 8, 16, 32, 64, 128)
"""Of the principal components that rivals choose from."""

FOLDS = 5
"""Parts of the validation rows; each is judged by the form that the others chose."""


class Search(Application):
    """Judges the nearest training rows of each row: by its label or, without one, by its neighbours in the raw values."""

    primary = "precision"
    operation = "index"
    learns_from = "all"

    def __init__(self, *, neighbours: int, recall: float) -> None:
        """Set up the contest.

        Args:
            neighbours: how many of the nearest training rows are judged, and how many an index is tuned to find.
            recall: share of the truly nearest vectors that the index has to find, above 0 and at most 1.

        Raises:
            ValueError: an option is out of range.
        """
        require_at_least(1, neighbours=neighbours)
        indexes.require_recall(recall)
        super().__init__({"neighbours": neighbours, "recall": recall})
        self.neighbours = neighbours
        self.recall = recall

    def unsuited(self, *, code: int | None, images: bool | None, labelled: bool, normal: bool) -> str | None:
        return None

    def calibrate(self, model: Autoencoder, train: Split, validation: Split) -> Self:
        """Choose the form of the vectors: that by which validation rows find their like among the other ones.

        Among each other, so that labels of training rows judge alone, and teach nothing.
        """
        forms = _forms(codes(model, train.x, train.observed), POWERS)
        return self.with_state(forms[self._best(self._likeness(model, forms, validation, train))])

    def held_out(self, model: Autoencoder, validation: Split, train: Split) -> Scores:
        """Judge each fifth of the rows in the form that the other four chose; all alike where only some of them chose."""
        forms = _forms(codes(model, train.x, train.observed), POWERS)
        found = self._likeness(model, forms, validation, train)
        if found.shape[1] < FOLDS or found.shape[1] < len(validation):
            return self.evaluate(model, validation, train)
        fold = np.arange(len(validation)) % FOLDS
        chosen = [self._best(found[:, fold != part]) for part in range(FOLDS)]
        judged = {form: self.with_state(forms[form]).evaluate(model, validation, train) for form in set(chosen)}
        if len(judged) == 1:
            return judged[chosen[0]]
        parts = [judged[form] for form in chosen]
        values = {n: np.choose(fold, [one.values[n] for one in parts]) for n in parts[0].values}
        metrics = {n: float(np.mean([one.metrics[n] for one in parts])) for n in parts[0].metrics}
        return Scores(metrics | {self.primary: self.statistic(values)}, values)

    def _likeness(
        self, model: Autoencoder, forms: Sequence[Mapping[str, np.ndarray]], validation: Split, train: Split
    ) -> np.ndarray:
        """Return (forms, n): the precision of some rows in each form, each row looking among the others."""
        rows = _some(validation)
        z = codes(model, rows.x, rows.observed)
        return self.likeness([_formed(z, form) for form in forms], rows, _tells(train, self.neighbours))

    def likeness(self, candidates: Sequence[np.ndarray], rows: Split, labelled: bool) -> np.ndarray:
        """Return (candidates, n): the precision of each row's nearest other rows, by vectors (n, dimensions) of each.

        Args:
            labelled: whether the label says what is right.
        """
        k = min(self.neighbours, len(rows) - 1)
        if k < 1:
            return np.zeros((len(candidates), len(rows)))
        right = _judge(labelled, rows, rows, k, apart=True)
        return np.stack([right(indexes.others(vectors, k)).mean(axis=1) for vectors in candidates])

    @staticmethod
    def _best(found: np.ndarray) -> int:
        """Return the first of the best forms; rounded, since where no row differs the order of sums should not decide."""
        return int(np.argmax(np.round(found.mean(axis=1), 9)))

    def evaluate(self, model: Autoencoder, split: Split, train: Split) -> Scores:
        return self.scores(self._vectors(model, split), split, self._vectors(model, train), train, None)

    def scores(
        self, queries: np.ndarray, split: Split, vectors: np.ndarray, train: Split, kind: indexes.Kind | None
    ) -> Scores:
        """Judge the vectors of a split, (n, dimensions), that look for those of `train` in an index of some kind."""
        index = indexes.Index.build(
            vectors, np.arange(len(train)), model="", recall=self.recall, neighbours=self.neighbours, kind=kind
        )
        most = min(max(self.neighbours, *CURVE), len(train))
        right = _judge(_tells(train, self.neighbours), split, train, most, apart=False)
        found, distances = index.query(queries, self.neighbours)
        values = {"precision": right(found).mean(axis=1)}
        metrics = {
            self.primary: self.statistic(values),
            "recall": float(
                indexes.recalled(found, distances, *indexes.nearest(vectors, queries, found.shape[1])).mean()
            ),
            "bytes_per_vector": index.bytes_per_vector,
        }
        longer = index.query(queries, most)[0]
        metrics |= {f"precision_at_{k}": float(right(longer[:, :k]).mean()) for k in CURVE if k <= most}
        return Scores(metrics, values)

    def statistic(self, values: Mapping[str, np.ndarray]) -> float:
        return float(values["precision"].mean())

    def rivals(self) -> dict[str, Rival]:
        return {
            "raw": _Linear(self, (None,), "exact"),
            "pca": _Linear(self, DIMENSIONS, "exact"),
            "pca_hnsw": _Linear(self, DIMENSIONS, "graph"),
        }

    def _vectors(self, model: Autoencoder, split: Split) -> np.ndarray:
        return _formed(codes(model, split.x, split.observed), self.state)

    def predict(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> Columns:
        """Return the column `vector`, (n, dimensions) float32: what an `Index` holds, and what it is asked for."""
        return {"vector": _formed(codes(model, x, observed), self.state)}

    def pictures(self, model: Autoencoder, split: Split, train: Split, schema: Schema) -> list[Picture]:
        """Show what some rows find, where they are images, and how the precision depends on label or distance."""
        rows = np.linspace(0, len(split) - 1, min(6, len(split))).astype(int)
        queries, vectors = self._vectors(model, split), self._vectors(model, train)
        found, distances = indexes.nearest(vectors, queries, min(self.neighbours, len(train)))
        labelled = _tells(train, self.neighbours)
        right = _judge(labelled, split, train, found.shape[1], apart=False)(found)
        made = [_by_label(split, right) if labelled else _by_distance(distances, right)]
        if isinstance(schema, ImageSchema):
            shown = found[rows, :8]
            images = [np.concatenate([split.x[[row]], train.x[line]]) for row, line in zip(rows, shown, strict=True)]
            captions = [
                [
                    "asked",
                    *(f"{'right' if ok else 'wrong'}{_label(train, at)}" for at, ok in zip(line, marks, strict=True)),
                ]
                for line, marks in zip(shown, right[rows, :8], strict=True)
            ]
            names = [f"row {split.ids[row]}{_label(split, row)}" for row in rows]
            what = "have its label" if labelled else "are among the nearest in the raw values"
            description = (
                f"Each line begins with a test image; its nearest training images follow, right where they {what}."
            )
            made.insert(
                0, pictures.grid("neighbours", "Test images and what they find", description, images, names, captions)
            )
        return made

    def comparison(self, scores: Mapping[str, Scores], chosen: str) -> list[Picture]:
        """Draw the precision by the number of neighbours, and against the memory that a vector takes."""
        rivals = self.rivals()

        def draw(left: Any, right: Any) -> None:
            alike: dict[tuple[float, float], list[str]] = {}  # those whose names would lie upon each other
            for name, one in scores.items():
                of = {k: one.metrics[f"precision_at_{k}"] for k in CURVE if f"precision_at_{k}" in one.metrics}
                of[self.neighbours] = one.metrics[self.primary]
                colour = pictures.OURS if name == chosen else pictures.THEIRS if name in rivals else pictures.THIRD
                style = {
                    "color": colour,
                    "linestyle": "--" if name in rivals else "-",
                    "linewidth": 2 if name == chosen else 1,
                }
                left.plot(sorted(of), [of[k] for k in sorted(of)], marker="o", markersize=3, **style)
                at = (one.metrics["bytes_per_vector"], one.metrics[self.primary])
                right.plot(*at, "s" if name in rivals else "o", color=colour)
                alike.setdefault((at[0], round(at[1], 3)), []).append(name)
            for at, names in alike.items():
                right.annotate(", ".join(names), at, xytext=(4, 3), textcoords="offset points", fontsize=7)
            left.set(xlabel="neighbours", ylabel="precision")
            right.set(xlabel="bytes per vector", ylabel=f"precision of {self.neighbours}")
            right.set_xscale("log", base=2)
            right.xaxis.set_major_formatter("{x:.0f}")
            right.margins(x=0.25)

        description = (
            f"Precision on the test rows, by the number of neighbours and by bytes per vector; blue is {chosen}, grey the other "
            "candidates, brown and dashed the rivals. "
            + "; ".join(
                f"{n}: {s.metrics[self.primary]:.3f} at {s.metrics['bytes_per_vector']:.0f} bytes"
                for n, s in scores.items()
            )
        )
        return [pictures.plot("precision", "How many of the rows found are right", description, draw, panels=2)]


def _some(rows: Split) -> Split:
    """Return at most `LARGEST_SAMPLE` of the rows, evenly spread."""
    if len(rows) <= LARGEST_SAMPLE:
        return rows
    return rows.take(np.linspace(0, len(rows) - 1, LARGEST_SAMPLE).astype(int))


def _label(split: Split, row: int) -> str:
    return "" if split.y is None else f": {split.y[row]}"


# What vectors are made of codes.


def _forms(z: np.ndarray, powers: Sequence[float]) -> list[dict[str, np.ndarray]]:
    """Return every form that vectors of these codes (n, code) may have, the plainest first: arrays for `_formed`."""
    center = z.mean(axis=0, dtype=np.float64)
    variance, directions, mean = np.zeros(len(center)), np.eye(len(center)), 0.0
    if any(powers):
        centred = z - center
        variance, directions = np.linalg.eigh(centred.T @ centred / len(z))
        # Directions in which codes do not vary hold rounding errors alone, and are not to be blown up.
        variance = np.maximum(variance, 1e-6 * variance.max())
        mean = float(variance.mean())
    made = []
    for power in powers if mean > 0 else (0.0,):
        # In units of the mean variance, so that vectors keep their size.
        matrix = directions * (variance / mean) ** -power if power else np.eye(len(center))  # (code, dimensions)
        for unit in (False, True):
            form = {"center": center, "matrix": matrix, "unit": np.array([float(unit)])}
            made.append({name: value.astype(np.float32) for name, value in form.items()})
    return made


def _formed(z: np.ndarray, form: Mapping[str, np.ndarray]) -> np.ndarray:
    """Turn codes (n, code) into vectors (n, dimensions) float32 of a form."""
    vectors = (z - form["center"]) @ form["matrix"]
    if form["unit"][0]:
        # A code at the very center has no direction, and stays there.
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.ascontiguousarray(vectors, np.float32)


# What is right.


def _tells(train: Split, neighbours: int) -> bool:
    """Say whether there is a label that rows can share: most rows' classes have more than `neighbours` rows."""
    if train.y is None:
        return False
    _, counts = np.unique(train.y.astype(str), return_counts=True)
    return bool(2 * counts[counts > neighbours].sum() > len(train))


def _judge(labelled: bool, split: Split, train: Split, most: int, *, apart: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Return the verdict on what the rows of a split found: positions in `train` (n, k) -> (n, k) bool, k up to `most`.

    Args:
        labelled: whether the label says what is right; else it is what is near in the raw values.
        apart: whether both are the same rows, of which none is its own neighbour.
    """
    if labelled:
        assert train.y is not None
        assert split.y is not None
        theirs, own = train.y.astype(str), split.y.astype(str)
        return lambda found: theirs[found] == own[:, None]
    reference, rows = flat(train).astype(np.float32), flat(split).astype(np.float32)
    raw = indexes.others(rows, most) if apart else indexes.nearest(reference, rows, most)[0]  # (n, most)

    def among_the_nearest(found: np.ndarray) -> np.ndarray:
        equal = (found == raw[:, [j]] for j in range(found.shape[1]))
        return functools.reduce(np.logical_or, equal, np.zeros(found.shape, bool))

    return among_the_nearest


# Rivals.


class _Linear(Rival):
    """Raw values, or their principal components, in the form and the number that the validation rows find best by.

    They choose among the same forms as codes do; but raw values are not whitened: that is what components are for.
    """

    def __init__(self, application: Search, dimensions: Sequence[int | None], kind: indexes.Kind) -> None:
        self._application = application
        self._dimensions = dimensions
        self._kind: indexes.Kind = kind

    def fit(self, train: Split, validation: Split) -> None:
        from sklearn import decomposition

        rows, some = flat(train), _some(validation)
        labelled = _tells(train, self._application.neighbours)
        # The mean alone of raw values: nothing but their center is learned.
        powers: Sequence[float] = (0.0,)
        self._project: Callable[[np.ndarray], np.ndarray] = lambda x: x
        counts = list(self._dimensions)
        if counts != [None]:
            most = min(rows.shape)
            counts = sorted({min(count, most) for count in counts if count is not None})
            # Many rows of few values: their covariance is small. Of few rows the decomposition itself is exact.
            solver = "covariance_eigh" if len(rows) > rows.shape[1] else "full"
            self._project = decomposition.PCA(counts[-1], svd_solver=solver, random_state=0).fit(rows).transform
            powers = POWERS
        found = self._project(flat(some))
        reference = self._project(rows)
        best = -1.0
        for count in counts:
            for form in _forms(reference[:, :count], powers):
                precision = self._application.likeness([_formed(found[:, :count], form)], some, labelled).mean()
                if precision > best + 1e-9:
                    best, self._count, self._form = precision, count, form

    def _vectors(self, split: Split) -> np.ndarray:
        return _formed(self._project(flat(split))[:, : self._count], self._form)

    def evaluate(self, split: Split, train: Split) -> Scores:
        return self._application.scores(self._vectors(split), split, self._vectors(train), train, self._kind)


# Pictures.


def _by_label(split: Split, right: np.ndarray) -> Picture:
    assert split.y is not None
    labels, counts = np.unique(split.y.astype(str), return_counts=True)
    labels = labels[np.argsort(-counts, kind="stable")][:20]  # the largest ones, where there are many
    labels = np.sort(labels)
    precision = [float(right[split.y.astype(str) == label].mean()) for label in labels]

    def draw(ax: Any) -> None:
        ax.bar([str(label) for label in labels], precision, color=pictures.OURS)
        ax.axhline(right.mean(), color=pictures.THIRD, linewidth=1)
        ax.set(ylim=(0, 1), ylabel="precision", xlabel="label of the row that asks")
        if len(labels) > 10 or max(map(len, labels)) > 8:
            ax.tick_params(axis="x", labelrotation=45)

    told = ", ".join(f"{label}: {value:.2f}" for label, value in zip(labels, precision, strict=True))
    description = (
        f"Share of the rows found that have the label of the row that asks, by that label; grey is the mean. {told}."
    )
    return pictures.plot("by_label", "Which labels find their like", description, draw)


def _by_distance(distances: np.ndarray, right: np.ndarray) -> Picture:
    order = np.argsort(distances[:, 0], kind="stable")
    parts = [part for part in np.array_split(order, 10) if len(part)]
    x = [float(distances[part, 0].mean()) for part in parts]
    y = [float(right[part].mean()) for part in parts]

    def draw(ax: Any) -> None:
        ax.plot(x, y, "o-", color=pictures.OURS)
        ax.set(xlabel="distance of the nearest vector", ylabel="precision", ylim=(0, 1))

    told = ", ".join(f"{a:.3g}: {b:.2f}" for a, b in zip(x, y, strict=True))
    description = (
        f"Share of the rows found that are nearest in the raw values too, by distance, in tenths of the rows. {told}."
    )
    return pictures.plot("by_distance", "What is found, by how near it is", description, draw)
