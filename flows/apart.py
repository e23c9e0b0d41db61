"""A run at a commit: the training flow in a worktree, by the commit's own code, for the registry of the workspace."""

import shlex
from collections.abc import Callable
from datetime import UTC, datetime

from flows import console, process
from sevenfold import files, pipeline, worktrees
from sevenfold.commands import project
from sevenfold.registry import runs, tracking
from sevenfold.workspace import Workspace


def run(
    home: Workspace,
    revision: str | None,
    data_rev: str | None,
    *,
    push: bool,
    engine: str,
    patience: float = 0.0,
    on_line: Callable[[str], None] | None = None,
) -> tuple[int, str]:
    """Run the training flow at a commit, by that commit's own code, in a worktree that is removed at the end.

    It is a process of its own, since the code that was imported here may be another one. What it publishes goes to the registry
    of the workspace `home`, which nobody else's run works on meanwhile.

    Args:
        patience: seconds to wait for the end of another run.
        on_line: called with each line; by default they are printed.

    Returns its exit status and, with `on_line`, the last lines that it printed.
    """
    say = on_line or (lambda line: print(line, flush=True))
    home.initialise()
    pipeline.initialise(home)
    with home.settled(), home.alone(patience):
        commit = worktrees.resolved(home, revision or "HEAD")
        data = None if data_rev is None else worktrees.resolved(home, data_rev)
        say(f"commit {commit[:12]}" + (f" with the data of {data[:12]}" if data is not None else ""))
        begun = datetime.now(UTC)
        with worktrees.opened(home, commit, data=data) as place:
            code, said = process.call(
                "flows.training",
                *project.run_options(push=push, engine=engine),
                folder=place.root,
                environment=worktrees.environment(home, place),
                on_line=on_line,
            )
            if place.metrics.is_file() and not code:
                _show_results(place, say)
        if not code:
            try:
                lines = _whereabouts(home, begun, place)
            except Exception as error:  # whatever a store may say: the run is over, and went well
                lines = [f"its dvc.lock:  with its run in MLflow, which does not answer now ({type(error).__name__})"]
            for line in lines:
                say(line)
        return code, said


def _show_results(place: Workspace, say: Callable[[str], None]) -> None:
    out = console.console()
    with out.capture() as table:
        out.print(console.results(files.read_json(place.metrics), console.champions(place)))
    say(f"\n{table.get()}")


def _whereabouts(home: Workspace, begun: datetime, place: Workspace) -> list[str]:
    """Say where the dvc.lock of a run is that worked in a worktree."""
    found = runs.parents(home, begun, by=place)
    if not found:
        return ["the run brought no result that was not recorded before"]
    run = found[-1][1]
    # Another store is one that the user has set, and its address may hold a password.
    store = f"MLFLOW_TRACKING_URI={shlex.quote(home.tracking_uri)} " if tracking.is_local(home) else ""
    return [
        f"its dvc.lock:  with run {run} of MLflow; this brings it and its results into this folder:",
        f"  {store}mlflow artifacts download --run-id {run} --artifact-path provenance/dvc.lock --dst-path . && dvc checkout",
    ]
