"""A job that ends early loses nothing: what is done stays, what is half done is not seen, and it goes on where it was."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sevenfold import files, formats, jobs, manifests
from sevenfold.datasets.base import DataError
from sevenfold.jobs import JobError
from sevenfold.manifests import ResumeError
from tests import tiny

ROOT = Path(__file__).parents[1]


def run(source, output, operation="encode", **more):
    return tiny.job(source, output, operation, **{"workers": 1} | more)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.parquet"
    tiny.table(320).frame.to_parquet(path, row_group_size=64)
    return path


class StopError(Exception):
    pass


def stopping(after):
    """Return what ends a job when so many rows are done."""

    def look(progress):
        if progress.rows > after:
            raise StopError

    return look


def begin(rows, output, after=128, **more):
    """Run the job until some partitions are done."""
    with pytest.raises(JobError, match=r"partition \d .*; \d partitions are done and stay; the same command goes on"):
        run(rows, output, on_progress=stopping(after), **more)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "output"), [("boundaries", ".parquet"), ("boundaries", ""), ("times", ".csv")])
def test_a_job_killed_anywhere_goes_on_and_ends_with_the_same_bytes(tmp_path, mode, output):
    tiny.saved(tmp_path / "bundle", "table", "anomaly")
    frame = tiny.table(1000).frame
    frame.loc[500, "city"] = "Atlantis"
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=256)
    command = [sys.executable, "-m", "tests.killed", str(tmp_path), mode, output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["odd"] == []
    assert told["kills"] >= (25 if mode == "boundaries" else 5)
    assert len(told["files"]) >= 2


def test_what_is_done_is_not_done_again(tmp_path, rows):
    whole = run(rows, tmp_path / "whole.parquet")
    begin(rows, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    seen = []
    receipt = run(rows, tmp_path / "out.parquet", on_progress=lambda p: seen.append((p.rows, p.before, p.total)))
    assert receipt.output_digest == whole.output_digest
    assert (receipt.details["rows_before"], receipt.details["partitions_before"]) == (128, 2)
    assert seen == [(192, 128, 320), (256, 128, 320), (320, 128, 320)]
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_resume_insists_and_restart_begins_anew(tmp_path, rows):
    output = tmp_path / "out"
    with pytest.raises(ResumeError, match=r"nothing to go on with: no job for .*out ended early; leave out `--resume`"):
        run(rows, output, begun="resume")
    begin(rows, output)
    assert run(rows, output, begun="resume").details["partitions_before"] == 2
    begin(rows, output)
    assert run(rows, output, begun="restart").details["partitions_before"] == 0


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"operation": "score"}, 'operation was "encode" and is "score"'),
        ({"digest": "e" * 64}, "digest was dddddddddddd and is eeeeeeeeeeee"),
        ({"limit": 300}, "limit was null and is 300"),
        ({"columns": ["customer"]}, r'columns was null and is \["customer"\]'),
    ],
)
def test_another_job_does_not_go_on_with_what_was_begun(tmp_path, rows, other, told):
    output = tmp_path / "out.parquet"
    begin(rows, output)
    with pytest.raises(ResumeError, match=f"this is another one: {told}; give that one's arguments .* or `--restart`"):
        run(rows, output, **other)
    # How it is worked on may change.
    receipt = run(rows, output, workers=3, batch_size=10)
    assert receipt.details["partitions_before"] == 2


def test_an_input_that_changed_since_is_noticed_and_one_that_was_copied_is_the_same(tmp_path, rows):
    output = tmp_path / "out.parquet"
    begin(rows, output)
    os.utime(rows)
    assert run(rows, output).details["partitions_before"] == 2
    begin(rows, output)
    tiny.table(320, seed=1).frame.to_parquet(rows, row_group_size=64)
    with pytest.raises(ResumeError, match="the input has changed since"):
        run(rows, output)


def test_an_input_that_changes_meanwhile_is_an_error_and_nothing_comes_of_it(tmp_path, rows):
    def touch(progress):
        if progress.rows == 128:
            os.utime(rows)

    with pytest.raises(JobError, match=r"rows\.parquet was written to"):
        run(rows, tmp_path / "out.parquet", on_progress=touch)
    assert not (tmp_path / "out.parquet").exists()


def test_a_partition_that_was_damaged_since_is_made_again(tmp_path, rows):
    whole = run(rows, tmp_path / "whole.parquet")
    output = tmp_path / "out.parquet"
    begin(rows, output)
    part = manifests.workplace(output) / "parts" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    receipt = run(rows, output)
    assert receipt.details["partitions_before"] == 1
    assert receipt.output_digest == whole.output_digest


def test_a_line_that_was_torn_off_does_not_count(tmp_path, rows):
    whole = run(rows, tmp_path / "whole.parquet")
    output = tmp_path / "out.parquet"
    begin(rows, output)
    journal = manifests.workplace(output) / "journal.jsonl"
    for cut in (1, 30):
        journal.write_bytes(journal.read_bytes()[:-cut])
    receipt = run(rows, output)
    assert receipt.details["partitions_before"] == 1
    assert receipt.output_digest == whole.output_digest


def test_two_jobs_do_not_write_one_output(tmp_path, rows):
    output = tmp_path / "out.parquet"
    begin(rows, output)
    with (manifests.workplace(output) / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"another job is writing .*out\.parquet; wait for it"):
            run(rows, output)
    run(rows, output)


@pytest.mark.parametrize("output", ["out.parquet", "out", "out.csv"])
def test_a_full_disk_names_the_partition_and_the_job_goes_on_when_there_is_room(tmp_path, rows, monkeypatch, output):
    whole = run(rows, tmp_path / f"whole{Path(output).suffix}")
    real, calls = files.sync, []

    def full(path):
        calls.append(path)
        if "part-00003" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(
        JobError,
        match=r"partition 3 \(rows 192 to 255 of rows\.parquet\) failed: .*No space left on device; 3 partitions are done",
    ):
        run(rows, tmp_path / output)
    assert not (tmp_path / output).exists()
    monkeypatch.setattr(files, "sync", real)
    receipt = run(rows, tmp_path / output)
    assert (receipt.details["partitions_before"], receipt.output_digest) == (3, whole.output_digest)


def test_bad_rows_in_the_middle_are_told_all_at_once_and_what_is_done_stays(tmp_path):
    frame = tiny.table(320).frame
    frame["age"] = frame["age"].astype(float)
    frame.loc[70, "city"] = "Atlantis"
    frame.loc[300, "age"] = float("inf")
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=64)
    with pytest.raises(DataError) as failure:
        run(tmp_path / "rows.parquet", tmp_path / "out.parquet")
    text = str(failure.value)
    assert "'Atlantis' (first: row 70)" in text
    assert "not finite (first: row 300)" in text
    assert "1 partitions without such rows are done and stay" in text
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("kind", ["", ".parquet", ".csv", ".npz"])
def test_bad_rows_are_put_aside_with_their_reasons_and_the_others_are_worked_on(tmp_path, suffix, kind):
    frame = tiny.table(320).frame
    formats.write(tmp_path / f"good{suffix}", frame.drop(index=[70, 300]))
    frame["city"] = frame["city"].astype(object)
    frame.loc[70, "city"] = "Atlantis"
    frame["age"] = frame["age"].astype(float)
    frame.loc[300, "age"] = 1e26
    formats.write(tmp_path / f"rows{suffix}", frame)
    more = {"columns": ["customer"], "on_bad_rows": "quarantine"}
    output = tmp_path / f"out{kind}"
    receipt = run(tmp_path / f"rows{suffix}", output, **more)
    assert (receipt.rows, receipt.details["quarantined"]) == (318, 2)
    run(tmp_path / f"good{suffix}", tmp_path / f"wanted{kind}", columns=["customer"])
    got, wanted = (jobs_output(tmp_path / name) for name in (f"out{kind}", f"wanted{kind}"))
    assert got.astype(str).equals(wanted.astype(str))
    aside = formats.read(jobs.quarantine_path(output)).frame
    assert aside["_row"].tolist() == [70, 300]
    assert set(aside["_file"]) == {f"rows{suffix}"}
    assert aside["_reason"][0] == "'city' is 'Atlantis'; expected one of 'Bern', 'Oslo', 'Rome'"
    assert aside["_reason"][1].startswith("'age' is ")
    assert aside["customer"].astype(int).tolist() == [70, 300]
    # Another run without bad rows leaves no old ones behind.
    run(tmp_path / f"good{suffix}", output, **more)
    assert not jobs.quarantine_path(output).exists()


def jobs_output(path):
    import pandas as pd

    if path.is_dir():
        return pd.concat([formats.read(p).frame for p in sorted(path.glob("*.parquet"))], ignore_index=True)
    return formats.read(path).frame


def test_rows_that_are_all_bad_are_an_error(tmp_path):
    tiny.table(100).frame.assign(city="Atlantis").to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="no row fits the model"):
        run(tmp_path / "rows.parquet", tmp_path / "out.parquet", on_bad_rows="quarantine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.parquet"]


def test_a_manifest_tells_of_every_partition(tmp_path, rows):
    receipt = run(rows, tmp_path / "out")
    manifest = files.parse_json(manifests.path(tmp_path / "out"))
    assert manifest["inputs"] == [{"name": "rows.parquet", "bytes": rows.stat().st_size, "sha256": files.digest(rows)}]
    parts = manifest["partitions"]
    assert [(p["number"], p["first"], p["rows"], p["source"]) for p in parts] == [
        (i, 64 * i, 64, "rows.parquet") for i in range(5)
    ]
    assert [p["digest"] for p in parts] == [files.digest(tmp_path / "out" / p["file"]) for p in parts]
    assert {p["input_sha256"] for p in parts} == {receipt.input_digest}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"part-0000{i}.parquet" for i in range(5)]


def test_a_file_that_left_or_came_makes_another_job(tmp_path):
    folder = tmp_path / "days"
    folder.mkdir()
    for day in range(4):
        tiny.table(64, seed=day).frame.to_parquet(folder / f"day{day}.parquet")
    output = tmp_path / "out.parquet"
    begin(folder, output)
    (folder / "day0.parquet").unlink()
    with pytest.raises(ResumeError, match=r"names was .* and is"):
        run(folder, output)
    assert run(folder, output, begun="restart").rows == 192


def test_partitions_without_bad_rows_count_when_the_others_are_put_aside(tmp_path):
    frame = tiny.table(320).frame
    frame.loc[300, "city"] = "Atlantis"
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=64)
    with pytest.raises(DataError, match="4 partitions without such rows are done and stay; put such rows aside"):
        run(tmp_path / "rows.parquet", tmp_path / "out.parquet")
    receipt = run(tmp_path / "rows.parquet", tmp_path / "out.parquet", on_bad_rows="quarantine")
    assert (receipt.rows, receipt.details["partitions_before"], receipt.details["quarantined"]) == (319, 4, 1)


def test_no_receipt_tells_of_an_output_that_is_no_more(tmp_path, rows, monkeypatch):
    run(rows, tmp_path / "out.parquet")
    monkeypatch.setattr(files, "write_json", lambda *a: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        run(rows, tmp_path / "out.parquet", operation="score")
    assert not jobs.receipt_path(tmp_path / "out.parquet").exists()
    monkeypatch.undo()
    assert run(rows, tmp_path / "out.parquet", operation="score").details["partitions_before"] == 5
