"""Commands that run batch jobs: `encode`, `score`, `impute`, `denoise`, `compress`, `decompress`; and `inspect`."""

import argparse
import functools
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sevenfold import places, workspace
from sevenfold.commands import base

if TYPE_CHECKING:
    from sevenfold.jobs import Progress, Settings
    from sevenfold.registry.receipts import Receipt

SEPARATOR_HELP = r"what stands between the cells of CSV files, \t or \s+ too (default: found from the header)"
INPUT_HELP = "a file, a folder of files, or a quoted pattern: Parquet, CSV, npz, npy, IDX or images"
OUTPUT_HELP = ".parquet, .csv, .npz, or a folder of Parquet files (a name without an ending); a receipt lies beside it"
_REST = "\x1b[K"  # clears the rest of a terminal's line
IMAGES_HELP = "a folder (images under the names they came with) or .npz; a receipt lies beside it"


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add these commands."""
    add = functools.partial(base.command, commands)

    encode = add("encode", _batch, "turn rows into codes", "sevenfold encode wdbc-anomaly rows.csv codes.parquet")
    score = add("score", _batch, "score rows for anomalies", "sevenfold score wdbc-anomaly rows.csv scores.parquet")
    impute = add("impute", _batch, "fill the gaps of a table", "sevenfold impute wdbc-imputation rows.csv filled.csv")
    denoise = add("denoise", _batch, "take the noise off images", "sevenfold denoise photos-denoising noisy clean")
    compress = add("compress", _batch, "compress images", "sevenfold compress digits-compression scans scans.7f")
    decompress = add(
        "decompress",
        _batch,
        "turn .7f files into images again",
        "sevenfold decompress digits-compression scans.7f scans",
    )
    small = (
        "a folder (each image as a .7f file of its own) or one archive, a name ending in .7f; a receipt lies beside it"
    )
    for name, job, input_help, output_help in (
        ("encode", encode, INPUT_HELP, OUTPUT_HELP),
        ("score", score, INPUT_HELP, OUTPUT_HELP),
        ("impute", impute, INPUT_HELP, OUTPUT_HELP),
        ("denoise", denoise, INPUT_HELP, IMAGES_HELP),
        ("compress", compress, INPUT_HELP, small),
        ("decompress", decompress, "a .7f file, a folder of them, or a quoted pattern", IMAGES_HELP),
    ):
        job.add_argument("model", metavar="MODEL", help=base.MODEL_HELP)
        job.add_argument("input", metavar="INPUT", help=input_help)
        job.add_argument("output", metavar="OUTPUT", type=places.parsed, help=output_help)
        add_settings(job)
        job.set_defaults(operation=name)
    target = compress.add_mutually_exclusive_group()
    target.add_argument("--rate", metavar="BITS", type=float, help="bits per pixel of each image, at most")
    target.add_argument("--psnr", metavar="DECIBELS", type=float, help="quality of each image, at least")
    lossless_help = "store an image as PNG or WebP without loss where that is smaller than the model's stream"
    compress.add_argument("--lossless-if-smaller", action="store_true", help=lossless_help)
    inspect_help = "tell what .7f files or an index folder hold, and check them; ends with 1 where a file is damaged"
    inspect = add("inspect", _inspect, inspect_help, "sevenfold inspect scans.7f")
    inspect.add_argument("path", metavar="PATH", type=Path, help="a .7f file, a folder of them, or an index folder")
    inspect.add_argument("--json", action="store_true", help="for machines")
    for job in (encode, score, impute):
        columns_help = "columns of the input that go along (default: all that the model does not use; no name: none)"
        job.add_argument("--columns", metavar="COLUMN", nargs="*", help=columns_help)
    list_help = "the code as one column `code`, a list, in place of a column for each value; not for .csv and .npz"
    encode.add_argument("--list", action="store_true", help=list_help)
    reasons_help = "whose features are told: of all rows (default), of flagged ones, which is faster, or of none"
    score.add_argument("--reasons", choices=("all", "flagged", "none"), help=reasons_help)
    flags_help = "whether each column comes with one that says which of its cells were filled (default: as trained)"
    impute.add_argument("--flags", action=argparse.BooleanOptionalAction, help=flags_help)
    draws_help = "so many fills of each gap with the uncertainty that is left (default: as trained)"
    impute.add_argument("--draws", metavar="NUMBER", type=int, help=draws_help)


def add_settings(job: argparse.ArgumentParser) -> None:
    """Add what every job can be told."""
    job.add_argument("--batch-size", metavar="ROWS", type=int, help="rows at a time (default: measured)")
    partition_help = "rows of a partition, the piece that is done or not when a job ends early (default: by operation)"
    job.add_argument("--partition-rows", metavar="ROWS", type=int, help=partition_help)
    job.add_argument("--workers", metavar="NUMBER", type=int, help="partitions at a time (default: one per processor)")
    job.add_argument(
        "--device", metavar="DEVICE", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there)"
    )
    job.add_argument("--engine", choices=("local", "ray"), default="local", help="this process, or a Ray cluster")
    job.add_argument("--separator", metavar="TEXT", help=SEPARATOR_HELP)
    begun = job.add_mutually_exclusive_group()
    begun.add_argument(
        "--resume",
        dest="begun",
        action="store_const",
        const="resume",
        default="continue",
        help="insist on going on with a job that ended early (by default done where there is one)",
    )
    begun.add_argument(
        "--restart", dest="begun", action="store_const", const="restart", help="throw away what such a job has done"
    )
    job.add_argument("--limit", metavar="ROWS", type=int, help="only the first rows of the input")
    bad_help = "rows that do not fit the model: an error (default), or into a file of their own, with the reason"
    job.add_argument("--on-bad-rows", choices=("fail", "quarantine"), default="fail", help=bad_help)
    drift_help = (
        "do not start where the first rows are farther from the training than this (population stability index)"
    )
    job.add_argument("--max-drift", metavar="NUMBER", type=float, help=drift_help)
    job.add_argument("--json", action="store_true", help="print the receipt for machines")


def settings(given: argparse.Namespace, **options: Any) -> "Settings":
    """Return the settings that were asked for, with those options of the operation that are not None."""
    from sevenfold.jobs import Settings

    return Settings(
        columns=None if getattr(given, "columns", None) is None else tuple(given.columns),
        batch_size=given.batch_size,
        partition_rows=given.partition_rows,
        workers=given.workers,
        device=given.device,
        engine=given.engine,
        begun=given.begun,
        limit=given.limit,
        on_bad_rows=given.on_bad_rows,
        max_drift=given.max_drift,
        separator=given.separator,
        options={name: value for name, value in options.items() if value is not None},
    )


def _batch(given: argparse.Namespace) -> int:
    options = {name: getattr(given, name, None) for name in ("reasons", "flags", "draws", "rate", "psnr")}
    options |= {name: getattr(given, name, None) or None for name in ("list", "lossless_if_smaller")}
    return run(given, given.operation, settings(given, **options))


def _inspect(given: argparse.Namespace) -> int:
    from sevenfold import archives, files, index_folders

    if (given.path / index_folders.MANIFEST).is_file():
        told = index_folders.inspect(given.path)
        text = index_folders.describe(told)
    else:
        told = archives.inspect(given.path)
        text = archives.told(told)
    print(files.dumps(told).rstrip() if given.json else text)
    return int(bool(told["damage"]))


def run(given: argparse.Namespace, operation: str, how: "Settings") -> int:
    """Run a job with MODEL, INPUT and OUTPUT as given, and print what came of it."""
    place = workspace.find()
    place.initialise()
    with place.settled():
        from sevenfold import files, jobs

        with going_on(lambda: given.output), shown() as show:
            receipt = jobs.run(
                place,
                operation=operation,
                model=given.model,
                source=given.input,
                destination=given.output,
                settings=how,
                on_progress=show,
            )
    if given.json:
        print(files.dumps(receipt.to_json()).rstrip())
        return 0
    before = receipt.details["rows_before"]
    now = receipt.rows + receipt.details["quarantined"] - before
    rate = now / max(receipt.seconds, 1e-9)
    what = "images" if operation in ("denoise", "compress", "decompress") else "rows"
    print(
        f"{given.output}: {receipt.rows:,} {what} by {receipt.model} in {receipt.seconds:.2f} s ({_rate(rate)} {what}/s)"
    )
    for line in _counted(receipt.details["numbers"]):
        print(line)
    if count := receipt.details["quarantined"]:
        where = _beside(given.output, jobs.quarantine_path)
        print(f"{where}: {count:,} rows that do not fit the model, each with the reason")
    if before:
        print(f"{before:,} of these rows were done before, by a run that ended early")
    tell_drift(receipt)
    print(f"receipt: {_beside(given.output, jobs.receipt_path)}")
    return 0


@contextmanager
def going_on(output: Callable[[], Path | str]) -> Iterator[None]:
    """Say, where a job is interrupted, how to go on with it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        from sevenfold import jobs, manifests

        if manifests.begun(*jobs.placed(output())):
            stays = "what is done stays: the same command goes on there, and with `--restart` it begins anew"
            print(stays, file=sys.stderr)
        raise


def tell_drift(receipt: "Receipt") -> None:
    """Print how far the first rows were from those of the training, and a warning where they were far."""
    if drift := receipt.details["drift"]:
        steady = drift["reading"] == "stable"
        print(f"{'' if steady else 'warning: '}{drift['sentence']}", file=sys.stdout if steady else sys.stderr)


def _counted(numbers: "Mapping[str, int]") -> list[str]:
    """Return lines about what the output's kind counted."""
    lines = []
    if "pixels" in numbers:
        lines.append(f"{numbers['bytes']:,} bytes, {8 * numbers['bytes'] / numbers['pixels']:.3f} bits per pixel")
    if count := numbers.get("larger_than_lossless", 0):
        lines.append(f"{count:,} images are larger than without loss; `--lossless-if-smaller` would store them so")
    if count := numbers.get("lossless", 0):
        lines.append(f"{count:,} images are stored without loss, which is smaller")
    if count := numbers.get("missed_target", 0):
        lines.append(f"{count:,} images miss the target; they come as near to it as the model can")
    if count := numbers.get("inexact", 0):
        lines.append(f"{count:,} images are not to the last bit what the encoder saw; see docs/compression.md")
    return lines


def _beside(output: Path | str, at: Callable[[Path], Path]) -> str:
    """Return where something lies beside an output, which may be an address."""
    if isinstance(output, Path):
        return str(at(output))
    folder, _, name = output.rstrip("/").rpartition("/")
    return f"{folder}/{at(Path(name)).name}"


@contextmanager
def shown() -> "Iterator[Callable[[Progress], None]]":
    """Give what shows rows, rate and time left on a terminal, a few times a second, and nothing elsewhere.

    Its line is gone at the end.
    """
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    start = last = time.monotonic()

    def show(progress: "Progress") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 0.2 and progress.rows != progress.total:
            return
        last = now
        rate = max(progress.rows - progress.before, 1) / max(now - start, 1e-9)
        text = f"{progress.rows:,} rows, {_rate(rate)} rows/s"
        if progress.total:
            left = (progress.total - progress.rows) / rate
            text = f"{progress.rows:,} of {progress.total:,} rows, {_rate(rate)} rows/s, {_clock(left)} left"
        width = shutil.get_terminal_size().columns - 1  # a longer line would begin a second one
        print(f"\r{text[:width]}{_REST}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print(f"\r{_REST}", end="", file=sys.stderr, flush=True)


def _rate(each_second: float) -> str:
    return f"{each_second:,.0f}" if each_second >= 10 else f"{each_second:.2g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
