"""Training: bring every stale stage up to date over the devices there are, then publish, elect, and say what came of it."""

import argparse
import sys
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import console, devices
from sevenfold import election, files, params, pipeline, report, stages, workspace
from sevenfold.pipeline import Reproduction, Stage
from sevenfold.registry import runs, tracking, versions
from sevenfold.workspace import Workspace


class RunError(RuntimeError):
    """Something in a run failed. All that did not depend on it was done."""


@flow(
    name="training",
    flow_run_name=lambda: f"training {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
    # Its threads wait for stages, which are processes; how many stages run at once is decided by the devices.
    task_runner=ThreadPoolTaskRunner(max_workers=64),  # type: ignore[arg-type]
)
def training(folder: str | None = None) -> None:
    """Train what is stale in the workspace at `folder` (default: the current one), publish, elect and promote.

    Raises:
        RunError: a stage or an election failed; the message names each, and everything else was done.
    """
    place = workspace.find(Path(folder) if folder else None)
    with place.settled(), place.alone():
        settings = stages.check(place)
        plan = pipeline.stale(place)
        names = _contest_names(settings)
        with console.Display(len(plan) + len(names)) as display:
            failures = fan_out(place, plan, devices.there_are(threads=settings.training.threads), display)
            failures |= _write_report(place)  # before the elections, which keep it with what they publish
            failures |= _hold_contests(place, settings, failures, display)
        _write_artifacts(place, settings, failures)
    if failures:
        count = f"{len(failures)} step{'s' * (len(failures) > 1)}"
        raise RunError(f"{count} failed: " + "; ".join(f"{name}: {reason}" for name, reason in failures.items()))


def fan_out(
    place: Workspace, plan: Sequence[Stage], available: Sequence[devices.Device], display: console.Display
) -> dict[str, str]:
    """Run stages as soon as those before them are done and a device is free; return what failed, and why.

    What needs a failed stage is not begun; everything else goes on.
    """
    desk = devices.Desk(available)
    waiting = {stage.name: stage for stage in plan}
    running: dict[PrefectFuture[Any], tuple[Stage, devices.Device]] = {}
    failures: dict[str, str] = {}
    kept_back: dict[str, str] = {}  # stage -> the failed one that it had to have
    with Reproduction(place) as reproduction:
        while waiting or running:
            unfinished = waiting.keys() | {stage.name for stage, _ in running.values()}
            for stage in [s for s in waiting.values() if s.before.isdisjoint(unfinished)]:
                if cause := _obstacle(stage, failures.keys() | kept_back.keys()):
                    kept_back[stage.name] = kept_back.get(cause, cause)
                    display.end(stage.name, f"{stage.name}: not begun, since {kept_back[stage.name]} failed")
                elif device := desk.lend(stage.kind):
                    display.begin(stage.name)
                    call = reproduce.with_options(task_run_name=stage.name)
                    running[call.submit(stage.name, device, place, reproduction, display)] = (stage, device)
                else:
                    continue
                del waiting[stage.name]
            if not running:
                continue  # what was kept back may be all that others waited for
            future = next(as_completed(list(running)))
            future.wait()  # its state is known only then
            stage, device = running.pop(future)
            desk.give_back(device)
            if future.state.is_completed():
                outcome = future.result()
                display.end(stage.name, "" if outcome == "ran" else f"{stage.name}: {outcome}")
            else:
                failures[stage.name] = _reason(future, stage.name)
                display.end(stage.name, f"{stage.name} failed: {failures[stage.name]}")
    return failures


def _obstacle(stage: Stage, lost: Set[str]) -> str | None:
    """Return a stage without which this one cannot run: one that it needs, or, if all that it uses are lost, one of these."""
    lacking = stage.needs & lost or (stage.uses if stage.uses and stage.uses <= lost else frozenset())
    return min(lacking, default=None)


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
    stage: str, device: devices.Device, place: Workspace, reproduction: Reproduction, display: console.Display
) -> pipeline.Outcome:
    """Bring one stage up to date on one device."""
    logger = get_run_logger()
    logger.info("on %s", device.name)

    def show(line: str) -> None:
        logger.info(line)
        display.line(stage, line)

    with devices.held(place, device):
        return reproduction.run(stage, device.environment, show)


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


def _trouble_may_pass(task: Any, run: Any, state: Any) -> bool:
    return tracking.may_pass(state.result(raise_on_failure=False))


@task(
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=_trouble_may_pass,
)
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
    """Put verdicts, scores and links where a reader of the Prefect pages finds them."""
    for dataset in settings.datasets:
        if place.verdict(dataset).is_file():
            create_markdown_artifact(
                _verdict(files.read_json(place.verdict(dataset))),
                key=f"data-{dataset.replace('_', '-')}",
                description=f"Does {dataset} meet its expectations?",
            )
    if place.metrics.is_file():
        champions = {v.name: v.label for v in versions.every(place) if versions.CHAMPION in v.aliases}
        table = console.results(files.read_json(place.metrics), champions)
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
    if place.report.is_file():
        create_link_artifact(place.report.as_uri(), key="report", link_text="the report", description=str(place.report))
    if failures:
        lines = "\n".join(f"- **{name}**: {reason}" for name, reason in failures.items())
        create_markdown_artifact(f"# What failed\n\n{lines}", key="failures")


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
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        training()
    except KeyboardInterrupt:
        print("interrupted; what was done is kept, and the next run goes on from there", file=sys.stderr)
        return 130
    except (RunError, ValueError, LookupError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
