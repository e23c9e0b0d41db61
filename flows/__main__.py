"""What `sevenfold run` does: the training flow where something is stale or unpublished, a batch job, and a table.

The flows run in processes of their own: Prefect sends its last words when a process ends, and the server has to be
there until then.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import apart, console, errors, process, server
from sevenfold import election, files, jobs, pipeline, report, stages, workspace, worktrees
from sevenfold.commands import project
from sevenfold.registry import versions
from sevenfold.workspace import Workspace


def main() -> int:
    """Run everything that is due; 0 after success, 1 after an error, 128 and the signal's number after a signal."""
    parser = argparse.ArgumentParser(prog="sevenfold run", description=__doc__)
    project.add_run_options(parser)
    given = parser.parse_args()
    process.ends_in_order()
    try:
        place = workspace.find()
        if given.revision is None and given.data_rev is None:
            return _run(place, push=given.push, engine=given.engine)
        return _run_apart(place, given.revision, given.data_rev, push=given.push, engine=given.engine)
    except Exception as error:
        return errors.tell(error)


def _run(place: Workspace, *, push: bool, engine: str) -> int:
    with place.settled():
        with place.alone():
            pass  # before anything is asked of DVC, whose locks a run under way holds
        stale, unheld = pipeline.stale(place), election.pending(place)
        code = 0
        if stale or unheld or _due(place):
            with _served(place):
                if stale or unheld:
                    elections = len(_contests(place))
                    print(f"{len(stale)} stages to bring up to date, then {elections} elections", flush=True)
                    code, _ = process.call("flows.training", *project.run_options(push=push, engine=engine))
                if job := _due(place):
                    code = process.call("flows.batch", *job)[0] or code
        else:
            print("nothing to train, nothing to publish: data, params and code are those of the last run")
        if not code and _is_behind(place):
            report.write(place)
        _finish(place)
        return code


def _run_apart(place: Workspace, revision: str | None, data_rev: str | None, *, push: bool, engine: str) -> int:
    """Run a commit in a worktree of its own; the workspace's own results and its sample job stay as they are."""
    with place.settled():
        # Before a server is started: a branch that moves meanwhile changes nothing, and an unknown one is told at once.
        commit = worktrees.resolved(place, revision or "HEAD")
        data = None if data_rev is None else worktrees.resolved(place, data_rev)
        with _served(place):
            return apart.run(place, commit, data, push=push, engine=engine)[0]


@contextmanager
def _served(place: Workspace) -> Iterator[None]:
    """Have a Prefect server, which processes of this one find by their variables."""
    with server.standing(place) as url:
        os.environ["PREFECT_API_URL"] = url
        # The display has its own lines; Prefect's are in its pages.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        yield


def _contests(place: Workspace) -> list[tuple[str, str]]:
    return stages.contests(stages.check(place))


def _due(place: Workspace) -> tuple[str, str, str, str] | None:
    """Return the arguments of a batch job with today's champion, or None where its output is there already."""
    if (sample := election.sample(place)) is None:
        return None
    operation, model, source = sample
    destination = place.batches / f"{model}{'.npz' if operation == 'denoise' else '.parquet'}"
    champion = versions.champion(place, model)
    receipt = jobs.receipt_path(destination)
    if destination.is_file() and receipt.is_file() and champion is not None:
        done = files.read_json(receipt)
        if done["digest"] == champion.digest and done["input_digest"] == files.digest(source):
            return None
    return operation, model, str(source), str(destination)


def _is_behind(place: Workspace) -> bool:
    """Say whether the results are newer than the report, as after `dvc repro`, or there is none."""
    made = place.report.stat().st_mtime if place.report.is_file() else 0.0
    return place.metrics.is_file() and place.metrics.stat().st_mtime > made


def _finish(place: Workspace) -> None:
    """Say how every contest stands, where the report is, and how to see more."""
    out = console.console()
    if place.metrics.is_file():
        out.print()
        out.print(console.results(files.read_json(place.metrics), console.champions(place)))
        out.print()
    if place.report.is_file():
        print(f"report:       {_short(place, place.report)}")
    for receipt in sorted(place.batches.glob("*.receipt.json")):
        done = json.loads(receipt.read_text(encoding="utf-8"))
        print(
            f"{done['operation']} job:".ljust(14)
            + f"{_short(place, Path(done['output']))} ({done['rows']:,} rows by {done['model']})"
        )
    print("pages:        `make ui` opens MLflow and Prefect")


def _short(place: Workspace, path: Path) -> str:
    return str(path.relative_to(place.root)) if path.is_relative_to(place.root) else str(path)


if __name__ == "__main__":
    sys.exit(main())
