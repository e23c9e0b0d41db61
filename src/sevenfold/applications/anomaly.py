"""Anomaly detection: which rows are unlike the normal ones, by how much, and because of which features.

The score joins how badly a row is reconstructed, feature by feature, with how far its code is from the codes of normal
rows. Reconstruction error alone scores much like PCA does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sevenfold.applications.base import (
    Application,
    Columns,
    Rival,
    Scores,
    codes,
    flat,
    in_batches,
    reconstructions,
    require_at_least,
    tensor,
)
from sevenfold.datasets.base import Schema, Split
from sevenfold.models.base import Autoencoder

ENOUGH = 10
"""Anomalies, and normal rows, in the validation split from which on their labels choose the weights of the terms."""

LARGEST_REFERENCE = 4096
"""Training codes that distances are taken to."""

STEPS = 32
"""Gradients behind a row's contributions. Their sum then misses by less than a tenth for 19 rows of 20; with 8, by a third."""

_BATCH = 1024  # rows; their distances to the reference take 16 MB

_MAD_TO_DEVIATION = 1.4826  # of a normal distribution


class Anomaly(Application):
    """Scores rows, flags those above a threshold, and names the features that contributed most."""

    primary = "average_precision"
    operation = "score"
    learns_from = "normal"

    def __init__(self, *, false_positive_rate: float, neighbours: int, reasons: int) -> None:
        """Set up the score.

        Args:
            false_positive_rate: share of normal rows that the threshold may flag, 0 to 1.
            neighbours: nearest training codes whose mean distance is the latent term.
            reasons: features to name for each row.

        Raises:
            ValueError: an option is out of range.
        """
        require_at_least(1, neighbours=neighbours, reasons=reasons)
        if not 0 < false_positive_rate < 1:
            raise ValueError(f"false_positive_rate is {false_positive_rate}; expected a share between 0 and 1")
        super().__init__({"false_positive_rate": false_positive_rate, "neighbours": neighbours, "reasons": reasons})
        self.false_positive_rate = false_positive_rate
        self.neighbours = neighbours
        self.reasons = reasons

    def unsuited(self, *, code: int | None, images: bool | None, labelled: bool, normal: bool) -> str | None:
        if not normal:
            return "needs to know which rows are normal to judge by; name their labels in the data set's `normal`"
        return None

    def calibrate(self, model: Autoencoder, train: Split, validation: Split) -> Self:
        """Learn the normalisers of the score's terms from held-out normal rows, their weights, and the threshold.

        With `ENOUGH` labelled anomalies in the validation split, a logistic regression on the terms and the code learns
        the weights from them, and the threshold is set on scores of rows that it did not see. With fewer, the terms
        weigh the same and no label of an anomaly is looked at.

        Raises:
            ValueError: no validation row is normal.
        """
        normals = validation.only_normal()
        if not len(normals):
            raise ValueError(
                "no validation row is normal, and the threshold is set by those; give that split a larger share, or "
                "mend the data set's `normal`"
            )
        z = codes(model, train.x, train.observed)
        step = max(1, -(-len(z) // LARGEST_REFERENCE))
        center, spread = z.mean(axis=0), z.std(axis=0).clip(min=1e-6)
        residual = _residual(model, normals)
        median = np.nanmedian(residual, axis=0)
        mad = np.nanmedian(np.abs(residual - median), axis=0) * _MAD_TO_DEVIATION
        # Features that are always reconstructed alike, such as the black rim of an image, would divide by nothing.
        floor = 0.1 * np.sqrt(np.nanmean((residual - median) ** 2)) + 1e-6
        size = z.shape[1]
        state = {
            "residual_median": median,
            "residual_scale": np.maximum(mad, floor),
            "code_center": center,
            "code_spread": spread,
            "reference": ((z - center) / spread)[::step],
            "term_center": np.zeros(2),
            "term_scale": np.ones(2),
            "term_weight": np.full(2, 0.5),
            "code_weight": np.zeros(size),
            "code_bound": np.full(size, np.inf),
            "offset": np.zeros(1),
            "limit": np.full(1, np.inf),
            "threshold": np.zeros(1),
        }
        draft = self.with_state({name: np.asarray(value, np.float32) for name, value in state.items()})
        # The terms on their own scales first: robust z-scores against held-out normal rows.
        terms, _ = draft._parts(model, normals)
        middle = np.median(terms, axis=0)
        scale = np.maximum(np.median(np.abs(terms - middle), axis=0) * _MAD_TO_DEVIATION, 1e-6)
        draft.state |= {"term_center": middle.astype(np.float32), "term_scale": scale.astype(np.float32)}
        if _enough(validation):
            terms, latent = draft._parts(model, validation)
            draft.state["code_bound"] = np.abs(latent).max(axis=0)
            # In robust deviations from the typical normal row: twice as far as any that was held out.
            draft.state["limit"] = 2 * terms[validation.normal].mean(axis=1).max(keepdims=True)
            weigher, unseen = draft._weigh(model, validation)
            draft.state |= _linear(weigher)
            held_out = unseen[validation.normal]
        else:
            held_out = draft._score(model, normals.x, normals.observed)
        draft.state["threshold"] = np.quantile(held_out, [1 - self.false_positive_rate]).astype(np.float32)
        return draft

    def held_out(self, model: Autoencoder, validation: Split, train: Split) -> Scores:
        """Judge by scores from folds that left each row out, where the labels of these rows chose the weights."""
        if not _enough(validation):
            return self.evaluate(model, validation, train)
        assert validation.normal is not None
        _, unseen = self._weigh(model, validation)
        terms, _ = self._parts(model, validation)
        unseen = np.maximum(unseen, self.state["threshold"] + terms.mean(axis=1) - self.state["limit"])
        return self.scores(unseen, ~validation.normal, float(self.state["threshold"][0]))

    def _weigh(self, model: Autoencoder, validation: Split) -> tuple[Any, np.ndarray]:
        """Return a logistic regression on the terms and the code, and scores (n,) by folds that left each row out."""
        from sklearn import model_selection

        assert validation.normal is not None
        features = np.concatenate(self._parts(model, validation), axis=1)
        strange = ~validation.normal
        regression = _regularised(features, strange)
        folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=0)
        unseen = model_selection.cross_val_predict(regression, features, strange, cv=folds, method="decision_function")
        return regression.fit(features, strange), np.asarray(unseen)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor(np.asarray(value, np.float32)) for name, value in self.state.items()}

    def _parts(self, model: Autoencoder, split: Split) -> tuple[np.ndarray, np.ndarray]:
        state = self._tensors()
        with torch.inference_mode():
            parts = [self._terms(model, *rows, state) for rows in in_batches(split.x, split.observed, _BATCH)]
        terms, latent = zip(*parts, strict=True)
        return torch.cat(terms).numpy(), torch.cat(latent).numpy()

    def _terms(
        self, model: Autoencoder, x: Tensor, observed: Tensor | None, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the normalised terms (n, 2), error and latent distance, and the whitened codes (n, code)."""
        z = model.encode(x, observed)
        residual = (x - model.decode(z)).flatten(1)
        deviation = (residual - state["residual_median"]).abs() / state["residual_scale"]  # (n, size)
        # The logarithm keeps one wild feature from drowning many that are a little off.
        deviation = torch.log1p(deviation)
        if observed is None:
            error = deviation.mean(dim=1)
        else:
            seen = observed.flatten(1)
            error = (deviation * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
        latent = (z - state["code_center"]) / state["code_spread"]  # (n, code)
        distance = torch.log(self._nearest(latent, state["reference"]).mean(dim=1) + 1e-3)
        terms = torch.stack([error, distance], dim=1)
        # What weights were learned on reaches so far; beyond it a code says nothing more.
        latent = torch.clamp(latent, -state["code_bound"], state["code_bound"])
        return (terms - state["term_center"]) / state["term_scale"], latent

    def _nearest(self, latent: Tensor, reference: Tensor) -> Tensor:
        """Return the distances of codes (n, code) to their nearest neighbours in the reference, (n, neighbours)."""
        with torch.no_grad():
            # By matrix product, which is fast and rounds; so it only finds the neighbours. Their distances are taken
            # exactly, and gradients go through these few alone.
            distances = torch.cdist(latent, reference, compute_mode="use_mm_for_euclid_dist")
            found = distances.topk(min(self.neighbours, len(reference)), largest=False).indices  # (n, neighbours)
        # A row of the reference itself is at distance 0, where the root has no gradient.
        return (latent[:, None] - reference[found]).square().sum(dim=2).clamp(min=1e-12).sqrt()

    def _tensor_score(
        self, model: Autoencoder, x: Tensor, observed: Tensor | None, state: Mapping[str, Tensor]
    ) -> Tensor:
        terms, latent = self._terms(model, x, observed, state)
        learned: Tensor = (terms * state["term_weight"]).sum(dim=1) + (latent * state["code_weight"]).sum(dim=1)
        # Learned weights tell the known anomalies from normal rows, and may take a row that is like neither for normal.
        # One that lies twice as far out as any held-out normal row is flagged whatever they say.
        guard = state["threshold"] + terms.mean(dim=1) - state["limit"]
        return torch.maximum(learned + state["offset"], guard)

    def _score(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None) -> np.ndarray:
        state = self._tensors()
        with torch.inference_mode():
            parts = [self._tensor_score(model, *rows, state) for rows in in_batches(x, observed, _BATCH)]
        return torch.cat(parts).numpy()

    def _contributions(self, model: Autoencoder, x: Tensor, observed: Tensor | None) -> np.ndarray:
        """Return (n, size): what each value of a sample adds to its score over that of a typical normal row.

        Integrated gradients (Sundararajan et al., 2017, eq. 3) from the decoded center of the normal codes to the row,
        by the midpoint rule: the contributions of a row sum to the difference of the two scores, up to the rule's own
        error. Where nothing was observed the two rows are alike, and a gap contributes nothing.
        """
        state = self._tensors()
        with torch.no_grad():
            typical = model.decode(state["code_center"][None]).expand_as(x)
        if observed is not None:
            typical = torch.where(observed, typical, x)
        total = torch.zeros_like(x)
        for step in range(STEPS):
            point = (typical + (step + 0.5) / STEPS * (x - typical)).requires_grad_()
            score = self._tensor_score(model, point, observed, state).sum()
            total += torch.autograd.grad(score, point)[0] / STEPS
        return (total * (x - typical)).flatten(1).numpy()

    def evaluate(self, model: Autoencoder, split: Split, train: Split) -> Scores:
        assert split.normal is not None
        return self.scores(
            self._score(model, split.x, split.observed), ~split.normal, float(self.state["threshold"][0])
        )

    def scores(self, score: np.ndarray, strange: np.ndarray, threshold: float) -> Scores:
        """Judge scores (n,) of rows of which some are known anomalies (n,) bool."""
        values = {"score": score.astype(np.float64), "anomaly": strange.astype(np.float64)}
        top = np.argsort(-score, kind="stable")[: strange.sum()]
        flagged = score > threshold

        def share(of: np.ndarray) -> float:
            return float(of.mean()) if len(of) else float("nan")

        metrics = {
            self.primary: self.statistic(values),
            "auroc": auroc(score, strange),
            "precision_at_n": share(strange[top]),
            "false_positive_rate": share(flagged[~strange]),
            "recall": share(flagged[strange]),
        }
        return Scores(metrics, values)

    def statistic(self, values: Mapping[str, np.ndarray]) -> float:
        return average_precision(values["score"], values["anomaly"] > 0)

    def rivals(self) -> dict[str, Rival]:
        from sklearn import ensemble, neighbors

        def forest(trees: int) -> _ScikitDetector:
            return _ScikitDetector(ensemble.IsolationForest(n_estimators=trees, random_state=0))

        def lof(k: int) -> _ScikitDetector:
            return _ScikitDetector(neighbors.LocalOutlierFactor(k, novelty=True))

        return {
            "isolation_forest": _Detector(self, forest, (100, 300)),
            "knn": _Detector(self, _NearestNeighbours, (1, 3, 5, 10, 20, 50), neighbours=True),
            "lof": _Detector(self, lof, (5, 10, 20, 50), neighbours=True),
            "ecod": _Detector(self, lambda _: _EmpiricalTails(), (None,)),
            "pca_error": _Detector(self, _PcaError, (0.5, 0.7, 0.9, 0.95, 0.99)),
            "logistic": _Logistic(self),
        }

    def predict(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> Columns:
        """Return score, flag, threshold and, in order, the features that raised the score most: top_1, top_2, ..."""
        score = self._score(model, x, observed)
        threshold = float(self.state["threshold"][0])
        columns: Columns = {
            "score": score,
            "flag": score > threshold,
            "threshold": np.full(len(score), threshold, np.float32),
        }
        names = np.array(schema.features, dtype=object)
        owner = schema.feature_of
        parts = np.concatenate(
            [self._contributions(model, *rows) for rows in in_batches(x, observed, _BATCH)]
        )  # (n, size)
        # The values of a one-hot column count together.
        by_feature = np.add.reduceat(parts, np.flatnonzero(np.diff(owner, prepend=-1)), axis=1)  # (n, features)
        ranked = np.argsort(-by_feature, axis=1, kind="stable")[:, : self.reasons]
        return columns | {f"top_{i + 1}": names[ranked[:, i]] for i in range(ranked.shape[1])}


def _residual(model: Autoencoder, split: Split) -> np.ndarray:
    """Return (n, size), NaN where nothing was observed; 0 for a value that no row has."""
    residual: np.ndarray = (split.x - reconstructions(model, split.x, split.observed)).reshape(len(split), -1)
    if split.observed is not None:
        seen = split.observed.reshape(residual.shape)
        residual = np.where(seen, residual, np.where(seen.any(axis=0), np.float32("nan"), np.float32(0)))
    return residual


def _enough(split: Split) -> bool:
    return split.normal is not None and min(split.normal.sum(), (~split.normal).sum()) >= ENOUGH


def average_precision(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the mean precision over the positives in the order of their scores, tied scores counted together."""
    # As sklearn.metrics.average_precision_score, which takes 600 us for 360 rows; the bootstrap calls this 4000 times.
    count = positive.sum()
    if not count:
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(positive[order])
    # One step per distinct score: rows that tie are taken in together.
    ends = np.flatnonzero(np.diff(score[order], append=-np.inf) != 0)
    gained = np.diff(hits[ends], prepend=0)
    return float((gained * hits[ends] / (ends + 1)).sum() / count)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that an anomaly scores above a normal row, ties counted half; NaN for a single class."""
    from sklearn import metrics

    return float(metrics.roc_auc_score(positive, score)) if 0 < positive.sum() < len(positive) else float("nan")


def _linear(weigher: Any) -> dict[str, np.ndarray]:
    """Return a standardising logistic regression on two terms and a code as weights of these and an offset."""
    scaling, logistic = weigher[0], weigher[-1]
    slope = logistic.coef_[0] / scaling.scale_
    offset = logistic.intercept_ - (slope * scaling.mean_).sum()
    values = {"term_weight": slope[:2], "code_weight": slope[2:], "offset": offset}
    return {name: value.astype(np.float32) for name, value in values.items()}


def _regularised(features: np.ndarray, strange: np.ndarray) -> Any:
    """Return a standardising logistic regression whose penalty was chosen by cross-validation within these rows."""
    from sklearn import linear_model, model_selection, pipeline, preprocessing

    def regression(strength: float) -> Any:
        logistic = linear_model.LogisticRegression(C=strength, max_iter=2000)
        return pipeline.make_pipeline(preprocessing.StandardScaler(), logistic)

    folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=0)

    def likelihood(strength: float) -> float:
        found = model_selection.cross_val_score(
            regression(strength), features, strange, cv=folds, scoring="neg_log_loss"
        )
        return float(found.mean())

    return regression(max((0.003, 0.01, 0.03, 0.1, 0.3, 1.0), key=likelihood))


class _Detector(Rival):
    """A method with `fit(rows)` and `score(rows)`, its one setting chosen by average precision on the validation rows."""

    def __init__(
        self, application: Anomaly, method: Callable[[Any], Any], settings: Sequence[Any], *, neighbours: bool = False
    ) -> None:
        """Set up the method; `neighbours` says that its settings are numbers of neighbours, which rows limit."""
        self._application = application
        self._method = method
        self._settings = settings
        self._neighbours = neighbours

    def fit(self, train: Split, validation: Split) -> None:
        rows, held_out = flat(train.only_normal()), flat(validation)
        assert validation.normal is not None
        settings = [s for s in self._settings if not self._neighbours or s < len(rows)]
        if not settings:
            raise ValueError(f"{len(rows)} normal training rows; expected more than {min(self._settings)}")
        best = -np.inf
        for setting in settings:
            method = self._method(setting)
            method.fit(rows)
            score = method.score(held_out)
            found = average_precision(score, ~validation.normal)
            if found > best or best == -np.inf:
                best, self._chosen = found, method
                quantile = 1 - self._application.false_positive_rate
                self._threshold = float(np.quantile(score[validation.normal], quantile))

    def evaluate(self, split: Split, train: Split) -> Scores:
        assert split.normal is not None
        return self._application.scores(self._chosen.score(flat(split)), ~split.normal, self._threshold)


class _ScikitDetector:
    def __init__(self, detector: Any) -> None:
        self._detector = detector

    def fit(self, x: np.ndarray) -> None:
        self._detector.fit(x)

    def score(self, x: np.ndarray) -> np.ndarray:
        return -np.asarray(self._detector.score_samples(x))


class _NearestNeighbours:
    """The distance to the k nearest normal rows, in the mean."""

    def __init__(self, k: int) -> None:
        self._k = k

    def fit(self, x: np.ndarray) -> None:
        from sklearn import neighbors

        self._index = neighbors.NearestNeighbors(n_neighbors=self._k).fit(x)

    def score(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self._index.kneighbors(x)[0].mean(axis=1))


class _PcaError:
    """The squared error of the projection that keeps a share of the variance."""

    def __init__(self, share: float) -> None:
        self._share = share

    def fit(self, x: np.ndarray) -> None:
        from sklearn import decomposition

        self._pca = decomposition.PCA(self._share, svd_solver="full").fit(x)

    def score(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(((x - self._pca.inverse_transform(self._pca.transform(x))) ** 2).sum(axis=1))


class _EmpiricalTails:
    """ECOD (Li et al., 2022): how far out in the tails of each column's empirical distribution a row lies."""

    def fit(self, x: np.ndarray) -> None:
        self._sorted = np.sort(x, axis=0)
        # Of the skewness only the sign counts, which the third moment has too, and also where a column is constant.
        self._left_skewed = ((x - x.mean(axis=0)) ** 3).mean(axis=0) < 0

    def score(self, x: np.ndarray) -> np.ndarray:
        count = len(self._sorted)
        pairs = list(zip(self._sorted.T, x.T, strict=True))
        below = np.stack([np.searchsorted(s, v, side="right") for s, v in pairs], axis=1)
        above = count - np.stack([np.searchsorted(s, v, side="left") for s, v in pairs], axis=1)
        # A new row counts itself, so that no probability is 0.
        left, right = -np.log((below + 1) / (count + 1)), -np.log((above + 1) / (count + 1))
        skewed = np.where(self._left_skewed, left, right)
        return np.asarray(np.max([left.sum(axis=1), right.sum(axis=1), skewed.sum(axis=1)], axis=0))


class _Logistic(Rival):
    """Supervised logistic regression on the raw values, from the labelled validation rows.

    Where a candidate's score learns its weights from labelled anomalies, so may a classical method: this says what
    the labels alone are worth. Without enough of them it does not take part.
    """

    def __init__(self, application: Anomaly) -> None:
        self._application = application

    def fit(self, train: Split, validation: Split) -> None:
        from sklearn import model_selection

        assert validation.normal is not None
        strange = ~validation.normal
        if not _enough(validation):
            raise ValueError(
                f"{strange.sum()} labelled anomalies and {(~strange).sum()} normal rows in the validation split; "
                f"expected {ENOUGH} or more of each"
            )
        rows = flat(validation)
        chosen = _regularised(rows, strange)
        folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=0)
        held_out = model_selection.cross_val_predict(chosen, rows, strange, cv=folds, method="decision_function")
        self._threshold = float(np.quantile(held_out[~strange], 1 - self._application.false_positive_rate))
        self._chosen = chosen.fit(rows, strange)

    def evaluate(self, split: Split, train: Split) -> Scores:
        assert split.normal is not None
        score = np.asarray(self._chosen.decision_function(flat(split)))
        return self._application.scores(score, ~split.normal, self._threshold)
