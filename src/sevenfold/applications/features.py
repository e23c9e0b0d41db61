"""Features: how well a short code tells what the data are labelled with, read by the simplest of models.

Labels judge and never train: a candidate learns its code without them. What reads the label from the code is a linear
model, the probe of Alain and Bengio (2017); what it finds is there for any other model to find.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from sevenfold import pictures
from sevenfold.applications.base import Application, Columns, Rival, Scores, code_columns, codes, flat, require_at_least
from sevenfold.datasets.base import Schema, Split, TableSchema
from sevenfold.models.base import Autoencoder, Selector
from sevenfold.pictures import Picture

FEW = (10, 100)
"""Numbers of labelled rows, beside all of them, from which the probe learns too: labels are what is dear."""

DRAWS = 5
"""Times that so many rows are drawn; the mean counts."""

MOST_CLASSES = 20
"""A label of more different numbers than this is a quantity; fewer numbers, and texts, are classes."""

LARGEST = {"probe": 20_000, "boosting": 5_000, "information": 5_000, "kernel": 2_000}
"""Training rows that a method learns from at most, for time: evenly spread among all."""

MOST_SHOWN = 12
"""Classes, or columns of the input, that a picture has room for."""

_STATE = "strength"


class Features(Application):
    """Judges codes of one given size by what a linear model reads from them.

    Where the label is a class, `probe` is the accuracy of a logistic regression; where it is a quantity, R2 of a ridge
    regression. A label is a quantity where all training rows have a number, and more than `MOST_CLASSES` different ones
    occur; numbers that are names of many classes have to be written as text, such as "class 17".
    """

    primary = "probe"
    operation = "encode"
    learns_from = "all"

    def __init__(self, *, code: int) -> None:
        """Set up the contest.

        Args:
            code: the number of code values that candidates and rivals alike may use.

        Raises:
            ValueError: the option is out of range.
        """
        require_at_least(1, code=code)
        super().__init__({"code": code})
        self.code = code

    def unsuited(self, *, code: int | None, images: bool | None, labelled: bool, normal: bool) -> str | None:
        if not labelled:
            return (
                "needs a label to judge by; name its column in the data set's `label`, or compare codes by `reduction`, "
                "which needs none"
            )
        if code not in (None, self.code):
            return f"has a code of {code}, and is compared at a code of {self.code}; give both the same `code`"
        return None

    def calibrate(self, model: Autoencoder, train: Split, validation: Split) -> Self:
        """Choose how much the probe is regularised, for each number of labels, by its loss on the validation rows."""
        strengths, _ = tuned(
            codes(model, train.x, train.observed), train, codes(model, validation.x, validation.observed), validation
        )
        return self.with_state({_STATE: strengths})

    def evaluate(self, model: Autoencoder, split: Split, train: Split) -> Scores:
        reference = codes(model, train.x, train.observed)
        readers = Readers(reference, train, self.state[_STATE], with_raw=True)
        return readers.scores(codes(model, split.x, split.observed), split)

    def held_out(self, model: Autoencoder, validation: Split, train: Split) -> Scores:
        """Judge by the probe alone, by which candidates are chosen.

        Of the validation labels calibration took one of a few strengths, the same few for everybody.
        """
        probe = Probe(codes(model, train.x, train.observed), train, self.state[_STATE][-1])
        values = probe.errors(codes(model, validation.x, validation.observed), validation)
        return Scores({self.primary: self.statistic(values)}, values)

    def statistic(self, values: Mapping[str, np.ndarray]) -> float:
        return share(values)

    def rivals(self) -> dict[str, Rival]:
        return {
            "raw": _Method([_Raw()]),
            "pca": _Method([_Pca(self.code)]),
            "kernel_pca": _Method([_KernelPca(self.code, width) for width in (0.1, 0.3, 1.0, 3.0)]),
            "mutual_information": _Method([_MostInformative(self.code)]),
        }

    def predict(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> Columns:
        """Return one column per code value; where the code is a selection, by the names of what was selected."""
        columns = code_columns(model, x, observed)
        return dict(zip(code_names(model, schema), columns.values(), strict=True))

    def pictures(self, model: Autoencoder, split: Split, train: Split, schema: Schema) -> list[Picture]:
        probe = Probe(codes(model, train.x, train.observed), train, self.state[_STATE][-1])
        z = codes(model, split.x, split.observed)
        found, truth = probe.predict(z), probe.label.values(split)
        drawn = [_against_truth(found, truth) if probe.label.is_quantity else _confusion(found, truth)]
        if isinstance(model, Selector):
            drawn.append(_selection(code_names(model, schema), probe))
        return drawn

    def comparison(self, scores: Mapping[str, Scores], chosen: str) -> list[Picture]:
        metrics = [f"probe_{count}_labels" for count in FEW]
        metrics = [m for m in metrics if all(m in one.metrics for one in scores.values())] + [self.primary]
        names = [m.removeprefix("probe_").replace("_", " ") for m in metrics[:-1]] + ["all labels"]
        rivals = self.rivals()

        def draw(ax: Any) -> None:
            rows = [*scores][::-1]
            for row, name in enumerate(rows):
                found = [scores[name].metrics[m] for m in metrics]
                colour = pictures.THEIRS if name in rivals else pictures.OURS
                ax.plot(found, [row] * len(found), color=colour, linewidth=2 if name == chosen else 0.8, zorder=1)
                for value, marker in zip(found, "^so"[-len(found) :], strict=True):
                    ax.scatter(value, row, marker=marker, color=colour, s=30)
                ax.annotate(
                    f"{found[-1]:.3f}", (found[-1], row), (6, 0), textcoords="offset points", va="center", size=7
                )
            for label, marker in zip(names, "^so"[-len(names) :], strict=True):
                ax.scatter([], [], marker=marker, color=pictures.THIRD, label=label)
            ax.set_yticks(range(len(rows)), rows, fontsize=7)
            ax.get_yticklabels()[rows.index(chosen)].set_weight("bold")
            # R2 of a few labels may be far below 0, which would press everything else together.
            lowest = min(one.metrics[m] for one in scores.values() for m in metrics)
            ax.set(xlabel="what the probe finds", xlim=(max(lowest - 0.03, -0.5), 1.05))
            ax.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names))

        best = ", ".join(f"{name} {one.metrics[self.primary]:.3f}" for name, one in scores.items())
        return [
            pictures.plot(
                "labels",
                "What a linear probe finds, by the number of labels it learns from",
                f"A mark for each number of labels; autoencoders blue, rivals brown. With all labels: {best}.",
                draw,
                size=(7.0, 1.0 + 0.26 * len(scores)),
            )
        ]


def share(values: Mapping[str, np.ndarray]) -> float:
    """Return 1 less the share of error in the total: accuracy of classes, R2 of quantities; NaN without a total."""
    total = values["total"].sum()
    return float(1 - values["error"].sum() / total) if total > 0 else float("nan")


def code_names(model: Autoencoder, schema: Schema) -> list[str]:
    """Return the name of each code value: code_0, code_1, ..., or what a selection selected.

    A column goes by its own name, a category as city=Lima, a pixel as pixel_row_column.
    """
    if not isinstance(model, Selector):
        return [f"code_{i}" for i in range(model.code)]
    if isinstance(schema, TableSchema):
        names = [
            name for c in schema.columns for name in ([f"{c.name}={k}" for k in c.categories] or [c.name])
        ]  # fmt: skip
    else:
        names = [schema.features[owner] for owner in schema.feature_of]
    return [names[place] for place in model.selected.tolist()]


@dataclass(frozen=True)
class Classes:
    """A label that says to which class a row belongs."""

    is_quantity: ClassVar[bool] = False
    strengths: ClassVar[Sequence[float]] = (0.01, 0.1, 1.0, 10.0, 100.0)

    def values(self, split: Split) -> np.ndarray:
        assert split.y is not None
        return split.y.astype(str)

    def linear(self, strength: float, y: np.ndarray) -> Any:
        from sklearn import dummy, linear_model

        # A few rows of rare classes may be of one class, from which there is nothing to tell apart.
        if len(np.unique(y)) == 1:
            return dummy.DummyClassifier()
        return linear_model.LogisticRegression(C=strength, max_iter=5000)

    def boosting(self) -> Any:
        from sklearn import ensemble

        return ensemble.HistGradientBoostingClassifier(
            max_iter=60, learning_rate=0.2, max_leaf_nodes=15, early_stopping=False, random_state=0
        )

    def loss(self, model: Any, z: np.ndarray, y: np.ndarray) -> float:
        """Return minus the mean logarithm of the probability of the true class; unlike accuracy it has no steps."""
        probability = model.predict_proba(z)  # (n, classes)
        place = np.searchsorted(model.classes_, y).clip(max=len(model.classes_) - 1)
        found = np.where(model.classes_[place] == y, probability[np.arange(len(y)), place], 0)
        return float(-np.log(np.maximum(found, 1e-6)).mean())

    def errors(self, found: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
        return {"error": (found != truth).astype(np.float64), "total": np.ones(len(truth))}

    def information(self) -> Any:
        """Return scikit-learn's estimate of the mutual information of each column with such a label."""
        from sklearn import feature_selection

        return feature_selection.mutual_info_classif


@dataclass(frozen=True)
class Quantity:
    """A label that is a number."""

    is_quantity: ClassVar[bool] = True
    strengths: ClassVar[Sequence[float]] = (0.1, 1.0, 10.0, 100.0, 1000.0)

    def values(self, split: Split) -> np.ndarray:
        assert split.y is not None
        numbers = _numbers(split.y)
        if numbers is None:
            raise ValueError(
                "some labels are no finite numbers, while those of all training rows are; expected numbers everywhere; "
                "mend these labels, or write all as text"
            )
        return numbers

    def linear(self, strength: float, y: np.ndarray) -> Any:
        from sklearn import linear_model

        return linear_model.Ridge(alpha=strength)

    def boosting(self) -> Any:
        from sklearn import ensemble

        return ensemble.HistGradientBoostingRegressor(
            max_iter=60, learning_rate=0.2, max_leaf_nodes=15, early_stopping=False, random_state=0
        )

    def loss(self, model: Any, z: np.ndarray, y: np.ndarray) -> float:
        return float(((model.predict(z) - y) ** 2).mean())

    def errors(self, found: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
        return {"error": (found - truth) ** 2, "total": (truth - truth.mean()) ** 2}

    def information(self) -> Any:
        """Return scikit-learn's estimate of the mutual information of each column with such a label."""
        from sklearn import feature_selection

        return feature_selection.mutual_info_regression


def label_of(train: Split) -> Classes | Quantity:
    """Say what kind of label these rows have; labels come as text, so what they say decides."""
    assert train.y is not None
    numbers = _numbers(train.y)
    return Quantity() if numbers is not None and len(np.unique(numbers)) > MOST_CLASSES else Classes()


def _numbers(y: np.ndarray) -> np.ndarray | None:
    """Return the labels as finite numbers, or None where one of them is none."""
    try:
        numbers = y.astype(np.float64)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


class Probe:
    """A linear model on the standardised code."""

    def __init__(self, z: np.ndarray, train: Split, strength: float, rows: np.ndarray | None = None) -> None:
        """Fit to codes (n, code) of the training rows, or to those of some `rows` of them."""
        from sklearn import pipeline, preprocessing

        self.label = label_of(train)
        y = self.label.values(train)
        rows = _spread(len(y), LARGEST["probe"]) if rows is None else rows
        model = self.label.linear(float(strength), y[rows])
        self._fitted = pipeline.make_pipeline(preprocessing.StandardScaler(), model)
        self._fitted.fit(z[rows].astype(np.float64), y[rows])

    @property
    def weight(self) -> np.ndarray:
        """Return how much each value of the code weighs, (code,), once standardised; the mean over classes."""
        return np.asarray(np.abs(np.atleast_2d(self._fitted[-1].coef_)).mean(axis=0))

    def predict(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(self._fitted.predict(z.astype(np.float64)))

    def errors(self, z: np.ndarray, split: Split) -> dict[str, np.ndarray]:
        """Return per-row values, from which `share` computes the probe's score."""
        return self.label.errors(self.predict(z), self.label.values(split))

    def loss(self, z: np.ndarray, split: Split) -> float:
        """Return what the regularisation is chosen by; lower is better."""
        return self.label.loss(self._fitted, z.astype(np.float64), self.label.values(split))


def draws(train: Split) -> dict[int | None, list[np.ndarray | None]]:
    """Return the rows that the probe learns from, by the number of labels; None stands for all.

    A few rows are taken in even steps along the labels in order, from a random start, so that classes keep their
    proportions and quantities their range. The draws are the same for everybody.
    """
    label = label_of(train)
    y = label.values(train)
    found: dict[int | None, list[np.ndarray | None]] = {}
    for count in (count for count in FEW if count < len(y)):
        found[count] = []
        for draw in range(DRAWS):
            generator = np.random.default_rng(draw)
            line = np.lexsort((generator.random(len(y)), y))
            places = (np.arange(count) + generator.random()) * len(y) / count
            found[count].append(np.sort(line[places.astype(int).clip(max=len(y) - 1)]))
    return found | {None: [None]}


def tuned(z: np.ndarray, train: Split, held_out: np.ndarray, validation: Split) -> tuple[np.ndarray, float]:
    """Return the strength for each number of labels, fewest first, and the loss on the validation rows with all labels.

    Args:
        z: codes (n, code) of the training rows.
        held_out: codes of the validation rows.
    """
    strengths, least = [], np.inf
    for sets in draws(train).values():
        losses = {
            strength: np.mean([Probe(z, train, strength, rows).loss(held_out, validation) for rows in sets])
            for strength in label_of(train).strengths
        }
        best = min(losses, key=lambda strength: losses[strength])
        strengths.append(best)
        least = float(losses[best])
    return np.array(strengths), least


class Readers:
    """Every model that reads the label from the code, fitted to the training rows."""

    def __init__(self, z: np.ndarray, train: Split, strengths: np.ndarray, *, with_raw: bool) -> None:
        """Fit them.

        Args:
            z: codes (n, code) of the training rows.
            strengths: as `tuned` returns them.
            with_raw: whether raw values tell boosting anything that the code does not.
        """
        self.label = label_of(train)
        counts = draws(train)
        # A champion may be judged with more or fewer rows than it was calibrated with.
        chosen = dict(zip(reversed(counts), reversed(strengths), strict=False))
        self._probes = {
            count: [Probe(z, train, chosen.get(count, strengths[0]), rows) for rows in sets]
            for count, sets in counts.items()
        }
        rows, y = _spread(len(z), LARGEST["boosting"]), self.label.values(train)
        self._with_raw = with_raw
        self._boosted = self.label.boosting().fit(z[rows], y[rows])
        self._boosted_with_raw = (
            self.label.boosting().fit(np.hstack([z, flat(train)])[rows], y[rows]) if with_raw else self._boosted
        )

    def scores(self, z: np.ndarray, split: Split) -> Scores:
        """Judge on codes (n, code) of a split."""
        truth = self.label.values(split)
        (probe,) = self._probes[None]
        values = probe.errors(z, split)
        metrics = {"probe": share(values)}
        for count, probes in self._probes.items():
            if count is not None:
                metrics[f"probe_{count}_labels"] = float(np.mean([share(p.errors(z, split)) for p in probes]))
        both = np.hstack([z, flat(split)]) if self._with_raw else z
        metrics["boosting"] = share(self.label.errors(self._boosted.predict(z), truth))
        metrics["boosting_with_raw"] = share(self.label.errors(self._boosted_with_raw.predict(both), truth))
        return Scores(metrics, values)


class _Method(Rival):
    """A classical code, its setting and its probe chosen by the probe's loss on the validation rows."""

    def __init__(self, settings: Sequence[Any]) -> None:
        """Take a method in each of its settings, each with `fit(train)` and `transform(split)`."""
        self._settings = settings

    def fit(self, train: Split, validation: Split) -> None:
        least = np.inf
        for method in self._settings:
            method.fit(train)
            strengths, loss = tuned(method.transform(train), train, method.transform(validation), validation)
            if loss < least:
                least, self._code, best = loss, method, strengths
        self._readers = Readers(
            self._code.transform(train), train, best, with_raw=not isinstance(self._code, _Raw)
        )  # fmt: skip

    def evaluate(self, split: Split, train: Split) -> Scores:
        return self._readers.scores(self._code.transform(split), split)


class _Raw:
    """The sample itself, whatever its size."""

    def fit(self, train: Split) -> None:
        pass

    def transform(self, split: Split) -> np.ndarray:
        return flat(split)


class _Pca:
    def __init__(self, code: int) -> None:
        self._code = code

    def fit(self, train: Split) -> None:
        from sklearn import decomposition

        self._pca = decomposition.PCA(self._code, random_state=0).fit(flat(train))

    def transform(self, split: Split) -> np.ndarray:
        return np.asarray(self._pca.transform(flat(split)))


class _KernelPca:
    """Principal components of a Gaussian kernel (Schölkopf et al., 1998), which bend with the data."""

    def __init__(self, code: int, width: float) -> None:
        """Take the size of the code, and the kernel's exponent per mean squared distance of two rows."""
        self._code = code
        self._width = width

    def fit(self, train: Split) -> None:
        from sklearn import decomposition

        x = flat(train)
        x = x[_spread(len(x), LARGEST["kernel"])]
        distance = max(2 * float(x.var(axis=0).sum()), 1e-12)
        self._kernel = decomposition.KernelPCA(
            self._code, kernel="rbf", gamma=self._width / distance, eigen_solver="dense"
        ).fit(x)

    def transform(self, split: Split) -> np.ndarray:
        return np.asarray(self._kernel.transform(flat(split)))


class _MostInformative:
    """The values of the sample that have the most mutual information with the label, each by itself.

    Of all codes here the only one that is chosen by labels.
    """

    def __init__(self, code: int) -> None:
        self._code = code

    def fit(self, train: Split) -> None:
        x, label = flat(train), label_of(train)
        if self._code > x.shape[1]:
            raise ValueError(f"code is {self._code}; expected {x.shape[1]}, the number of values in a sample, or less")
        rows = _spread(len(x), LARGEST["information"])
        found = label.information()(x[rows], label.values(train)[rows], random_state=0)
        self._places = np.sort(np.argsort(-found, kind="stable")[: self._code])

    def transform(self, split: Split) -> np.ndarray:
        return flat(split)[:, self._places]


def _spread(count: int, most: int) -> np.ndarray:
    """Return at most `most` of `count` rows, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def _confusion(found: np.ndarray, truth: np.ndarray) -> Picture:
    """Draw which classes are taken for which; of many classes the most frequent ones."""
    names, counts = np.unique(truth, return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_SHOWN])
    shown = names[kept]
    table = np.array([[(found[truth == t] == f).mean() for f in shown] for t in shown])  # (classes, classes)

    def draw(ax: Any) -> None:
        ax.pcolormesh(table[::-1], cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.5)
        for (row, column), value in np.ndenumerate(table):
            if value > 0:
                text = f"{100 * value:.0f}" if value >= 0.005 else "<1"
                colour = "white" if value > 0.5 else "black"
                ax.text(column + 0.5, len(shown) - row - 0.5, text, ha="center", va="center", fontsize=7, color=colour)
        places = np.arange(len(shown)) + 0.5
        ax.set_xticks(places, shown, rotation=45 if max(map(len, shown)) > 3 else 0)
        ax.set_yticks(places, shown[::-1])
        ax.set(xlabel="found by the probe", ylabel="true label", aspect="equal")

    wrong = [(table[i, j], shown[i], shown[j]) for i in range(len(shown)) for j in range(len(shown)) if i != j]
    worst = max(wrong, default=(0.0, "", ""))
    mixed = f" Most often mixed up: {100 * worst[0]:.0f} % of {worst[1]} for {worst[2]}." if worst[0] > 0 else ""
    part = f", the {len(shown)} most frequent of {len(names)} classes" if len(shown) < len(names) else ""
    return pictures.plot(
        "confusion",
        f"What the probe takes each class for, in % of the true class{part}",
        f"Confusion matrix of the test rows; {100 * (found == truth).mean():.1f} % of them are right.{mixed}",
        draw,
        size=(4.6, 4.2),
    )


def _against_truth(found: np.ndarray, truth: np.ndarray) -> Picture:
    rows = _spread(len(truth), 1000)

    def draw(ax: Any) -> None:
        ends = [truth[rows].min(), truth[rows].max()]
        ax.plot(ends, ends, color=pictures.THIRD, linewidth=1)
        ax.scatter(truth[rows], found[rows], s=8, color=pictures.OURS, alpha=0.5, linewidths=0)
        ax.set(xlabel="true label", ylabel="found by the probe")

    score = share(Quantity().errors(found, truth))
    return pictures.plot(
        "prediction",
        "The label as the probe reads it from the code, against the true one",
        f"One point per test row, on the line where both are equal; R2 is {score:.3f}.",
        draw,
        size=(4.2, 3.6),
    )


def _selection(names: list[str], probe: Probe) -> Picture:
    """Draw what was selected, in the order of what the probe makes of it."""
    weight = probe.weight
    order = np.argsort(-weight, kind="stable")[:MOST_SHOWN]

    def draw(ax: Any) -> None:
        ax.barh([names[i] for i in order][::-1], weight[order][::-1], color=pictures.OURS)
        ax.set(xlabel="weight in the probe, in standard deviations")
        ax.tick_params(axis="y", labelsize=7)

    return pictures.plot(
        "selection",
        "The columns of the input that the code consists of",
        f"Selected are {', '.join(names)}; bars show what the probe makes of them.",
        draw,
        size=(6.0, 0.8 + 0.24 * len(order)),
    )
