"""Who becomes champion. Pure: numbers in, winner and reasons out."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Interval:
    """A difference between two scores on the same rows, and its 95 % interval."""

    difference: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Rule:
    """What a candidate has to show.

    must_beat_rivals: the lower end of its interval against the best rival lies above zero.
    floor: its score on the test rows is at least this; None asks for nothing.
    """

    must_beat_rivals: bool
    floor: float | None


@dataclass(frozen=True)
class Standing:
    """A candidate as the gate sees it: scores, higher is better, and its intervals against the best of the others.

    against_rival, against_champion: None where no rival or no champion has a result to compare with.
    """

    validation: float
    test: float
    against_rival: Interval | None
    against_champion: Interval | None


@dataclass(frozen=True)
class Choice:
    """winner: the candidate that should be champion, or None where the champion (or nobody) stays; and why."""

    winner: str | None
    reasons: tuple[str, ...]


def best(scores: Mapping[str, float]) -> str | None:
    """Return the name with the highest finite score; of equals the first by name; None without a finite score."""
    finite = {name: score for name, score in scores.items() if math.isfinite(score)}
    return min(finite, key=lambda name: (-finite[name], name)) if finite else None


def choose(candidates: Mapping[str, Standing], rule: Rule) -> Choice:
    """Pick the candidate that is best on validation and hold it to the rule. A tie keeps the champion."""
    chosen = best({name: standing.validation for name, standing in candidates.items()})
    if chosen is None:
        return Choice(None, ("no candidate has a finite score on validation",))
    standing = candidates[chosen]
    passed, failed = [f"{chosen} is best on validation ({standing.validation:.4f})"], []
    if not math.isfinite(standing.test):
        failed.append(f"its score on test is {standing.test}")
    # "not >=" and not "<", so that NaN fails.
    if rule.floor is not None:
        if not standing.test >= rule.floor:
            failed.append(f"its score on test, {standing.test:.4f}, is below the floor of {rule.floor:g}")
        else:
            passed.append(f"its score on test, {standing.test:.4f}, reaches the floor of {rule.floor:g}")
    if rule.must_beat_rivals:
        if standing.against_rival is None:
            failed.append("no rival has a result that it could beat")
        elif not _proven(standing.against_rival):
            failed.append(f"it is not proven better than the best rival ({_span(standing.against_rival)})")
        else:
            passed.append(f"it beats the best rival ({_span(standing.against_rival)})")
    if standing.against_champion is not None:
        if not _proven(standing.against_champion):
            failed.append(f"it is not proven better than today's champion ({_span(standing.against_champion)})")
        else:
            passed.append(f"it beats today's champion ({_span(standing.against_champion)})")
    if failed:
        return Choice(None, (f"{chosen} is best on validation but does not pass", *failed))
    return Choice(chosen, tuple(passed))


def _proven(interval: Interval) -> bool:
    return math.isfinite(interval.difference) and interval.low > 0


def _span(interval: Interval) -> str:
    return f"by {interval.difference:+.4f}, 95 % interval {interval.low:+.4f} to {interval.high:+.4f}"
