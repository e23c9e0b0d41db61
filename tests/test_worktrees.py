"""A run at a commit has a folder of its own: nobody's uncommitted work enters it, and nothing of it stays."""

import signal
import subprocess
import sys

import pytest

from sevenfold import pipeline, provenance, worktrees
from sevenfold.registry import tracking
from sevenfold.workspace import Workspace
from tests import small_repository
from tests.small_repository import commit, data, run

pytestmark = pytest.mark.slow  # each runs git and DVC as processes


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name, value in small_repository.variables(tmp_path / "project").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SEVENFOLD_ARTIFACTS", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # a database of its own would take seconds
    place = small_repository.made(tmp_path / "project")
    with place.settled():
        yield place


def head(place):
    return worktrees.resolved(place, "HEAD")


def bring(place):
    pipeline.bring_data(place, provenance.pointers(place), lambda name: None)


def state(place):
    """Return all that git knows of the user's own tree and repository."""
    told = (
        "status --porcelain --untracked-files=all",
        "branch --all",
        "worktree list",
        "stash list",
        "diff",
        "for-each-ref",
    )
    return [run(place, "git", *command.split()) for command in told]


def test_uncommitted_work_does_not_enter_and_stays_as_it_is(place):
    place.params.write_text("seed: 1\n")
    place.raw("rows.csv").write_text("changed\n")
    (place.root / "new.py").write_text("raise SystemExit\n")
    before = state(place)
    with worktrees.opened(place, head(place)) as there:
        assert there.params.read_text() == "seed: 0\n"
        assert not (there.root / "new.py").exists()
        bring(there)
        assert there.raw("rows.csv").read_text() == "1\n2\n"
        assert run(there, "git", "status", "--porcelain") == ""
        assert state(place) == before
        assert worktrees.is_one(there)
        assert not worktrees.is_one(place)
    assert state(place) == before
    assert place.raw("rows.csv").read_text() == "changed\n"
    assert not there.root.exists()


def test_a_commit_stays_the_same_when_its_branch_moves(place):
    first = head(place)
    run(place, "git", "branch", "nightly")
    with worktrees.opened(place, worktrees.resolved(place, "nightly")) as there:
        place.params.write_text("seed: 1\n")
        second = commit(place, "seed")
        run(place, "git", "branch", "--force", "nightly")
        assert run(there, "git", "rev-parse", "HEAD") == first
        assert there.params.read_text() == "seed: 0\n"
    assert worktrees.resolved(place, "nightly") == second


@pytest.mark.parametrize("revision", ["nowhere", "", "--all", "HEAD:params.yaml"])
def test_a_revision_that_git_does_not_know_is_told_with_the_remedy(place, revision):
    with pytest.raises(LookupError, match=r"git knows no commit .* `git log --all --oneline` shows"):
        worktrees.resolved(place, revision)


def test_a_commit_from_before_the_workspace_is_told(place):
    run(place, "git", "checkout", "--quiet", "--orphan", "before")
    run(place, "git", "rm", "--quiet", "-r", "--cached", ".")
    run(place, "git", "commit", "--quiet", "--allow-empty", "--message", "empty")
    with pytest.raises(LookupError, match=r"there is no .dvc folder in"), worktrees.opened(place, head(place)):
        pass


def test_data_come_from_another_commit_and_everything_else_does_not(place):
    old = head(place)
    data(place, "3\n4\n5\n")
    place.params.write_text("seed: 1\n")
    new = commit(place, "more rows")
    with worktrees.opened(place, new, data=old) as there:
        bring(there)
        assert there.raw("rows.csv").read_text() == "1\n2\n"
        assert there.params.read_text() == "seed: 1\n"
        assert run(there, "git", "status", "--porcelain") == "M data/raw/rows.csv.dvc"
    with worktrees.opened(place, old, data=new) as there:
        bring(there)
        assert there.raw("rows.csv").read_text() == "3\n4\n5\n"
        assert there.params.read_text() == "seed: 0\n"


def test_a_commit_without_the_pointer_files_is_told_and_leaves_nothing(place):
    with_rows = head(place)
    run(place, "git", "rm", "--quiet", "--cached", "data/raw/rows.csv.dvc")
    run(place, "git", "commit", "--quiet", "--message", "no rows")
    without = head(place)
    expected = rf"{without[:12]}, from which data are asked for, lacks data/raw/rows.csv.dvc; .*`git log --all -- data"
    with pytest.raises(LookupError, match=expected), worktrees.opened(place, with_rows, data=without):
        pass
    run(place, "git", "commit", "--quiet", "--allow-empty", "--message", "nothing")
    with (
        pytest.raises(LookupError, match=r"no pointer file of DVC's under data/.*leave out --data-rev"),
        worktrees.opened(place, head(place), data=without),
    ):
        pass
    assert [p.name for p in place.worktrees.iterdir() if p.name != "checkpoints"] == []


def test_cache_registry_and_remotes_are_those_of_the_workspace(place, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(tracking, "initialise", lambda workspace: None)
    (tmp_path / "store").mkdir()
    run(place, "dvc", "remote", "add", "--default", "store", "../store")
    with worktrees.opened(place, head(place)) as there:
        # DVC keeps the address relative to its folder, which is another one here.
        assert pipeline.remote(there) == pipeline.Remote("store", str(tmp_path / "store"))
        environment = worktrees.environment(place, there)
        code = "from sevenfold import workspace; from sevenfold.registry import tracking; w = workspace.find()\n"
        code += "print(w.root, w.tracking_uri, tracking.artifact_location(w), sep='\\n')"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=there.root, env=environment, capture_output=True, text=True, check=True
        )
        wanted = [there.root, place.tracking_uri, tracking.artifact_location(place)]
        assert done.stdout.split() == [str(one) for one in wanted]
        assert environment["PYTHONPATH"].startswith(f"{there.root / 'src'}:{there.root}:")
        # A training that is killed there goes on in the next worktree, and one of the workspace's own is not touched.
        there.checkpoint("deep").write_text("half")
        place.checkpoint("deep").parent.mkdir(exist_ok=True)
        place.checkpoint("deep").write_text("mine")
    with worktrees.opened(place, head(place)) as there:
        assert there.checkpoint("deep").read_text() == "half"
    assert place.checkpoint("deep").read_text() == "mine"
    assert (place.root / ".dvc" / "config").read_text().count("url = ../../store") == 1


def test_what_an_earlier_run_made_is_there_without_running_it_again(place):
    run(place, "dvc", "repro", "--quiet")
    commit(place, "results")
    with worktrees.opened(place, head(place)) as there:
        bring(there)
        assert pipeline.restore(there, remote=False) == ["double", "count"]
        assert pipeline.stale(there) == []
        assert (there.root / "results" / "count.txt").read_text().strip() == "4"
        assert small_repository.ran(there) == []


def test_what_a_worktree_made_is_in_the_cache_of_the_workspace(place):
    with worktrees.opened(place, head(place)) as there:
        bring(there)
        run(there, "dvc", "repro", "--quiet")
        assert small_repository.ran(there) == ["double", "count"]
    run(place, "dvc", "repro", "--quiet")
    assert small_repository.ran(place) == []


KILLED = """
import os, signal, sys
from sevenfold import workspace, worktrees
place = workspace.find()
with place.settled(), place.alone(), worktrees.opened(place, sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_removed_by_the_next_unless_somebody_works_there(place):
    command = [sys.executable, "-c", KILLED, head(place)]
    done = subprocess.run(command, cwd=place.root, env=place.environment(), capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    (left,) = place.worktrees.glob("*/checkout")
    assert place.lock("run", timeout=0).acquire()
    with (
        Workspace(left).alone(),
        pytest.raises(RuntimeError, match=f"a run still works in {left.parent}.*process"),
        worktrees.opened(place, head(place)),
    ):
        pass
    (left / "trace").touch()
    with worktrees.opened(place, head(place)) as there:
        assert there.root == left
        assert not (left / "trace").exists()
    assert not left.exists()


ASKED = """
import sys
from flows import process
from sevenfold import workspace, worktrees
place = workspace.find()
process.ends_in_order()
with place.settled(), place.alone(), worktrees.opened(place, sys.argv[1]) as there:
    (there.root / "sleeper.py").write_text("import time; print(1, end='', flush=True); time.sleep(600)")
    process.call("sleeper", folder=there.root)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_ends_what_works_in_the_worktree_and_removes_it(place, number):
    with subprocess.Popen(
        [sys.executable, "-c", ASKED, head(place)], cwd=place.root, env=place.environment(), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.read(1) == b"1"
        process.send_signal(number)
        # The pipe is open for as long as one of them is there.
        assert process.stdout.read() == b""
    assert process.returncode == 128 + number
    assert list(place.worktrees.glob("*/checkout")) == []


def test_a_failure_in_a_worktree_removes_it(place):
    with pytest.raises(ValueError, match="of the run"), worktrees.opened(place, head(place)):
        raise ValueError("of the run")
    assert list(place.worktrees.glob("*/checkout")) == []
