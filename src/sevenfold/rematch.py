"""Today's champion against a new candidate: both judged on the same rows, by the same rules, today."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from sevenfold import bundles, evaluation, gate, publication
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import Dataset, Split
from sevenfold.registry import versions
from sevenfold.workspace import Workspace

FEWEST_ROWS = 30
"""Test rows that a comparison with a champion of other data or another split needs."""


def against(
    workspace: Workspace, contest: evaluation.Contest, bundle: Path, champion: versions.Version
) -> tuple[gate.Interval | None, tuple[str, ...]]:
    """Judge today's champion again on the rows that the candidate was judged on, and compare the two.

    Data or split may have changed since the champion learned; then both are judged on those rows alone that it has
    never seen, since on the others it would be judged by what it learned.
    """
    assert contest.chosen is not None
    dataset = Dataset.load(workspace.prepared(contest.dataset))
    try:
        theirs = bundles.load(versions.bundle_folder(workspace, champion), expected=champion.digest)
        ours = bundles.load(bundle)
        judgement = contest.candidates[contest.chosen]
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
