"""Training: bring every stale stage up to date over the devices there are, then publish, elect, and say what came of it."""

import argparse
import functools
import queue
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows import apart, console, devices, errors, lateness, process, retries
from flows.schedule import Schedule, wants_gpu
from sevenfold import dispatch, election, files, params, pipeline, provenance, report, stages, workspace, worktrees
from sevenfold.commands import project
from sevenfold.pipeline import Reproduction, Stage
from sevenfold.registry import runs
from sevenfold.workspace import Workspace

Engine = Literal["local", "ray"]

BETWEEN_LOOKS = 1.0
"""Seconds between two looks for a device that another run has given back."""


class RunError(RuntimeError):
    """Something in a run failed. All that did not depend on it was done."""


@flow(
    name="training",
    flow_run_name=lambda: f"training {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
    # Its threads wait for stages, which are processes; how many stages run at once is decided by the devices.
    task_runner=ThreadPoolTaskRunner(max_workers=64),  # type: ignore[arg-type]
)
def training(
    folder: str | None = None,
    revision: str | None = None,
    data_rev: str | None = None,
    push: bool = True,
    engine: Engine = "local",
    wait: float = 0.0,
    hours: float | None = None,
) -> "State[None] | None":
    """Train what is stale, publish, elect and promote.

    Args:
        folder: the workspace (default: the one around the current folder).
        revision: a git commit, to which everything is held: the run works in a worktree of its own. Null for the workspace
            itself, as it is.
        data_rev: a git commit from which the pointer files of the data come, everything else being that of `revision`,
            or of HEAD where that is null.
        push: send results to DVC's default remote, if one is set, which has to be there then.
        engine: whether stages run on this machine, or on the Ray cluster of RAY_ADDRESS.
        wait: minutes to wait where another run works on the workspace. A run of a schedule does not wait, and is skipped.
        hours: in which a run has to end, waiting included; one that takes longer is ended, and ends as crashed. Null for as
            long as it takes.

    Raises:
        ValueError: hours is 0 or less.
        RunError: a stage, an election or the push failed; the message names each, and everything else was done.
        pipeline.RemoteError: the remote cannot be used.
        LookupError: git knows no such commit, or data are neither here nor in the remote.
    """
    if missed := lateness.missed():
        return missed
    place = workspace.find(Path(folder) if folder else None)
    patience = 0.0 if lateness.is_scheduled() else 60 * wait
    try:
        with process.limited(hours):
            if revision is None and data_rev is None:
                _train(place, push=push, engine=engine, patience=patience)
            else:
                _train_apart(place, revision, data_rev, push=push, engine=engine, patience=patience)
    except workspace.TakenError as error:
        if skipped := lateness.skipped(error):
            return skipped
        raise
    return None


def _train_apart(
    place: Workspace, revision: str | None, data_rev: str | None, *, push: bool, engine: Engine, patience: float
) -> None:
    log = get_run_logger()
    code, said = apart.run(place, revision, data_rev, push=push, engine=engine, patience=patience, on_line=log.info)
    if code:
        told = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
        raise RunError(told[-1] if told else f"the run in the worktree ended with {code}: {said}")


def _train(place: Workspace, *, push: bool, engine: Engine, patience: float) -> None:
    place.initialise()
    pipeline.initialise(place)
    with place.settled(), place.alone(patience):
        settings = stages.check(place)
        sends = _bring(place, push=push)
        plan = pipeline.stale(place)
        names = _contest_names(settings)
        with console.Display(len(plan) + len(names)) as display:
            failures: dict[str, str] = {}
            if plan:
                with _devices(place, settings, engine) as available:
                    failures = fan_out(place, plan, available, display, settings)
            failures |= _write_report(place)  # before the elections, which keep it with what they publish
            failures |= _hold_contests(place, settings, failures, display)
        if sends:
            failures |= _send(place)  # last, so that nothing is lost where it fails
        _write_artifacts(place, settings, failures)
    if failures:
        count = f"{len(failures)} step{'s' * (len(failures) > 1)}"
        raise RunError(f"{count} failed: " + "; ".join(f"{name}: {reason}" for name, reason in failures.items()))


@contextmanager
def _devices(place: Workspace, settings: params.Params, engine: Engine) -> Iterator[Sequence[devices.Device]]:
    """Give the devices of this machine, or those of a cluster, which is connected to as long as the block lasts."""
    if engine == "local":
        yield devices.there_are(threads=settings.training.threads)
        return
    with dispatch.serving(place, settings) as (environment, capacity):
        yield devices.elsewhere(environment, slots=capacity.slots, gpus=capacity.gpus)


def _bring(place: Workspace, *, push: bool) -> bool:
    """Bring data and results that are not here, and say whether this run's results go to the remote.

    Raises:
        pipeline.RemoteError: it cannot be used.
        LookupError: data are neither here nor there.
    """
    there = pipeline.remote(place)
    if there is None:
        print("DVC has no default remote: nothing is pulled, nothing is pushed", flush=True)
    elif push:
        pipeline.reach(place)
    pipeline.bring_data(place, provenance.pointers(place), lambda name: print(f"bringing {name}", flush=True))
    sends = there is not None and push
    # In a worktree nothing is there; in the workspace itself DVC finds by itself what the cache has.
    if sends or worktrees.is_one(place):
        found = pipeline.restore(place, remote=sends)
        if found:
            print(f"{len(found)} stages have results of earlier runs", flush=True)
    return sends


def _send(place: Workspace) -> dict[str, str]:
    """Send results to the remote; return why they are not there, if so."""
    state = send(place, return_state=True)
    error = state.result(raise_on_failure=False)
    if not isinstance(error, Exception):
        return {}
    again = (
        "the same run again, which trains nothing, sends them"
        if worktrees.is_one(place)
        else "`dvc push --run-cache` sends them"
    )
    return {"push": f"{error}; the results are here and published, and {again}"}


@task(cache_policy=NO_CACHE, task_run_name="push", retries=2, retry_delay_seconds=[2, 10])
def send(place: Workspace) -> None:
    """Send the results to DVC's default remote."""
    pipeline.push(place)
    get_run_logger().info("sent to %s", pipeline.remote(place))


def fan_out(
    place: Workspace,
    plan: Sequence[Stage],
    available: Sequence[devices.Device],
    display: console.Display,
    settings: params.Params,
) -> dict[str, str]:
    """Run stages as soon as those before them are done and a device is free; return what failed, and why.

    What needs a failed stage is not begun; everything else goes on.
    """
    running: dict[PrefectFuture[Any], Stage] = {}
    ended: queue.SimpleQueue[PrefectFuture[Any]] = queue.SimpleQueue()
    failures: dict[str, str] = {}
    told = False
    with devices.Desk(available) as desk, Reproduction(place) as reproduction:
        schedule = Schedule(plan, desk, functools.partial(wants_gpu, settings))
        while not schedule.is_done:
            for stage, cause in schedule.keep_back():
                display.end(stage.name, f"{stage.name}: not begun, since {cause} failed")
            for stage, device in schedule.begin():
                display.begin(stage.name)
                call = reproduce.with_options(task_run_name=stage.name)
                future = call.submit(stage.name, device, desk.descriptors(device), place, reproduction, display)
                running[future] = stage
                future.add_done_callback(ended.put)
            if schedule.is_blocked and not told:
                display.note("all GPUs are held by other runs on this machine; waiting for one")
                told = True
            # Not longer than a moment: another run may give back a GPU, of which nobody tells this one.
            with suppress(queue.Empty):
                future = ended.get(timeout=BETWEEN_LOOKS)
                future.wait()  # its state is known only then
                stage = running.pop(future)
                schedule.end(stage.name, failed=not future.state.is_completed())
                if future.state.is_completed():
                    outcome = future.result()
                    display.end(stage.name, "" if outcome == "ran" else f"{stage.name}: {outcome}")
                else:
                    failures[stage.name] = _reason(future, stage.name)
                    display.end(stage.name, f"{stage.name} failed: {failures[stage.name]}")
    return failures


def _reason(future: PrefectFuture[Any], name: str) -> str:
    error = future.result(raise_on_failure=False)
    return str(error).removeprefix(f"{name}: ") if isinstance(error, Exception) else str(future.state.message)


def _lock_is_held(task: Any, run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), pipeline.BusyError)


@task(
    cache_policy=NO_CACHE,
    retries=20,
    retry_delay_seconds=2,
    retry_jitter_factor=1,
    # A stage that failed by itself would fail again, and validation that failed has to be looked at.
    retry_condition_fn=_lock_is_held,
)
def reproduce(
    stage: str,
    device: devices.Device,
    locks: tuple[int, ...],
    place: Workspace,
    reproduction: Reproduction,
    display: console.Display,
) -> pipeline.Outcome:
    """Bring one stage up to date on one device, whose locks its processes hold, too."""
    logger = get_run_logger()
    logger.info("on %s", device.name)

    def show(line: str) -> None:
        logger.info(line)
        # DVC calls an error what is tried again.
        display.line(stage, f"{stage}: waits for DVC's lock" if pipeline.tells_of_a_lock(line) else line)

    return reproduction.run(stage, device.environment, show, keep_open=locks)


def _write_report(place: Workspace) -> dict[str, str]:
    """Write the report; return why there is none, if so."""
    try:
        report.write(place)
    except Exception as error:  # whatever a picture failed by: the elections do not need it
        return {"report": f"{type(error).__name__}: {error}"}
    return {}


def _contest_names(settings: params.Params) -> list[str]:
    return [f"{dataset}-{application}" for dataset, application in stages.contests(settings)]


def _hold_contests(
    place: Workspace, settings: params.Params, failed: Mapping[str, str], display: console.Display
) -> dict[str, str]:
    """Hold each contest whose data are sound; return what failed, and why."""
    failures: dict[str, str] = {}
    pipeline_run = runs.title(datetime.now(UTC))
    for dataset, application in stages.contests(settings):
        name = f"{dataset}-{application}"
        step = f"elect {name}"
        # Results of an earlier day say nothing of data that have failed since.
        if cause := next(
            (s for s in (f"{k}@{dataset}" for k in ("fetch", "validate", "prepare")) if s in failed), None
        ):
            display.end(step, f"{step}: not held, since {cause} failed")
            continue
        display.begin(step)
        state = elect.with_options(task_run_name=step)(name, place, pipeline_run, return_state=True)
        result = state.result(raise_on_failure=False)
        if isinstance(result, election.Outcome):
            display.end(step, f"{name}: {describe(result)}")
        else:
            failures[step] = str(result)
            display.end(step, f"{step} failed: {result}")
    return failures


@task(cache_policy=NO_CACHE, **retries.AGAIN)
def elect(name: str, place: Workspace, pipeline_run: str) -> election.Outcome:
    """Publish a contest's winner, and make it champion where the gate lets it."""
    outcome = election.hold(place, name, pipeline_run=pipeline_run)
    get_run_logger().info(describe(outcome))
    return outcome


def describe(outcome: election.Outcome) -> str:
    """Say what an election changed, in one line."""
    what = "published" if outcome.published else "was published before"
    if outcome.promoted:
        end = "is champion now"
    elif outcome.champion == outcome.version:
        end = "is champion"
    else:
        end = f"is not champion: {'; '.join(outcome.reasons)}"
    return f"version {outcome.version} ({outcome.winner}) {what}, and {end}"


def _write_artifacts(place: Workspace, settings: params.Params, failures: Mapping[str, str]) -> None:
    """Put failures, verdicts, scores and links where a reader of the Prefect pages finds them."""
    if failures:
        lines = "\n".join(f"- **{name}**: {reason}" for name, reason in failures.items())
        create_markdown_artifact(f"# What failed\n\n{lines}", key="failures")
    for dataset in settings.datasets:
        if place.verdict(dataset).is_file():
            create_markdown_artifact(
                _verdict(files.read_json(place.verdict(dataset))),
                key=f"data-{dataset.replace('_', '-')}",
                description=f"Does {dataset} meet its expectations?",
            )
    if place.metrics.is_file():
        table = console.results(files.read_json(place.metrics), console.champions(place))
        cells = [list(column.cells) for column in table.columns]
        heads = [
            "data set",
            "application",
            "winner",
            "its number",
            "best rival",
            "rival's number",
            "verdict",
            "champion",
        ]
        rows = [dict(zip(heads, row, strict=True)) for row in zip(*cells, strict=True)]
        create_table_artifact(
            rows, key="scorecard", description="Measured on test rows; candidates chosen on validation."
        )
    if place.report.is_file() and not worktrees.is_one(place):  # that one is kept in MLflow alone
        create_link_artifact(place.report.as_uri(), key="report", link_text="the report", description=str(place.report))


def _verdict(verdict: Mapping[str, Any]) -> str:
    """Return a validation verdict as Markdown."""
    failed = [e for e in verdict["expectations"] if not e["success"]]
    head = f"# {verdict['dataset']}: {'passed' if verdict['passed'] else 'failed'}\n\n"
    head += f"{verdict['rows']:,} rows, {verdict['columns']} columns, {len(verdict['expectations'])} expectations, {len(failed)} failed.\n"
    if not failed:
        return head
    lines = [
        f"| {e['severity']} | {e['column'] or ''} | {e['expected']} | {e['observed']} | {e['unexpected']} |"
        for e in failed
    ]
    return (
        head
        + "\n| severity | column | expected | observed | count |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(lines)
    )


def main() -> int:
    """Run the flow once on the workspace around the current folder; 0 after success."""
    parser = argparse.ArgumentParser(description=__doc__)
    project.add_run_options(parser)
    given = parser.parse_args()
    process.leash()
    try:
        if given.revision is not None or given.data_rev is not None:
            # Not a flow around the flow that the worktree's own process is.
            process.ends_in_order()
            how = {"push": given.push, "engine": given.engine}
            return apart.run(workspace.find(), given.revision, given.data_rev, **how)[0]
        training(push=given.push, engine=given.engine)
    except KeyboardInterrupt:
        print("interrupted; what was done is kept, and the next run goes on from there", file=sys.stderr)
        return 130
    except Exception as error:
        return errors.tell(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
