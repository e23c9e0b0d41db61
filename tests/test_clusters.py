"""A job on a Ray cluster leaves the same bytes as in threads, fails the same way, and survives the end of a worker."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sevenfold import clusters, files, jobs, places
from sevenfold.datasets.base import DataError
from sevenfold.jobs import JobError
from tests import tiny

ROOT = Path(__file__).parents[1]


def run(source, output, operation="encode", kind="table", name="anomaly", bundle=None, **more):
    return tiny.job(source, output, operation, kind, name, bundle, **{"engine": "ray"} | more)


def digests(folder, name):
    """Return what a user finds of an output, but for receipt and manifest, which hold times."""
    found = [*folder.glob(f"{name}*"), *folder.glob(f"{name}*/**/*")]
    return {
        p.relative_to(folder).as_posix().removeprefix(name): files.digest(p)
        for p in found
        if p.is_file() and p.suffix != ".json"
    }


@pytest.fixture
def rows(tmp_path):
    frame = tiny.table(640).frame
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=64)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    return tmp_path / "rows.parquet"


@pytest.fixture(scope="module")
def cluster():
    """A cluster that is there already, as a session of a user's own may have one: it takes seconds to start."""
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with clusters.connected(2):
            yield ray
    signal.signal(signal.SIGTERM, handler)


def workers():
    """Return the processes of Ray that work on partitions, by their numbers."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "cmdline").read_bytes().decode().replace("\0", " ")
        except OSError:
            continue
        if said.startswith("ray::") and "_attempt" in said:
            found[int(place.name)] = said
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "output", "operation", "more"),
    [
        ("rows.parquet", "", "encode", {}),
        ("rows.parquet", ".parquet", "encode", {"limit": 100, "columns": ("customer",)}),
        ("rows.csv", ".csv", "score", {"options": {"reasons": "none"}}),
        ("rows.csv", ".npz", "score", {"options": {"reasons": "flagged"}}),
    ],
)
def test_output_is_that_of_threads(tmp_path, rows, cluster, source, output, operation, more):
    seen = []
    receipt = run(
        tmp_path / source, tmp_path / f"ray{output}", operation, on_progress=lambda p: seen.append(p.rows), **more
    )
    run(tmp_path / source, tmp_path / f"threads{output}", operation, engine="local", **more)
    assert digests(tmp_path, "ray") == digests(tmp_path, "threads")
    assert receipt.details["engine"] == "ray"
    assert receipt.details["partitions"] >= 2
    assert sorted(seen) == seen
    assert seen[-1] == receipt.rows == more.get("limit", 640)
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.slow
def test_a_path_from_the_current_folder_is_the_same_file_for_every_worker(tmp_path, rows, cluster, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(Path("rows.parquet"), Path("ray.parquet"), "encode").rows == 640


@pytest.mark.slow
def test_images_are_denoised_as_in_threads(tmp_path, cluster, monkeypatch):
    from sevenfold import images, sources

    monkeypatch.setattr(sources, "MOST_PIXELS", 48 * 8)
    for number, image in enumerate(tiny.images(30).images):
        (tmp_path / "in" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        images.save(tmp_path / "in" / str(number % 3) / f"{number}.png", image)
    for engine in ("ray", "local"):
        run(tmp_path / "in", tmp_path / engine, "denoise", "images", "denoising", engine=engine)
    assert len(digests(tmp_path, "ray")) == 30
    assert digests(tmp_path, "ray") == digests(tmp_path, "local")


@pytest.mark.slow
def test_images_are_compressed_and_decompressed_as_in_threads(tmp_path, cluster, monkeypatch):
    from sevenfold import bundles, images, sources

    monkeypatch.setattr(sources, "MOST_PIXELS", 32 * 32 * 2)
    bundle = bundles.load(ROOT / "tests" / "vectors" / "convolutional" / "bundle")
    channels, height, width = bundle.schema.shape
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(6):
        pixels = random.integers(0, 256, (height, width, channels)[: 3 if channels > 1 else 2], np.uint8)
        images.save(tmp_path / "in" / f"{number}.png", pixels)
    for engine in ("ray", "local"):
        run(tmp_path / "in", tmp_path / f"{engine}.7f", "compress", bundle=bundle, engine=engine)
        run(tmp_path / "in", tmp_path / f"{engine}-each", "compress", bundle=bundle, engine=engine)
        run(tmp_path / f"{engine}-each", tmp_path / f"{engine}-back", "decompress", bundle=bundle, engine=engine)
    assert len(digests(tmp_path, "ray")) == 13
    assert digests(tmp_path, "ray") == digests(tmp_path, "local")


@pytest.mark.slow
def test_a_job_that_failed_in_the_middle_goes_on(tmp_path, rows, cluster):
    def stop(progress):
        if progress.rows > 256:
            raise OSError("the power went out")

    with pytest.raises(JobError, match=r"partition \d .*failed: the power went out; 4 partitions are done and stay"):
        run(rows, tmp_path / "ray", on_progress=stop)
    assert not (tmp_path / "ray").exists()
    receipt = run(rows, tmp_path / "ray", begun="resume")
    assert receipt.details["partitions_before"] == 4
    run(rows, tmp_path / "threads", engine="local")
    assert digests(tmp_path, "ray") == digests(tmp_path, "threads")


@pytest.mark.slow
def test_what_threads_began_a_cluster_ends(tmp_path, rows, cluster):
    def stop(progress):
        if progress.rows > 256:
            raise OSError("the power went out")

    with pytest.raises(JobError, match="the power went out"):
        run(rows, tmp_path / "ray.parquet", on_progress=stop, engine="local", workers=1)
    assert run(rows, tmp_path / "ray.parquet").details["partitions_before"] == 4


@pytest.mark.slow
def test_bad_rows_are_told_all_at_once_or_put_aside_as_in_threads(tmp_path, cluster):
    frame = tiny.table(640).frame
    frame["age"] = frame["age"].astype(float)
    frame.loc[70, "city"] = "Atlantis"
    frame.loc[630, "age"] = float("inf")
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=64)
    told = []
    for engine in ("ray", "local"):
        with pytest.raises(DataError) as failure:
            run(tmp_path / "rows.parquet", tmp_path / f"{engine}.parquet", engine=engine)
        told.append(set(failure.value.problems[:-1]))
        run(
            tmp_path / "rows.parquet",
            tmp_path / f"{engine}.parquet",
            engine=engine,
            on_bad_rows="quarantine",
            begun="restart",
        )
    assert told[0] == told[1]
    assert len(told[0]) == 2
    assert ".parquet.quarantine.parquet" in digests(tmp_path, "ray")
    assert digests(tmp_path, "ray") == digests(tmp_path, "local")


@pytest.mark.slow
def test_a_partition_that_fails_is_named(tmp_path, rows, cluster):
    def touch(progress):
        os.utime(rows)

    with pytest.raises(
        JobError, match=r"partition \d \(rows \d+ to \d+ of rows.parquet\) failed: the input changed"
    ) as failure:
        run(rows, tmp_path / "out", on_progress=touch)
    assert "in work" in "".join(failure.value.__cause__.__notes__)  # where it was in the worker


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(tmp_path, cluster):
    tiny.table(64 * 60).frame.to_parquet(tmp_path / "rows.parquet", row_group_size=64)
    killed = set()

    def kill(progress):
        for number in workers().keys() - killed if len(killed) < 3 else ():
            killed.add(number)
            os.kill(number, signal.SIGKILL)

    # In batches of one row a partition takes long enough to be met at work.
    run(tmp_path / "rows.parquet", tmp_path / "ray", on_progress=kill, batch_size=1)
    assert len(killed) >= 3
    run(tmp_path / "rows.parquet", tmp_path / "threads", engine="local")
    assert digests(tmp_path, "ray") == digests(tmp_path, "threads")
    assert list(tmp_path.glob(".*")) == []


PROGRAM = """
import os, psutil, signal, sys
from pathlib import Path
from sevenfold import bundles, jobs

def tell(progress):
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    doors = {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert doors and doors <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, doors
    if len(sys.argv) > 2 and progress.rows > 256:
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
settings = jobs.Settings(batch_size=64, partition_rows=64, workers=2, engine="ray")
before = signal.getsignal(signal.SIGTERM)
jobs.apply(bundles.load(folder / "bundle"), "m/1", "d" * 64, "encode", folder / "rows.parquet", folder / "ray", settings,
           on_progress=tell)
assert signal.getsignal(signal.SIGTERM) == before
"""


@pytest.mark.slow
def test_a_cluster_of_its_own_says_nothing_and_leaves_nothing_even_when_the_job_is_killed(tmp_path, rows):
    tiny.saved(tmp_path / "bundle", "table", "anomaly")
    mark = {"SEVENFOLD_TEST_MARK": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | mark
    for arguments, code in ((["kill"], -signal.SIGKILL), ([], 0)):
        command = [sys.executable, "-W", "error::ResourceWarning", "-c", PROGRAM, str(tmp_path), *arguments]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            said, _ = process.communicate(timeout=300)
        assert (process.returncode, said) == (code, "")
        rooms = [*Path("/tmp").glob(f"ray-{process.pid}-*")]
        assert len(rooms) == (code != 0)
        for room in rooms:
            shutil.rmtree(room, ignore_errors=True)
    # Of a job that was killed, one process of Ray waits a minute for the others to come back.
    end = time.monotonic() + 180
    while (left := marked(str(tmp_path))) and time.monotonic() < end:
        time.sleep(0.5)
    assert left == []
    run(rows, tmp_path / "threads", engine="local")
    assert digests(tmp_path, "ray") == digests(tmp_path, "threads")
    assert list(tmp_path.glob(".*")) == []


def marked(mark):
    """Return the command lines of all processes that come from one that had this mark."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"SEVENFOLD_TEST_MARK={mark}".encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_bytes().decode().replace("\0", " ")[:200])
        except OSError:
            continue
    return found


def test_without_ray_the_remedy_is_told_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"Ray is not installed; run `pip install 'sevenfold\[ray\]'`"):
        run(tmp_path / "nothing.parquet", tmp_path / "out")


def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path, rows, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever other tests are connected to
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RuntimeError, match=rf"RAY_ADDRESS is {address}, and nobody answers there .*`ray start --head`"):
        run(rows, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.csv", "rows.parquet"]


def attempted(parts, version=None, content=None, meanwhile=lambda: None):
    """Return what a worker tells of a partition."""
    import pyarrow

    from sevenfold import __version__, sinks, sources

    task = jobs.Task("encode", None, 64, False, sinks.Arrays(pyarrow.schema([])), None, parts, {})
    part = next(sources.open_source(parts.parent / "rows.parquet").partitions(64))
    given = {"content": content or {}, "task": task, "only_look": False, "version": version or __version__}
    meanwhile()
    return clusters._result(part, json.loads(clusters._attempt({"part": part}, **given)["told"]))


def test_a_machine_with_another_version_or_without_the_folder_is_told(tmp_path, rows):
    assert "expected 0.0; install that there" in str(attempted(tmp_path / "parts", version="0.0"))
    assert "expected one that all machines of the cluster share" in str(attempted(tmp_path / "elsewhere"))


def test_an_input_that_changed_meanwhile_is_known_by_its_kind_when_it_comes_back(tmp_path, rows):
    (tmp_path / "parts").mkdir()
    content = clusters._content(tiny.bundle("table", "anomaly"))
    found = attempted(tmp_path / "parts", content=content, meanwhile=lambda: os.utime(rows))
    assert isinstance(found, places.ChangedError)
    assert "rows.parquet was written to" in str(found)


def test_a_device_that_a_cluster_would_not_use_is_refused():
    with pytest.raises(
        ValueError, match="device is 'cuda' with engine 'ray', whose workers compute on processors; expected cpu"
    ):
        jobs.Settings(engine="ray", device="cuda")
