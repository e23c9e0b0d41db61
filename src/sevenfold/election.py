"""Publish the candidate that stands for a contest, and make it champion where the gate lets it."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sevenfold import bundles, evaluation, files, gate, modules, params, publication, rematch, stages
from sevenfold.params import Params
from sevenfold.registry import promotion, tracking, versions
from sevenfold.workspace import Workspace

MOST_REASON = 2000
"""Characters of a decision's reasons that are kept, so that they fit into a tag twice over."""

LOOKS = 3
"""How often a contest is decided anew because somebody moved the champion meanwhile."""


@dataclass(frozen=True)
class Outcome:
    """How one contest ended.

    published: a new version was made. promoted: it became champion.
    champion: the number of the version that is champion now, or None.
    """

    name: str
    dataset: str
    application: str
    metric: str
    winner: str
    score: float
    rival: str
    rival_score: float
    verdict: str
    published: bool
    promoted: bool
    version: int
    champion: int | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Case:
    """All that a decision rests on.

    version: the chosen candidate's, or None where it is not published.
    champion: today's, or None.
    """

    contest: evaluation.Contest
    rule: gate.Rule
    bundle: Path
    version: versions.Version | None
    champion: versions.Version | None

    @property
    def chosen(self) -> str:
        assert self.contest.chosen is not None
        return self.contest.chosen


def contests(workspace: Workspace) -> list[str]:
    """Return the names of the contests in which some candidate has a result."""
    settings = params.load(workspace.params)
    return [f"{d}-{a}" for d, a in stages.contests(settings) if _has_result(workspace, settings, d, a)]


def _has_result(workspace: Workspace, settings: Params, dataset: str, application: str) -> bool:
    entries = settings.of_dataset(dataset).items()
    wanted = [c for c, entry in entries if application in entry.applications]
    return any((workspace.evaluation(c) / application / "scores.json").is_file() for c in wanted)


def pending(workspace: Workspace) -> list[str]:
    """Return the names of the contests that `hold` would record, publish, judge or promote something for."""
    settings = params.load(workspace.params)
    tracking.initialise(workspace)
    found = []
    for name in contests(workspace):
        contest = _contest(workspace, settings, name)
        if contest.chosen is None:
            continue
        recorded = publication.is_recorded(workspace, contest)
        if not recorded or not _is_decided(workspace, _case(workspace, settings, contest)):
            found.append(name)
    return found


def hold(workspace: Workspace, name: str, *, pipeline_run: str | None = None) -> Outcome:
    """Hold one contest: choose on validation, record everybody, publish the chosen, ask the gate, promote.

    Publishing is keyed by digest, so holding a contest twice makes one version; and a decision is made once, for as
    long as the gate's rule, the champion and the scores are the same.

    Args:
        pipeline_run: a name that the runs of all contests of one pipeline run share; by default one of its own.

    Raises:
        LookupError: no such contest, or no candidate has a result in it.
    """
    settings = params.load(workspace.params)
    contest = _contest(workspace, settings, name)
    if contest.chosen is None:
        reasons = "; ".join(f"{n}: {reason}" for n, reason in contest.missing.items())
        raise LookupError(f"{name}: no candidate has a result ({reasons}); look at what failed before this")
    tracking.initialise(workspace)
    with workspace.lock(f"election-{name}"):
        found = publication.record(workspace, settings, contest, pipeline_run)
        case = _case(workspace, settings, contest)
        if case.version is not None and _is_decided(workspace, case):
            version, published, choice = case.version, False, _decision(case, case.version)
        else:
            version, published = publication.publish(workspace, settings, contest, case.bundle, found[case.chosen])
            choice = _decide(workspace, settings, case, version)
    promoted = choice.winner is not None
    champion = versions.champion(workspace, name)
    return Outcome(
        name=name,
        dataset=contest.dataset,
        application=contest.application,
        metric=contest.primary,
        winner=case.chosen,
        score=contest.score(case.chosen),
        rival=contest.rival or "",
        rival_score=contest.score(contest.rival) if contest.rival else math.nan,
        verdict=contest.verdict,
        published=published,
        promoted=promoted,
        version=version.number,
        champion=champion.number if champion else None,
        reasons=choice.reasons,
    )


def _contest(workspace: Workspace, settings: Params, name: str) -> evaluation.Contest:
    known = {f"{d}-{a}": (d, a) for d, a in stages.contests(settings)}
    if name not in known:
        raise LookupError(f"no contest {name!r}{modules.meant(name, [*known])}; there are: {', '.join(known)}")
    return stages.contest(workspace, settings, *known[name])


def _case(workspace: Workspace, settings: Params, contest: evaluation.Contest) -> _Case:
    assert contest.chosen is not None
    bundle = workspace.evaluation(contest.chosen) / contest.application / "bundle"
    return _Case(
        contest=contest,
        rule=gate.Rule(**settings.rule(contest.name).model_dump()),
        bundle=bundle,
        version=versions.find(workspace, contest.name, bundles.digest(bundle)),
        champion=versions.champion(workspace, contest.name),
    )


def _basis(workspace: Workspace, case: _Case, champion: versions.Version | None) -> str:
    """Return a digest of what a decision rests on: while it is the same, so is the decision."""
    rivals = workspace.rivals(case.contest.dataset) / case.contest.application
    basis = {
        "rule": asdict(case.rule),
        "champion": champion.label if champion else None,
        "candidate": files.digest(workspace.evaluation(case.chosen) / case.contest.application),
        "rivals": files.digest(rivals) if rivals.is_dir() else None,
    }
    return hashlib.sha256(files.dumps(basis).encode()).hexdigest()


def _is_decided(workspace: Workspace, case: _Case) -> bool:
    return case.version is not None and case.version.tags.get("decided_on") == _basis(workspace, case, case.champion)


def _decision(case: _Case, version: versions.Version) -> gate.Choice:
    """Return what was decided before: the champion stays."""
    if case.champion is not None and case.champion.number == version.number:
        return gate.Choice(None, (f"{case.chosen} is champion already",))
    return gate.Choice(None, tuple(version.tags["decided_because"].splitlines()))


def _decide(workspace: Workspace, settings: Params, case: _Case, version: versions.Version) -> gate.Choice:
    """Ask the gate, act on its choice, and write down with the version what was decided, and on what."""
    for _ in range(LOOKS):
        try:
            return _decide_once(workspace, settings, case, version)
        except promotion.ConflictError as error:
            conflict = error
            case = replace(case, champion=versions.champion(workspace, case.contest.name))
    raise conflict


def _decide_once(workspace: Workspace, settings: Params, case: _Case, version: versions.Version) -> gate.Choice:
    champion = case.champion
    if champion is not None and champion.number == version.number:
        choice = _decision(case, version)
    else:
        choice = _choice(workspace, settings, case, version)
        if choice.winner is not None:
            against = champion.number if champion else None
            numbers = _numbers(case.contest)
            champion = promotion.promote(workspace, version, reasons=choice.reasons, numbers=numbers, against=against)
        else:
            promotion.challenge(workspace, version)
    decision = {
        "decision": "champion" if champion is not None and champion.number == version.number else "challenger",
        "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "decided_against": case.champion.label if case.champion else "none",
        "decided_because": "\n".join(" ".join(reason.split()) for reason in choice.reasons)[:MOST_REASON],
        "decided_by": json.dumps(asdict(case.rule)),
        "decided_on": _basis(workspace, case, champion),
    }
    told = {name: decision[name] for name in ("decision", "decided_at", "decided_against", "decided_because")}
    number = 1 + sum(tag.startswith(versions.DECIDED) for tag in versions.reread(workspace, version).tags)
    journal = {f"{versions.DECIDED}{number:04d}": json.dumps(told, ensure_ascii=False)}
    versions.annotate(workspace, version, publication.verdict(case.contest) | journal | decision)
    return choice


def _choice(workspace: Workspace, settings: Params, case: _Case, version: versions.Version) -> gate.Choice:
    """Return what the gate says; a version that a person has replaced is for a person to promote again."""
    if (move := promotion.displaced_by_hand(workspace, version)) is not None:
        by = f"{move.by} replaced it by version {move.to} on {move.at:%Y-%m-%d} ({move.why})"
        again = f"`sevenfold promote {version.name} {version.number} --reason ...` makes it champion again"
        return gate.Choice(None, (f"{case.chosen} is best on validation and was champion, but {by}; {again}",))
    rematched = rematch.Rematch(None)
    if case.champion is not None:
        rematched = rematch.against(
            workspace,
            case.contest,
            case.bundle,
            case.champion,
            columns=case.rule.slices,
            label=settings.datasets[case.contest.dataset].label,
        )
    choice = gate.choose(_standings(case.contest, rematched, version), case.rule)
    return gate.Choice(choice.winner, (*choice.reasons, *rematched.notes))


def _standings(
    contest: evaluation.Contest, rematched: rematch.Rematch, version: versions.Version
) -> dict[str, gate.Standing]:
    standings = {}
    for name, judgement in contest.candidates.items():
        standing = gate.Standing(
            validation=judgement.validation.metrics[contest.primary],
            test=judgement.test.metrics[contest.primary],
            against_rival=None,
            against_champion=None,
            metrics=judgement.test.metrics,
        )
        if name == contest.chosen:
            standing = replace(
                standing,
                against_rival=contest.against,
                against_champion=rematched.interval,
                slices=rematched.slices,
                megabytes=_measured(version, publication.MEGABYTES),
                milliseconds=_measured(version, publication.MILLISECONDS),
            )
        standings[name] = standing
    return standings


def _measured(version: versions.Version, tag: str) -> float | None:
    return float(version.tags[tag]) if tag in version.tags else None


def _numbers(contest: evaluation.Contest) -> dict[str, float]:
    """Return what a promotion was decided by, as a person reads it."""
    assert contest.chosen is not None
    metric = evaluation.label(contest.primary)
    found = {metric: contest.score(contest.chosen)}
    if contest.rival is not None:
        found[f"{metric} of {contest.rival}"] = contest.score(contest.rival)
    if contest.against is not None:
        found |= {"difference at least": contest.against.low, "difference at most": contest.against.high}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def sample(workspace: Workspace) -> tuple[str, str, Path] | None:
    """Return (operation, model, input) of a batch job that shows a champion at work on its data set's raw rows.

    Returns None where no contest has a champion yet.
    """
    settings = params.load(workspace.params)
    champions = versions.champions(workspace)
    # Scores say more to a reader than codes do.
    for dataset, application in sorted(stages.contests(settings), key=lambda contest: contest[1] != "anomaly"):
        name, path = f"{dataset}-{application}", workspace.root / settings.datasets[dataset].path
        if name in champions and path.exists():
            return stages.application(settings, dataset, application).operation, name, path
    return None
