"""The report: what came of every contest, gathered from the workspace and written as one HTML file.

It is no output of a stage: it also says how long things took and on what, which is never the same twice.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sevenfold import evaluation, files, gate, params, pictures, report_page, stages
from sevenfold.applications.base import Application
from sevenfold.evaluation import Contest
from sevenfold.params import Params
from sevenfold.pictures import Picture
from sevenfold.report_page import Chapter, Timing
from sevenfold.workspace import Workspace

NEAREST = 1e-4
"""Of the first epoch's distance to the best: what is nearer is drawn as this near, on a logarithmic axis."""


def write(workspace: Workspace, path: Path | None = None) -> Path:
    """Write the report to `path`, by default where the workspace keeps it, and return where it is.

    Raises:
        IsADirectoryError: `path` is a folder.
    """
    path = workspace.report if path is None else path
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it, such as {path / 'report.html'}")
    settings = params.load(workspace.params)
    verdicts = {d: files.read_json(workspace.verdict(d)) for d in settings.datasets if workspace.verdict(d).is_file()}
    files.write_text(path, report_page.page(chapters(workspace, settings), verdicts))
    return path


def chapters(workspace: Workspace, settings: Params) -> list[Chapter]:
    """Return what there is to say of every contest that params.yaml asks for."""
    return [_chapter(workspace, settings, dataset, name) for dataset, name in stages.contests(settings)]


def _chapter(workspace: Workspace, settings: Params, dataset: str, name: str) -> Chapter:
    contest = stages.contest(workspace, settings, dataset, name)
    application = stages.application(settings, dataset, name)
    entries = {c: entry for c, entry in settings.of_dataset(dataset).items() if name in entry.applications}
    compared, own, remarks = [], [], []
    if contest.chosen is not None:
        scores = {n: judgement.test for n, judgement in report_page.ranked(contest).items()}
        compared = application.comparison(scores, contest.chosen)
        own = pictures.load(workspace.evaluation(contest.chosen) / name / "pictures")
        if workspace.remarks(contest.chosen).is_file():
            remarks = files.read_json(workspace.remarks(contest.chosen))
    curves = _curves(contest, {c: workspace.history(c) for c in entries})
    # Of what has a result: a step without a time is one that somebody else's run, or an older one, has done.
    steps = [("rivals", dataset)] if contest.rivals else []
    steps += [(stage, c) for c in entries if c in contest.candidates for stage in ("train", "evaluate")]
    return Chapter(
        contest=contest,
        about=(inspect.getdoc(type(application)) or "").partition("\n\n")[0],
        variants={c: entry.variant for c, entry in entries.items()},
        differences=differences(application, contest),
        compared=compared,
        own=own,
        curves=curves,
        remarks=remarks,
        timings={step: _timing(workspace, *step) for step in steps},
    )


def differences(application: Application, contest: Contest) -> dict[str, gate.Interval | str]:
    """Return for everybody but the chosen candidate its primary metric minus the chosen one's, on the test rows.

    Where two were judged on different rows, as after a part of a run, there is the reason instead.
    """
    if contest.chosen is None:
        return {}
    found: dict[str, gate.Interval | str] = {}
    for name, judgement in report_page.ranked(contest).items():
        if name == contest.rival and contest.against is not None:
            found[name] = _turned(contest.against)
        elif name != contest.chosen:
            try:
                found[name] = _turned(evaluation.interval(application, contest.candidates[contest.chosen], judgement))
            except ValueError as error:
                found[name] = str(error)
    return found


def _turned(interval: gate.Interval) -> gate.Interval:
    """Return the difference seen from the other side."""
    return gate.Interval(-interval.difference, -interval.high, -interval.low)


def _timing(workspace: Workspace, stage: str, subject: str) -> Timing | None:
    place = workspace.timing(stage, subject)
    return Timing(**files.read_json(place)) if place.is_file() else None


def above_best(losses: pd.Series) -> pd.Series:
    """Return how far each epoch's loss is above the best, as a share of what the first one was; at least `NEAREST`."""
    above: pd.Series = losses - losses.min()
    # Where the first epoch is the best one, of the farthest.
    share: pd.Series = above / (above.iloc[0] or above.max() or 1.0)
    return share.clip(lower=NEAREST)


def _curves(contest: Contest, histories: Mapping[str, Path]) -> Picture | None:
    found = {name: pd.read_csv(path) for name, path in histories.items() if path.is_file()}
    return draw_curves({name: curve for name, curve in found.items() if name in contest.candidates})


def draw_curves(curves: Mapping[str, pd.DataFrame]) -> Picture | None:
    """Draw how far each candidate's validation loss is from its best, for those that have more than one epoch.

    Losses of different variants are different things, squared errors or bounds on a likelihood, and comparing their
    values would mislead; how each of them falls and whether it rises again can be seen side by side.
    """
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None

    def draw(axes: Any) -> None:
        for name, curve in curves.items():
            axes.plot(curve["epoch"], above_best(curve["validation_loss"]), label=name, linewidth=1.2)
        axes.set(xlabel="epoch", ylabel="validation loss above its best", yscale="log", ylim=(NEAREST / 2, None))
        axes.legend(frameon=False, ncols=1 + len(curves) // 7)

    drawn: Callable[..., None] = draw
    lowest = "; ".join(
        f"{n} is best in epoch {c['epoch'].iloc[c['validation_loss'].argmin()]}" for n, c in curves.items()
    )
    return pictures.plot(
        "curves",
        "Validation loss above its best, by epoch",
        f"Each curve falls to its best epoch: {lowest}. The axis is logarithmic, relative to the first epoch.",
        drawn,
    )
