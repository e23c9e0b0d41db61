"""Today's champion against a new candidate: both judged on the same rows, by the same rules, today."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sevenfold import bundles, evaluation, gate, publication, slices
from sevenfold.applications.base import Application
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import Dataset, Split
from sevenfold.registry import versions
from sevenfold.workspace import Workspace

FEWEST_ROWS = 30
"""Test rows that a comparison with a champion of other data or another split needs."""


@dataclass(frozen=True)
class Rematch:
    """How a candidate stands against today's champion.

    interval: of the deciding metric; None where the two cannot be compared, and `notes` says why.
    slices: the same on parts of the rows.
    notes: what else is to be known of the comparison.
    """

    interval: gate.Interval | None
    slices: tuple[gate.Slice, ...] = ()
    notes: tuple[str, ...] = ()


def against(
    workspace: Workspace,
    contest: evaluation.Contest,
    bundle: Path,
    champion: versions.Version,
    *,
    columns: Sequence[str] = (),
    label: str | None = None,
) -> Rematch:
    """Judge today's champion again on the rows that the candidate was judged on, and compare the two.

    Data or split may have changed since the champion learned; then both are judged on those rows alone that it has
    never seen, since on the others it would be judged by what it learned. The application's options may have changed;
    then its model is calibrated anew under those of today, since by others the numbers would not compare.

    Args:
        bundle: the candidate's.
        columns: whose categories are slices.
        label: the name of the data set's label column.
    """
    assert contest.chosen is not None
    dataset = Dataset.load(workspace.prepared(contest.dataset))
    notes: list[str] = []
    try:
        theirs = bundles.load(versions.bundle_folder(workspace, champion), expected=champion.digest)
        ours = bundles.load(bundle)
        judgement = contest.candidates[contest.chosen]
        if theirs.origin.get("data_digest") != ours.origin["data_digest"]:
            fresh = _never_seen(workspace, champion, dataset.test)
            if len(fresh) < FEWEST_ROWS:
                return Rematch(
                    None,
                    notes=(
                        f"of today's {len(dataset.test)} test rows {champion.label} has never seen {len(fresh)}, and a "
                        f"comparison needs {FEWEST_ROWS}; it is not compared",
                    ),
                )
            dataset = replace(dataset, test=dataset.test.take(fresh))
            judgement = evaluation.rejudge(ours.application, ours.model, dataset)
            notes.append(f"compared with {champion.label} on the {len(fresh)} test rows that it has never seen")
        seen = _as_seen_by(theirs, dataset)
        if changed := _changed(theirs.application, ours.application):
            notes.append(
                f"{champion.label} was calibrated anew for the comparison, since options have changed: {changed}"
            )
            judged = evaluation.judge(_of_today(theirs, ours, dataset), theirs.model, seen)[1]
        else:
            judged = evaluation.rejudge(theirs.application, theirs.model, seen)
        interval = evaluation.interval(ours.application, judgement, judged)
    except (ValueError, ArithmeticError, FileNotFoundError) as error:
        # A champion that is broken or cannot take today's data cannot defend its place.
        return Rematch(None, notes=(f"{champion.label} cannot be judged on today's data: {error}",))
    return Rematch(interval, _slices(ours.application, judgement, judged, dataset, columns, label), tuple(notes))


def _slices(
    application: Application,
    ours: evaluation.Judgement,
    theirs: evaluation.Judgement,
    dataset: Dataset,
    columns: Sequence[str],
    label: str | None,
) -> tuple[gate.Slice, ...]:
    if not columns:
        return ()
    dataset = application.judged(dataset)
    count = len(next(iter(ours.test.values.values())))
    if count != len(dataset.test):
        why = f"{application.primary} is of {count} values, and there are {len(dataset.test)} test rows"
        return (gate.Slice(", ".join(columns), 0, None, f"{why}; leave `slices` out of this contest's rule"),)
    try:
        return slices.against(application, ours, theirs, slices.members(dataset, columns, label=label))
    except ValueError as error:
        return (gate.Slice(", ".join(columns), 0, None, str(error)),)


def _changed(theirs: Application, ours: Application) -> str:
    """Return the options in which two calibrated applications differ, as text; empty where they do not."""
    before, today = dict(theirs.options), dict(ours.options)
    differ = [name for name in {**before, **today} if before.get(name) != today.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r} and is {today.get(name)!r}" for name in differ)


def _of_today(theirs: Bundle, ours: Bundle, dataset: Dataset) -> Application:
    """Return the application under today's options, not yet calibrated.

    Raises:
        ValueError: it does not take the champion's model.
    """
    kind: Any = type(ours.application)
    today: Application = kind(**ours.application.options)
    reason = today.unsuited(
        code=theirs.model.code,
        images=len(theirs.model.shape) == 3,
        labelled=dataset.train.y is not None,
        normal=dataset.train.normal is not None,
    )
    if reason:
        raise ValueError(f"its model does not suit today's options: {reason}")
    return today


def _never_seen(workspace: Workspace, champion: versions.Version, test: Split) -> np.ndarray:
    """Return the positions of test rows that a version neither learned from nor was calibrated on."""
    path = versions.artifact(workspace, champion, publication.SEEN)
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
