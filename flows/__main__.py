"""What `sevenfold run` does: the training flow where something is stale or unpublished, a batch job, and a table.

The flows run in processes of their own: Prefect sends its last words when a process ends, and the server has to be
there until then.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from flows import console, server
from sevenfold import election, files, jobs, pipeline, report, stages, workspace
from sevenfold.registry import versions
from sevenfold.workspace import Workspace


def main() -> int:
    """Run everything that is due; 0 after success, 1 after an error, 128 and the signal's number after a signal."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        return _run(workspace.find())
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _run(place: Workspace) -> int:
    with place.settled():
        with place.alone():
            pass  # before anything is asked of DVC, whose locks a run under way holds
        stale, unheld = pipeline.stale(place), election.pending(place)
        code = 0
        if stale or unheld or _due(place):
            with server.standing(place) as url:
                os.environ["PREFECT_API_URL"] = url
                # The display has its own lines; Prefect's are in its pages.
                os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
                if stale or unheld:
                    elections = len(_contests(place))
                    print(f"{len(stale)} stages to bring up to date, then {elections} elections", flush=True)
                    code = _call("flows.training")
                if job := _due(place):
                    code = _call("flows.batch", *job) or code
        else:
            print("nothing to train, nothing to publish: data, params and code are those of the last run")
        if not code and _is_behind(place):
            report.write(place)
        _finish(place)
        return code


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


def _call(module: str, *arguments: str) -> int:
    """Run a module as a process. A signal ends it first, by force if need be, and then this process."""
    # A session of its own, so that Ctrl-C in a terminal reaches it once, by way of this process.
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], start_new_session=True)
    try:
        return process.wait()
    except SystemExit:
        # Asked twice, since a process that is just starting may miss the first time.
        for number, patience in ((signal.SIGTERM, 20), (signal.SIGTERM, 20), (signal.SIGKILL, 5)):
            with suppress(subprocess.TimeoutExpired):
                process.send_signal(number)
                process.wait(patience)
                break
        raise


def _finish(place: Workspace) -> None:
    """Say how every contest stands, where the report is, and how to see more."""
    champions = {v.name: v.label for v in versions.every(place) if versions.CHAMPION in v.aliases}
    out = console.console()
    if place.metrics.is_file():
        out.print()
        out.print(console.results(files.read_json(place.metrics), champions))
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
