"""What a person, or a machine, sees of a job at the command line: while it runs, at its end, and where it ends early."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from sevenfold import cli, jobs
from tests import tiny

MAIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in a shell's background
from sevenfold import cli
cli.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        root = tmp_path_factory.mktemp("place")
        patch.setenv("SEVENFOLD_WORKSPACE", str(root))
        (root / "params.yaml").touch()
        (root / "dvc.yaml").touch()
        for name in ("anomaly", "imputation"):
            tiny.saved(root / name, "table", name)
        with tiny.workspace(root) as workspace:
            yield workspace


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """Stand in a folder with rows to work on and a model beside them."""
    monkeypatch.chdir(tmp_path)
    for name in ("anomaly", "imputation"):
        (tmp_path / name).symlink_to(place.root / name)
    tiny.table(640).frame.to_parquet("rows.parquet", row_group_size=64)
    return tmp_path


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, arguments)])
    return ended.value.code


def on_a_terminal(*arguments, meanwhile=lambda process: None, columns=80):
    """Run a command whose error output is a terminal; return exit code, standard output, and what the terminal got."""
    outer, inner = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns)}
    command = [sys.executable, "-c", MAIN, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=inner, env=environment, text=True) as process:
        os.close(inner)
        meanwhile(process)
        seen = b""
        while True:
            try:
                seen += (piece := os.read(outer, 4096))
            except OSError:  # as Linux says that nobody writes any more
                break
            if not piece:
                break
        told, _ = process.communicate(timeout=120)
    os.close(outer)
    return process.returncode, told, seen.decode()


def screen(text):
    """Return the lines that a terminal shows in the end, of what this program sends to it."""
    lines, cursor = [""], 0
    for piece in re.findall(r"\x1b\[K|.", text, re.DOTALL):
        if piece == "\n":
            lines.append("")
        elif piece == "\x1b[K":
            lines[-1] = lines[-1][:cursor]
        elif piece != "\r":
            lines[-1] = lines[-1][:cursor] + piece + lines[-1][cursor + 1 :]
        cursor = 0 if piece in "\r\n" else cursor + (piece != "\x1b[K")
    return lines


def test_a_terminal_shows_rows_rate_and_time_left_and_nothing_of_it_at_the_end(here):
    code, told, seen = on_a_terminal("encode", "anomaly", "rows.parquet", "codes.parquet", "--partition-rows", "64")
    assert code == 0, seen
    assert re.search(r"\r640 of 640 rows, [\d,]+ rows/s, 0:00 left\x1b\[K", seen)
    assert screen(seen) == [""]
    assert re.match(r"codes\.parquet: 640 rows by anomaly in \d+\.\d\d s \([\d,]+ rows/s\)\n", told)
    assert "receipt: codes.parquet.receipt.json\n" in told
    tiny.table(64).frame.to_csv("rows.csv", index=False)  # whose rows nobody knows the number of before
    code, told, seen = on_a_terminal("encode", "anomaly", "rows.csv", "codes.csv", "--batch-size", "1", columns=12)
    assert code == 0, seen
    assert "left" not in seen
    assert max(len(piece) for piece in re.split(r"\r|\x1b\[K|\n", seen)) == 11  # a longer line would begin a second one


def test_the_progress_line_tells_what_is_left(monkeypatch):
    from sevenfold.commands import jobs as command

    class Terminal(list):
        def isatty(self):
            return True

        def write(self, text):
            self.append(text)

        def flush(self):
            pass

    now = [1000.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(command.sys, "stderr", terminal := Terminal())
    with command.shown() as show:
        for seconds, rows in ((10, 1_100_000), (10.1, 1_200_000), (20, 2_000_000), (30, 10_000_000)):
            now[0] = 1000 + seconds
            show(jobs.Progress(rows, 10_000_000, 1_000_000))
    lines = [text.strip("\r").removesuffix("\x1b[K") for text in terminal if text.strip("\r\x1b[K")]
    assert lines == [
        "1,100,000 of 10,000,000 rows, 10,000 rows/s, 14:50 left",
        "2,000,000 of 10,000,000 rows, 50,000 rows/s, 2:40 left",  # and not each time that somebody tells
        "10,000,000 of 10,000,000 rows, 300,000 rows/s, 0:00 left",
    ]
    assert command._clock(3723.4) == "1:02:03"


def test_nothing_is_shown_where_there_is_no_terminal(here, capsys):
    assert call("encode", "anomaly", "rows.parquet", "codes") == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "codes: 640 rows by anomaly" in told.out


def test_machines_get_the_receipt_and_nothing_else(here, capsys):
    assert call("score", "anomaly", "rows.parquet", "scores.csv", "--json", "--limit", 100, "--reasons", "none") == 0
    told = capsys.readouterr()
    receipt = json.loads(told.out)
    assert receipt == json.loads((here / "scores.csv.receipt.json").read_text())
    assert (receipt["rows"], receipt["details"]["limit"]) == (100, 100)
    assert receipt["details"]["options"] == {"reasons": "none"}
    assert told.err == ""


def slow(path):
    """Write a file of a small partition and one that takes long in small batches."""
    table = pyarrow.Table.from_pandas(pd.concat([tiny.table(1000).frame] * 41, ignore_index=True), preserve_index=False)
    with pyarrow.parquet.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table.slice(0, 1000))
        writer.write_table(table.slice(1000), row_group_size=40_000)


def test_a_job_that_is_interrupted_ends_at_once_and_says_how_it_goes_on(here, capsys):
    slow("slow.parquet")
    command = ["encode", "anomaly", "slow.parquet", "codes.parquet", "--partition-rows", "30000", "--workers", "1"]
    since = []

    def interrupt(process):
        while process.poll() is None and not [*here.glob(".codes.parquet.partial/parts/part-00000.parquet")]:
            time.sleep(0.01)
        time.sleep(1)
        since.append(time.monotonic())
        process.send_signal(signal.SIGINT)

    code, told, seen = on_a_terminal(*command, "--batch-size", "4", meanwhile=interrupt)
    assert time.monotonic() - since[0] < 10  # and not when the partition is done
    assert (code, told) == (130, "")
    assert screen(seen)[-3:] == [
        "what is done stays: the same command goes on there, and with `--restart` it begins anew",
        "interrupted",
        "",
    ]
    assert call(*command) == 0
    assert "1,000 of these rows were done before, by a run that ended early" in capsys.readouterr().out


def test_bad_rows_are_told_of_with_their_file(here, capsys):
    frame = tiny.table(100).frame
    frame["city"] = frame["city"].astype(object)
    frame.loc[7, "city"] = "Atlantis"
    frame.to_csv("rows.csv", index=False)
    assert call("score", "anomaly", "rows.csv", "scores.csv") == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert re.match(r"error: rows\.csv: column 'city' has .*new categories 'Atlantis'", told.err.replace("\n", " "))
    assert call("score", "anomaly", "rows.csv", "scores.csv", "--on-bad-rows", "quarantine") == 0
    assert "scores.csv.quarantine.csv: 1 rows that do not fit" in capsys.readouterr().out


def test_a_list_is_refused_where_it_cannot_be_and_given_where_it_can(here, capsys):
    assert call("encode", "anomaly", "rows.parquet", "codes.csv", "--list") == 1
    assert "write .parquet or a folder, or leave out `--list`" in capsys.readouterr().err
    assert call("encode", "anomaly", "rows.parquet", "codes.parquet", "--list", "--columns") == 0
    assert pyarrow.parquet.read_schema("codes.parquet").names == ["code"]


def test_a_csv_with_gaps_comes_back_whole_in_the_users_own_order(here):
    frame = tiny.table(50).frame
    frame.to_csv("rows.csv", index=False)
    assert call("impute", "imputation", "rows.csv", "filled.csv", "--no-flags") == 0
    given, filled = (pd.read_csv(name, dtype="str") for name in ("rows.csv", "filled.csv"))
    assert [*filled] == [*given]
    assert given["income"].isna().any()
    assert filled.notna().all().all()
    assert filled.where(given.notna()).equals(given)
