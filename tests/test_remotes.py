"""Data come from DVC's remote and results go there; a remote that cannot be used is told before anything is trained."""

import http.server
import shutil
import threading

import pytest

from sevenfold import pipeline, provenance
from tests import seaweed, small_repository
from tests.small_repository import cloned, data, ran, run

pytestmark = pytest.mark.slow  # each runs git and DVC as processes


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name, value in small_repository.variables(tmp_path / "project").items():
        monkeypatch.setenv(name, value)
    return small_repository.made(tmp_path / "project")


def remote(place, url):
    """Set the default remote, for this clone alone."""
    with pipeline._config(place).edit("local", validate=False) as ours:
        ours["core"]["remote"] = "store"
        ours["remote"]["store"] = {"url": str(url)}


def bring(place):
    pipeline.bring_data(place, provenance.pointers(place), lambda name: None)


def test_no_remote_is_none_and_one_is_shown_without_what_is_secret(place):
    assert pipeline.remote(place) is None
    with pytest.raises(pipeline.RemoteError, match="no default remote is set; set one by `dvc remote add --default"):
        pipeline.reach(place)
    remote(place, "ssh://me:secret@host:22/path?token=secret")
    assert str(pipeline.remote(place)) == "DVC's remote 'store' (ssh://host:22/path)"
    with pipeline._config(place).edit("local", validate=False) as ours:
        ours["core"]["remote"] = "other"
    with pytest.raises(pipeline.RemoteError, match="'other', and there is none of that name; see `dvc remote list`"):
        pipeline.remote(place)


def test_a_folder_that_is_not_there_is_told_with_what_to_do(place, tmp_path):
    remote(place, tmp_path / "store")
    with pytest.raises(pipeline.RemoteError) as error:
        pipeline.reach(place)
    for part in ("'store'", str(tmp_path / "store"), "no such folder", "`dvc remote list`", "--no-push"):
        assert part in str(error.value)
    (tmp_path / "store").mkdir()
    pipeline.reach(place)


def test_a_remote_that_does_not_answer_is_not_waited_for(place, tmp_path, monkeypatch):
    (tmp_path / "store").mkdir()
    remote(place, tmp_path / "store")
    over = threading.Event()
    monkeypatch.setattr(pipeline, "ANSWER", 0.01)
    monkeypatch.setattr(pipeline, "_trouble", lambda found: [] if over.wait(60) else ["the test hangs"])
    with pytest.raises(pipeline.RemoteError, match="does not answer within 0 s"):
        pipeline.reach(place)
    over.set()


def test_a_kind_of_remote_whose_library_is_not_installed_is_told(place):
    remote(place, "gs://bucket/path")
    with pytest.raises(pipeline.RemoteError, match=r"cannot be used: .*dvc-gs"):
        pipeline.reach(place)


def test_no_error_of_a_remote_shows_what_is_secret_in_its_address(place):
    class Refuses(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_):
            pass

    told = []

    def ask(call, *arguments):
        with pytest.raises((pipeline.RemoteError, LookupError)) as error:
            call(place, *arguments)
        told.append(str(error.value))

    data(place, "3\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        remote(place, f"http://me:hunter1@127.0.0.1:{store.server_port}/store?token=hunter2&more=a%20b")
        ask(pipeline.reach)
        ask(pipeline.push)
        shutil.rmtree(place.root / ".dvc" / "cache")
        place.raw("rows.csv").unlink()
        ask(bring)
        ask(pipeline.bring, "data/raw/rows.csv.dvc")
        store.shutdown()
    assert [text for text in told if "hunter" in text or "token" in text] == []
    assert f"127.0.0.1:{store.server_port}/store" in told[0]


def test_data_that_are_neither_here_nor_there_are_all_named_in_one_error(place, tmp_path):
    data(place, "3\n")
    shutil.rmtree(place.root / ".dvc" / "cache")
    place.raw("rows.csv").unlink()
    with pytest.raises(
        LookupError, match=r"data/raw/rows.csv is not in DVC's cache, and no remote is set.*dvc remote add"
    ):
        bring(place)
    (tmp_path / "store").mkdir()
    remote(place, tmp_path / "store")
    with pytest.raises(LookupError, match=r"data/raw/rows.csv is neither in DVC's cache nor in its remote"):
        bring(place)


def test_data_that_are_there_or_that_no_stage_reads_are_not_asked_for(place):
    place.raw("rows.csv").write_text("the user's own\n")
    pointer = place.root / "data" / "raw" / "rows.csv.dvc"
    pointer.with_name("other.csv.dvc").write_text(pointer.read_text().replace("rows.csv", "other.csv"))
    shutil.rmtree(place.root / ".dvc" / "cache")
    bring(place)
    assert place.raw("rows.csv").read_text() == "the user's own\n"


def second_clone_runs_nothing(place, tmp_path, url):
    """Push from one clone; another one, with the same remote and no dvc.lock, restores everything and runs nothing."""
    remote(place, url)
    pipeline.reach(place)
    run(place, "dvc", "repro", "--quiet")
    assert ran(place) == ["double", "count"]
    pipeline.push(place)
    other = cloned(place, tmp_path / "other")
    assert not other.lockfile.exists()
    remote(other, url)
    bring(other)
    assert pipeline.restore(other, remote=True) == ["double", "count"]
    run(other, "dvc", "repro", "--quiet")
    assert ran(other) == []
    assert other.lockfile.read_bytes() == place.lockfile.read_bytes()
    assert (other.root / "results" / "count.txt").read_bytes() == (place.root / "results" / "count.txt").read_bytes()
    assert pipeline.stale(other) == []


def test_a_second_clone_with_the_same_folder_as_remote_runs_nothing(place, tmp_path):
    (tmp_path / "store").mkdir()
    second_clone_runs_nothing(place, tmp_path, tmp_path / "store")


def test_a_second_clone_with_the_same_object_store_as_remote_runs_nothing_and_troubles_are_told(
    place, tmp_path, monkeypatch
):
    with seaweed.server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        second_clone_runs_nothing(place, tmp_path, "s3://data/store")
        remote(place, "s3://nowhere/store")
        with pytest.raises(pipeline.RemoteError, match=r"'store' \(s3://nowhere/store\) cannot be used: .*bucket"):
            pipeline.reach(place)
        remote(place, "s3://data/store")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        with pytest.raises(pipeline.RemoteError, match=r"cannot be used: .*signature.*see that .* your keys are right"):
            pipeline.reach(place)
        with pytest.raises(pipeline.RemoteError, match="dvc push"):
            pipeline.push(place)
    monkeypatch.setattr(pipeline, "ANSWER", 1.0)  # the client tries again for some time
    with pytest.raises(pipeline.RemoteError, match=r"\(s3://data/store\) cannot be used: .*does not answer") as error:
        pipeline.reach(place)
    assert "another" not in str(error.value)


def test_a_push_that_fails_is_told_and_one_that_is_repeated_sends_the_rest(place, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "files").touch()  # where DVC wants a folder
    remote(place, store)
    run(place, "dvc", "repro", "--quiet")
    with pytest.raises(pipeline.RemoteError, match="dvc push"):
        pipeline.push(place)
    (store / "files").unlink()
    pipeline.push(place)
    assert len([p for p in (store / "files").rglob("*") if p.is_file()]) == 3
