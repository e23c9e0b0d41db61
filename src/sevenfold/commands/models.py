"""Commands about registered models: `models`, `threshold`, `lineage`, `reproduce`, `promote`, `rollback`, `history`, `prune`."""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sevenfold import workspace
from sevenfold.commands import base
from sevenfold.workspace import Workspace

if TYPE_CHECKING:
    from sevenfold.recalibration import Effect
    from sevenfold.registry.promotion import Move
    from sevenfold.registry.versions import Version


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add these commands."""
    add = functools.partial(base.command, commands)

    move = add(
        "threshold",
        _threshold,
        "show what thresholds of an anomaly model would flag, or move it without retraining",
        "sevenfold threshold wdbc-anomaly rows.csv --policy quantile --value 0.99 --move",
    )
    move.add_argument("model", metavar="MODEL", help=base.MODEL_HELP)
    move.add_argument(
        "input", metavar="INPUT", type=Path, nargs="?", help="rows whose flags are counted too: CSV, Parquet, npz, ..."
    )
    policies = "false-positive-rate, quantile, mad or cost; by default several settings of each"
    move.add_argument("--policy", metavar="POLICY", help=policies)
    value_help = (
        "share of normal rows, quantile of all scores, deviations above the median, or false alarms that a miss costs"
    )
    move.add_argument("--value", metavar="NUMBER", type=float, help=value_help)
    move.add_argument(
        "--share", metavar="NUMBER", type=float, help="of the rows to come, how many are anomalies, 0 to 1"
    )
    move.add_argument("--move", action="store_true", help="make the wanted setting the model's own")
    move.add_argument("--output", metavar="FOLDER", type=Path, help="where the moved copy of a bundle's folder goes")

    models = add("models", _models, "list registered models and their champions", "sevenfold models digits-anomaly")
    models.add_argument("name", nargs="?", help="show every version of this one")

    lineage = add(
        "lineage",
        _lineage,
        "tell where a model, a job or an output comes from, and which jobs used the model",
        "sevenfold lineage wdbc-anomaly",
    )
    asked_help = "`NAME` (its champion), `NAME@challenger`, `NAME/3`, a job's receipt, or a job's output"
    lineage.add_argument("asked", metavar="MODEL|RECEIPT|OUTPUT", help=asked_help)
    lineage.add_argument("--json", action="store_true", help="for machines")

    again = add(
        "reproduce",
        _reproduce,
        "build a registered model again from its own commit and data, and compare",
        "sevenfold reproduce wdbc-anomaly",
    )
    again.add_argument("model", metavar="MODEL", help="`NAME` (its champion), `NAME@challenger` or `NAME/3`")
    again.add_argument("--keep", action="store_true", help="leave the checkout in which it was built")
    again.add_argument("--json", action="store_true", help="for machines; progress goes to the error output")

    promote = add(
        "promote",
        _promote,
        "make a version champion by hand",
        'sevenfold promote digits-anomaly 3 --reason "asked for by the fraud team"',
    )
    promote.add_argument("name", metavar="NAME", help="a registered model")
    promote.add_argument("version", metavar="VERSION", type=int, help="the number of one of its versions")
    promote.add_argument("--reason", metavar="TEXT", required=True, help="why; it stays with the version")

    back = add(
        "rollback",
        _rollback,
        "make the champion before the present one champion again",
        "sevenfold rollback digits-anomaly",
    )
    back.add_argument("name", metavar="NAME", help="a registered model")
    back.add_argument("--reason", metavar="TEXT", default="rolled back, no reason given", help="why")
    for move in (promote, back):
        dry_help = "verify the version, say what would change, change nothing"
        move.add_argument("--dry-run", action="store_true", help=dry_help)

    story = add(
        "history",
        _history,
        "tell who was champion of a registered model, since when, and why",
        "sevenfold history digits-anomaly",
    )
    story.add_argument("name", metavar="NAME", help="a registered model")
    story.add_argument("--json", action="store_true", help="for machines")

    prune = add(
        "prune",
        _prune,
        "show what versions and files nobody uses any more, or remove them",
        "sevenfold prune --days 30 --yes",
    )
    prune.add_argument("name", nargs="?", metavar="NAME", help="of this registered model only")
    days_help = "what was published or used by a job within so many days stays (default: 90)"
    prune.add_argument("--days", metavar="NUMBER", type=float, default=90.0, help=days_help)
    prune.add_argument("--yes", action="store_true", help="remove it; without, nothing is changed")


def _threshold(given: argparse.Namespace) -> int:
    place = workspace.find()
    place.initialise()
    with place.settled():
        from sevenfold import bundles, recalibration
        from sevenfold.registry import versions

        _require_setting(given)
        found = versions.resolve(place, given.model)
        if given.move:
            _require_target(given, registered=found.version is not None)
        bundle = bundles.load(found.folder, expected=found.digest)
        contest = recalibration.application(bundle)
        share = contest.share if given.share is None else given.share
        wanted = None if given.policy is None else recalibration.Setting(given.policy, given.value, share)
        scored = None if given.input is None else recalibration.scores(bundle, given.input)
        effects = recalibration.effects(contest, wanted, share=share, scored=scored)
        _show_thresholds(effects, contest.labelled)
        if not given.move or wanted is None:
            return 0
        if found.version is None:
            bundles.save(given.output, recalibration.moved(bundle, wanted))
            print(f"{given.output}: {given.model} with its threshold moved to {wanted}")
            return 0
        version, leads = recalibration.move(place, found.version.name, found.version.number, wanted)
    print(f"{version.label}: {found.label} with its threshold moved to {wanted}{', champion now' * leads}")
    return 0


def _require_setting(given: argparse.Namespace) -> None:
    """Raise a ValueError unless the options of `threshold` go together."""
    from sevenfold import thresholds

    if (given.policy is None) != (given.value is None):
        raise ValueError("got one of --policy and --value; expected both or none; give the other one too")
    if given.policy is not None and given.policy not in thresholds.POLICIES:
        raise ValueError(f"--policy is {given.policy!r}; expected one of {', '.join(thresholds.POLICIES)}")
    if given.move and given.policy is None:
        raise ValueError("--move without a setting; say where to with --policy and --value")
    if given.output is not None and not given.move:
        raise ValueError("--output without --move writes nothing; add --move")


def _require_target(given: argparse.Namespace, *, registered: bool) -> None:
    """Raise an error unless a moved model has a place to go to: a new version in the registry, or a new folder."""
    if registered and given.output is not None:
        raise ValueError("--output is for a bundle's folder; a registered model gets a new version; leave it out")
    if not registered and given.output is None:
        raise ValueError(f"{given.model} is a folder, which stays as it is; name another one by --output FOLDER")
    if not registered and given.output.exists():
        raise FileExistsError(f"{given.output} exists already; name a folder that does not")


def _show_thresholds(effects: "Sequence[Effect]", labelled: bool) -> None:
    """Print a line for each setting; a star marks the one in use."""
    anomalies = f"of {'' if labelled else 'planted '}anomalies"
    lines = [["", "policy", "value", "threshold", "of normal rows", anomalies, "of the input"]]
    for e in effects:
        share = f" (share {e.setting.share:g})" if e.setting.share is not None else ""
        numbers = (f"{e.setting.value:g}{share}", f"{e.threshold:.4g}", f"{e.normal:.2%}", f"{e.strange:.2%}")
        rows = "-" if e.rows is None else f"{e.rows:,} rows"
        lines.append(["*" if e.used else "", e.setting.policy, *numbers, rows])
    print("flagged, by setting of the threshold (* in use; rows held out from training):")
    print(*base.columns(lines), sep="\n")


def _models(given: argparse.Namespace) -> int:
    with base.registry() as place:
        from sevenfold.registry import versions

        found = versions.every(place, given.name)
    if not found:
        what = f"no version of {given.name!r} is registered" if given.name else "no model is registered yet"
        raise LookupError(f"{what}; `sevenfold models` lists all, `sevenfold run` makes them")
    lines = [(v.label, ", ".join(v.aliases), v.tags.get("candidate", ""), v.digest[:12]) for v in found]
    lines.insert(0, ("model", "alias", "candidate", "digest"))
    for line, verdict in zip(base.columns(lines), ["", *(v.tags.get("verdict", "") for v in found)], strict=True):
        print(line)
        if verdict:
            print(base.wrapped(verdict))
    return 0


def _promote(given: argparse.Namespace) -> int:
    with base.registry() as place:
        from sevenfold.registry import promotion, versions

        version = versions.numbered(place, given.name, given.version)
        before = versions.champion(place, given.name)
        if before is not None and before.number == version.number:
            print(f"{version.label} is champion already; nothing was changed")
            return 0
        decision = version.tags.get("decision")
        if decision is not None and version.tags.get("decided_because"):
            print(f"the gate made it {decision}: {'; '.join(version.tags['decided_because'].splitlines())}")
        return _moved(
            place,
            version,
            before,
            given,
            lambda: promotion.promote(
                place, version, reasons=[given.reason], against=before.number if before else None, by_hand=True
            ),
        )


def _rollback(given: argparse.Namespace) -> int:
    with base.registry() as place:
        from sevenfold.registry import promotion, versions

        before, target = versions.champion(place, given.name), promotion.previous(place, given.name)
        if target is None:
            raise LookupError(promotion.no_way_back(place, given.name))
        return _moved(place, target, before, given, lambda: promotion.rollback(place, given.name, reason=given.reason))


def _moved(
    place: Workspace, to: "Version", before: "Version | None", given: argparse.Namespace, move: "Callable[[], Version]"
) -> int:
    """Move the alias, or say what that would do, and what it does to those who follow it."""
    over = f"over {before.label}" if before else "as the first"
    if given.dry_run:
        from sevenfold.registry import verification

        verification.verify(place, to)
        print(f"{to.label} would become champion {over}; it loads, its digest is its tag, and it answers its example")
        print("nothing was changed")
        return 0
    done = move()
    print(f"{done.label} is champion now, {over}; batch jobs that name {done.name} use it from their next start")
    if before is not None:
        print(f"`sevenfold run` does not promote {before.label} again; `sevenfold promote` does")
    return 0


def _history(given: argparse.Namespace) -> int:
    with base.registry() as place:
        from sevenfold.registry import promotion, versions

        found, moves = versions.every(place, given.name), promotion.history(place, given.name)
        if not found:
            raise LookupError(versions.unknown(place, given.name))
        champion, back = versions.champion(place, given.name), promotion.previous(place, given.name)
    if given.json:
        events = {
            "name": given.name,
            "champion": champion.number if champion else None,
            "rollback": back.number if back else None,
            "versions": [
                {"number": v.number, "published": v.published.isoformat(timespec="seconds"), "digest": v.digest}
                | {"aliases": list(v.aliases), "tags": dict(v.tags)}
                for v in found
            ],
            "moves": [move.to_json() for move in moves],
        }
        print(json.dumps(events, indent=2))
        return 0
    told = [(v.published, _published(v)) for v in found]
    told += [decision for version in found for decision in _decisions(version)]
    told += [(move.at, _told(move)) for move in moves]
    # Moves are kept to the second; what is of one second stands as it follows from each other.
    for at, lines in sorted(told, key=lambda event: event[0].replace(microsecond=0)):
        for line in lines:
            print(base.wrapped(line, f"{at:%Y-%m-%d %H:%M:%S}  " if line is lines[0] else " " * 21))
    print(
        f"champion: {champion.label if champion else 'none'}; `sevenfold rollback` goes to: {back.label if back else 'none'}"
    )
    return 0


def _published(version: "Version") -> list[str]:
    """Tell how a version came to be."""
    candidate, verdict = version.tags.get("candidate", ""), version.tags.get("verdict", "")
    lines = [f"version {version.number} published{f' ({candidate})' if candidate else ''}", verdict]
    if origin := version.tags.get("moved_from"):
        lines[1] = f"{origin} with its threshold moved {version.tags.get('moved_threshold', '')}"
    return [line for line in lines if line]


def _decisions(version: "Version") -> list[tuple[datetime, list[str]]]:
    """Tell each decision of the gate on a version, with its time."""
    from sevenfold.registry.versions import DECIDED

    found = []
    for decision in (json.loads(text) for tag, text in sorted(version.tags.items()) if tag.startswith(DECIDED)):
        because = "; ".join(decision["decided_because"].splitlines())
        line = f"gate on version {version.number}: {decision['decision']}: {because}"
        found.append((datetime.fromisoformat(decision["decided_at"]), [line]))
    return found


def _told(move: "Move") -> list[str]:
    over = f"over version {move.before}" if move.before is not None else "as the first"
    what = {"promotion": f"version {move.to} became champion {over}", "rollback": f"rolled back to version {move.to}"}
    how = "by hand" if move.how == "hand" else "by a run"
    state = {
        "begun": "is under way or was broken off; its alias " + ("has moved" if move.effect else "has not moved"),
        "interrupted": "was broken off " + ("after the alias had moved" if move.effect else "before the alias moved"),
        "failed": "failed; nothing was changed",
    }
    lines = [f"{what[move.what]}, {how}, {move.by}", move.why]
    if move.state in state:
        lines.append(f"this {state[move.state]}")
    lines += [", ".join(f"{name} {value:g}" for name, value in move.numbers.items())] if move.numbers else []
    return [line for line in lines if line]


def _prune(given: argparse.Namespace) -> int:
    with base.registry() as place:
        from sevenfold.registry import pruning

        plan = pruning.plan(place, days=given.days, name=given.name)
        lines = [
            (entry.version.label, f"{entry.version.published:%Y-%m-%d}", _megabytes(entry.size), entry.kept or "may go")
            for entry in plan.entries
        ]
        print(*base.columns([("version", "published", "size", "why"), *lines]), sep="\n")
        for orphan in plan.orphans:
            print(f"orphaned: {orphan.place} ({_megabytes(orphan.size)}): {orphan.reason}")
        if given.yes:
            plan = pruning.carry_out(place, plan)
    what = f"{len(plan.doomed)} version{'s' * (len(plan.doomed) != 1)}"
    if plan.orphans:
        what += f" and {len(plan.orphans)} orphaned folder{'s' * (len(plan.orphans) != 1)}"
    if given.yes:
        print(f"removed {what}, {_megabytes(plan.size)}; runs with their numbers stay")
    elif plan.doomed or plan.orphans:
        print(f"{what}, {_megabytes(plan.size)}, would go; nothing was removed: `--yes` does it")
    else:
        print("nothing would go")
    return 0


def _megabytes(size: int | None) -> str:
    return "lost" if size is None else f"{size / 1e6:.1f} MB"


def _lineage(given: argparse.Namespace) -> int:
    place = workspace.find()
    place.initialise()
    with place.settled():
        from sevenfold import files, lineage

        story = lineage.trace(place, given.asked)
    print(files.dumps(story).rstrip() if given.json else lineage.text(story))
    return 0


def _reproduce(given: argparse.Namespace) -> int:
    place = base.initialised()
    with place.settled():
        from sevenfold import files, reproduction

        def say(line: str) -> None:
            print(line, file=sys.stderr if given.json else sys.stdout, flush=True)

        report = reproduction.reproduce(place, given.model, keep=given.keep, say=say)
    print(files.dumps(report.to_json()).rstrip() if given.json else reproduction.text(report))
    return 0 if report.identical else 1
