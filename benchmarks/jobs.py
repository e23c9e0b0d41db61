"""Batch jobs beside what the machine can do: rows and megabytes per second, and peak memory, of 10^5, 10^6 and 10^7 rows.

    python benchmarks/jobs.py FOLDER [--rows 100000 1000000] [--rounds 3] [--write]

FOLDER takes the inputs (4 GB for 10^7 rows of 100 columns of float32) and outputs. Each measurement is a process of its own,
and those of one size take turns. The peer is PyOD's scoring of the same file (extra `bench`; left out where it is not
installed).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import page
import torch

COLUMNS, CODE, HIDDEN = 100, 16, 64
SHARE, PEER, DENOISING, MEMORY = 0.7, 15.0, 0.9, 1500
"""Bars: of the sequence's rate, times PyOD's rate, of the bare network's rate, and megabytes."""

MOST_FOR_PEER = 1_000_000
"""Rows of the largest file that the peer scores: it takes minutes for ten times as many."""

GROUP = 1 << 18


def table_at(folder: Path, rows: int) -> Path:
    """Return a Parquet file of standard normal noise, which is written where it is not there yet."""
    import pyarrow
    import pyarrow.parquet

    path = folder / f"rows-{rows}.parquet"
    if not path.is_file():
        chance = np.random.default_rng(rows)
        names = [f"c{i}" for i in range(COLUMNS)]
        schema = pyarrow.schema([(name, pyarrow.float32()) for name in names])
        draft = path.with_suffix(".draft")
        with pyarrow.parquet.ParquetWriter(draft, schema, use_dictionary=False) as writer:
            for start in range(0, rows, GROUP):
                values = chance.standard_normal((COLUMNS, min(GROUP, rows - start)), dtype=np.float32)
                writer.write_table(pyarrow.table(dict(zip(names, values, strict=True))), row_group_size=GROUP)
        draft.rename(path)
    return path


def bundle_at(folder: Path, name: str, options: dict[str, Any]) -> Path:
    """Return a bundle of a 100-64-16 autoencoder with an application, trained for a moment: its speed is what counts."""
    import pandas as pd

    from sevenfold import bundles, evaluation, formats, modules, preparation, training
    from sevenfold.applications.base import Application
    from sevenfold.models.base import ModelSpec

    path = folder / f"bundle-{name}"
    if path.is_dir():
        return path
    values = np.random.default_rng(0).standard_normal((10_000, COLUMNS)).astype(np.float32)
    rows = formats.Rows(pd.DataFrame(values, columns=[f"c{i}" for i in range(COLUMNS)]))
    data = preparation.prepare(
        "noise",
        rows,
        label=None,
        normal=None,
        identifier=None,
        group=None,
        drop=(),
        categorical=(),
        value_range=None,
        duplicates="error",
        validation=0.2,
        test=0.2,
        seed=0,
    )
    settings = training.Settings(
        epochs=1,
        patience=1,
        batch_size=256,
        learning_rate=0.001,
        warmup=0.1,
        weight_decay=0.0,
        gradient_clip=1.0,
        threads=1,
    )
    given = {"code": CODE, "hidden": [HIDDEN], "activation": "silu", "blocks": 0, "tied": False, "augment": []}
    given |= {"numbers": "standard", "categories": "one-hot"}
    spec = ModelSpec.of("deep", data.schema.layout, given)
    application = modules.member("applications", name, Application)(**options)
    learn = evaluation.learned_from(application, data)
    model, _ = training.fit(spec, learn, data.validation, settings, seed=0, device="cpu", on_epoch=lambda epoch: None)
    calibrated = application.calibrate(model, learn, data.validation)
    bundles.save(path, bundles.Bundle(spec, model, data.schema, name, calibrated, {"candidate": "noise-deep"}))
    return path


def read(path: Path) -> int:
    """Read all columns of a file, a row group at a time, with all cores."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as source:
        return sum(len(source.read_row_group(i)) for i in range(source.num_row_groups))


def write(path: Path, rows: int, columns: int, folder: Path) -> int:
    """Write as many rows of float32 columns as a job gives."""
    import pyarrow
    import pyarrow.parquet

    values = np.random.default_rng(0).standard_normal((columns, GROUP), dtype=np.float32)
    table = pyarrow.table({f"c{i}": values[i] for i in range(columns)})
    with pyarrow.parquet.ParquetWriter(folder / "written.parquet", table.schema, use_dictionary=False) as writer:
        for start in range(0, rows, GROUP):
            writer.write_table(table.slice(0, min(GROUP, rows - start)))
    (folder / "written.parquet").unlink()
    return rows


@torch.inference_mode()
def products(bundle: Path, rows: int, act: str) -> int:
    """Put rows that lie in memory through the network: the encoder, or encoder and decoder."""
    from sevenfold import bundles

    model = bundles.load(bundle).model
    x = torch.randn(4096, COLUMNS)
    for _ in range(0, rows, len(x)):
        if act == "encode":
            model.encode(x)
        else:
            model(x)
    return rows


def job(bundle: Path, source: Path, output: Path, operation: str, options: dict[str, Any]) -> int:
    from sevenfold import bundles, jobs

    receipt = jobs.apply(
        bundles.load(bundle), "noise/1", "0" * 64, operation, source, output, jobs.Settings(options=options)
    )
    return receipt.rows


def pyod(source: Path, bundle: Path) -> int:
    """Score a file as a user of PyOD does: read it, and call the detector, which has a network of the same sizes."""
    import pandas as pd
    from pyod.models.auto_encoder import AutoEncoder

    values = np.random.default_rng(0).standard_normal((10_000, COLUMNS))
    detector = AutoEncoder(epoch_num=1, hidden_neuron_list=[HIDDEN, CODE], verbose=0, random_state=0)
    detector.fit(values)
    start = time.perf_counter()
    frame = pd.read_parquet(source)
    scores = detector.decision_function(frame.to_numpy())
    pd.DataFrame({"score": scores}).to_parquet(source.with_name("pyod.parquet"))
    source.with_name("pyod.parquet").unlink()
    print(json.dumps({"rows": len(frame), "seconds": time.perf_counter() - start, "megabytes": peak()}))
    sys.exit(0)


def peak() -> int:
    """Return the largest memory that this process has had, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1000


CONTENDERS: dict[str, Callable[[Path, Path, int], int]] = {
    "reading": lambda folder, source, rows: read(source),
    "encoder": lambda folder, source, rows: products(folder / "bundle-reduction", rows, "encode"),
    "network": lambda folder, source, rows: products(folder / "bundle-anomaly", rows, "score"),
    "writing codes": lambda folder, source, rows: write(source, rows, CODE, folder),
    "writing scores": lambda folder, source, rows: write(source, rows, 3, folder),
    "encode": lambda folder, source, rows: job(folder / "bundle-reduction", source, folder / "encoded", "encode", {}),
    "score": lambda folder, source, rows: job(
        folder / "bundle-anomaly", source, folder / "scored", "score", {"reasons": "none"}
    ),
    "score, reasons of flagged rows": lambda folder, source, rows: job(
        folder / "bundle-anomaly", source, folder / "reasoned", "score", {"reasons": "flagged"}
    ),
    "PyOD": lambda folder, source, rows: pyod(source, folder),
}


def measured(folder: Path, name: str, rows: int) -> dict[str, float]:
    """Return rows, seconds and megabytes of one contender, in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--measure", name, "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} at {rows:,} rows failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(folder: Path, name: str, rows: int) -> None:
    import pyarrow.parquet  # noqa: F401 (importing is no part of the work)

    from sevenfold import bundles, jobs  # noqa: F401

    source = table_at(folder, rows)
    start = time.perf_counter()
    count = CONTENDERS[name](folder, source, rows)
    print(json.dumps({"rows": count, "seconds": time.perf_counter() - start, "megabytes": peak()}))


def sequence(rates: dict[str, float], *names: str) -> float:
    """Return the rows per second of these one after the other."""
    return 1 / sum(1 / rates[name] for name in names)


def compared(folder: Path, rows: int, rounds: int) -> tuple[list[list[str]], dict[str, float], dict[str, float]]:
    """Return lines of a table, the median rates, and the peaks of memory."""
    names = [n for n in CONTENDERS if n != "PyOD" or rows <= MOST_FOR_PEER]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in [*found]:
            try:
                found[name].append(measured(folder, name, rows))
            except RuntimeError as error:
                if name != "PyOD" or "pyod" not in str(error):
                    raise
                del found[name]
    rates = {n: float(np.median([one["rows"] / one["seconds"] for one in some])) for n, some in found.items()}
    peaks = {n: max(one["megabytes"] for one in some) for n, some in found.items()}
    size = table_at(folder, rows).stat().st_size / rows
    lines = []
    for name, some in found.items():
        each = [one["rows"] / one["seconds"] for one in some]
        rate = f"{rates[name]:,.0f} ({min(each):,.0f} to {max(each):,.0f})"
        lines.append([f"{rows:,}", name, rate, f"{rates[name] * size / 1e6:,.0f}", f"{peaks[name]:,.0f}"])
    return lines, rates, peaks


def verdicts(rows: int, rates: dict[str, float], peaks: dict[str, float]) -> list[str]:
    def met(there: bool) -> str:
        return "met" if there else "missed"

    said = []
    for name, parts in (
        ("encode", ("reading", "encoder", "writing codes")),
        ("score", ("reading", "network", "writing scores")),
    ):
        one = rates[name] / sequence(rates, *parts)
        said.append(
            f"{name} at {rows:,} rows: {one:.2f} of reading, products and writing in sequence, "
            f"{sequence(rates, *parts):,.0f} rows/s (bar {SHARE}: {met(one >= SHARE)})"
        )
    if "PyOD" in rates:
        for name in ("score", "score, reasons of flagged rows"):
            times = rates[name] / rates["PyOD"]
            said.append(f"{name} at {rows:,} rows: {times:.1f} times PyOD's rate (bar {PEER:g}: {met(times >= PEER)})")
    most = max(peaks[n] for n in ("encode", "score"))
    said.append(
        f"peak memory of encode and score at {rows:,} rows: {most:,.0f} MB (bar {MEMORY:,}: {met(most <= MEMORY)})"
    )
    return said


def denoising(rounds: int) -> tuple[list[list[str]], str]:
    """Compare the restoration of a photograph's size by a job with the bare network on the very tiles that it is given.

    The weights are as they were drawn, since speed alone counts. Both have one thread, and memory stays with the process, as in
    each worker of a job.
    """
    from sevenfold import jobs
    from sevenfold.applications.denoising import Denoising
    from sevenfold.datasets.base import ImageSchema, Split
    from sevenfold.layouts import Layout
    from sevenfold.models.base import ModelSpec

    jobs.keep_memory()
    chance = np.random.default_rng(0)
    options = {"channels": [32, 64], "blocks": 1, "activation": "relu", "shuffle": 2, "levels": [0.0, 0.22]}
    model: Any = ModelSpec.of("residual", Layout((1, 48, 48)), {**options, "doubt": 0.1, "augment": []}).build().eval()
    small = Split(chance.random((32, 1, 48, 48), np.float32), None, None, None, np.arange(32))
    application = Denoising(levels=[0.06, 0.1, 0.2], known=False).measuring(small)
    application.state |= {"caution": np.ones(3), "kept": np.zeros(3)}
    schema = ImageSchema((1, 48, 48), 0.0, 255.0, "uint8").any_size()
    image = chance.random((1, 1, 1536, 2048), np.float32)
    tiles: list[tuple[torch.Tensor, torch.Tensor]] = []
    restore = model.restore
    model.restore = lambda x, level: tiles.append((x.clone(), level)) or restore(x, level)
    application.predict(model, image, None, schema)
    model.restore = restore

    @torch.inference_mode()
    def bare() -> None:
        for x, level in tiles:
            restore(x, level)

    seconds: dict[str, list[float]] = {"a job's restoration": [], "the bare network": []}
    for _ in range(max(rounds, 15)):  # of a second or two each, which other work may double
        for name, act in zip(seconds, (lambda: application.predict(model, image, None, schema), bare), strict=True):
            with jobs.few_threads(None):
                start = time.perf_counter()
                act()
                seconds[name].append(time.perf_counter() - start)
    pixels = image.size / 1e6
    lines = [[name, f"{pixels / float(np.median(some)):.2f}", str(len(tiles))] for name, some in seconds.items()]
    share = float(np.median(seconds["the bare network"]) / np.median(seconds["a job's restoration"]))
    met = "met" if share >= DENOISING else "missed"
    return lines, f"denoising: {share:.2f} of the bare network's rate on the same tiles (bar {DENOISING}: {met})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for inputs and outputs")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured, in turn")
    parser.add_argument("--write", action="store_true", help="put the result into docs/benchmarks.md")
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.measure:
        measure(given.folder, given.measure, given.rows[0])
        return
    bundle_at(given.folder, "reduction", {"code": CODE, "neighbours": 12})
    anomaly = {"policy": "quantile", "value": 0.99, "share": None, "neighbours": 5, "references": 16384, "reasons": 3}
    bundle_at(given.folder, "anomaly", anomaly)
    lines: list[list[str]] = []
    said: list[str] = []
    seconds: list[float] = []
    for rows in sorted(given.rows):
        table_at(given.folder, rows)
        found, rates, peaks = compared(given.folder, rows, given.rounds if rows <= MOST_FOR_PEER else 1)
        lines += found
        said += verdicts(rows, rates, peaks)
        seconds.append(rows / rates["encode"])
    tiles, words = denoising(given.rounds)
    said.append(words)
    head = ["rows", "", "rows/s, median (range)", "MB/s of the input", "peak MB"]
    body = (
        f"A file of {COLUMNS} columns of float32, and an autoencoder {COLUMNS}-{HIDDEN}-{CODE}. Each line is a process of its "
        "own; imports are not counted, loading the model is. Reading, the network alone and writing use all cores, one after "
        f"the other; a job overlaps them and takes digests of what it reads and writes, too.\n\n{page.table(head, lines)}\n\n"
        "A grey photograph of 2048x1536 pixels through the network of `photos-residual`, with the noise measured, by one thread:\n\n"
        f"{page.table(['', 'megapixels/s', 'tiles'], tiles)}\n\n" + "\n".join(f"- {one}" for one in said)
    )
    text = page.section("Batch jobs", body, ["pyarrow"])
    print(text)
    if given.write:
        page.write("jobs", text)


if __name__ == "__main__":
    main()
