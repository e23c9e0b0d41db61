"""Policies that set a threshold on anomaly scores, from the scores of rows that were held out."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Policy = Literal["false-positive-rate", "quantile", "mad", "cost"]
"""What a threshold is set by:

- "false-positive-rate": so that this share of normal rows is flagged.
- "quantile": at this quantile of the scores of all rows, normal ones and anomalies in their expected shares.
- "mad": at the median of normal scores plus so many median absolute deviations, each taken for a standard deviation.
- "cost": where the expected cost is least, if missing an anomaly costs so many false alarms.
"""

POLICIES: tuple[Policy, ...] = get_args(Policy)

SETTINGS: dict[Policy, tuple[float, ...]] = {
    "false-positive-rate": (0.001, 0.01, 0.02, 0.05, 0.1),
    "quantile": (0.9, 0.95, 0.99, 0.999),
    "mad": (3.0, 5.0, 10.0),
    "cost": (1.0, 10.0, 100.0),
}
"""Settings that are worth a look, by policy."""

LARGEST_SAMPLE = 4096
"""Quantiles by which the scores of more rows are remembered."""

MAD_TO_DEVIATION = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class HeldOut:
    """What is known of the scores to come.

    normal: (n,) scores of normal rows, in ascending order; one or more.
    strange: (m,) those of anomalies, known or planted, in ascending order; may be empty.
    share: of the rows to come, how many are anomalies, 0 to 1; 0 where nobody knows.
    """

    normal: np.ndarray
    strange: np.ndarray
    share: float


def problems(policy: Policy, value: float, share: float | None) -> list[str]:
    """Return what is wrong with a setting."""
    found = []
    if policy in ("false-positive-rate", "quantile") and not 0 < value < 1:
        found.append(f"value is {value}; expected a share between 0 and 1 for the policy {policy}")
    if policy in ("mad", "cost") and not 0 < value < float("inf"):
        what = "deviations" if policy == "mad" else "false alarms that a missed anomaly costs"
        found.append(f"value is {value}; expected more than 0 {what} for the policy {policy}")
    if share is not None and not 0 < share < 1:
        found.append(f"share is {share}; expected a share of anomalies between 0 and 1, or null where it is not known")
    return found


def summary(scores: np.ndarray) -> np.ndarray:
    """Return scores (n,) in ascending order; of more than `LARGEST_SAMPLE`, so many evenly spaced quantiles."""
    if len(scores) > LARGEST_SAMPLE:
        return np.asarray(np.quantile(scores, np.linspace(0, 1, LARGEST_SAMPLE)))
    return np.sort(scores)


def place(policy: Policy, value: float, known: HeldOut) -> float:
    """Return the threshold of a policy; scores above it are flagged.

    Raises:
        ValueError: the policy needs to know more.
    """
    normal, strange = known.normal, known.strange
    if policy == "false-positive-rate":
        return float(np.quantile(normal, 1 - value))
    if policy == "mad":
        middle = np.median(normal)
        return float(middle + value * MAD_TO_DEVIATION * np.median(np.abs(normal - middle)))
    if policy == "quantile":
        return _quantile(value, known)
    if not len(strange) or not known.share:
        raise ValueError(
            "the policy cost needs to know how many of the rows to come are anomalies, and the validation split has too "
            "few labelled ones to tell; give the share that you expect, or choose another policy"
        )
    # The best threshold is at some score, or below all of them, where everything is flagged.
    scores = np.unique(np.concatenate([normal, strange]))
    scores = np.concatenate([[np.nextafter(scores[0], -np.inf, dtype=scores.dtype)], scores])
    alarms = 1 - np.searchsorted(normal, scores, side="right") / len(normal)
    misses = np.searchsorted(strange, scores, side="right") / len(strange)
    cost = (1 - known.share) * alarms + known.share * value * misses
    # Of thresholds that cost the same, the one that flags least.
    return float(scores[len(cost) - 1 - np.argmin(cost[::-1])])


def _quantile(value: float, known: HeldOut) -> float:
    if not known.share or not len(known.strange):
        return float(np.quantile(known.normal, value))
    scores = np.concatenate([known.normal, known.strange])
    weights = np.repeat(
        [(1 - known.share) / len(known.normal), known.share / len(known.strange)],
        [len(known.normal), len(known.strange)],
    )
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weights[order])
    return float(scores[order][min(int(np.searchsorted(reached, value)), len(order) - 1)])


def flagged(scores: np.ndarray, threshold: float) -> float:
    """Return the share of scores (n,) above a threshold; NaN of none."""
    return float((scores > threshold).mean()) if len(scores) else float("nan")
