"""A process that does a part of a run: how it ends with the one that began it, whatever becomes of that one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows import process, server
from sevenfold.workspace import Workspace

ROOT = Path(__file__).parent.parent

PART = """
import os, signal, subprocess, sys, time
from pathlib import Path
from flows import process
process.leash()
{more}
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
try:
    print("began", flush=True)
    Path("pids").write_text(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(60)
finally:
    Path("ended").touch()
    child.kill()
"""
"""A part of a run, with a trainer in a session of its own, as a module."""

ORDERLY = "process.ends_in_order()"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"

CALLER = """
import sys
from flows import process
process.ends_in_order()
sys.exit(process.call("part")[0])
"""


@pytest.fixture
def begun(tmp_path):
    """Return what begins a caller of a part, and gives its process and those of the part and of the trainer."""
    callers = []

    def begin(more):
        (tmp_path / "part.py").write_text(PART.format(more=more))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "src")])}
        callers.append(subprocess.Popen([sys.executable, "-c", CALLER], cwd=tmp_path, env=environment))
        noted = tmp_path / "pids"
        await_(lambda: noted.is_file() and len(noted.read_text().split()) == 2)
        part, trainer = (psutil.Process(int(pid)) for pid in noted.read_text().split())
        return callers[-1], part, trainer

    yield begin
    for caller in callers:
        caller.kill()
        caller.wait()


def await_(told, seconds=30):
    end = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_gone(one):
    return not one.is_running() or one.status() == psutil.STATUS_ZOMBIE


def test_a_part_ends_in_order_with_whoever_called_it(begun, tmp_path):
    caller, part, trainer = begun(ORDERLY)
    caller.send_signal(signal.SIGINT)
    assert caller.wait(30) == 128 + signal.SIGINT
    assert is_gone(part)
    assert is_gone(trainer)
    assert (tmp_path / "ended").exists()


def test_what_takes_too_long_is_ended_in_order_with_its_part(tmp_path):
    (tmp_path / "part.py").write_text(PART.format(more=ORDERLY))
    caller = CALLER.replace('sys.exit(process.call("part")[0])', 'with process.limited(4 / 3600): process.call("part")')
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "src")])}
    done = subprocess.run(
        [sys.executable, "-c", caller], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert "error: this takes longer than 0.00111111 hours, and is ended" in done.stderr
    assert all(is_gone_by_number(int(pid)) for pid in (tmp_path / "pids").read_text().split())
    assert (tmp_path / "ended").exists()


def test_what_ends_in_time_is_left_alone():
    with process.limited(0.2 / 3600):
        pass
    with process.limited(None):
        time.sleep(0.3)
    with pytest.raises(ValueError, match="hours is 0; expected more than 0, such as 24"), process.limited(0):
        pass


def test_a_part_ends_in_order_when_its_caller_is_killed(begun, tmp_path):
    caller, part, trainer = begun(ORDERLY)
    caller.kill()
    await_(lambda: is_gone(part) and is_gone(trainer))
    assert (tmp_path / "ended").exists()


def test_a_part_that_does_not_listen_is_ended_by_force_with_all_below_it(begun, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "PATIENCE", 0.5)
    (tmp_path / "part.py").write_text(PART.format(more=DEAF))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "src")]))

    def fail(line):
        await_(lambda: (tmp_path / "pids").is_file() and len((tmp_path / "pids").read_text().split()) == 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.call("part", on_line=fail)
    assert all(is_gone_by_number(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def is_gone_by_number(pid):
    try:
        return is_gone(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True


def test_the_status_of_a_part_is_that_of_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "killed.py").write_text("import os\nprint('so far')\nos.kill(os.getpid(), 9)")
    (tmp_path / "failed.py").write_text("import sys\nprint('a')\nprint('b')\nsys.exit(3)")
    told = []
    assert process.call("killed", on_line=told.append)[0] == 137
    assert process.call("failed", on_line=told.append) == (3, "a\nb")
    assert told[-2:] == ["a", "b"]


def test_a_process_is_told_from_every_other_one_of_its_number():
    with subprocess.Popen(["sleep", "9"]) as one, subprocess.Popen(["sleep", "9"]) as other:
        assert process.born(one.pid) == process.born(one.pid)
        assert process.born(os.getpid()) != process.born(other.pid)
        one.kill()
        other.kill()
    with pytest.raises(psutil.NoSuchProcess):
        process.born(one.pid)


def test_a_note_of_a_server_that_is_gone_leads_to_nobody_elses(tmp_path, monkeypatch):
    place = Workspace(tmp_path)
    place.initialise()
    monkeypatch.setattr(server, "answers", lambda url: True)  # whoever has its port now
    assert server.standing_url(place) is None
    with subprocess.Popen(["sleep", "9"]) as mine:
        server.announce(place, "http://127.0.0.1:1/api", mine.pid)
        assert server.standing_url(place) == "http://127.0.0.1:1/api"
        server.withdraw(place, "http://127.0.0.1:2/api")  # of another one, which began before
        assert server.standing_url(place) == "http://127.0.0.1:1/api"
        mine.kill()
    assert server.standing_url(place) is None
    server.withdraw(place, "http://127.0.0.1:1/api")
    assert list(place.prefect_home.iterdir()) == []
