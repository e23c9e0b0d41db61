"""Publish the candidate that stands for a contest, and make it champion where the gate lets it."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from sevenfold import bundles, evaluation, files, gate, modules, params, publication, rematch, stages
from sevenfold.params import Params
from sevenfold.registry import promotion, tracking, versions
from sevenfold.workspace import Workspace


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
    """Return the names of the contests that `hold` would publish, judge or promote something for."""
    settings = params.load(workspace.params)
    tracking.initialise(workspace)
    found = []
    for name in contests(workspace):
        contest = _contest(workspace, settings, name)
        if contest.chosen is not None and not _is_decided(workspace, _case(workspace, settings, contest)):
            found.append(name)
    return found


def hold(workspace: Workspace, name: str) -> Outcome:
    """Hold one contest: choose on validation, publish the chosen, ask the gate, promote.

    Publishing is keyed by digest, so holding a contest twice makes one version; and a decision is made once, for as
    long as the gate's rule, the champion and the scores are the same.

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
        case = _case(workspace, settings, contest)
        if case.version is not None and _is_decided(workspace, case):
            version, published, choice = case.version, False, _decision(case, case.version)
        else:
            version, published = publication.publish(workspace, settings, contest, case.bundle)
            choice = _decide(workspace, case, version)
    promoted = choice.winner is not None
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
        champion=version.number if promoted else case.champion.number if case.champion else None,
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


def _decide(workspace: Workspace, case: _Case, version: versions.Version) -> gate.Choice:
    """Ask the gate, act on its choice, and write down with the version what was decided, and on what."""
    champion = case.champion
    if champion is not None and champion.number == version.number:
        choice = _decision(case, version)
    else:
        against, notes = (
            (None, ()) if champion is None else rematch.against(workspace, case.contest, case.bundle, champion)
        )
        choice = gate.choose(_standings(case.contest, against), case.rule)
        choice = gate.Choice(choice.winner, (*choice.reasons, *notes))
        if choice.winner is not None:
            champion = promotion.promote(workspace, version, reasons=choice.reasons)
        else:
            promotion.challenge(workspace, version)
    decision = {
        "decision": "champion" if champion is not None and champion.number == version.number else "challenger",
        "decided_against": case.champion.label if case.champion else "none",
        "decided_because": "\n".join(" ".join(reason.split()) for reason in choice.reasons),
        "decided_by": json.dumps(asdict(case.rule)),
        "decided_on": _basis(workspace, case, champion),
    }
    versions.annotate(workspace, version, publication.verdict(case.contest) | decision)
    return choice


def _standings(contest: evaluation.Contest, champion: gate.Interval | None) -> dict[str, gate.Standing]:
    standings = {}
    for name, judgement in contest.candidates.items():
        chosen = name == contest.chosen
        standings[name] = gate.Standing(
            validation=judgement.validation.metrics[contest.primary],
            test=judgement.test.metrics[contest.primary],
            against_rival=contest.against if chosen else None,
            against_champion=champion if chosen else None,
        )
    return standings


def sample(workspace: Workspace) -> tuple[str, str, Path] | None:
    """Return (operation, model, input) of a batch job that shows a champion at work on its data set's raw rows.

    Returns None where no contest has a champion yet.
    """
    settings = params.load(workspace.params)
    champions = {v.name for v in versions.every(workspace) if versions.CHAMPION in v.aliases}
    # Scores say more to a reader than codes do.
    for dataset, application in sorted(stages.contests(settings), key=lambda contest: contest[1] != "anomaly"):
        name, path = f"{dataset}-{application}", workspace.root / settings.datasets[dataset].path
        if name in champions and path.exists():
            return stages.application(settings, dataset, application).operation, name, path
    return None
