"""Publish the candidate that stands for a contest, and make it champion where the gate lets it."""

import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sevenfold import bundles, evaluation, files, gate, params, registry, stages
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import DataError, Dataset, Split
from sevenfold.params import Params
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


def contests(workspace: Workspace) -> list[str]:
    """Return the names of the contests in which some candidate has a result."""
    settings = params.load(workspace.params)
    return [f"{d}-{a}" for d, a in stages.contests(settings) if _has_result(workspace, settings, d, a)]


def _has_result(workspace: Workspace, settings: Params, dataset: str, application: str) -> bool:
    entries = settings.of_dataset(dataset).items()
    wanted = [c for c, entry in entries if application in entry.applications]
    return any((workspace.evaluation(c) / application / "scores.json").is_file() for c in wanted)


def hold(workspace: Workspace, name: str) -> Outcome:
    """Hold one contest: choose on validation, publish the chosen, ask the gate, promote.

    Publishing is keyed by digest, so holding a contest twice makes one version.

    Raises:
        LookupError: no such contest, or no candidate has a result in it.
    """
    settings = params.load(workspace.params)
    known = {f"{d}-{a}": (d, a) for d, a in stages.contests(settings)}
    if name not in known:
        raise LookupError(f"no contest {name!r}; there are: {', '.join(known)}")
    dataset, application = known[name]
    contest = stages.contest(workspace, settings, dataset, application)
    if contest.chosen is None:
        reasons = "; ".join(f"{n}: {reason}" for n, reason in contest.missing.items())
        raise LookupError(f"{name}: no candidate has a result ({reasons}); look at what failed before this")
    folder = workspace.evaluation(contest.chosen) / application / "bundle"
    registry.initialise(workspace)
    version, published = _publish(workspace, settings, contest, folder)
    before = registry.champion(workspace, name)
    promoted, champion = False, before.number if before else None
    if before is not None and before.digest == version.digest:
        choice = gate.Choice(None, (f"{contest.chosen} is champion already",))
    else:
        rule = gate.Rule(**settings.rule(name).model_dump())
        against, note = (None, ()) if before is None else _against_champion(workspace, contest, before, folder)
        choice = gate.choose(_standings(contest, against), rule)
        choice = gate.Choice(choice.winner, (*choice.reasons, *note))
        if choice.winner is not None:
            registry.promote(workspace, version, reasons=choice.reasons)
            promoted, champion = True, version.number
        elif published:
            registry.challenge(workspace, version)
    return Outcome(
        name=name,
        dataset=dataset,
        application=application,
        metric=contest.primary,
        winner=contest.chosen,
        score=contest.score(contest.chosen),
        rival=contest.rival or "",
        rival_score=contest.score(contest.rival) if contest.rival else math.nan,
        verdict=contest.verdict,
        published=published,
        promoted=promoted,
        version=version.number,
        champion=champion,
        reasons=choice.reasons,
    )


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
    workspace: Workspace, contest: evaluation.Contest, champion: registry.Version, folder: Path
) -> tuple[gate.Interval | None, tuple[str, ...]]:
    """Judge today's champion again on the rows that the candidate was judged on, and compare the two."""
    assert contest.chosen is not None
    dataset = Dataset.load(workspace.prepared(contest.dataset))
    ours = bundles.load(folder)
    try:
        theirs = bundles.load(registry.bundle_folder(workspace, champion), expected=champion.digest)
        judged = evaluation.rejudge(theirs.application, theirs.model, _as_seen_by(theirs, dataset))
    except (DataError, ValueError, FileNotFoundError) as error:
        # A champion that cannot take today's data cannot defend its place.
        return None, (f"{champion.label} cannot be judged on today's data: {error}",)
    return evaluation.interval(ours.application, contest.candidates[contest.chosen], judged), ()


def _as_seen_by(bundle: Bundle, dataset: Dataset) -> Dataset:
    """Return the data set as the bundle's own schema scales it, by way of the user's units."""
    if bundle.schema.to_json() == dataset.schema.to_json():
        return dataset

    def seen(split: Split) -> Split:
        raw = dataset.schema.inverse(split.x, split.observed)
        x, observed = bundle.schema.transform(raw)
        return Split(x, observed, split.y, split.normal, split.ids)

    return Dataset(dataset.name, bundle.schema, seen(dataset.train), seen(dataset.validation), seen(dataset.test))


def _publish(
    workspace: Workspace, settings: Params, contest: evaluation.Contest, folder: Path
) -> tuple[registry.Version, bool]:
    assert contest.chosen is not None
    candidate = settings.candidates[contest.chosen]
    chosen = contest.candidates[contest.chosen]
    metrics = {f"test.{n}": v for n, v in chosen.test.metrics.items()}
    metrics |= {f"validation.{n}": v for n, v in chosen.validation.metrics.items()}
    metrics |= {f"rival.{n}.{contest.primary}": contest.score(n) for n in contest.rivals}
    entry = settings.datasets[contest.dataset]
    verdict = workspace.verdict(contest.dataset)
    wins = contest.against is not None and contest.against.low > 0
    return registry.publish(
        workspace,
        contest.name,
        folder,
        params={
            "dataset": entry.model_dump(mode="json"),
            "candidate": candidate.model_dump(mode="json"),
            "training": settings.settings(contest.chosen).model_dump(),
            "application": dict(settings.applications[contest.dataset][contest.application]),
            "seed": settings.seed,
        },
        metrics=metrics,
        curves=pd.read_csv(workspace.history(contest.chosen)),
        artifacts=[p for p in (workspace.report, verdict, verdict.with_suffix(".html")) if p.is_file()],
        tags={
            "dataset": contest.dataset,
            "application": contest.application,
            "variant": candidate.variant,
            "candidate": contest.chosen,
            "data_digest": files.digest(workspace.prepared(contest.dataset)),
            "rival": contest.rival or "none",
            "beats_rivals": str(wins).lower(),
            "verdict": contest.verdict,
            "git_commit": _git_commit(workspace),
        },
        description=f"**{contest.name}**: {contest.verdict}.",
    )


def _git_commit(workspace: Workspace) -> str:
    """Return the commit that the workspace is at, with "-dirty" where files differ from it; "none" outside git."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=workspace.root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return "none" if commit is None else commit + ("-dirty" if git("status", "--porcelain") else "")


def sample(workspace: Workspace, outcomes: list[Outcome]) -> tuple[str, str, Path] | None:
    """Return (operation, model, input) of a batch job that shows a champion at work on its data set's raw rows."""
    settings = params.load(workspace.params)
    ready = [o for o in outcomes if o.champion is not None]
    # Scoring says more to a reader than codes do.
    ready.sort(key=lambda o: (o.application != "anomaly", not o.promoted))
    for outcome in ready:
        path = workspace.root / settings.datasets[outcome.dataset].path
        if path.exists():
            return ("score" if outcome.application == "anomaly" else "encode"), outcome.name, path
    return None
