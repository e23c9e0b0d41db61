"""Anomaly detection: which rows are unlike the normal ones, by how much, and because of which features.

The score joins how badly a row is reconstructed, feature by feature, with how far its code is from the codes of normal
rows. Reconstruction error alone scores much like PCA does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sevenfold.applications.base import Application, Columns, Rival, Scores, codes, flat, tensor
from sevenfold.datasets.base import Schema, Split
from sevenfold.models.base import Autoencoder

FEW_ANOMALIES = 10
"""Labelled anomalies in the validation split from which on their labels choose the weights of the score's terms."""

LARGEST_REFERENCE = 4096
"""Training codes that distances are taken to."""

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
        """
        super().__init__({"false_positive_rate": false_positive_rate, "neighbours": neighbours, "reasons": reasons})
        if not 0 < false_positive_rate < 1:
            raise ValueError(f"false_positive_rate is {false_positive_rate}; expected a share between 0 and 1")
        self.false_positive_rate = false_positive_rate
        self.neighbours = neighbours
        self.reasons = reasons

    def unsuited(self, *, code: int, images: bool | None, labelled: bool, normal: bool) -> str | None:
        if not normal:
            return "needs to know which rows are normal to judge by; name their labels in the data set's `normal`"
        return None

    def calibrate(self, model: Autoencoder, train: Split, validation: Split) -> Self:
        """Learn the normalisers of the score's terms from held-out normal rows, their weights, and the threshold.

        With `FEW_ANOMALIES` labelled anomalies or more in the validation split, a logistic regression on the terms and
        the code learns the weights from them, and the threshold is set on scores of rows that it did not see. With
        fewer, the terms weigh the same and no label of an anomaly is looked at.
        """
        normals = validation.only_normal()
        z = codes(model, train.x)
        step = max(1, -(-len(z) // LARGEST_REFERENCE))
        center, spread = z.mean(axis=0), z.std(axis=0).clip(min=1e-6)
        residual = self._residuals(model, normals)
        # Features that are always reconstructed alike, such as the black rim of an image, would divide by nothing.
        median = np.median(residual, axis=0)
        mad = np.median(np.abs(residual - median), axis=0) * _MAD_TO_DEVIATION
        floor = 0.1 * np.sqrt(np.mean((residual - median) ** 2)) + 1e-6
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
            "offset": np.zeros(1),
            "threshold": np.zeros(1),
        }
        draft = self.with_state({name: np.asarray(value, np.float32) for name, value in state.items()})
        # The terms on their own scales first: robust z-scores against held-out normal rows.
        terms, _ = draft._parts(model, normals)
        middle = np.median(terms, axis=0)
        scale = np.maximum(np.median(np.abs(terms - middle), axis=0) * _MAD_TO_DEVIATION, 1e-6)
        draft.state |= {"term_center": middle.astype(np.float32), "term_scale": scale.astype(np.float32)}
        known = validation.normal
        if known is not None and (~known).sum() >= FEW_ANOMALIES:
            held_out = draft._learn_weights(model, validation)[known]
        else:
            held_out = draft._score(model, normals)
        draft.state["threshold"] = np.quantile(held_out, [1 - self.false_positive_rate]).astype(np.float32)
        return draft

    def _learn_weights(self, model: Autoencoder, validation: Split) -> np.ndarray:
        """Set the weights by logistic regression, and return scores of the validation rows by folds that left them out."""
        from sklearn import model_selection

        assert validation.normal is not None
        terms, latent = self._parts(model, validation)
        features = np.concatenate([terms, latent], axis=1)
        strange = ~validation.normal
        regression = _regularised(features, strange)
        folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=0)
        held_out = model_selection.cross_val_predict(
            regression, features, strange, cv=folds, method="decision_function"
        )
        weights = regression.fit(features, strange)[-1]
        center, scale = regression[0].mean_, regression[0].scale_
        slope = weights.coef_[0] / scale
        self.state["term_weight"] = slope[:2].astype(np.float32)
        self.state["code_weight"] = slope[2:].astype(np.float32)
        self.state["offset"] = (weights.intercept_ - (slope * center).sum()).astype(np.float32)
        return np.asarray(held_out)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor(np.asarray(value, np.float32)) for name, value in self.state.items()}

    def _residuals(self, model: Autoencoder, split: Split) -> np.ndarray:
        seen = None if split.observed is None else tensor(np.asarray(split.observed))
        with torch.inference_mode():
            return _residual(model, tensor(np.asarray(split.x)), seen).numpy()

    def _parts(self, model: Autoencoder, split: Split) -> tuple[np.ndarray, np.ndarray]:
        seen = None if split.observed is None else tensor(np.asarray(split.observed))
        with torch.inference_mode():
            terms, latent = self._terms(model, tensor(np.asarray(split.x)), seen, self._tensors())
        return terms.numpy(), latent.numpy()

    def _terms(
        self, model: Autoencoder, x: Tensor, observed: Tensor | None, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the normalised terms (n, 2), error and latent distance, and the whitened codes (n, code)."""
        z = model.encode(x)
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
        # Not by matrix product: that rounds differently with the number of rows, and small distances would be noise.
        distances = torch.cdist(latent, state["reference"], compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(min(self.neighbours, distances.shape[1]), largest=False).values
        distance = torch.log(nearest.mean(dim=1) + 1e-3)
        terms = torch.stack([error, distance], dim=1)
        return (terms - state["term_center"]) / state["term_scale"], latent

    def _tensor_score(
        self, model: Autoencoder, x: Tensor, observed: Tensor | None, state: Mapping[str, Tensor]
    ) -> Tensor:
        terms, latent = self._terms(model, x, observed, state)
        score: Tensor = (terms * state["term_weight"]).sum(dim=1) + (latent * state["code_weight"]).sum(dim=1)
        offset: Tensor = state["offset"]
        return score + offset

    def _score(self, model: Autoencoder, split: Split, batch: int = 1024) -> np.ndarray:
        state = self._tensors()
        parts = []
        with torch.inference_mode():
            for i in range(0, len(split), batch):
                seen = None if split.observed is None else tensor(np.asarray(split.observed[i : i + batch]))
                parts.append(self._tensor_score(model, tensor(np.asarray(split.x[i : i + batch])), seen, state).numpy())
        return np.concatenate(parts)

    def _contributions(self, model: Autoencoder, x: Tensor, observed: Tensor | None) -> np.ndarray:
        """Return (n, size): what each value of a sample adds to its score over that of a typical normal row.

        Integrated gradients (Sundararajan et al., 2017, eq. 3) from the decoded center of the normal codes to the row,
        by the midpoint rule: the contributions of a row sum to the difference of the two scores.
        """
        state = self._tensors()
        with torch.no_grad():
            typical = model.decode(state["code_center"][None]).expand_as(x)
        steps = 8
        total = torch.zeros_like(x)
        for step in range(steps):
            point = (typical + (step + 0.5) / steps * (x - typical)).detach().requires_grad_()
            with torch.enable_grad():
                score = self._tensor_score(model, point, observed, state).sum()
                (gradient,) = torch.autograd.grad(score, point)
            total += gradient / steps
        result = (total * (x - typical)).detach()
        if observed is not None:
            result = result * observed
        return result.flatten(1).numpy()

    def evaluate(self, model: Autoencoder, split: Split, train: Split) -> Scores:
        assert split.normal is not None
        return self.scores(self._score(model, split), ~split.normal, float(self.state["threshold"][0]))

    def scores(self, score: np.ndarray, strange: np.ndarray, threshold: float) -> Scores:
        """Judge scores (n,) of rows of which some are known anomalies (n,) bool."""
        values = {"score": score.astype(np.float64), "anomaly": strange.astype(np.float64)}
        count = int(strange.sum())
        top = np.argsort(-score, kind="stable")[:count]
        flagged = score > threshold
        metrics = {
            self.primary: self.statistic(values),
            "auroc": auroc(score, strange),
            "precision_at_n": float(strange[top].mean()) if count else float("nan"),
            "false_positive_rate": float(flagged[~strange].mean()),
            "recall": float(flagged[strange].mean()) if count else float("nan"),
        }
        return Scores(metrics, values)

    def statistic(self, values: Mapping[str, np.ndarray]) -> float:
        return average_precision(values["score"], values["anomaly"] > 0)

    def rivals(self) -> dict[str, Rival]:
        from sklearn import ensemble, neighbors

        few = (1, 3, 5, 10, 20, 50)
        shares = (0.5, 0.7, 0.9, 0.95, 0.99)
        return {
            "isolation_forest": _Detector(
                self, lambda n: _ScikitDetector(ensemble.IsolationForest(n_estimators=n, random_state=0)), (100, 300)
            ),
            "knn": _Detector(self, _NearestNeighbours, few),
            "lof": _Detector(
                self, lambda k: _ScikitDetector(neighbors.LocalOutlierFactor(k, novelty=True)), (5, 10, 20, 50)
            ),
            "ecod": _Detector(self, lambda _: _EmpiricalTails(), (None,)),
            "pca_error": _Detector(self, _PcaError, shares),
            "logistic": _Logistic(self),
        }

    def predict(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> Columns:
        """Return score, flag, threshold and, in order, the features that raised the score most: top_1, top_2, ..."""
        score = self._score(model, Split(x, observed, None, None, np.arange(len(x))))
        threshold = float(self.state["threshold"][0])
        columns: Columns = {
            "score": score,
            "flag": score > threshold,
            "threshold": np.full(len(score), threshold, np.float32),
        }
        names = np.array(schema.features, dtype=object)
        owner = schema.feature_of
        ranked = np.empty((len(x), min(self.reasons, len(names))), int)
        for i in range(0, len(x), 1024):
            seen = None if observed is None else tensor(np.asarray(observed[i : i + 1024]))
            parts = self._contributions(model, tensor(np.asarray(x[i : i + 1024])), seen)
            # The values of a one-hot column count together.
            by_feature = np.add.reduceat(parts, np.flatnonzero(np.diff(owner, prepend=-1)), axis=1)
            ranked[i : i + 1024] = np.argsort(-by_feature, axis=1, kind="stable")[:, : ranked.shape[1]]
        return columns | {f"top_{i + 1}": names[ranked[:, i]] for i in range(ranked.shape[1])}


def _residual(model: Autoencoder, x: Tensor, observed: Tensor | None) -> Tensor:
    residual: Tensor = (x - model(x)).flatten(1)
    return residual if observed is None else residual * observed.flatten(1)


def average_precision(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the mean precision over the positives in the order of their scores, tied scores counted together."""
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
    """Return the probability that an anomaly scores above a normal row, ties counted half."""
    from scipy import stats

    count = int(positive.sum())
    if not 0 < count < len(positive):
        return float("nan")
    ranks = stats.rankdata(score)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def _regularised(features: np.ndarray, strange: np.ndarray) -> Any:
    """Return a standardising logistic regression whose penalty was chosen by cross-validation within these rows."""
    from sklearn import linear_model, model_selection, pipeline, preprocessing

    def regression(strength: float) -> Any:
        logistic = linear_model.LogisticRegression(C=strength, max_iter=2000)
        return pipeline.make_pipeline(preprocessing.StandardScaler(), logistic)

    folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=0)
    losses = [
        model_selection.cross_val_score(regression(c), features, strange, cv=folds, scoring="neg_log_loss").mean()
        for c in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    ]
    return regression((0.003, 0.01, 0.03, 0.1, 0.3, 1.0)[int(np.argmax(losses))])


class _Detector(Rival):
    """A method with `fit(rows)` and `score(rows)`, its one setting chosen by average precision on the validation rows."""

    def __init__(self, application: Anomaly, method: Callable[[Any], Any], settings: Sequence[Any]) -> None:
        self._application = application
        self._method = method
        self._settings = settings

    def fit(self, train: Split, validation: Split) -> None:
        rows, held_out = flat(train.only_normal()), flat(validation)
        assert validation.normal is not None
        best = -np.inf
        for setting in self._settings:
            # A method may look at no more neighbours or dimensions than there are rows.
            if isinstance(setting, int) and setting >= len(rows):
                continue
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
        from scipy import stats

        self._sorted = np.sort(x, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            self._left_skewed = np.nan_to_num(stats.skew(x, axis=0)) < 0

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
        if strange.sum() < FEW_ANOMALIES:
            raise ValueError(
                f"{strange.sum()} labelled anomalies in the validation split; expected {FEW_ANOMALIES} or more"
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
