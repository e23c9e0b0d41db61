"""The command line: commands and nothing else."""

import argparse
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from sevenfold import __version__, workspace
from sevenfold.workspace import Workspace

MODEL_HELP = "`NAME` (its champion), `NAME@challenger`, `NAME/3`, or a bundle's folder"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Exits with 0 after success, 1 after an error, 2 after a wrong call."""
    parser = _parser()
    given = parser.parse_args(arguments)
    # Python's own way to end on SIGTERM skips the clean-up of what is half written.
    before = signal.signal(signal.SIGTERM, _end)
    try:
        code: int = given.command(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has had enough
        code = 0
    except Exception as error:
        # The one place where every error ends: as a sentence, or, for those who debug, as it came.
        if given.debug:
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        code = 1
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _sentence(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{type(error).__name__}: {error}"
    text = str(error).strip() or type(error).__name__
    expected = (ValueError, LookupError, OSError, RuntimeError, ArithmeticError, MemoryError)
    return text if isinstance(error, expected) else f"{type(error).__name__}: {text} (--debug shows where)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sevenfold",
        description="Find out with numbers whether an autoencoder helps on your data, and run the one that does.",
        epilog="example: sevenfold run",
    )
    parser.add_argument("--version", action="version", version=f"sevenfold {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, command: Callable[[argparse.Namespace], int], help_: str, example: str
    ) -> argparse.ArgumentParser:
        return _command(commands, name, command, help_, example)

    add("run", _run, "train what is stale, elect champions, and score a batch with one", "sevenfold run")

    stage = add("stage", _stage, "run one stage of dvc.yaml, as DVC does", "sevenfold stage train digits-deep")
    stage.add_argument("stage", help="fetch, validate, prepare, rivals, train, evaluate or scorecard")
    stage.add_argument("subject", nargs="?", metavar="SUBJECT", help="the data set or candidate; scorecard has none")

    for name, help_ in (("encode", "turn rows into codes"), ("score", "score rows for anomalies")):
        batch = add(name, _batch, help_, f"sevenfold {name} wdbc-anomaly rows.csv out.parquet")
        batch.add_argument("model", metavar="MODEL", help=MODEL_HELP)
        batch.add_argument(
            "input", metavar="INPUT", type=Path, help="CSV, Parquet, npz, npy, IDX or a folder of images"
        )
        batch.add_argument(
            "output", metavar="OUTPUT", type=Path, help=".parquet, .csv or .npz; a receipt lies beside it"
        )
        batch.set_defaults(operation=name)

    models = add("models", _models, "list registered models and their champions", "sevenfold models digits-anomaly")
    models.add_argument("name", nargs="?", help="show every version of this one")

    add("doctor", _doctor, "check versions, database, locks, disk and devices", "sevenfold doctor")

    dataset = commands.add_parser(
        "dataset",
        help="work on data sets",
        description="Work on data sets.",
        epilog="example: sevenfold dataset add sales sales.csv --label churn",
    )
    kinds = dataset.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new = _command(
        kinds,
        "add",
        _dataset_add,
        "put a data set under DVC, and write its entry and a draft suite",
        "sevenfold dataset add sales sales.csv --label churn --normal no --id customer",
    )
    new.add_argument("name", metavar="NAME", help="lower-case letters, digits, _ and -")
    new.add_argument("path", metavar="PATH", type=Path, help="CSV, Parquet, npz, npy, IDX or a folder of images")
    new.add_argument("--label", metavar="COLUMN", help="column that judges: splits are stratified by it")
    normal_help = "a label of the normal class, for anomaly; may repeat"
    new.add_argument("--normal", metavar="LABEL", action="append", default=[], help=normal_help)
    new.add_argument("--id", metavar="COLUMN", dest="identifier", help="column that identifies a row")
    new.add_argument("--group", metavar="COLUMN", help="column whose values stay together in one split")
    part_help = "column that says which split a row is in: train, validation or test"
    new.add_argument("--part", metavar="COLUMN", help=part_help)
    new.add_argument(
        "--drop", metavar="COLUMN", action="append", default=[], help="a column that is no feature; may repeat"
    )
    categorical_help = "a column of numbers that are categories; may repeat"
    new.add_argument("--categorical", metavar="COLUMN", action="append", default=[], help=categorical_help)
    new.add_argument("--separator", metavar="TEXT", help="what stands between the values of a CSV file")
    gap_help = "a text that is a gap in a CSV file, as the empty field is; may repeat"
    new.add_argument("--gap", metavar="TEXT", action="append", default=[], help=gap_help)
    labels_help = "for IDX and npy: a second file, IDX or npy, with one label per row"
    new.add_argument("--labels", metavar="FILE", type=Path, help=labels_help)
    new.add_argument("--range", metavar=("LOW", "HIGH"), type=float, nargs=2, help="lowest and highest value of images")
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], int],
    help_: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help_,
        description=help_[:1].upper() + help_[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # which leaves the example on one line
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=command)
    return parser


def _run(given: argparse.Namespace) -> int:
    place = _initialised()
    os.chdir(place.root)
    # Flows are the workspace's own files, above this package. They take this process over, so that Ctrl-C and a request
    # to end reach them and nobody in between.
    os.execve(sys.executable, [sys.executable, "-m", "flows"], place.environment())


def _initialised() -> Workspace:
    """Return the workspace with its private folders, database and DVC settings in place."""
    from sevenfold import pipeline, registry, stages

    place = workspace.find()
    place.initialise()
    pipeline.initialise(place)
    stages.check(place)
    registry.initialise(place)
    return place


def _stage(given: argparse.Namespace) -> int:
    from sevenfold import params

    if (given.stage == "scorecard") == (given.subject is not None):
        wanted = "no SUBJECT" if given.stage == "scorecard" else "a SUBJECT, the data set or candidate"
        print(f"error: stage {given.stage} takes {wanted}; see `sevenfold stage --help`", file=sys.stderr)
        return 2

    place = workspace.find()
    # Before the first import of numpy: the order of a sum, and so a result, depends on the number of threads.
    threads = str(params.load(place.params).training.threads)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads))
    from sevenfold import stages

    stages.run(place, given.stage, given.subject)
    return 0


def _batch(given: argparse.Namespace) -> int:
    place = workspace.find()
    place.initialise()
    with place.settled():
        from sevenfold import jobs

        receipt = jobs.run(
            place,
            operation=given.operation,
            model=given.model,
            source=given.input,
            destination=given.output,
            on_rows=_counter(),
        )
    rate = receipt.rows / max(receipt.seconds, 1e-9)
    print(f"{receipt.output}: {receipt.rows:,} rows by {receipt.model} in {receipt.seconds:.2f} s ({rate:,.0f} rows/s)")
    print(f"receipt: {jobs.receipt_path(given.output)}")
    return 0


def _counter() -> Callable[[int], None]:
    """Return what shows the rows done so far on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda rows: None
    return lambda rows: print(f"\r{rows:,} rows\r", end="", file=sys.stderr, flush=True)


def _models(given: argparse.Namespace) -> int:
    place = workspace.find()
    place.initialise()
    with place.settled():
        from sevenfold import registry

        registry.initialise(place)
        found = registry.versions(place, given.name)
    if not found:
        what = f"no version of {given.name!r} is registered" if given.name else "no model is registered yet"
        raise LookupError(f"{what}; `sevenfold models` lists all, `sevenfold run` makes them")
    lines = [(v.label, ", ".join(v.aliases), v.tags.get("candidate", ""), v.digest[:12]) for v in found]
    lines.insert(0, ("model", "alias", "candidate", "digest"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # On a terminal a verdict is broken to its width; in a log it stays one line, to be found by line.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
    for line, verdict in zip(lines, ["", *(v.tags.get("verdict", "") for v in found)], strict=True):
        print("  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip())
        if verdict:
            print(
                textwrap.fill(verdict, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
            )
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from sevenfold import doctor

    findings = doctor.examine(workspace.find())
    for finding in findings:
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        print(f"{finding.status:<8}{finding.subject}: {finding.message}{remedy}")
    return 1 if doctor.worst(findings) == "error" else 0


def _dataset_add(given: argparse.Namespace) -> int:
    from sevenfold import enrolment, pipeline

    place = workspace.find()
    place.initialise()
    made = enrolment.add(
        place,
        given.name,
        given.path,
        label=given.label,
        normal=given.normal,
        identifier=given.identifier,
        group=given.group,
        part=given.part,
        drop=given.drop,
        categorical=given.categorical,
        value_range=tuple(given.range) if given.range else None,
        separator=given.separator,
        gaps=given.gap,
        labels=given.labels,
        track=pipeline.track,
    )
    print(f"{made.raw.relative_to(place.root)} is under DVC")
    print(f"{made.suite.relative_to(place.root)} was drafted from the training rows; it is yours to edit")
    print(f"params.yaml has the data set and its first candidates: {', '.join(made.candidates)}")
    for note in made.notes:
        print(f"note: {note}")
    kept = [place.params, made.suite, made.raw.with_name(f"{made.raw.name}.dvc")]
    names = " ".join(str(path.relative_to(place.root)) for path in kept)
    print(f"next: read them, `git add {names}`, then `sevenfold run`")
    return 0
