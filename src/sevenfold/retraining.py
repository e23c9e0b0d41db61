"""Whether what a check of jobs found is worth another training."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sevenfold import drift
from sevenfold.monitoring import Check
from sevenfold.registry.checks import Past

Verdict = Literal["ok", "tell", "retrain"]


@dataclass(frozen=True)
class Rule:
    """When to ask for a retraining.

    psi: the largest population stability index that is tolerated.
    checks: so many in a row have to find more, each with rows that the others had not.
    rows: fewer are no reason to train again.
    cooldown: days since the champion was made, and since a retraining was asked for, in which none is asked for.
    """

    psi: float = drift.LARGE
    checks: int = 2
    rows: int = 100
    cooldown: float = 7.0

    def __post_init__(self) -> None:
        found = []
        if not self.psi >= drift.SOME:
            found.append(f"psi is {self.psi}; expected {drift.SOME:g} or more, such as {drift.LARGE:g}")
        found += [f"{n} is {v}; expected 1 or more" for n, v in (("checks", self.checks), ("rows", self.rows)) if v < 1]
        if not self.cooldown >= 0:
            found.append(f"cooldown is {self.cooldown}; expected 0 days or more")
        if found:
            raise ValueError("; ".join(found))


@dataclass(frozen=True)
class Decision:
    """What to do, and why."""

    verdict: Verdict
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"verdict": self.verdict, "reasons": list(self.reasons)}


def decide(check: Check, past: Sequence[Past], rule: Rule, *, made: datetime) -> Decision:
    """Say what follows from a check.

    Args:
        past: earlier checks of the registered model, the newest first.
        made: when the champion was made.
    """
    if not check.findings:
        jobless = "no job to look at" if not check.jobs else "nothing to compare"
        return Decision("ok", ("no drift beyond chance" if check.seen else jobless,))
    told = [str(f) for f in check.findings]
    if not check.large:
        return Decision(
            "tell", (*told, f"nothing of that is beyond a PSI of {rule.psi:g} and mended by training again")
        )
    against = []
    if check.seen < rule.rows:
        against.append(f"{check.seen:,} rows are too few to train again for; expected {rule.rows:,} or more")
    if (streak := _streak(check, past)) < rule.checks:
        against.append(
            f"that is check {streak} in a row; expected {rule.checks}, each with rows that the others had not"
        )
    wait = timedelta(days=rule.cooldown)
    if check.when - made < wait:
        against.append(f"the champion was made on {made:%Y-%m-%d}, less than {rule.cooldown:g} days ago")
    if (asked := next((p.asked for p in past if p.asked is not None), None)) and check.when - asked < wait:
        against.append(f"a retraining was asked for on {asked:%Y-%m-%d}, less than {rule.cooldown:g} days ago")
    if against:
        return Decision("tell", (*told, *(f"no retraining: {reason}" for reason in against)))
    return Decision("retrain", (*told, f"check {streak} in a row that finds a PSI above {rule.psi:g}"))


def _streak(check: Check, past: Sequence[Past]) -> int:
    """Return how many checks in a row found too much of this version, this one counted; the same jobs count once."""
    seen = {check.newest}
    for one in past:
        if one.digest != check.digest or not one.large:
            break
        seen.add(one.newest)
    return len(seen)
