"""The command that looks after champions: `monitor`."""

import argparse
import functools
import sys
from typing import TYPE_CHECKING

from sevenfold.commands import base

if TYPE_CHECKING:
    from sevenfold.checkup import Outcome

FOUND = 3
"""How the command ends where something was found."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this command."""
    add = functools.partial(base.command, commands)

    monitor = add(
        "monitor",
        _monitor,
        "compare the rows of recent jobs with what champions learned from; ends with 3 where something is found",
        "sevenfold monitor wdbc-anomaly --days 30",
    )
    monitor.add_argument("names", nargs="*", metavar="MODEL", help="registered models (default: all with a champion)")
    monitor.add_argument(
        "--days", metavar="NUMBER", type=float, default=7.0, help="how far back jobs count (default: 7)"
    )
    monitor.add_argument("--rows", metavar="NUMBER", type=int, help="rows to compare, at most (default: 10000)")
    psi_help = "the largest population stability index that is tolerated (default: 0.25)"
    monitor.add_argument("--max-drift", metavar="NUMBER", type=float, help=psi_help)
    monitor.add_argument("--json", action="store_true", help="for machines")


def _monitor(given: argparse.Namespace) -> int:
    with base.registry() as place:
        from sevenfold import checkup, files, monitoring, retraining

        rule = retraining.Rule() if given.max_drift is None else retraining.Rule(psi=given.max_drift)
        rows = monitoring.ROWS if given.rows is None else given.rows
        names = given.names or checkup.champions(place)
        if not names:
            raise LookupError("no model has a champion yet; `sevenfold run` makes them")
        outcomes = [checkup.look(place, name, days=given.days, rule=rule, rows=rows) for name in names]
    if given.json:
        print(files.dumps([outcome.to_json() for outcome in outcomes]).rstrip())
    else:
        for outcome in outcomes:
            _show(outcome)
    return FOUND if any(outcome.decision.verdict != "ok" for outcome in outcomes) else 0


def _show(outcome: "Outcome") -> None:
    print(f"{outcome.check.model}: {outcome.decision.verdict}")
    for reason in outcome.decision.reasons:
        print(base.wrapped(reason, "  "))
    if outcome.check.jobs:
        print(base.wrapped(outcome.check.sentence().removeprefix(f"{outcome.check.model}: "), "  "))
    for job in outcome.check.jobs:
        if job.state != "read":
            print(base.wrapped(f"{job.input}: {job.state}: {job.note}", "  "), file=sys.stderr)
    print(f"  page: {outcome.page}")
