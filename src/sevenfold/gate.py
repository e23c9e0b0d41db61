"""Who becomes champion. Pure: numbers in, winner and reasons out."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

FEWEST_IN_SLICE = 30
"""Test rows; an interval drawn from fewer is much too narrow."""


@dataclass(frozen=True)
class Interval:
    """A difference between two scores on the same rows, and its 95 % interval."""

    difference: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        return all(map(math.isfinite, (self.difference, self.low, self.high)))

    def to_json(self) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Rule:
    """What a candidate has to show. What has a default asks for nothing by it.

    must_beat_rivals: the lower end of its interval against the best rival lies above `margin`.
    floor: its score on the test rows is at least this.
    floors: the same for other metrics, by name; of all of them higher has to be better.
    margin: by which it has to beat rivals, where that is asked, and today's champion; in the unit of the deciding metric.
    slices: columns in none of whose categories it may be proven worse than today's champion.
    slice_tolerance: by which it may be worse there.
    max_megabytes: of its bundle.
    max_milliseconds: that it takes for 1,000 rows.
    """

    must_beat_rivals: bool
    floor: float | None = None
    floors: Mapping[str, float] = field(default_factory=dict)
    margin: float = 0.0
    slices: tuple[str, ...] = ()
    slice_tolerance: float = 0.0
    max_megabytes: float | None = None
    max_milliseconds: float | None = None


@dataclass(frozen=True)
class Slice:
    """How a candidate stands against today's champion on a part of the test rows.

    name: for example "city=Bern".
    problem: why there is no interval although the rule asks for one, or None.
    """

    name: str
    rows: int
    against_champion: Interval | None
    problem: str | None = None


@dataclass(frozen=True)
class Standing:
    """A candidate as the gate sees it: scores, higher is better, and its intervals against the best of the others.

    against_rival, against_champion: None where no rival or no champion has a result to compare with.
    metrics: on the test rows, by name.
    slices: against today's champion; none without one.
    megabytes, milliseconds: of the bundle, and for 1,000 rows; None where they were not measured.
    """

    validation: float
    test: float
    against_rival: Interval | None
    against_champion: Interval | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    slices: tuple[Slice, ...] = ()
    megabytes: float | None = None
    milliseconds: float | None = None


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
    for judge in (_floors, _comparisons, _slices, _limits):
        good, bad = judge(standing, rule)
        passed += good
        failed += bad
    if failed:
        return Choice(None, (f"{chosen} is best on validation but does not pass", *failed))
    return Choice(chosen, tuple(passed))


Judged = tuple[list[str], list[str]]
"""What speaks for a candidate, and what against it."""


# Always "not >=" and not "<", so that NaN fails.


def _floors(standing: Standing, rule: Rule) -> Judged:
    passed, failed = [], []
    if not math.isfinite(standing.test):
        failed.append(f"its score on test is {standing.test}")
    floors = [] if rule.floor is None else [("score", standing.test, rule.floor)]
    for name, value, floor in [*floors, *((n, standing.metrics.get(n), f) for n, f in rule.floors.items())]:
        if value is None:
            there = ", ".join(standing.metrics) or "none"
            failed.append(f"it has no metric {name}, for which there is a floor; there are: {there}")
        elif not (math.isfinite(value) and value >= floor):
            failed.append(f"its {name} on test, {value:.4f}, is below the floor of {floor:g}")
        else:
            passed.append(f"its {name} on test, {value:.4f}, reaches the floor of {floor:g}")
    return passed, failed


def _comparisons(standing: Standing, rule: Rule) -> Judged:
    passed, failed = [], []
    by = f" by more than {rule.margin:g}" if rule.margin else ""
    if rule.must_beat_rivals:
        if standing.against_rival is None:
            failed.append("no rival has a result that it could beat")
        elif not _proven(standing.against_rival, rule.margin):
            failed.append(f"it is not proven better than the best rival{by} ({_span(standing.against_rival)})")
        else:
            passed.append(f"it beats the best rival{by} ({_span(standing.against_rival)})")
    if standing.against_champion is not None:
        if not _proven(standing.against_champion, rule.margin):
            failed.append(f"it is not proven better than today's champion{by} ({_span(standing.against_champion)})")
        else:
            passed.append(f"it beats today's champion{by} ({_span(standing.against_champion)})")
    return passed, failed


def _slices(standing: Standing, rule: Rule) -> Judged:
    passed, failed = [], []
    small = []
    for part in sorted(standing.slices, key=lambda part: part.name) if rule.slices else ():
        where = f"in the slice {part.name} ({part.rows} rows)"
        interval = part.against_champion
        if part.problem is not None:
            failed.append(f"the slice {part.name} cannot be judged: {part.problem}")
        elif part.rows < FEWEST_IN_SLICE:
            small.append(part.name)
        elif interval is None or not _known(interval):
            failed.append(f"the metric is not defined {where}; leave that column out of `slices`")
        elif not interval.high >= -rule.slice_tolerance:
            failed.append(f"it is proven worse than today's champion {where} ({_span(interval)})")
        else:
            passed.append(f"it is not proven worse {where} ({_span(interval)})")
    if small:
        names = ", ".join(small[:10]) + (f" and {len(small) - 10} more" if len(small) > 10 else "")
        passed.append(f"not judged, with fewer than {FEWEST_IN_SLICE} rows each: the slices {names}")
    return passed, failed


def _limits(standing: Standing, rule: Rule) -> Judged:
    passed, failed = [], []
    for value, limit, what, unit, of in (
        (standing.megabytes, rule.max_megabytes, "its bundle has", "MB", "the size of its bundle"),
        (standing.milliseconds, rule.max_milliseconds, "1,000 rows take", "ms", "its time for 1,000 rows"),
    ):
        if limit is None:
            continue
        if value is None:
            failed.append(f"{of} was not measured, and the limit is {limit:g} {unit}")
        elif not (math.isfinite(value) and value <= limit):
            failed.append(f"{what} {value:.4g} {unit}, above the limit of {limit:g} {unit}")
        else:
            passed.append(f"{what} {value:.4g} {unit}, within the limit of {limit:g} {unit}")
    return passed, failed


def _proven(interval: Interval, margin: float) -> bool:
    return _known(interval) and interval.low > margin


def _known(interval: Interval) -> bool:
    return all(map(math.isfinite, (interval.difference, interval.low, interval.high)))


def _span(interval: Interval) -> str:
    return f"by {interval.difference:+.4f}, 95 % interval {interval.low:+.4f} to {interval.high:+.4f}"
