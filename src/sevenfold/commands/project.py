"""Commands about the workspace as a whole: `run`, `stage`, `report`, `backfill`, `doctor`."""

import argparse
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn, get_args

from sevenfold import periods, workspace
from sevenfold.commands import base

DEBUG = "SEVENFOLD_DEBUG"
"""The variable that has the process of a flow show where its error came from, as `--debug` has a command."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add these commands."""
    add = functools.partial(base.command, commands)

    train = add("run", _run, "train what is stale, elect champions, and score a batch with one", "sevenfold run")
    add_run_options(train)

    stage = add("stage", _stage, "run one stage of dvc.yaml, as DVC does", "sevenfold stage train digits-deep")
    stage.add_argument("stage", help="fetch, validate, prepare, rivals, train, evaluate or scorecard")
    stage.add_argument("subject", nargs="?", metavar="SUBJECT", help="the data set or candidate; scorecard has none")

    report = add("report", _report, "write what came of every contest as one HTML page", "sevenfold report")
    report.add_argument("--output", metavar="FILE", type=Path, help="where (default: results/report.html)")

    backfill = add(
        "backfill",
        _backfill,
        "run a deployment for each of many partitions, such as days",
        "sevenfold backfill batch --from 2026-11-01 --to 2026-11-28 --set operation=score --set model=wdbc-anomaly "
        "--set 'source=in/{partition}.parquet' --set 'destination=out/{partition}'",
    )
    backfill.add_argument("deployment", metavar="DEPLOYMENT", help="FLOW/NAME of prefect.yaml, or NAME if both are one")
    backfill.add_argument("--from", dest="first", metavar="DATE", help="the first period, such as 2026-11-01")
    backfill.add_argument("--to", dest="last", metavar="DATE", help="the last period")
    backfill.add_argument("--every", choices=get_args(periods.Step), default="day", help="the length of a period (day)")
    format_help = "how a period is written, as of strftime (default: 2026-11-28T15, 2026-11-28, 2026-W48 or 2026-11)"
    backfill.add_argument("--format", metavar="FORMAT", help=format_help)
    backfill.add_argument("--partitions", metavar="NAME", nargs="+", help="their names, in the place of periods")
    set_help = "a parameter of the flow: text, or JSON; `{partition}` stands for the partition"
    backfill.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help=set_help)
    backfill.add_argument("--concurrency", metavar="RUNS", type=int, default=2, help="runs at a time, at most (2)")
    backfill.add_argument("--again", action="store_true", help="do partitions that are done, too")

    add("doctor", _doctor, "check versions, database, locks, disk and devices", "sevenfold doctor")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run, which the flows take, too."""
    parser.add_argument(
        "--revision",
        metavar="REV",
        help="train this git commit, in a worktree of its own (default: this folder as it is)",
    )
    parser.add_argument(
        "--data-rev",
        metavar="REV",
        help="take the pointer files of the data from this git commit (default: those of --revision, which is HEAD then)",
    )
    parser.add_argument(
        "--no-push", dest="push", action="store_false", help="neither ask for DVC's remote nor send results there"
    )
    engine_help = "where stages run: on this machine, or on the Ray cluster of RAY_ADDRESS (default: local)"
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help=engine_help)


def run_options(*, push: bool, engine: str) -> list[str]:
    """Return the options that say how a run works, whatever it works on; none for what is so by default."""
    return [*([] if push else ["--no-push"]), *([] if engine == "local" else ["--engine", engine])]


def _run(given: argparse.Namespace) -> int:
    revision = [] if given.revision is None else ["--revision", given.revision]
    data = [] if given.data_rev is None else ["--data-rev", given.data_rev]
    return run(*revision, *data, *run_options(push=given.push, engine=given.engine), debug=given.debug)


def run(*options: str, debug: bool) -> int:
    """Give this process over to the flows, which train what is stale, elect champions and score a batch.

    Args:
        options: of a run, as the command line has them.
        debug: an error is to be shown with where it came from.
    """
    # A run at a commit has nothing to do with what the folder holds now.
    base.initialised(check=not any(option in ("--revision", "--data-rev") for option in options))
    return _flow("flows", *options, debug=debug)


def _flow(module: str, *arguments: str, debug: bool) -> NoReturn:
    place = workspace.find()
    os.chdir(place.root)
    # Flows are the workspace's own files, above this package. They take this process over, so that Ctrl-C and a request
    # to end reach them and nobody in between.
    environment = place.environment() | ({DEBUG: "1"} if debug else {})
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)


def _stage(given: argparse.Namespace) -> int:
    from sevenfold import dispatch, params

    if (given.stage == "scorecard") == (given.subject is not None):
        wanted = "no SUBJECT" if given.stage == "scorecard" else "a SUBJECT, the data set or candidate"
        print(f"error: stage {given.stage} takes {wanted}; see `sevenfold stage --help`", file=sys.stderr)
        return 2

    if dispatch.ADDRESS in os.environ:
        return dispatch.ask(given.stage, given.subject)
    dispatch.leash()
    place = workspace.find()
    # Before the first import of numpy: the order of a sum, and so a result, depends on the number of threads.
    threads = str(params.load(place.params).training.threads)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads))
    from sevenfold import stages

    stages.run(place, given.stage, given.subject)
    return 0


def _report(given: argparse.Namespace) -> int:
    place = workspace.find()
    with place.settled():
        from sevenfold import report

        print(report.write(place, given.output))
    return 0


def _backfill(given: argparse.Namespace) -> int:
    given_periods = given.first is not None or given.last is not None
    if given_periods == bool(given.partitions) or (given.first is None) != (given.last is None):
        print("error: expected --from with --to, or --partitions; see `sevenfold backfill --help`", file=sys.stderr)
        return 2
    parameters = dict(_parameter(text) for text in given.set)
    asked = {
        "deployment": given.deployment,
        "partitions": given.partitions,
        # Not their names: a process takes no more than 128 KiB in one argument.
        "between": None if given.partitions else [given.first, given.last, given.every, given.format],
        "parameters": parameters,
        "concurrency": given.concurrency,
        "again": given.again,
    }
    return _flow("flows.backfill", json.dumps(asked), debug=given.debug)


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"`--set {text}` sets nothing; expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _doctor(given: argparse.Namespace) -> int:
    from sevenfold import doctor

    findings = doctor.examine(workspace.find())
    for finding in findings:
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        print(f"{finding.status:<8}{finding.subject}: {finding.message}{remedy}")
    return 1 if doctor.worst(findings) == "error" else 0
