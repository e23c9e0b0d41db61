"""Anomaly detection: which rows are unlike the normal ones, by how much, and because of which features.

Two things are measured of a row: how badly it is reconstructed, by robust z-scores of each feature's error, and how far its
code is from the codes of normal rows. Each is turned into a surprise, the negative logarithm of the share of held-out
normal rows that lie further out, and the score is their weighted mean. Reconstruction error alone scores much like PCA does.

Where a data set names no normal class nobody knows its anomalies. Then every second row that judges becomes a planted one,
whose columns come each from a row of its own: what depends on each other in normal rows does not in these ("dependency
anomalies", Han et al., 2022, ADBench). They tell detectors apart, and say nothing of how often real anomalies are found.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from sevenfold import pictures, thresholds
from sevenfold.applications.base import (
    Application,
    Columns,
    Rival,
    Scores,
    codes,
    flat,
    reconstructions,
    require_at_least,
    tensor,
)
from sevenfold.datasets.base import Dataset, Schema, Split
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder
from sevenfold.pictures import Picture
from sevenfold.references import Reference, divided, reference_of

ENOUGH = 10
"""Anomalies, and normal rows, in the validation split from which on their labels choose the weights of the terms."""

Explained = Literal["all", "flagged", "none"]
"""Which rows get reasons: finding them takes some fifty times as long as the score."""

STEPS = 32
"""Gradients behind a row's contributions. Their sum then misses by less than a tenth for 19 rows of 20; with 8, by a third.

Where codes are divided into cells, the score has steps at their borders, which no gradient shows: by less than a tenth for 9 of
10 of the rows that score highest."""

KNOTS = 24
"""Points of a term's distribution that are remembered, up to the last tenth of the normal rows."""

TAIL = 0.1
"""Share of normal rows that the exponential tail of a term's distribution is fitted to."""

_BATCH = 4096  # rows of a table; with fewer the calls themselves take a part of the time

_FEWER = 2048  # images, or rows that are explained, which take more memory each

_MULTIPLE = 64  # rows that batches are filled up to; products of fewer may round in another way

_FARTHEST = 1e16  # robust deviations; the squares of more would overflow

_SHOWN = 256  # rows whose contributions a picture is made of


class Anomaly(Application):
    """Scores rows, flags those above a threshold, and names the features that contributed most."""

    primary = "average_precision"
    operation = "score"
    learns_from = "normal"

    _prepared: tuple[np.ndarray, Reference] | None = None
    """The codes of the state, and the same with what is worked out once for all rows."""

    def __init__(
        self,
        *,
        policy: thresholds.Policy,
        value: float,
        share: float | None,
        neighbours: int,
        references: int,
        reasons: int,
    ) -> None:
        """Set up the score.

        Args:
            policy: what sets the threshold; see `thresholds.Policy`.
            value: of the policy: share of normal rows to flag (false-positive-rate), quantile of all scores (quantile),
                deviations above the median (mad), or false alarms that one missed anomaly costs (cost).
            share: of the rows to come, how many are anomalies, 0 to 1; None takes the share of labelled ones in the
                validation split, if they are enough.
            neighbours: nearest training codes whose mean distance is the latent term.
            references: training codes that distances are taken to, at most. With fewer of them scoring is faster, and
                finds less where normal rows are of many kinds.
            reasons: features to name for each row.

        Raises:
            ValueError: an option is out of range.
        """
        require_at_least(1, neighbours=neighbours, references=references, reasons=reasons)
        if problems := thresholds.problems(policy, value, share):
            raise ValueError("; ".join(problems))
        super().__init__(
            {
                "policy": policy,
                "value": value,
                "share": share,
                "neighbours": neighbours,
                "references": references,
                "reasons": reasons,
            }
        )
        self.policy: thresholds.Policy = policy
        self.value = value
        self.share = share
        self.neighbours = neighbours
        self.references = references
        self.reasons = reasons
        self.explained: Explained = "all"

    def explaining(self, which: Explained) -> Self:
        """Return a copy whose `predict` gives reasons for all rows, for those that it flags, or for none.

        Raises:
            ValueError: `which` is something else.
        """
        if which not in (known := get_args(Explained)):
            raise ValueError(f"reasons are asked for {which!r}; expected one of {', '.join(known)}")
        explaining = copy(self)
        explaining.explained = which
        return explaining

    def __getstate__(self) -> dict[str, Any]:
        # What is worked out once is, once more, where a copy goes; and a copy may get another state.
        return {name: value for name, value in vars(self).items() if name != "_prepared"}

    def unsuited(self, *, code: int | None, images: bool | None, labelled: bool, normal: bool) -> str | None:
        return None

    def judged(self, dataset: Dataset) -> Dataset:
        """Plant anomalies in the judging splits where nothing is known of which rows are normal."""
        if dataset.train.normal is not None:
            return dataset
        layout = dataset.schema.layout
        return replace(dataset, validation=planted(dataset.validation, layout), test=planted(dataset.test, layout))

    def calibrate(self, model: Autoencoder, train: Split, validation: Split) -> Self:
        """Learn the normalisers of the score's terms from held-out normal rows, their weights, and the threshold.

        With `ENOUGH` labelled anomalies in the validation split, a logistic regression on the terms and the code learns
        the weights from them, and the threshold is set on scores of rows that it did not see. With fewer, and with
        planted ones, the terms are weighed by the length of the code, and no label of an anomaly is looked at.

        Raises:
            ValueError: no validation row is normal, or the threshold's policy needs to know more.
        """
        normals = validation.only_normal()
        if not len(normals):
            raise ValueError(
                "no validation row is normal, and the threshold is set by those; give that split a larger share, or "
                "mend the data set's `normal`"
            )
        z = codes(model, train.x, train.observed)
        step = max(1, -(-len(z) // self.references))
        center, spread = z.mean(axis=0), z.std(axis=0).clip(min=1e-6)
        residual = _residual(model, normals)
        median = np.nanmedian(residual, axis=0)
        mad = np.nanmedian(np.abs(residual - median), axis=0) * thresholds.MAD_TO_DEVIATION
        # Features that are always reconstructed alike, such as the black rim of an image, would divide by nothing.
        floor = 0.1 * np.sqrt(np.nanmean((residual - median) ** 2)) + 1e-6
        size = z.shape[1]
        state = {
            "residual_median": median,
            "residual_scale": np.maximum(mad, floor),
            "code_center": center,
            "code_spread": spread,
            "reference": ((z - center) / spread)[::step],
            "term_weight": _weights(size, model.size),
            "code_weight": np.zeros(size),
            "code_bound": np.full(size, np.inf),
            "offset": np.zeros(1),
            "limit": np.full(1, np.inf),
            "anchor": np.zeros(1),
        }
        draft = self.with_state({name: np.asarray(value, np.float32) for name, value in state.items()})
        draft.state |= {f"reference_{n}": v for n, v in divided(draft.state["reference"], self.neighbours).items()}
        raw, _ = draft._parts(model, normals)
        draft.state |= _distribution(raw)
        odd = planted(normals, model.layout, every=1)
        known = validation.normal is not None and _labels_teach(train, validation)
        if known:
            assert validation.normal is not None
            terms, latent = draft._parts(model, validation)
            draft.state["code_bound"] = np.abs(latent).max(axis=0)
            # In nats: half of the logarithm of the chance that any held-out normal row has.
            draft.state["limit"] = 2 * terms[validation.normal].mean(axis=1).max(keepdims=True)
            weigher, unseen = draft._weigh(model, validation)
            draft.state |= _linear(weigher)
            normal, strange = unseen[validation.normal], unseen[~validation.normal]
        else:
            normal = draft.score(model, normals.x, normals.observed)
            strange = draft.score(model, odd.x, odd.observed)
        draft.state |= {
            "normal_scores": thresholds.summary(normal).astype(np.float32),
            "strange_scores": thresholds.summary(strange).astype(np.float32),
            "share": np.array(
                [(~validation.normal).mean() if known and validation.normal is not None else 0], np.float32
            ),
        }
        # Where the guard of `_tensor_score` takes over: not at the threshold, which may be moved while scores stay.
        draft.state["anchor"] = np.array([normal.max()], np.float32)
        draft._set_threshold()
        return draft

    @property
    def known(self) -> thresholds.HeldOut:
        """The scores of held-out rows that the threshold is set by."""
        share = float(self.state["share"][0]) if self.share is None else self.share
        return thresholds.HeldOut(self.state["normal_scores"], self.state["strange_scores"], share)

    @property
    def labelled(self) -> bool:
        """Whether the anomalies of `known` were labelled ones; else they were planted among normal rows."""
        return bool(self.state["share"][0] > 0)

    @property
    def threshold(self) -> float:
        return float(self.state["threshold"][0])

    def _set_threshold(self) -> None:
        self.state["threshold"] = np.array([thresholds.place(self.policy, self.value, self.known)], np.float32)

    def moved(self, policy: thresholds.Policy, value: float, share: float | None) -> Self:
        """Return a copy with the threshold of another setting; scores stay as they are.

        Raises:
            ValueError: the setting is out of range, or needs to know more than the bundle does.
        """
        setting = {"policy": policy, "value": value, "share": share}
        moved = type(self)(**self.options | setting).with_state(self.state).explaining(self.explained)
        moved._set_threshold()
        return moved

    def held_out(self, model: Autoencoder, validation: Split, train: Split) -> Scores:
        """Judge by scores from folds that left each row out, where the labels of these rows chose the weights."""
        if not self.labelled:
            return self.evaluate(model, validation, train)
        assert validation.normal is not None
        _, unseen = self._weigh(model, validation)
        terms, _ = self._parts(model, validation)
        unseen = np.maximum(unseen, self.state["anchor"] + terms.mean(axis=1) - self.state["limit"])
        return self.scores(unseen, ~validation.normal, self.threshold)

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

    @property
    def _known(self) -> "_Known":
        codes = self.state["reference"]
        if self._prepared is None or self._prepared[0] is not codes:
            names = ("centers", "members")
            cells = {name: self.state[f"reference_{name}"] for name in names if f"reference_{name}" in self.state}
            with torch.inference_mode(False):  # gradients may be asked for later
                self._prepared = (codes, reference_of(torch.from_numpy(np.array(codes, np.float32)), cells))
        others = {name: value for name, value in self.state.items() if not name.startswith("reference")}
        state = {name: tensor(np.asarray(value, np.float32)) for name, value in others.items()}
        return _Known(state, self._prepared[1])

    def _parts(self, model: Autoencoder, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Return the terms (n, 2) and the whitened codes (n, code) of a split; see `_terms`."""
        known = self._known
        terms = np.empty((len(split), 2), np.float32)
        latent = np.empty((len(split), self.state["reference"].shape[1]), np.float32)
        with torch.inference_mode():
            for rows, some, seen in _batches(split.x, split.observed):
                for whole, part in zip((terms, latent), self._terms(model, some, seen, known), strict=True):
                    whole[rows] = part[: len(whole[rows])].numpy()
        return terms, latent

    def _terms(self, model: Autoencoder, x: Tensor, observed: Tensor | None, known: "_Known") -> tuple[Tensor, Tensor]:
        """Return the terms (n, 2), error and latent distance, as surprises, and the whitened codes (n, code).

        Before the distribution of the terms is known they are what it is learned from.
        """
        state = known.state
        z = model.encode(x, observed)
        residual = (x - model.decode(z)).flatten(1)
        square = _robust_squares(residual, state["residual_median"], state["residual_scale"])  # (n, size)
        if observed is None:
            square = square.mean(dim=1)
        else:
            seen = observed.flatten(1)
            square = (square * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
        error = 0.5 * torch.log(square + 1e-6)
        latent = (z - state["code_center"]) / state["code_spread"]  # (n, code)
        distance = torch.log(known.reference.distances(latent, self.neighbours).mean(dim=1) + 1e-3)
        terms = torch.stack([error, distance], dim=1)
        if "term_knots" in state:
            terms = _surprise(terms, state["term_knots"], state["term_excess"])
        # What weights were learned on reaches so far; beyond it a code says nothing more.
        latent = torch.clamp(latent, -state["code_bound"], state["code_bound"])
        return terms, latent

    def _tensor_score(self, model: Autoencoder, x: Tensor, observed: Tensor | None, known: "_Known") -> Tensor:
        state = known.state
        terms, latent = self._terms(model, x, observed, known)
        learned: Tensor = (terms * state["term_weight"]).sum(dim=1) + (latent * state["code_weight"]).sum(dim=1)
        # Learned weights tell the known anomalies from normal rows, and may take a row that is like neither for normal.
        # One that is twice as surprising as any held-out normal row is flagged whatever they say.
        guard = state["anchor"] + terms.mean(dim=1) - state["limit"]
        return torch.maximum(learned + state["offset"], guard)

    def score(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None) -> np.ndarray:
        """Return the score of each row, (n,): to the last bit the same whatever rows are beside it, and however many.

        There are processors (AMD's Zen 3) whose products of few columns round otherwise in every second row. There it is the
        same wherever a row comes an even number of rows earlier or later, as it does in a job's batches of any size.
        """
        known, score = self._known, np.empty(len(x), np.float32)
        with torch.inference_mode():
            for rows, some, seen in _batches(x, observed):
                score[rows] = self._tensor_score(model, some, seen, known)[: len(score[rows])].numpy()
        return score

    def _contributions(self, model: Autoencoder, x: Tensor, observed: Tensor | None) -> np.ndarray:
        """Return (n, size): what each value of a sample adds to its score over that of a typical normal row.

        Integrated gradients (Sundararajan et al., 2017, eq. 3) from the decoded center of the normal codes to the row,
        by the midpoint rule: the contributions of a row sum to the difference of the two scores, up to the rule's own
        error. Where nothing was observed the two rows are alike, and a gap contributes nothing.
        """
        known = self._known
        with torch.no_grad():
            typical = model.decode(known.state["code_center"][None]).expand_as(x)
        if observed is not None:
            typical = torch.where(observed, typical, x)
        way, total = x - typical, torch.zeros_like(x)
        together = max(1, _FEWER // max(len(x), 1))  # of few rows several steps, which cost as much as one
        for first in range(0, STEPS, together):
            count = min(together, STEPS - first)
            places = (torch.arange(first, first + count) + 0.5) / STEPS
            points = (typical + places.reshape(-1, *[1] * x.ndim) * way).flatten(0, 1).requires_grad_()
            seen = None if observed is None else observed.repeat(count, *[1] * (x.ndim - 1))
            score = self._tensor_score(model, points, seen, known).sum()
            # One after the other: how many go together depends on the number of rows, and their sum must not.
            for gradient in torch.autograd.grad(score, points)[0].reshape(count, *x.shape):
                total += gradient / STEPS
        return (total * way).flatten(1).numpy()

    def evaluate(self, model: Autoencoder, split: Split, train: Split) -> Scores:
        assert split.normal is not None
        return self.scores(self.score(model, split.x, split.observed), ~split.normal, self.threshold)

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

    def within(self, values: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values of a slice's rows; where these are all normal, or all anomalies, with those of all others.

        One kind of normal rows is judged by how it stands out from every anomaly, one kind of anomaly from every normal row.
        """
        strange = values["anomaly"] > 0
        if len(rows) and len(np.unique(strange[rows])) == 1:
            rows = np.concatenate([rows, np.flatnonzero(strange != strange[rows[0]])])
        return {name: value[rows] for name, value in values.items()}

    def rivals_threshold(self, score: np.ndarray, train: Split, validation: Split) -> float:
        """Return the threshold that the policy sets on a rival's scores of the validation rows, (n,)."""
        assert validation.normal is not None
        strange = ~validation.normal
        share = self.share if self.share is not None else strange.mean() if _labels_teach(train, validation) else 0
        known = thresholds.HeldOut(np.sort(score[~strange]), np.sort(score[strange]), float(share))
        return thresholds.place(self.policy, self.value, known)

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
        """Return score, flag, threshold and, in order, the features that raised the score most: top_1, top_2, ...

        What `explaining` left out has None in the place of a feature; where it left out all rows there are no such
        columns.
        """
        score = self.score(model, x, observed)
        flag = score > self.threshold
        columns: Columns = {"score": score, "flag": flag, "threshold": np.full(len(score), self.threshold, np.float32)}
        if self.explained == "none":
            return columns
        rows = np.flatnonzero(flag) if self.explained == "flagged" else slice(None)
        by_feature = self._by_feature(model, x[rows], None if observed is None else observed[rows], schema)
        ranked = np.argsort(-by_feature, axis=1, kind="stable")[:, : self.reasons]
        names = np.array(schema.features, dtype=object)
        for i in range(ranked.shape[1]):
            columns[f"top_{i + 1}"] = np.full(len(score), None, dtype=object)
            columns[f"top_{i + 1}"][rows] = names[ranked[:, i]]
        return columns

    def _by_feature(self, model: Autoencoder, x: np.ndarray, observed: np.ndarray | None, schema: Schema) -> np.ndarray:
        """Return the contributions (n, features); the values of a one-hot column count together."""
        found = np.empty((len(x), len(schema.features)), np.float32)
        starts = np.flatnonzero(np.diff(schema.feature_of, prepend=-1))
        for rows, some, seen in _batches(x, observed, _FEWER):
            parts = self._contributions(model, some, seen)[: len(found[rows])]  # (n, size)
            found[rows] = np.add.reduceat(parts, starts, axis=1)
        return found

    def pictures(self, model: Autoencoder, split: Split, train: Split, schema: Schema) -> list[Picture]:
        score = self.score(model, split.x, split.observed)
        drawn = [self._histogram(score, split.normal)]
        first = np.argsort(-score, kind="stable")
        if len(schema.shape) == 3:
            rows = split.take(first[:8])
            return [*drawn, self._error_maps(rows.x, reconstructions(model, rows.x, rows.observed), score[first[:8]])]
        count = int((score > self.threshold).sum())
        # Where nothing is flagged, those that come nearest to it.
        rows = split.take(first[: min(count or max(1, len(first) // 20), _SHOWN)])
        return [
            *drawn,
            self._columns(self._by_feature(model, rows.x, rows.observed, schema), schema, flagged=count > 0),
        ]

    def _histogram(self, score: np.ndarray, normal: np.ndarray | None) -> Picture:
        odd = np.zeros(len(score), bool) if normal is None else ~normal
        name = "anomalies" if self.labelled else "anomalies (planted ones, where none are known)"
        flags = score > self.threshold

        def draw(axes: Any) -> None:
            edges = np.histogram_bin_edges(np.append(score, self.threshold), bins=40)
            for rows, colour, label in ((~odd, pictures.OURS, "normal rows"), (odd, pictures.THEIRS, name)):
                if rows.any():
                    axes.hist(score[rows], bins=edges, color=colour, alpha=0.6, label=f"{label}, {rows.sum()}")
            axes.axvline(self.threshold, color="black", linewidth=1, linestyle="--")
            axes.annotate(
                f"threshold {self.threshold:.3g}",
                (self.threshold, 0.95),
                xycoords=("data", "axes fraction"),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8,
            )
            axes.set(xlabel="score", ylabel="rows", yscale="symlog")
            axes.legend(frameon=False)

        return pictures.plot(
            "scores",
            "Scores of the test rows, and the threshold",
            f"Histogram of {len(score)} scores, of which {flags.sum()} lie above the threshold of {self.threshold:.3g}: "
            f"{flags[odd].sum()} of {odd.sum()} anomalies and {flags[~odd].sum()} of {(~odd).sum()} normal rows.",
            draw,
        )

    def _columns(self, parts: np.ndarray, schema: Schema, *, flagged: bool) -> Picture:
        """Draw the mean contributions of each column to the scores of some rows, (rows, features)."""
        mean = parts.mean(axis=0)
        first = np.argsort(-mean, kind="stable")[:12]
        names = [schema.features[i] for i in first]
        which = "flagged test rows" if flagged else "test rows that score highest, none being flagged"

        def draw(axes: Any) -> None:
            axes.barh([str(n)[:40] for n in names[::-1]], mean[first][::-1], color=pictures.OURS)
            axes.set(xlabel="mean contribution to the score")

        return pictures.plot(
            "reasons",
            f"Columns that raise the scores of {len(parts)} {which}",
            f"Bars of mean contributions, the largest first: {', '.join(map(str, names))}.",
            draw,
            size=(7.0, 0.8 + 0.22 * len(first)),
        )

    def _error_maps(self, x: np.ndarray, output: np.ndarray, score: np.ndarray) -> Picture:
        error = np.abs(x - output)
        return pictures.grid(
            "errors",
            "The test images that score highest, their reconstructions, and where these fail",
            f"{len(x)} images in the order of their scores, from {score.max():.3g} down to {score.min():.3g}; below each its "
            "reconstruction and the absolute error of each pixel, white where it is largest.",
            [x, output, error / max(float(error.max()), 1e-6)],
            ["image", "reconstruction", "error"],
            [[""] * len(x), [""] * len(x), [f"{s:.3g}" for s in score]],
        )

    def comparison(self, scores: Mapping[str, Scores], chosen: str) -> list[Picture]:
        curves = {name: _curves(one.values["score"], one.values["anomaly"] > 0) for name, one in scores.items()}
        dashes = ["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (7, 3))]
        others = [name for name in curves if name != chosen]

        def draw(left: Any, right: Any) -> None:
            for name, (alarms, recall, precision) in curves.items():
                style: dict[str, Any] = {"color": pictures.OURS, "linewidth": 2.2, "zorder": 3}
                if name != chosen:
                    number = others.index(name)
                    colour = (pictures.THEIRS, pictures.THIRD)[number // len(dashes) % 2]
                    style = {"color": colour, "linewidth": 1, "linestyle": dashes[number % len(dashes)]}
                left.plot(alarms, recall, label=name, **style)
                right.plot(recall, precision, **style)
            left.set(xlabel="share of normal rows flagged", ylabel="share of anomalies flagged", title="ROC")
            right.set(
                xlabel="share of anomalies flagged", ylabel="share of flags that are right", title="precision, recall"
            )
            left.legend(frameon=False, fontsize=7)

        best = ", ".join(f"{n} {one.metrics[self.primary]:.3f}" for n, one in scores.items())
        return [
            pictures.plot(
                "curves",
                "What each threshold would find, and what it would cost",
                f"ROC and precision-recall curves on the test rows; average precision: {best}.",
                draw,
                panels=2,
                size=(7.4, 3.6),
            )
        ]


@dataclass(frozen=True)
class _Known:
    """What calibration learned, as the networks take it."""

    state: Mapping[str, Tensor]
    reference: Reference


def _batches(
    x: np.ndarray, observed: np.ndarray | None, most: int = _BATCH
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Cut samples into batches, and say of which rows each is; the last is filled up, so that all round in one way."""
    size = most if x.ndim == 2 else _FEWER
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        yield rows, _filled(x[rows]), None if observed is None else _filled(observed[rows])


def _filled(x: np.ndarray) -> Tensor:
    if more := -len(x) % _MULTIPLE:
        x = np.concatenate([x, np.zeros((more, *x.shape[1:]), x.dtype)])
    return tensor(np.ascontiguousarray(x))


def _robust_squares(residual: Tensor, median: Tensor, scale: Tensor) -> Tensor:
    """Return the squares of robust z-scores, (n, size). The residuals are overwritten where no gradients are asked for."""
    if residual.requires_grad:
        return ((residual - median) / scale).clamp(-_FARTHEST, _FARTHEST).square()
    # Memory for each step would take longer than the step.
    return residual.sub_(median).div_(scale).clamp_(-_FARTHEST, _FARTHEST).square_()


def _residual(model: Autoencoder, split: Split) -> np.ndarray:
    """Return (n, size), NaN where nothing was observed; 0 for a value that no row has."""
    residual: np.ndarray = (split.x - reconstructions(model, split.x, split.observed)).reshape(len(split), -1)
    if split.observed is not None:
        seen = split.observed.reshape(residual.shape)
        residual = np.where(seen, residual, np.where(seen.any(axis=0), np.float32("nan"), np.float32(0)))
    return residual


def _enough(split: Split) -> bool:
    return split.normal is not None and min(split.normal.sum(), (~split.normal).sum()) >= ENOUGH


def _weights(code: int, size: int) -> np.ndarray:
    """Return the weights of error and distance where no label tells: alike for a short code, 1 to 2 for a long one.

    What a short code leaves out of a row only the error sees. One as long as its row sees all of it, and the distance,
    which knows where normal rows are, tells more than the error, which knows only where they are dense.
    """
    kept = min(code / size, 1.0)
    return np.array([1.0, 1.0 + kept]) / (2.0 + kept)


def _labels_teach(train: Split, validation: Split) -> bool:
    """Say whether weights may be learned from the labels of validation rows: enough of them, and none of our making."""
    return train.normal is not None and _enough(validation)


def planted(split: Split, layout: Layout, *, every: int = 2) -> Split:
    """Return the rows with every so-manieth one made an anomaly, whose columns come each from a row of its own.

    Of images a quarter is a column, since single pixels of other images are noise that nobody could miss. The same rows
    get the same donors every time.
    """
    generator = np.random.default_rng(0)
    rows = np.arange(every - 1, len(split), every)
    before = np.asarray(split.x).reshape(len(split), -1)  # (n, size)
    x = before.copy()
    known = None if split.observed is None else np.asarray(split.observed).reshape(before.shape)
    observed = None if known is None else known.copy()
    owner = _owners(layout)  # (size,)
    for column in range(owner.max() + 1):
        donors, places = generator.permutation(len(split))[rows], np.flatnonzero(owner == column)
        x[np.ix_(rows, places)] = before[np.ix_(donors, places)]
        if known is not None and observed is not None:
            observed[np.ix_(rows, places)] = known[np.ix_(donors, places)]
    normal = np.ones(len(split), bool)
    normal[rows] = False
    return replace(
        split,
        x=x.reshape(split.x.shape),
        observed=None if observed is None else observed.reshape(split.x.shape),
        normal=normal,
    )


def _owners(layout: Layout) -> np.ndarray:
    """Return for each value of a flat sample the number of its column, or of its quarter of an image, (size,)."""
    if len(layout.shape) == 3:
        channels, height, width = layout.shape
        lower, right = np.arange(height) >= (height + 1) // 2, np.arange(width) >= (width + 1) // 2
        quarters = 2 * lower[:, None].astype(int) + right
        return np.unique(np.broadcast_to(quarters, (channels, height, width)).ravel(), return_inverse=True)[1]
    widths = [field.width for field in layout.fields] or [1] * int(np.prod(layout.shape))
    return np.repeat(np.arange(len(widths)), widths)


def _distribution(terms: np.ndarray) -> dict[str, np.ndarray]:
    """Return what `_surprise` knows of the terms of normal rows, (n, terms): quantiles, and how far the last ones reach.

    The terms are logarithms, so an exponential tail is a power law of errors and distances, whose exponent is estimated
    as Hill (1975) does.
    """
    knots = np.quantile(terms, 1 - np.exp(-_levels(KNOTS)), axis=0).T  # (terms, KNOTS)
    last = knots[:, -1]
    excess = [(t[t > q] - q).mean() if (t > q).any() else 0 for t, q in zip(terms.T, last, strict=True)]
    # Rows that are all alike have no tail; then what differs from them at all is far out.
    return {
        "term_knots": np.ascontiguousarray(knots, np.float32),
        "term_excess": np.maximum(excess, 1e-3).astype(np.float32),
    }


def _levels(count: int) -> np.ndarray:
    """Return the surprises at the knots, evenly spaced."""
    return np.linspace(0, -np.log(TAIL), count)


def _surprise(terms: Tensor, knots: Tensor, excess: Tensor) -> Tensor:
    """Return the negative logarithm of the share of normal rows that lie further out, (n, terms) in nats."""
    count = knots.shape[1]
    levels = torch.from_numpy(_levels(count).astype(np.float32))
    values = terms.T.contiguous()  # (terms, n)
    right = torch.searchsorted(knots, values.detach()).clamp(1, count - 1)
    low, high = knots.gather(1, right - 1), knots.gather(1, right)
    inside = torch.minimum(torch.maximum(values, knots[:, :1]), knots[:, -1:])
    within = levels[right - 1] + (inside - low) / (high - low).clamp(min=1e-9) * levels[1]
    return (within + (values - knots[:, -1:]).clamp(min=0) / excess[:, None]).T


def _curves(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return false-positive rate, recall and precision at 200 thresholds or fewer, from the strictest one on."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=-np.inf) != 0)
    hits = np.cumsum(positive[order])[ends]
    alarms = ends + 1 - hits
    some = np.unique(np.linspace(0, len(ends) - 1, min(len(ends), 200)).astype(int))
    recall, rate = hits / max(positive.sum(), 1), alarms / max((~positive).sum(), 1)
    return rate[some], recall[some], (hits / (ends + 1))[some]


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
                self._threshold = self._application.rivals_threshold(score, train, validation)

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
        if train.normal is None:
            raise ValueError(
                "no labelled anomalies: those that are judged by are planted, and teach nothing of real ones"
            )
        if not _enough(validation):
            raise ValueError(
                f"{strange.sum()} labelled anomalies and {(~strange).sum()} normal rows in the validation split; "
                f"expected {ENOUGH} or more of each"
            )
        rows = flat(validation)
        chosen = _regularised(rows, strange)
        folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=0)
        held_out = model_selection.cross_val_predict(chosen, rows, strange, cv=folds, method="decision_function")
        self._threshold = self._application.rivals_threshold(held_out, train, validation)
        self._chosen = chosen.fit(rows, strange)

    def evaluate(self, split: Split, train: Split) -> Scores:
        assert split.normal is not None
        score = np.asarray(self._chosen.decision_function(flat(split)))
        return self._application.scores(score, ~split.normal, self._threshold)
