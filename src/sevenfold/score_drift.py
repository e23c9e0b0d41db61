"""How far the scores of an anomaly model are from those of held-out rows, and whether it flags more or fewer than it should."""

from dataclasses import dataclass

import numpy as np

from sevenfold import drift, histograms
from sevenfold.applications.anomaly import Anomaly
from sevenfold.histograms import Histogram

FACTOR, FACTOR_UNKNOWN = 1.5, 2.0
"""How many times more rows, or fewer, have to be flagged than expected, beyond chance, to be told of; the second one where
nobody knows what share of the rows to come are anomalies."""


@dataclass(frozen=True)
class Scores:
    """How scores are distributed, now and among held-out rows.

    flagged, expected: shares above the threshold.
    beyond_chance: whether they differ by more than a factor and chance together explain; see `FACTOR`.
    psi, psi_raw, ks: between the scores now and those of held-out rows; None where labels chose the weights of the score, since
        held-out rows were then scored by weights of folds that left them out: thresholds agree, distributions do not.
    share: of anomalies among rows as they come, that the expectation counts with; 0 where nobody knows it.
    """

    threshold: float
    flagged: float
    expected: float
    beyond_chance: bool
    psi: float | None
    psi_raw: float | None
    ks: float | None
    share: float


def compare(application: Anomaly, score: np.ndarray) -> tuple[Scores, Histogram]:
    """Compare scores (n,) with those of held-out rows, normal ones and anomalies in the share that is known."""
    known = application.known
    share = float(known.share) if len(known.strange) else 0.0
    then = np.concatenate([known.normal, known.strange if share else known.strange[:0]]).astype(np.float64)
    weights = np.full(len(then), (1 - share) / len(known.normal))
    if share:
        weights[len(known.normal) :] = share / len(known.strange)
    order = np.argsort(then, kind="stable")
    then, weights, now = then[order], weights[order], np.sort(score.astype(np.float64))
    held, count = len(then), len(now)
    reached = np.cumsum(weights)
    psi = raw = ks = None
    if not application.labelled:
        deciles = np.searchsorted(reached, np.arange(1, drift.BINS) / drift.BINS).clip(max=held - 1)
        edges = np.unique(then[deciles])
        before = np.bincount(np.searchsorted(edges, then), weights * held, len(edges) + 1)
        raw, bins = drift.psi(before, np.bincount(np.searchsorted(edges, now), minlength=len(edges) + 1))
        psi = drift.beyond_chance(raw, bins=bins, then=held, now=count, tests=2)
        every = np.concatenate([then, now])
        below = np.concatenate([[0.0], reached])[np.searchsorted(then, every, side="right")]
        ks = min(1.0, float(np.abs(below - np.searchsorted(now, every, side="right") / count).max()))
    threshold = application.threshold
    expected = float(weights[then > threshold].sum())
    flagged = int((now > threshold).sum())
    beyond = _unlikely(flagged, count, expected, held, FACTOR if share else FACTOR_UNKNOWN)
    scores = Scores(threshold, flagged / count, expected, beyond, psi, raw, ks, share)
    low = float(min(then[0], np.quantile(now, 0.005)))
    high = float(max(np.quantile(then, 0.995), np.quantile(now, 0.995), threshold))
    bars = np.linspace(low, max(high, low + 1e-6), histograms.BARS + 1)
    name = "score, then by folds" if application.labelled else "score"
    drawn = Histogram(
        name,
        histograms.shares(then, bars, weights),
        histograms.shares(now, bars),
        tuple(bars.tolist()),
        None,
        threshold,
    )
    return scores, drawn


def _unlikely(flagged: int, rows: int, expected: float, held: int, factor: float) -> bool:
    """Say whether so many flags, or so few, are beyond chance even if so many times more, or fewer, were expected.

    The share that is expected is itself known from `held` rows alone: flags are beta-binomial, with Jeffreys' prior.
    """
    from scipy import stats

    def chance(share: float, *, more: bool) -> float:
        share = min(share, 1.0)
        flags = stats.betabinom(rows, share * held + 0.5, (1 - share) * held + 0.5)
        return float(flags.sf(flagged - 1) if more else flags.cdf(flagged))

    limit = drift.FALSE_ALARM / 4  # a half of what the distribution of scores has, on each side
    return chance(expected * factor, more=True) < limit or chance(expected / factor, more=False) < limit
