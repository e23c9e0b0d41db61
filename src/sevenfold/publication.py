"""What is published of a contest: the chosen candidate's bundle, with everything that explains it."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from sevenfold import evaluation, files
from sevenfold.datasets.base import Dataset
from sevenfold.params import Params
from sevenfold.registry import versions
from sevenfold.workspace import Workspace

SEEN = "seen.npy"
"""With each version lie the fingerprints of the rows that it learned from or was calibrated on."""


def publish(
    workspace: Workspace, settings: Params, contest: evaluation.Contest, bundle: Path
) -> tuple[versions.Version, bool]:
    """Publish the chosen candidate's bundle, once per digest, and say whether it is a new version."""
    assert contest.chosen is not None
    candidate = settings.candidates[contest.chosen]
    chosen = contest.candidates[contest.chosen]
    metrics = {f"test.{n}": v for n, v in chosen.test.metrics.items()}
    metrics |= {f"validation.{n}": v for n, v in chosen.validation.metrics.items()}
    metrics |= {f"rival.{n}.{contest.primary}": contest.score(n) for n in contest.rivals}
    checked = workspace.verdict(contest.dataset)
    with _seen(workspace, contest.dataset) as seen:
        return versions.publish(
            workspace,
            contest.name,
            bundle,
            params={
                "dataset": settings.datasets[contest.dataset].model_dump(mode="json"),
                "candidate": candidate.model_dump(mode="json"),
                "training": settings.settings(contest.chosen).model_dump(),
                "application": dict(settings.applications[contest.dataset][contest.application]),
                "seed": settings.seed,
            },
            metrics=metrics,
            curves=pd.read_csv(workspace.history(contest.chosen)),
            artifacts=[p for p in (workspace.report, checked, checked.with_suffix(".html"), seen) if p.is_file()],
            tags={
                "dataset": contest.dataset,
                "application": contest.application,
                "variant": candidate.variant,
                "candidate": contest.chosen,
                "data_digest": files.digest(workspace.prepared(contest.dataset)),
                "git_commit": _git_commit(workspace),
                **verdict(contest),
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


def verdict(contest: evaluation.Contest) -> dict[str, str]:
    """Return the tags that say how the chosen candidate stands against its rivals."""
    wins = contest.against is not None and contest.against.low > 0
    return {"rival": contest.rival or "none", "beats_rivals": str(wins).lower(), "verdict": contest.verdict}


def _git_commit(workspace: Workspace) -> str:
    """Return the commit that the workspace is at, with "-dirty" where files differ from it; "none" outside git."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=workspace.root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return "none" if commit is None else commit + ("-dirty" if git("status", "--porcelain") else "")
