"""What is published of a contest: the chosen candidate's bundle, with everything that explains it."""

import hashlib
import inspect
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from sevenfold import bundles, card, evaluation, files, footprint, formats, gate, operations, provenance, slices, stages
from sevenfold.applications.base import Application
from sevenfold.datasets.base import FARTHEST, Dataset, ImageSchema, Schema, TableSchema
from sevenfold.params import Params
from sevenfold.registry import origins, runs, versions
from sevenfold.workspace import Workspace

MEGABYTES, MILLISECONDS = "megabytes", "milliseconds_per_1000_rows"
"""Tags of a version that say what it costs: its bundle's size, and its time on the machine that published it."""

SEEN = "seen.npy"
"""With each version lie the fingerprints of the rows that it learned from or was calibrated on."""


def is_recorded(workspace: Workspace, contest: evaluation.Contest) -> bool:
    """Say whether every result of a contest has a run in the tracking store."""
    return runs.is_recorded(workspace, contest.name, [*_keys(workspace, contest).values()])


def record(
    workspace: Workspace, settings: Params, contest: evaluation.Contest, pipeline_run: str | None = None
) -> dict[str, str]:
    """Log a run for each candidate and rival of a contest that has none yet, and return everybody's run by name.

    Args:
        pipeline_run: a name for the run above them, the same in all contests of one pipeline run; by default a new one.
    """
    keys = _keys(workspace, contest)
    entries = [_entry(workspace, settings, contest, name, key) for name, key in keys.items()]
    summary = evaluation.summary(contest)
    with tempfile.TemporaryDirectory() as room:
        folders = {}
        if not is_recorded(workspace, contest):
            folders[origins.PROVENANCE] = Path(room)
            provenance.write(workspace, Path(room), provenance.collect(workspace))
        found = runs.record(
            workspace,
            contest.name,
            entries,
            pipeline_run=pipeline_run or runs.title(datetime.now(UTC)),
            description=f"**{contest.name}**: {contest.verdict}.\n\n{card.scores(contest)}",
            artifacts=[p for p in (workspace.report,) if p.is_file()],
            folders=folders,
            texts={"contest.json": files.dumps(summary), "contest.md": card.scores(contest)},
        )
    return {name: found[key] for name, key in keys.items()}


def _keys(workspace: Workspace, contest: evaluation.Contest) -> dict[str, str]:
    """Return the digest of each candidate's and rival's result in a contest, by name; of a failed rival, of its reason."""
    rivals = workspace.rivals(contest.dataset) / contest.application
    keys = {name: files.digest(workspace.evaluation(name) / contest.application) for name in contest.candidates}
    keys |= {name: files.digest(rivals / name) for name in contest.rivals}
    failed = files.read_json(rivals / "failed.json") if (rivals / "failed.json").is_file() else {}
    # What lies in a folder says nothing of whose it is, and two rivals may come to the same numbers.
    keys |= {name: hashlib.sha256(str(reason).encode()).hexdigest() for name, reason in failed.items()}
    return {name: hashlib.sha256(f"{name}\n{key}".encode()).hexdigest() for name, key in keys.items()}


def _entry(workspace: Workspace, settings: Params, contest: evaluation.Contest, name: str, key: str) -> runs.Entry:
    tags = {"dataset": contest.dataset, "application": contest.application}
    if name not in contest.candidates:
        if name not in contest.rivals:
            return runs.Entry(name, "rival", key, tags=tags, failure=contest.missing[name])
        return runs.Entry(name, "rival", key, metrics=_metrics(contest.rivals[name]), tags=tags)
    candidate = settings.candidates[name]
    digest = bundles.digest(workspace.evaluation(name) / contest.application / "bundle")
    return runs.Entry(
        name,
        "candidate",
        key,
        params={
            "dataset": settings.datasets[contest.dataset].model_dump(mode="json"),
            "candidate": candidate.model_dump(mode="json"),
            "training": settings.settings(name).model_dump(),
            "application": dict(settings.applications[contest.dataset][contest.application]),
            "seed": settings.seed,
        },
        metrics=_metrics(contest.candidates[name]),
        curves=pd.read_csv(workspace.history(name)),
        tags={**tags, "candidate": name, "variant": candidate.variant, "digest": digest},
        description=f"**{name}** ({candidate.variant}) in {contest.name}.",
    )


def _metrics(judgement: evaluation.Judgement) -> dict[str, float]:
    found = {f"test.{n}": v for n, v in judgement.test.metrics.items()}
    return found | {f"validation.{n}": v for n, v in judgement.validation.metrics.items()}


def publish(
    workspace: Workspace, settings: Params, contest: evaluation.Contest, bundle: Path, run_id: str
) -> tuple[versions.Version, bool]:
    """Publish the chosen candidate's bundle, once per digest, and say whether it is a new version.

    Args:
        run_id: of the candidate's training, as `record` gave it.
    """
    assert contest.chosen is not None
    digest = bundles.digest(bundle)
    found = versions.find(workspace, contest.name, digest)
    if found is not None:  # before all that explains it is made
        return found, False
    candidate = settings.candidates[contest.chosen]
    checked = workspace.verdict(contest.dataset)
    origin = provenance.collect(workspace)
    said = _said(checked)
    loaded = bundles.load(bundle)
    data = Dataset.load(workspace.prepared(contest.dataset))
    application = stages.application(settings, contest.dataset, contest.application)
    about = (inspect.getdoc(type(application)) or "").partition("\n\n")[0]
    remarks = workspace.remarks(contest.chosen)
    some = slice(0, footprint.MOST_ROWS)
    observed = None if data.test.observed is None else data.test.observed[some]
    cost = footprint.measure(bundle, data.schema.inverse(data.test.x[some], observed))
    divided, undivided = _divided(
        application, contest.candidates[contest.chosen], data, settings.datasets[contest.dataset].label
    )
    accepted = operations.accepting(loaded).schema
    facts = card.Facts(
        contest=contest,
        about=about,
        variant=candidate.variant,
        operation=application.operation,
        digest=digest,
        rows={"training": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        validation=said,
        against=_against(application, contest),
        slices=divided,
        undivided=undivided,
        takes=_taken(accepted),
        refuses=_refused(accepted),
        megabytes=cost.megabytes,
        milliseconds=cost.milliseconds,
        remarks=files.read_json(remarks) if remarks.is_file() else [],
        provenance={"data": loaded.origin["data_digest"], **origin.tags()},
    )
    text = card.markdown(facts)
    with _explained(workspace, data, contest, text, origin) as (kept, folders):
        return versions.publish(
            workspace,
            contest.name,
            bundle,
            params={},
            metrics={f"rival.{n}.{contest.primary}": contest.score(n) for n in contest.rivals},
            curves=pd.DataFrame({"epoch": []}),
            artifacts=[p for p in (checked, checked.with_suffix(".html"), *kept) if p.is_file()],
            tags={
                "dataset": contest.dataset,
                "application": contest.application,
                "variant": candidate.variant,
                "candidate": contest.chosen,
                "data_digest": files.digest(workspace.prepared(contest.dataset)),
                "data_verdict": said,
                MEGABYTES: f"{cost.megabytes:.3f}",
                MILLISECONDS: f"{cost.milliseconds:.3g}",
                **origin.tags(),
                **verdict(contest),
            },
            description=card.on_a_page(text),
            folders=folders,
            run_id=run_id,
            about=f"**{contest.application} on {contest.dataset}**. {about}\n\nA version's description is its model card.",
        )


def _said(checked: Path) -> str:
    """Return the verdict on the data in words."""
    if not checked.is_file():
        return "not validated"
    found = files.read_json(checked)
    bad = sum(not e["success"] for e in found["expectations"])
    return f"{'passed' if found['passed'] else 'failed'}, {bad} of {len(found['expectations'])} expectations not met"


def _against(application: Application, contest: evaluation.Contest) -> dict[str, gate.Interval | str]:
    """Return chosen minus each rival, or the reason where they were judged on different rows."""
    assert contest.chosen is not None
    found: dict[str, gate.Interval | str] = {}
    for name, theirs in contest.rivals.items():
        try:
            found[name] = evaluation.interval(application, contest.candidates[contest.chosen], theirs)
        except ValueError as error:
            found[name] = str(error)
    return found


def _taken(schema: Schema) -> str:
    """Return what rows a model takes, in words."""
    if isinstance(schema, ImageSchema):
        channels, height, width = schema.shape
        return f"images of {height}x{width} pixels and {channels} channel{'s' * (channels > 1)}, {schema.low:g} to {schema.high:g}"
    assert isinstance(schema, TableSchema)
    gaps = sum(column.gaps for column in schema.columns)
    return f"a table with the {len(schema.columns)} columns that it learned from, of which {gaps} may have gaps"


def _refused(schema: Schema) -> list[str]:
    """Return what rows a model does not take, a sentence each."""
    if not isinstance(schema, TableSchema):
        return ["Images of another size or number of channels are refused, and values out of that range or not finite."]
    found = []
    whole = [c.name for c in schema.columns if not c.gaps]
    kinds = [c.name for c in schema.columns if c.kind == "categorical"]
    numbers = [c.name for c in schema.columns if c.kind == "numeric"]
    if whole and len(whole) < len(schema.columns):
        found.append(f"Gaps are refused in {formats.shown(whole)}, which had none in training.")
    if kinds:
        found.append(f"Categories that its data set did not have are refused in {formats.shown(kinds)}.")
    if numbers:
        found.append(
            f"Numbers that are not finite, or farther than {FARTHEST:g} standard deviations from the mean, are refused."
        )
    return found


def _divided(
    application: Application, judgement: evaluation.Judgement, data: Dataset, label: str | None
) -> tuple[dict[str, tuple[int, float]], list[str]]:
    """Return how a candidate does on each slice of the test rows, and the columns that have too many values for slices.

    There is none where an application's values are not of single test rows.
    """
    data = application.judged(data)
    if any(len(values) != len(data.test) for values in judgement.test.values.values()):
        return {}, []
    members: slices.Members = {}
    undivided = []
    for column in slices.columns(data, label):
        try:
            members |= slices.members(data, [column], label=label)
        except ValueError:
            undivided.append(column)
    return slices.scores(application, judgement, members), undivided


@contextmanager
def _explained(
    workspace: Workspace, data: Dataset, contest: evaluation.Contest, text: str, origin: provenance.Provenance
) -> Iterator[tuple[list[Path], dict[str, Path]]]:
    """Give files and folders that explain a version: its card, the contest, what it has seen, provenance, pictures."""
    assert contest.chosen is not None
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        files.write_text(place / versions.CARD, text)
        files.write_text(place / "scorecard.md", card.scores(contest))
        files.write_json(place / "scorecard.json", evaluation.summary(contest))
        kept = [place / versions.CARD, place / "scorecard.md", place / "scorecard.json"]
        prints = [split.fingerprints for split in (data.train, data.validation) if split.fingerprints is not None]
        if prints:
            np.save(place / SEEN, np.unique(np.concatenate(prints)), allow_pickle=False)
            kept.append(place / SEEN)
        provenance.write(workspace, place / origins.PROVENANCE, origin)
        folders = {origins.PROVENANCE: place / origins.PROVENANCE}
        pictures = workspace.evaluation(contest.chosen) / contest.application / "pictures"
        if pictures.is_dir() and any(pictures.iterdir()):
            folders["pictures"] = pictures
        yield kept, folders


def verdict(contest: evaluation.Contest) -> dict[str, str]:
    """Return the tags that say how the chosen candidate stands against its rivals."""
    wins = contest.against is not None and contest.against.low > 0
    return {"rival": contest.rival or "none", "beats_rivals": str(wins).lower(), "verdict": contest.verdict}
