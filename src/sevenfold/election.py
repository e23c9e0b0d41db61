"""Publish the candidate that stands for a contest, and make it champion where the gate lets it."""

import hashlib
import json
import math
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from sevenfold import bundles, evaluation, files, gate, modules, params, registry, stages
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import Dataset, Split
from sevenfold.params import Params
from sevenfold.workspace import Workspace

SEEN = "seen.npy"
"""With each version lie the fingerprints of the rows that it learned from or was calibrated on."""

FEWEST_ROWS = 30
"""Test rows that a comparison with a champion of other data or another split needs."""


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
    version: registry.Version | None
    champion: registry.Version | None

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
    registry.initialise(workspace)
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
    registry.initialise(workspace)
    with workspace.lock(f"election-{name}"):
        case = _case(workspace, settings, contest)
        if case.version is not None and _is_decided(workspace, case):
            version, published, choice = case.version, False, _decision(case, case.version)
        else:
            version, published = _publish(workspace, settings, case)
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
        version=registry.find(workspace, contest.name, bundles.digest(bundle)),
        champion=registry.champion(workspace, contest.name),
    )


def _basis(workspace: Workspace, case: _Case, champion: registry.Version | None) -> str:
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


def _decision(case: _Case, version: registry.Version) -> gate.Choice:
    """Return what was decided before: the champion stays."""
    if case.champion is not None and case.champion.number == version.number:
        return gate.Choice(None, (f"{case.chosen} is champion already",))
    return gate.Choice(None, tuple(version.tags["decided_because"].splitlines()))


def _decide(workspace: Workspace, case: _Case, version: registry.Version) -> gate.Choice:
    """Ask the gate, act on its choice, and write down with the version what was decided, and on what."""
    champion = case.champion
    if champion is not None and champion.number == version.number:
        choice = _decision(case, version)
    else:
        against, notes = (None, ()) if champion is None else _against_champion(workspace, case, champion)
        choice = gate.choose(_standings(case.contest, against), case.rule)
        choice = gate.Choice(choice.winner, (*choice.reasons, *notes))
        if choice.winner is not None:
            champion = registry.promote(workspace, version, reasons=choice.reasons)
        else:
            registry.challenge(workspace, version)
    decision = {
        "decision": "champion" if champion is not None and champion.number == version.number else "challenger",
        "decided_against": case.champion.label if case.champion else "none",
        "decided_because": "\n".join(" ".join(reason.split()) for reason in choice.reasons),
        "decided_by": json.dumps(asdict(case.rule)),
        "decided_on": _basis(workspace, case, champion),
    }
    registry.annotate(workspace, version, _verdict(case.contest) | decision)
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


def _against_champion(
    workspace: Workspace, case: _Case, champion: registry.Version
) -> tuple[gate.Interval | None, tuple[str, ...]]:
    """Judge today's champion again on the rows that the candidate was judged on, and compare the two.

    Data or split may have changed since the champion learned; then both are judged on those rows alone that it has
    never seen, since on the others it would be judged by what it learned.
    """
    dataset = Dataset.load(workspace.prepared(case.contest.dataset))
    try:
        theirs = bundles.load(registry.bundle_folder(workspace, champion), expected=champion.digest)
        ours = bundles.load(case.bundle)
        judgement = case.contest.candidates[case.chosen]
        notes: tuple[str, ...] = ()
        if theirs.origin.get("data_digest") != ours.origin["data_digest"]:
            fresh = _never_seen(workspace, champion, dataset.test)
            if len(fresh) < FEWEST_ROWS:
                return None, (
                    f"of today's {len(dataset.test)} test rows {champion.label} has never seen {len(fresh)}, and a comparison "
                    f"needs {FEWEST_ROWS}; it is not compared",
                )
            dataset = replace(dataset, test=dataset.test.take(fresh))
            judgement = evaluation.rejudge(ours.application, ours.model, dataset)
            notes = (f"compared with {champion.label} on the {len(fresh)} test rows that it has never seen",)
        judged = evaluation.rejudge(theirs.application, theirs.model, _as_seen_by(theirs, dataset))
        return evaluation.interval(ours.application, judgement, judged), notes
    except (ValueError, FileNotFoundError) as error:
        # A champion that is broken or cannot take today's data cannot defend its place.
        return None, (f"{champion.label} cannot be judged on today's data: {error}",)


def _never_seen(workspace: Workspace, champion: registry.Version, test: Split) -> np.ndarray:
    """Return the positions of test rows that a version neither learned from nor was calibrated on."""
    path = registry.artifact(workspace, champion, SEEN)
    if path is None or test.fingerprints is None:
        return np.arange(0)
    return np.flatnonzero(~np.isin(test.fingerprints, np.load(path, allow_pickle=False)))


def _as_seen_by(bundle: Bundle, dataset: Dataset) -> Dataset:
    """Return the data set as the bundle's own schema scales it, by way of the user's units."""
    if bundle.schema.to_json() == dataset.schema.to_json():
        return dataset

    def seen(split: Split) -> Split:
        raw = dataset.schema.inverse(split.x, split.observed)
        x, observed = bundle.schema.transform(raw)
        return replace(split, x=x, observed=observed)

    return Dataset(dataset.name, bundle.schema, seen(dataset.train), seen(dataset.validation), seen(dataset.test))


def _publish(workspace: Workspace, settings: Params, case: _Case) -> tuple[registry.Version, bool]:
    if case.version is not None:
        return case.version, False
    contest = case.contest
    candidate = settings.candidates[case.chosen]
    chosen = contest.candidates[case.chosen]
    metrics = {f"test.{n}": v for n, v in chosen.test.metrics.items()}
    metrics |= {f"validation.{n}": v for n, v in chosen.validation.metrics.items()}
    metrics |= {f"rival.{n}.{contest.primary}": contest.score(n) for n in contest.rivals}
    verdict = workspace.verdict(contest.dataset)
    with _seen(workspace, contest.dataset) as seen:
        return registry.publish(
            workspace,
            contest.name,
            case.bundle,
            params={
                "dataset": settings.datasets[contest.dataset].model_dump(mode="json"),
                "candidate": candidate.model_dump(mode="json"),
                "training": settings.settings(case.chosen).model_dump(),
                "application": dict(settings.applications[contest.dataset][contest.application]),
                "seed": settings.seed,
            },
            metrics=metrics,
            curves=pd.read_csv(workspace.history(case.chosen)),
            artifacts=[p for p in (workspace.report, verdict, verdict.with_suffix(".html"), seen) if p.is_file()],
            tags={
                "dataset": contest.dataset,
                "application": contest.application,
                "variant": candidate.variant,
                "candidate": case.chosen,
                "data_digest": files.digest(workspace.prepared(contest.dataset)),
                "git_commit": _git_commit(workspace),
                **_verdict(contest),
            },
            description=f"**{contest.name}**: {contest.verdict}.",
        )


@contextmanager
def _seen(workspace: Workspace, dataset: str) -> Iterator[Path]:
    """Give a file with the fingerprints of the rows that a candidate learns from or is calibrated on."""
    data = Dataset.load(workspace.prepared(dataset))
    prints = [split.fingerprints for split in (data.train, data.validation) if split.fingerprints is not None]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SEEN
        if prints:
            np.save(path, np.unique(np.concatenate(prints)), allow_pickle=False)
        yield path


def _verdict(contest: evaluation.Contest) -> dict[str, str]:
    wins = contest.against is not None and contest.against.low > 0
    return {"rival": contest.rival or "none", "beats_rivals": str(wins).lower(), "verdict": contest.verdict}


def _git_commit(workspace: Workspace) -> str:
    """Return the commit that the workspace is at, with "-dirty" where files differ from it; "none" outside git."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=workspace.root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return "none" if commit is None else commit + ("-dirty" if git("status", "--porcelain") else "")


def sample(workspace: Workspace) -> tuple[str, str, Path] | None:
    """Return (operation, model, input) of a batch job that shows a champion at work on its data set's raw rows.

    Returns None where no contest has a champion yet.
    """
    settings = params.load(workspace.params)
    champions = {v.name for v in registry.versions(workspace) if registry.CHAMPION in v.aliases}
    # Scores say more to a reader than codes do.
    for dataset, application in sorted(stages.contests(settings), key=lambda contest: contest[1] != "anomaly"):
        name, path = f"{dataset}-{application}", workspace.root / settings.datasets[dataset].path
        if name in champions and path.exists():
            return stages.application(settings, dataset, application).operation, name, path
    return None
