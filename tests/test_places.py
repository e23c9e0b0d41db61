"""Rows that lie in an object store are worked on as those of this machine, and what comes of them lies there whole."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest

from sevenfold import bundles, cli, images, jobs, manifests, places, sources
from sevenfold.datasets.base import DataError
from sevenfold.formats import FormatError
from sevenfold.jobs import JobError
from sevenfold.manifests import ResumeError
from sevenfold.registry import promotion, versions
from tests import seaweed, tiny

ROOT = Path(__file__).parents[1]


def run(source, output, operation="encode", kind="table", name="anomaly", bundle=None, **more):
    return tiny.job(source, output, operation, kind, name, bundle, **more)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder in which this machine makes what is to be elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sevenfold" / "jobs"


@pytest.fixture
def memory():
    """A store in this process's memory, as a file system."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.fixture
def given(tmp_path):
    """Inputs of several kinds in a folder of this machine."""
    folder = tmp_path / "given"
    frame = tiny.table(320).frame
    (folder / "parquet" / "more").mkdir(parents=True)
    (folder / "csv").mkdir()
    frame.to_parquet(folder / "rows.parquet", row_group_size=64)
    frame[:160].to_parquet(folder / "parquet" / "a.parquet", row_group_size=64)
    frame[160:].to_parquet(folder / "parquet" / "more" / "b.parquet", row_group_size=64)
    frame[:100].to_csv(folder / "csv" / "a.csv", index=False)
    frame[100:].to_csv(folder / "csv" / "b.csv.gz", index=False)
    np.savez(folder / "rows.npz", **{c: frame[c].to_numpy(np.str_) for c in ("city", "vip", "customer")},
             age=frame["age"].to_numpy(), income=frame["income"].to_numpy())  # fmt: skip
    for number, image in enumerate(tiny.images(30).images):
        (folder / "images" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        images.save(folder / "images" / str(number % 3) / f"{number}.png", image)
    return folder


def put(system, folder, there):
    """Put all files of a folder below an address."""
    for path in folder.rglob("*"):
        if path.is_file():
            system.put_file(str(path), f"{there}/{path.relative_to(folder).as_posix()}")


def here(folder, name):
    """Return what a user finds of an output on this machine."""
    found = [*folder.glob(f"{name}*"), *folder.glob(f"{name}*/**/*")]
    return {p.relative_to(folder).as_posix().removeprefix(name): p.read_bytes() for p in found if p.is_file()}


def there(system, folder, name):
    """Return the same of an output elsewhere."""
    start = f"{folder}/{name}"
    return {p.removeprefix(start): system.cat_file(p) for p in system.find(folder) if p.startswith(start)}


def rows_of(contents):
    """Return the contents without receipt and manifest, which hold times and addresses."""
    return {name: content for name, content in contents.items() if not name.endswith(".json")}


@pytest.mark.parametrize(
    ("source", "output", "operation"),
    [
        ("rows.parquet", "", "encode"),
        ("rows.parquet", ".parquet", "score"),
        ("parquet", "", "score"),
        ("parquet/*/b.*", ".csv", "score"),
        ("csv", ".csv", "score"),
        ("csv/*.csv", ".npz", "score"),
        ("rows.npz", ".npz", "encode"),
        ("images", "", "denoise"),
        ("images/1/*.png", ".npz", "denoise"),
        ("**/*.parquet", "", "encode"),
    ],
)
def test_output_is_that_of_local_files(tmp_path, given, memory, cache, monkeypatch, source, output, operation):
    monkeypatch.setattr(sources, "MOST_PIXELS", 48 * 8)
    put(memory, given, "/bucket/given")
    kind = ("images", "denoising") if operation == "denoise" else ("table", "anomaly")
    local = run(given / source, tmp_path / f"out{output}", operation, *kind)
    far = run(f"memory://bucket/given/{source}", f"memory://bucket/made/out{output}", operation, *kind)
    made = there(memory, "/bucket/made", f"out{output}")
    assert rows_of(made) == rows_of(here(tmp_path, f"out{output}"))
    assert json.loads(made[".receipt.json"]) == far.to_json()
    assert (far.input, far.output) == (f"memory://bucket/given/{source}", f"memory://bucket/made/out{output}")
    assert (far.input_digest, far.output_digest) == (local.input_digest, local.output_digest)
    manifests_ = [json.loads(m[".manifest.json"]) for m in (made, here(tmp_path, f"out{output}"))]
    for part in ("inputs", "partitions"):
        assert manifests_[0][part] == manifests_[1][part]
    assert not any(".partial" in p for p in memory.find("/bucket"))
    assert [*cache.glob("*")] == []


@pytest.mark.parametrize("output", ["small", "small.7f"])
def test_images_are_compressed_and_decompressed_elsewhere(tmp_path, memory, cache, output):
    bundle = bundles.load(ROOT / "tests" / "vectors" / "convolutional" / "bundle")
    channels, height, width = bundle.schema.shape
    random = np.random.default_rng(0)
    (tmp_path / "in" / "more").mkdir(parents=True)
    for name in ("a", "more/b", "more/c"):
        pixels = random.integers(0, 256, (height, width, channels)[: 3 if channels > 1 else 2], np.uint8)
        images.save(tmp_path / "in" / f"{name}.png", pixels)
    put(memory, tmp_path / "in", "/bucket/in")
    run(tmp_path / "in", tmp_path / output, "compress", bundle=bundle)
    run("memory://bucket/in", f"memory://bucket/made/{output}", "compress", bundle=bundle)
    assert rows_of(there(memory, "/bucket/made", "small")) == rows_of(here(tmp_path, "small"))
    run(tmp_path / output, tmp_path / "back", "decompress", bundle=bundle)
    run(f"memory://bucket/made/{output}", "memory://bucket/made/back", "decompress", bundle=bundle)
    assert rows_of(there(memory, "/bucket/made", "back")) == rows_of(here(tmp_path, "back"))
    assert len(rows_of(here(tmp_path, "back"))) == 3
    assert [*cache.glob("*")] == []


def test_a_command_takes_addresses_and_says_where_all_of_it_lies(tmp_path, memory, monkeypatch, capsys):
    frame = tiny.table(60).frame
    frame.loc[7, "city"] = "Atlantis"
    frame.to_parquet(tmp_path / "rows.parquet")
    memory.put_file(str(tmp_path / "rows.parquet"), "/bucket/rows.parquet")
    with tiny.workspace(tmp_path / "place") as place:
        for name in ("params.yaml", "dvc.yaml"):
            (place.root / name).touch()
        monkeypatch.chdir(place.root)
        tiny.saved(place.root / "bundle", "table", "anomaly")
        arguments = ["encode", "bundle", "memory://bucket/rows.parquet", "memory://bucket/made/codes/"]
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--on-bad-rows", "quarantine"])
        out, err = capsys.readouterr()
    assert not ended.value.code, err
    assert "memory://bucket/made/codes.quarantine.parquet: 1 rows that do not fit the model" in out
    assert "receipt: memory://bucket/made/codes.receipt.json" in out
    assert {"/part-00000.parquet", ".receipt.json"} <= set(there(memory, "/bucket/made", "codes"))


def test_a_promotion_meanwhile_does_not_mix_two_models_wherever_the_job_goes_on(given, memory, tmp_path, monkeypatch):
    put(memory, given, "/bucket/given")
    settings = jobs.Settings(batch_size=64, partition_rows=64, workers=1)

    def stop(progress):
        if progress.rows > 128:
            raise StopError

    with tiny.workspace(tmp_path / "place") as place:

        def promote(seed):
            folder = tiny.saved(place.root / f"bundle-{seed}", "table", "anomaly", seed)
            nothing = {"params": {}, "metrics": {}, "artifacts": [], "tags": {}, "description": ""}
            curves = pd.DataFrame({"epoch": [1], "train_loss": [1.0]})
            found, _ = versions.publish(place, "table-anomaly", folder, curves=curves, **nothing)
            promotion.promote(place, found, reasons=["a test"], by_hand=True)
            return found

        def job(on_progress):
            rows, output = "memory://bucket/given/rows.parquet", "memory://bucket/made/out"
            given = {"model": "table-anomaly", "source": rows, "destination": output, "settings": settings}
            return jobs.run(place, operation="encode", on_progress=on_progress, **given)

        first = promote(0)
        with pytest.raises(JobError, match="2 partitions are done"):
            job(stop)
        promote(1)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        receipt = job(lambda progress: None)
    assert (receipt.model, receipt.details["partitions_before"]) == (first.label, 2)


def test_input_elsewhere_and_output_here_and_the_other_way_round(tmp_path, given, memory, cache):
    put(memory, given, "/bucket/given")
    run("memory://bucket/given/rows.parquet", tmp_path / "out.parquet")
    run(given / "rows.parquet", "memory://bucket/made/out.parquet")
    assert rows_of(there(memory, "/bucket/made", "out")) == rows_of(here(tmp_path, "out"))
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_a_file_address_is_a_path(tmp_path, given):
    receipt = run(f"file://{given}/rows.parquet", f"file://{tmp_path}/out.parquet")
    assert (receipt.input, receipt.output) == (str(given / "rows.parquet"), str(tmp_path / "out.parquet"))
    assert (tmp_path / "out.parquet").is_file()


@pytest.mark.parametrize(
    "url",
    [
        "s3://me:secret@bucket/rows.parquet",
        "https://host/rows.parquet?token=secret",
        "s3://bucket/rows.parquet?token=secret",
        "simplecache::https://me:secret@host/rows.parquet",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(tmp_path, given, url):
    for source, output in ((url, tmp_path / "out"), (given / "rows.parquet", url)):
        with pytest.raises(
            ValueError, match=r"the address \w+://\.\.\./rows\.parquet holds a .*; expected none"
        ) as failure:
            run(source, output)
        assert "secret@" not in str(failure.value)
        assert "token" not in str(failure.value)


def test_an_unknown_kind_of_address_and_one_without_its_library_are_told(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"ftq:// is no kind of place that fsspec knows"):
        run("ftq://bucket/rows.parquet", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(
        RuntimeError, match=r"s3:// needs a library that is not installed .*pip install 'sevenfold\[s3\]'"
    ):
        run("s3://bucket/rows.parquet", tmp_path / "out")


def test_what_is_not_there_or_of_several_kinds_is_told_as_of_files(tmp_path, given, memory):
    put(memory, given, "/bucket/given")
    with pytest.raises(FileNotFoundError, match="memory://bucket/nothing does not exist; check the address"):
        run("memory://bucket/nothing", tmp_path / "out")
    with pytest.raises(FormatError, match="memory://bucket/given holds files of several kinds"):
        run("memory://bucket/given", tmp_path / "out")
    memory.pipe_file("/bucket/broken.parquet", b"PAR1 and no more")
    with pytest.raises(FormatError, match=r"broken\.parquet cannot be read"):
        run("memory://bucket/broken.parquet", tmp_path / "out")


def test_fetched_files_go_again_when_they_are_read(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(places, "KEPT", 0)
    for number in range(12):
        tiny.table(128, seed=number).frame.to_parquet(tmp_path / "one.parquet", row_group_size=64)
        memory.put_file(str(tmp_path / "one.parquet"), f"/bucket/rows/{number:02}.parquet")
    seen = []

    def look(progress):
        room = manifests.inputs(tmp_path / "out")
        seen.append(len([p for p in room.rglob("*.parquet") if not p.name.startswith(".")]))

    reads = []
    real = places._fetched
    monkeypatch.setattr(places, "_fetched", lambda found, target: reads.append(found.name) or real(found, target))
    run("memory://bucket/rows", tmp_path / "out", on_progress=look)
    assert max(seen) <= 3  # one for each of two workers, and the last one
    assert min(seen) >= 1
    # A file comes once for each partition at most, and its digest with it; those with the first rows came before, too.
    assert set(reads) == {f"{number:02}.parquet" for number in range(12)}
    assert len(reads) <= 12 * 3


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_of_a_large_text_only_the_beginning_is_fetched_for_its_header(tmp_path, memory, monkeypatch, name):
    monkeypatch.setattr(places, "BEGINNING", 1 << 18)
    tiny.table(60_000).frame.to_csv(tmp_path / name, index=False)
    memory.put_file(str(tmp_path / name), f"/bucket/{name}")
    source = sources.open_source(f"memory://bucket/{name}", room=tmp_path / "room")
    with monkeypatch.context() as without:
        without.setattr(places, "_fetched", None)
        [(_, head)] = source.heads()
    assert list(head.frame) == list(tiny.table(1).frame)
    assert [p for p in (tmp_path / "room").rglob("*") if p.is_file()] == []
    run(tmp_path / name, tmp_path / "out.csv", partition_rows=16384, batch_size=16384)
    run(f"memory://bucket/{name}", "memory://bucket/made/out.csv", partition_rows=16384, batch_size=16384)
    assert rows_of(there(memory, "/bucket/made", "out")) == rows_of(here(tmp_path, "out"))


def test_an_input_that_changes_meanwhile_is_an_error_and_nothing_comes_of_it(given, memory):
    put(memory, given, "/bucket/given")

    def touch(progress):
        memory.put_file(str(given / "parquet" / "a.parquet"), "/bucket/given/parquet/more/b.parquet")

    said = (
        r"memory://bucket/given/parquet/more/b\.parquet (was written to|had .* bytes and has).* again with `--restart`"
    )
    with pytest.raises(JobError, match=said):
        run("memory://bucket/given/parquet", "memory://bucket/made/out", on_progress=touch)
    assert rows_of(there(memory, "/bucket/made", "out")) == {}


def test_a_folder_elsewhere_into_which_somebody_put_a_file_is_not_replaced(given, memory):
    put(memory, given, "/bucket/given")
    rows, output = "memory://bucket/given/rows.parquet", "memory://bucket/made/out"
    run(rows, output)
    run(rows, output)  # which holds nothing else
    before = there(memory, "/bucket/made", "out")
    memory.pipe_file("/bucket/made/out/more/notes.txt", b"mine")
    with pytest.raises(FileExistsError, match=f"{output} holds 6 files, and the job that made it wrote 5"):
        run(rows, output)
    assert there(memory, "/bucket/made", "out") == before | {"/more/notes.txt": b"mine"}
    memory.rm_file("/bucket/made/out/more/notes.txt")
    memory.rm_file("/bucket/made/out/part-00000.parquet")
    run(rows, output)  # what is gone is nobody's
    assert rows_of(there(memory, "/bucket/made", "out")) == rows_of(before)


class StopError(Exception):
    pass


def begin(source, output, after=128, **more):
    """Run a job until some partitions are done."""

    def look(progress):
        if progress.rows > after:
            raise StopError

    with pytest.raises(JobError, match=r"partition \d .*; \d partitions are done and stay; the same command goes on"):
        run(source, output, on_progress=look, workers=1, **more)


@pytest.mark.parametrize("output", ["out", "out.csv"])
def test_another_machine_goes_on(tmp_path, given, memory, monkeypatch, output):
    put(memory, given, "/bucket/given")
    url = f"memory://bucket/made/{output}"
    begin("memory://bucket/given/rows.parquet", url)
    assert {p.rsplit("/", 1)[1] for p in memory.find(f"/bucket/made/.{output}.partial")} >= {"journal.jsonl"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    with pytest.raises(
        ResumeError, match=rf'a job for memory://bucket/made/{output} .*operation was "encode" and is "score"'
    ):
        run("memory://bucket/given/rows.parquet", url, "score")
    receipt = run("memory://bucket/given/rows.parquet", url, begun="resume")
    assert receipt.details["partitions_before"] == 2
    run(given / "rows.parquet", tmp_path / output)
    assert rows_of(there(memory, "/bucket/made", output)) == rows_of(here(tmp_path, output))
    # The first one knows of nothing but what it did; that does no harm.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run("memory://bucket/given/rows.parquet", url).output_digest == receipt.output_digest


def test_a_store_that_fails_loses_nothing(given, memory, monkeypatch):
    put(memory, given, "/bucket/given")
    whole = run("memory://bucket/given/rows.parquet", "memory://bucket/made/whole")
    real = type(memory).put_file
    for count in range(1, 40):
        left = [count]

        def fail(self, *arguments, left=left, **named):
            left[0] -= 1
            if left[0] == 0:
                raise OSError("the wire was cut")
            return real(self, *arguments, **named)

        monkeypatch.setattr(type(memory), "put_file", fail)
        said = None
        try:
            run("memory://bucket/given/rows.parquet", "memory://bucket/made/out")
        except (OSError, JobError) as error:
            said = str(error)
        if left[0] > 0:
            break
        assert said is not None
        assert "memory://bucket/made/out: the wire was cut" in said
        assert ".receipt.json" not in there(memory, "/bucket/made", "out")
        monkeypatch.setattr(type(memory), "put_file", real)
        assert (
            run("memory://bucket/given/rows.parquet", "memory://bucket/made/out").output_digest == whole.output_digest
        )
        assert rows_of(there(memory, "/bucket/made", "out")) == rows_of(there(memory, "/bucket/made", "whole"))
        memory.rm("/bucket/made/out", recursive=True)
        memory.rm("/bucket/made/out.receipt.json")
        memory.rm("/bucket/made/out.manifest.json")
    assert 8 < count < 39


def test_a_later_output_replaces_an_earlier_one_with_all_that_lay_beside_it(tmp_path, given, memory):
    frame = tiny.table(320).frame
    frame.loc[70, "city"] = "Atlantis"
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=64)
    url = "memory://bucket/made/out"
    assert run(tmp_path / "rows.parquet", url, on_bad_rows="quarantine").details["quarantined"] == 1
    assert ".quarantine.parquet" in there(memory, "/bucket/made", "out")
    run(given / "parquet" / "a.parquet", url)
    left = there(memory, "/bucket/made", "out")
    assert set(left) == {".receipt.json", ".manifest.json", *(f"/part-0000{i}.parquet" for i in range(3))}


def test_an_output_that_would_replace_something_else_is_refused(tmp_path, given, memory):
    put(memory, given, "/bucket/given")
    rows = "memory://bucket/given/rows.parquet"
    with pytest.raises(ValueError, match="input and output are both memory://"):
        run(rows, rows)
    with pytest.raises(FileExistsError, match="memory://bucket/given/csv holds files that no job wrote"):
        run(rows, "memory://bucket/given/csv")
    memory.mkdirs("/bucket/given/folder.parquet")
    memory.pipe_file("/bucket/given/folder.parquet/x", b"")
    with pytest.raises(IsADirectoryError, match=r"folder\.parquet is a folder; expected a file's name"):
        run(rows, "memory://bucket/given/folder.parquet")
    memory.pipe_file("/bucket/given/plain", b"")
    with pytest.raises(FileExistsError, match="plain is a file; expected a folder's name"):
        run(rows, "memory://bucket/given/plain")


def test_an_index_is_made_where_it_can_be_searched(given):
    with pytest.raises(
        ValueError, match=r"memory://bucket/index: an index is searched on the disk .* build it here, and copy"
    ):
        run(given / "rows.parquet", "memory://bucket/index", "index", name="search")


def test_an_output_in_the_folder_that_is_read_is_not_read(given, memory):
    put(memory, given / "parquet", "/bucket/rows")
    first = run("memory://bucket/rows", "memory://bucket/rows/out")
    assert run("memory://bucket/rows", "memory://bucket/rows/out").input_digest == first.input_digest


def test_a_file_of_the_input_is_not_taken_for_an_earlier_output(given, memory):
    put(memory, given / "parquet", "/bucket/rows")
    before = memory.cat_file(first := memory.ls("/bucket/rows", detail=False)[0])
    with pytest.raises(ValueError, match=r"the output memory://\S+ is one of the files of the input"):
        run("memory://bucket/rows", f"memory:/{first}")
    assert memory.cat_file(first) == before


def test_bad_rows_elsewhere_are_told_with_their_numbers(tmp_path, memory):
    frame = tiny.table(320).frame
    frame.loc[[70, 300], "city"] = "Atlantis"
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=64)
    memory.put_file(str(tmp_path / "rows.parquet"), "/bucket/rows.parquet")
    with pytest.raises(DataError, match=r"memory://bucket/rows\.parquet: .*'Atlantis' \(first: row 70\)"):
        run("memory://bucket/rows.parquet", "memory://bucket/out")


@pytest.fixture(scope="module")
def store():
    """A real store on this machine."""
    with seaweed.server() as variables:
        yield variables


@pytest.fixture
def s3(store, monkeypatch):
    """The store's bucket `data`, empty, as a file system."""
    import s3fs

    for name, value in store.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem(use_listings_cache=False)
    for place in system.find("data"):
        system.rm_file(place)
    yield system
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "output", "operation", "more"),
    [
        ("rows.parquet", "", "encode", {}),
        ("parquet", ".parquet", "score", {}),
        ("csv/*", ".csv", "score", {}),
        ("images", "", "denoise", {}),
        ("parquet", "", "score", {"engine": "ray"}),
    ],
)
def test_output_in_a_real_store_is_that_of_local_files(tmp_path, given, s3, cache, source, output, operation, more):
    put(s3, given, "data/given")
    kind = ("images", "denoising") if operation == "denoise" else ("table", "anomaly")
    local = run(given / source, tmp_path / f"out{output}", operation, *kind)
    far = run(f"s3://data/given/{source}", f"s3://data/made/out{output}", operation, *kind, **more)
    made = there(s3, "data/made", f"out{output}")
    assert rows_of(made) == rows_of(here(tmp_path, f"out{output}"))
    assert json.loads(made[".receipt.json"]) == far.to_json()
    assert (far.input_digest, far.output_digest) == (local.input_digest, local.output_digest)
    assert not any(".partial" in p for p in s3.find("data"))
    assert [*cache.glob("*")] == []
    told = b"".join(made[name] for name in (".receipt.json", ".manifest.json")).decode()
    assert not any(secret in told for secret in (seaweed.KEY, seaweed.SECRET, "127.0.0.1"))


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from sevenfold import bundles, jobs

def tell(progress):
    time.sleep(0.5)  # or else the job is over before the journal is put there a second time
    if len(sys.argv) > 2 and progress.rows >= 600:
        os.kill(os.getpid(), signal.SIGKILL)

settings = jobs.Settings(batch_size=64, partition_rows=64, workers=2)
receipt = jobs.apply(bundles.load(Path(sys.argv[1])), "m/1", "d" * 64, "encode", "s3://data/rows", "s3://data/out", settings,
                     on_progress=tell)
print(receipt.details["partitions_before"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["the same", "another"])
def test_a_job_that_is_killed_goes_on(tmp_path, s3, machine):
    tiny.saved(tmp_path / "bundle", "table", "anomaly")
    for number in range(3):
        tiny.table(320, seed=number).frame.to_parquet(tmp_path / f"{number}.parquet", row_group_size=64)
        s3.put_file(str(tmp_path / f"{number}.parquet"), f"data/rows/{number}.parquet")

    def job(*arguments, **more):
        command = [sys.executable, "-W", "error::ResourceWarning", "-c", PROGRAM, str(tmp_path / "bundle"), *arguments]
        return subprocess.run(command, cwd=ROOT, env=os.environ | more, capture_output=True, text=True, timeout=120)

    assert job("kill").returncode == -signal.SIGKILL
    assert not s3.exists("data/out.receipt.json")
    done = job(**({"XDG_CACHE_HOME": str(tmp_path / "another")} if machine == "another" else {}))
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= 1
    (tmp_path / "rows").mkdir()
    for number in range(3):
        (tmp_path / f"{number}.parquet").rename(tmp_path / "rows" / f"{number}.parquet")
    run(tmp_path / "rows", tmp_path / "out")
    assert rows_of(there(s3, "data", "out")) == rows_of(here(tmp_path, "out"))
    assert not any(".partial" in p for p in s3.find("data"))


@pytest.mark.slow
def test_a_wrong_key_is_told_and_not_written_anywhere(tmp_path, given, s3, monkeypatch):
    put(s3, given, "data/given")
    type(s3).clear_instance_cache()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    for source, output in (
        ("s3://data/given/rows.parquet", tmp_path / "out"),
        (given / "rows.parquet", "s3://data/out"),
    ):
        with pytest.raises(PermissionError, match=r"s3://data/.*; give keys that may read and write there") as failure:
            run(source, output)
        assert "secret" not in str(failure.value)


@pytest.mark.slow
def test_a_changed_object_is_noticed_by_its_tag(given, s3):
    put(s3, given, "data/given")
    content = bytearray((given / "parquet" / "more" / "b.parquet").read_bytes())
    content[200] ^= 1

    def change(progress):
        s3.pipe_file("data/given/parquet/more/b.parquet", bytes(content))

    with pytest.raises(JobError, match=r"s3://data/given/parquet/more/b\.parquet was written to"):
        run("s3://data/given/parquet", "s3://data/made/out", on_progress=change)
    assert rows_of(there(s3, "data/made", "out")) == {}
