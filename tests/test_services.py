"""Services: what `make up` starts, what its schedule and its worker do, and what becomes of runs that nobody ends."""

import http.server
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pandas as pd
import psutil
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from conftest import ONE_TABLE, ROOT, make_project
from flows import backfill, deployments, lateness, process, server, services
from sevenfold.registry import versions
from sevenfold.workspace import Workspace
from tests import tiny, topology

NOW = datetime(2026, 11, 28, 9, 0, tzinfo=UTC)


def test_a_run_is_missed_when_its_hour_has_passed_by_more_than_the_grace():
    assert lateness.late(NOW - lateness.GRACE, NOW) is None
    assert lateness.late(NOW + timedelta(hours=1), NOW) is None
    told = lateness.late(NOW - timedelta(hours=6), NOW)
    assert told.startswith(
        "due 2026-11-28 03:00 UTC, and no worker took it until 360 minutes later; what is later than 15"
    )


def test_a_run_by_hand_is_never_missed_or_skipped():
    assert lateness.missed() is None
    assert lateness.skipped(RuntimeError("another run works")) is None


@pytest.mark.parametrize(("by_schedule", "count", "is_one"), [(True, 1, True), (True, 2, False), (False, 1, False)])
def test_a_run_of_a_schedule_that_is_retried_is_one_by_hand(by_schedule, count, is_one):
    # Prefect counts a run before it begins, so the first is number 1.
    run = FlowRun(
        flow_id=uuid4(), auto_scheduled=by_schedule, run_count=count, expected_start_time=NOW - timedelta(days=1)
    )
    with FlowRunContext.model_construct(flow_run=run):
        assert lateness.is_scheduled() is is_one
        assert (lateness.missed() is not None) is is_one
        assert (lateness.skipped(RuntimeError("another run works")) is not None) is is_one


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1"])
def test_a_port_that_is_none_is_refused(port, monkeypatch):
    monkeypatch.setenv("SEVENFOLD_MLFLOW_PORT", port)
    with pytest.raises(
        services.ServiceError, match=f"SEVENFOLD_MLFLOW_PORT is '{port}'; expected the number of a port"
    ):
        services._port("mlflow")


def test_a_server_of_the_users_own_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(services.ServiceError, match=r"PREFECT_API_URL is http://127\.0\.0\.1:9/api; expected none"):
        services.up(Workspace(tmp_path))


@contextmanager
def answering(status, kind, body):
    """Serve the same answer to everybody, and give its address."""

    class Same(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Same) as there:
        thread = threading.Thread(target=there.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{there.server_port}"
        finally:
            there.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "kind", "body", "said"),
    [
        (422, "application/json", b'{"detail": "not so"}', "answers with status 422"),
        (404, "application/json", b'{"detail": "Not Found"}', "answers with status 404"),
        (405, "text/html", b"<html>no</html>", "answers with status 405"),
        (200, "text/html", b"<html>a page</html>", "answers, and not as Prefect does"),
        (200, "application/json", b'{"another": "program"}', "answers, and not as Prefect does"),
    ],
)
def test_what_is_no_prefect_server_is_told_with_its_address_and_what_that_should_be(status, kind, body, said):
    with answering(status, kind, body) as url:
        environment = os.environ | {"PREFECT_API_URL": url}
        for ask in (deployments.put, deployments.strangers):
            with pytest.raises(deployments.DeploymentError) as error:
                ask(ROOT, environment)
            assert str(error.value).startswith(
                f"what stands at {url} {said}; expected a Prefect server, whose address ends in /api"
            )


def test_there_is_nothing_to_deploy_to_without_a_server(tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(services.ServiceError, match="no Prefect server stands here; `make up` starts one"):
        services.deploy(Workspace(tmp_path))


def test_what_is_strange_is_looked_for_where_it_was_deployed_also_at_a_server_that_make_up_did_not_start(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(server, "standing_url", lambda place: "http://127.0.0.1:9/api")
    asked = []
    for name in ("put", "strangers"):
        monkeypatch.setattr(deployments, name, lambda root, environment: asked.append(environment["PREFECT_API_URL"]))
    place = Workspace(tmp_path)
    services.deploy(place)
    services._strangers(place)
    assert asked == ["http://127.0.0.1:9/api"] * 2


@pytest.mark.parametrize("lacking", ["PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_AUTH_ADMIN_PASSWORD"])
def test_services_that_others_reach_ask_everybody_for_a_password_or_do_not_start(lacking, tmp_path, monkeypatch):
    monkeypatch.setenv("SEVENFOLD_HOST", "0.0.0.0")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:long-enough-for-a-test")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "long-enough-for-a-test")
    monkeypatch.delenv(lacking)
    place = Workspace(tmp_path)
    place.initialise()
    with pytest.raises(ValueError, match=f"a server at '0.0.0.0' can be reached from other machines.*{lacking}"):
        services.up(place)
    assert list(place.services.iterdir()) == []


def test_a_service_with_another_password_or_port_is_another_one():
    def digest(command, **environment):
        return services._settings(services.Service("prefect", command, environment, lambda _: True))

    same = digest(["prefect"], PREFECT_HOME="a", HOSTNAME="b")
    assert digest(["prefect"], PREFECT_HOME="a", HOSTNAME="c") == same
    assert digest(["prefect"], PREFECT_HOME="a", PREFECT_SERVER_API_AUTH_STRING="new") != same
    assert digest(["prefect", "--port"], PREFECT_HOME="a") != same


def test_a_process_is_ended_only_if_it_is_the_one_of_the_note(tmp_path):
    place = Workspace(tmp_path)
    place.initialise()
    with subprocess.Popen(["sleep", "60"]) as other:
        note = place.services / "worker.json"
        note.write_text(json.dumps({"pid": other.pid, "born": "another boot 1", "url": "", "settings": ""}))
        assert [(one.name, one.state) for one in services.states(place)][2][1].startswith("ended by itself; see ")
        ended = {one.name: one.state for one in services.down(place)}
        assert ended == {"worker": "had ended by itself", "mlflow": "was not there", "prefect": "was not there"}
        assert other.poll() is None
        note.write_text(json.dumps({"pid": other.pid, "born": process.born(other.pid), "url": "", "settings": ""}))
        assert services.down(place)[0] == services.State("worker", "ended")
        assert not psutil.pid_exists(other.pid)


def test_a_partition_stands_wherever_it_is_marked():
    filled = backfill._filled({"a": "in/{partition}.csv", "b": ["{partition}", 1], "c": {"d": "{partition}"}}, "May")
    assert filled == {"a": "in/May.csv", "b": ["May", 1], "c": {"d": "May"}}
    keys = {backfill._piece("batch/batch", p, {"source": "{partition}", "limit": n}).key for p in "ab" for n in (1, 2)}
    assert len(keys) == 4
    assert backfill._piece("x/y", "a", {"m": 1, "n": 2}).key == backfill._piece("x/y", "a", {"n": 2, "m": 1}).key


def test_a_server_that_is_away_is_told_in_a_sentence():
    with pytest.raises(
        deployments.DeploymentError, match=r"no Prefect server answers at http://127\.0\.0\.1:9/api \(ConnectError\)"
    ):
        deployments.put(ROOT, {"PREFECT_API_URL": "http://127.0.0.1:9/api"})


def test_the_users_own_tracking_server_is_no_service_that_is_down(tmp_path, monkeypatch):
    place = Workspace(tmp_path)
    place.initialise()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert [one.name for one in services.states(place)] == ["prefect", "mlflow", "worker"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert [one.name for one in services.states(place)] == ["prefect", "worker"]


def free_ports():
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return {
            "SEVENFOLD_PREFECT_PORT": str(one.getsockname()[1]),
            "SEVENFOLD_MLFLOW_PORT": str(other.getsockname()[1]),
        }


class Stood:
    """A small project whose services stand; `settings` are variables of whoever starts them."""

    def __init__(self, project, **settings):
        self.project, self.settings = project, free_ports() | settings
        self.api = f"http://127.0.0.1:{self.settings['SEVENFOLD_PREFECT_PORT']}/api"

    def call(self, what, **more):
        return self.project.run(sys.executable, "-m", "flows.services", what, check=False, **(self.settings | more))

    @contextmanager
    def client(self):
        secret = self.settings.get("PREFECT_SERVER_API_AUTH_STRING", "")
        with deployments.client_of({"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": secret}) as client:
            yield client

    def runs(self, flow):
        """Return the flow's runs that are due, the oldest first."""
        from prefect.client.schemas.filters import FlowFilter, FlowFilterName

        with self.client() as client:
            found = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])), limit=200)
        return sorted(found, key=lambda run: run.expected_start_time)

    def wait(self, told, seconds):
        """Return what is found as soon as it is something."""
        end = time.monotonic() + seconds
        while not (found := told()):
            assert time.monotonic() < end, (
                [(r.name, r.state.name, r.state.message) for r in self.runs("training")][:8],
                (self.project.workspace.logs / "worker.log").read_text()[-3000:],
            )
            time.sleep(0.5)
        return found

    def named(self, state, flow="training"):
        return [run for run in self.runs(flow) if run.state.name == state]


@contextmanager
def standing(project, **settings):
    """Have the services of a project stand until the end of the block."""
    there = Stood(project, **settings)
    try:
        done = there.call("up")
        assert done.returncode == 0, done.stdout + done.stderr
        yield there
    finally:
        there.call("down")


@pytest.fixture(scope="module")
def stood(tmp_path_factory):
    project = make_project(tmp_path_factory.mktemp("stood") / "project")
    project.edit("prefect.yaml", 'cron: "0 3 * * *"', 'cron: "* * * * *"')
    with standing(project) as there:
        yield there


@pytest.mark.slow
def test_a_cron_deployment_gets_scheduled_runs(stood):
    now = datetime.now(UTC)
    ahead = stood.wait(lambda: [r for r in stood.named("Scheduled") if r.expected_start_time > now], 60)
    assert len(ahead) > 3
    assert {r.expected_start_time.second for r in ahead} == {0}


@pytest.mark.slow
def test_what_stands_already_is_left_as_it_is(stood):
    before = {note.name: note.read_text() for note in stood.project.workspace.services.iterdir()}
    assert len(before) == 3
    assert stood.call("up").stdout.count("was up") == 3
    assert {note.name: note.read_text() for note in stood.project.workspace.services.iterdir()} == before
    told = stood.call("status")
    assert told.returncode == 0
    assert [line.split()[:2] for line in told.stdout.splitlines()] == [
        ["prefect", "up"],
        ["mlflow", "up"],
        ["worker", "up"],
    ]


@pytest.mark.slow
def test_deployments_go_to_any_server_that_stands(stood):
    done = stood.call("deploy", PREFECT_API_URL=stood.api)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prefect deployment delete" not in done.stderr
    with stood.client() as client:
        batch = client.read_deployment_by_name("batch/batch")
        old = client.create_deployment(batch.flow_id, "old", work_pool_name=deployments.POOL)
        told = stood.call("deploy", PREFECT_API_URL=stood.api).stderr
        assert "batch/old is on the server and not in prefect.yaml; `prefect deployment delete batch/old` ends" in told
        client.delete_deployment(old)
        there = {f"{client.read_flow(d.flow_id).name}/{d.name}" for d in client.read_deployments()}
        schema = client.read_deployment_by_name("batch/batch").parameter_openapi_schema
    assert there == {"training/training", "batch/batch", "index/index", "search/search", "monitoring/monitoring"}
    # What makes a form of the parameters: choices, and which have to be given.
    assert schema["properties"]["operation"]["enum"][:2] == ["encode", "score"]
    assert schema["required"] == ["operation", "model", "source", "destination"]


@pytest.mark.slow
def test_all_doors_are_those_of_this_machine(stood):
    for note in stood.project.workspace.services.iterdir():
        process = psutil.Process(json.loads(note.read_text())["pid"])
        for member in (process, *process.children(recursive=True)):
            listening = [c.laddr.ip for c in member.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            assert set(listening) <= {"127.0.0.1"}, (note.name, listening)


@pytest.mark.slow
def test_a_port_that_somebody_has_is_told_and_what_was_started_is_ended(tmp_path, stood):
    project = make_project(tmp_path / "project")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = free_ports() | {"SEVENFOLD_MLFLOW_PORT": str(other.getsockname()[1])}
        done = project.run(sys.executable, "-m", "flows.services", "up", check=False, **taken)
    assert done.returncode == 1
    assert f"something listens at http://127.0.0.1:{taken['SEVENFOLD_MLFLOW_PORT']} already" in done.stderr
    assert list(project.workspace.services.iterdir()) == []
    assert not (project.workspace.prefect_home / "server.json").exists()
    told = project.run(sys.executable, "-m", "flows.services", "status", check=False)
    assert [line.split()[1] for line in told.stdout.splitlines()] == ["down", "down", "down"]


@pytest.mark.slow
def test_the_worker_takes_a_scheduled_run_and_it_ends_with_a_champion(stood, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # Its work is done in a run of its own, at the commit, which is not the schedule's.
    stood.wait(lambda: [run for run in stood.named("Completed") if run.auto_scheduled], 500)
    champion = versions.champion(stood.project.workspace, "wdbc-anomaly")
    assert champion.number == 1
    assert next(r.parameters["hours"] for r in stood.named("Completed") if r.auto_scheduled) == 24
    # A run whose hour came meanwhile found that one at work.
    assert not stood.named("Failed")
    assert not stood.named("Crashed")


@pytest.mark.slow
def test_a_scheduled_run_that_comes_while_another_works_is_skipped_and_one_by_hand_fails(stood):
    with stood.project.workspace.lock("run", timeout=300):
        before = {run.id for run in stood.named("Skipped")}
        run = stood.wait(lambda: [r for r in stood.named("Skipped") if r.id not in before], 150)[0]
        assert "another run works on this workspace" in run.state.message
        with stood.client() as client:
            deployment = client.read_deployment_by_name("training/training")
            mine = client.create_flow_run_from_deployment(deployment.id, parameters={"wait": 0})
            # One that would wait for longer than it may take.
            stuck = client.create_flow_run_from_deployment(deployment.id, parameters={"wait": 60, "hours": 5 / 3600})
        failed = stood.wait(lambda: [r for r in stood.named("Failed") if r.id == mine.id], 90)[0]
        assert "another run works on this workspace" in failed.state.message
        assert stood.wait(lambda: [r for r in stood.named("Crashed") if r.id == stuck.id], 90)


@pytest.mark.slow
def test_what_no_worker_took_is_late_for_all_to_see_and_missed_once_a_worker_comes(stood):
    place = stood.project.workspace
    with place.lock("run", timeout=300):  # so that nothing works when the worker ends
        services._end(services._note(place, "worker"))
    assert "worker   down" in stood.call("status").stdout
    run = stood.wait(lambda: [r for r in stood.named("Scheduled") if r.auto_scheduled], 90)[-1]
    hour = (datetime.now(UTC) - lateness.GRACE - timedelta(minutes=5)).strftime("%Y-%m-%d %H:%M:%S.%f")
    with sqlite3.connect(place.prefect_home / "prefect.db", timeout=60) as connection:
        # As if it had been due then.
        done = connection.execute(
            "UPDATE flow_run SET expected_start_time = ?, next_scheduled_start_time = ? WHERE id = ?",
            (hour, hour, str(run.id)),
        )
        assert done.rowcount == 1
    connection.close()
    assert stood.wait(lambda: [r for r in stood.named("Late") if r.id == run.id], 60)
    assert "worker   started" in stood.call("up").stdout
    (missed,) = stood.wait(lambda: [r for r in stood.named("Missed") if r.id == run.id], 120)
    assert "no worker took it until 20 minutes later; what is later than 15 minutes" in missed.state.message


@pytest.mark.slow
def test_a_backfill_does_each_partition_once_and_goes_on_where_it_was(stood):
    project = stood.project
    bundle = tiny.saved(project.root / "bundle", "table", "anomaly")
    rows = tiny.table(90).frame
    (project.root / "in").mkdir()
    for number, month in enumerate(["2026-01", "2026-03"]):
        rows[number * 30 :][:30].to_parquet(project.root / f"in/{month}.parquet")
    command = ["sevenfold", "backfill", "batch", "--from", "2026-01-05", "--to", "2026-03-01", "--every", "month"]
    command += ["--set", "operation=score", "--set", f"model={bundle}", "--set", "source=in/{partition}.parquet"]
    command += ["--set", "destination=out/{partition}.parquet", "--set", 'options={"reasons": "none"}']
    first = project.run(*command, check=False)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "3 partitions, of which 0 were done before" in first.stdout
    assert "2 of 3 partitions are done" in first.stdout
    assert "in/2026-02.parquet does not exist" in " ".join(first.stdout.replace("│", " ").split())
    receipts = {p.name: p.read_bytes() for p in (project.root / "out").glob("*.receipt.json")}
    assert sorted(receipts) == ["2026-01.parquet.receipt.json", "2026-03.parquet.receipt.json"]

    rows[60:].to_parquet(project.root / "in/2026-02.parquet")
    second = project.run(*command)
    assert "3 partitions, of which 2 were done before" in second.stdout
    assert "3 of 3 partitions are done" in second.stdout
    assert {name: (project.root / "out" / name).read_bytes() for name in receipts} == receipts
    assert len(pd.read_parquet(project.root / "out/2026-02.parquet")) == 30

    assert "3 partitions, of which 3 were done before" in project.run(*command).stdout
    again = project.run(*command[:3], "--partitions", "2026-01", *command[9:], "--again")
    assert "1 of 1 partitions are done" in again.stdout
    assert (project.root / "out/2026-01.parquet.receipt.json").read_bytes() != receipts["2026-01.parquet.receipt.json"]
    ended = [(month, run.state.name) for run in stood.runs("batch") for month in run.tags if month[:4] == "2026"]
    assert sorted(ended) == [
        ("2026-01", "Completed"),
        ("2026-01", "Completed"),
        ("2026-02", "Completed"),
        ("2026-02", "Failed"),
        ("2026-03", "Completed"),
    ]
    assert all("backfill" in run.tags for run in stood.runs("batch"))


@pytest.mark.slow
def test_a_backfill_that_cannot_be_is_refused_with_all_that_is_wrong_and_begins_nothing(stood):
    before = len(stood.runs("batch"))
    wrong = stood.project.run(
        *("sevenfold", "backfill", "batch", "--partitions", "a", "a", "--set", "operaton=score", "--concurrency", "0"),
        check=False,
    )
    assert wrong.returncode == 1
    for part in (
        "concurrency is 0; expected 1 or more",
        "partition a given twice",
        "no parameter has {partition} in it",
        "the flow has no parameter operaton; it has: operation, model",
        "the flow needs the parameters operation, model, source, destination",
    ):
        assert part in wrong.stderr
    absent = stood.project.run("sevenfold", "backfill", "bach", "--partitions", "a", check=False)
    assert "there is no deployment bach/bach; there are: batch/batch" in absent.stderr
    assert len(stood.runs("batch")) == before


@pytest.mark.slow
def test_a_run_that_gives_no_sign_of_life_is_marked_as_crashed(stood):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: stood.api}):
        deployments.put_automation(deployments.crash_of_silent_runs(timedelta(seconds=40)))
    since = datetime.now(UTC)  # of runs before that the server remembers the longer silence
    stood.project.edit("params.yaml", "epochs: 12", "epochs: 4000")  # so that it takes long
    stood.project.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "longer")
    run = stood.wait(lambda: [r for r in stood.named("Running") if r.auto_scheduled and r.start_time > since], 300)[0]
    note = stood.project.workspace.services / "worker.json"
    worker = psutil.Process(json.loads(note.read_text())["pid"])
    time.sleep(3)  # its first sign of life comes a moment after it runs
    for member in [*worker.children(recursive=True), worker]:
        member.kill()
    assert "worker   ended by itself; see" in stood.call("status").stdout
    crashed = stood.wait(lambda: [r for r in stood.named("Crashed") if r.id == run.id], 120)[0]
    assert "no sign of life for 40 s" in crashed.state.message
    # The lock died with its holder, so the next one is free to work.
    stood.project.workspace.lock("run", timeout=5).acquire().lock.release()
    assert "worker   started" in stood.call("up").stdout


@pytest.mark.slow
def test_the_end_stops_what_was_started_and_all_that_runs_below_it(stood):
    # Not those that were killed with the worker before: who could have said so is gone, and their silence lasts minutes.
    worker = json.loads((stood.project.workspace.services / "worker.json").read_text())["pid"]
    since = psutil.Process(worker).create_time()
    running = stood.wait(lambda: [r for r in stood.named("Running") if r.start_time.timestamp() > since], 150)
    processes = [psutil.Process(json.loads(n.read_text())["pid"]) for n in stood.project.workspace.services.iterdir()]
    family = [*processes, *(one for process in processes for one in process.children(recursive=True))]
    assert len(family) > 3
    done = stood.call("down")
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["worker", "ended"],
        ["mlflow", "ended"],
        ["prefect", "ended"],
    ]
    assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    root = str(stood.project.root)
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline", "pid"]) if p.pid != os.getpid()]
    assert not [command for command in left if command and any(root in word for word in command)]
    # The run had time to say how it ended.
    with sqlite3.connect(stood.project.workspace.prefect_home / "prefect.db") as connection:
        states = dict(connection.execute("SELECT id, state_name FROM flow_run"))
    assert "Running" not in {states[str(run.id)] for run in running}


@pytest.mark.slow
def test_services_that_others_reach_let_in_who_has_the_password_and_show_it_to_nobody(tmp_path):
    project = make_project(tmp_path / "project", ONE_TABLE)
    bundle = tiny.saved(project.root / "bundle", "table", "anomaly")
    tiny.table(30).frame.to_parquet(project.root / "rows.parquet")
    secrets = {
        "PREFECT_SERVER_API_AUTH_STRING": f"team:{topology.MARKER}-prefect",
        "MLFLOW_AUTH_ADMIN_PASSWORD": f"{topology.MARKER}-mlflow",
        "DRIFT_WEBHOOK": f"http://127.0.0.1:9/{topology.MARKER}-hook",
    }
    with topology.commands_with_secrets() as seen, standing(project, SEVENFOLD_HOST="0.0.0.0", **secrets) as there:
        prefect, mlflow = (there.settings[f"SEVENFOLD_{name}_PORT"] for name in ("PREFECT", "MLFLOW"))
        for host in ("127.0.0.1", "127.0.0.2"):  # the second one is reached by those alone who listen everywhere
            assert topology.asked(f"http://{host}:{prefect}/api/admin/version") == 401
            given = topology.basic(secrets["PREFECT_SERVER_API_AUTH_STRING"])
            assert topology.asked(f"http://{host}:{prefect}/api/admin/version", **given) == 200
        runs = f"http://127.0.0.1:{mlflow}/api/2.0/mlflow/experiments/search?max_results=9"
        assert topology.asked(runs) == 401
        assert topology.asked(runs, **topology.basic("admin:" + secrets["MLFLOW_AUTH_ADMIN_PASSWORD"])) == 200
        assert topology.asked(runs.replace("127.0.0.1", "127.0.0.2")) == 403  # a name that nobody has allowed
        with there.client() as client:
            job = {"operation": "score", "model": str(bundle), "source": "rows.parquet", "destination": "out.parquet"}
            parameters = {"batch/batch": job, "monitoring/monitoring": {"webhook": "DRIFT_WEBHOOK"}}
            wanted = {
                client.create_flow_run_from_deployment(client.read_deployment_by_name(name).id, parameters=given).id
                for name, given in parameters.items()
            }
        done = there.wait(
            lambda: [r for r in (*there.named("Completed", "batch"), *there.named("Completed", "monitoring"))
                     if r.id in wanted][1:], 240)  # fmt: skip
        assert done
        assert len(pd.read_parquet(project.root / "out.parquet")) == 30
        wrong = there.call("deploy", PREFECT_API_URL=there.api, PREFECT_API_AUTH_STRING="team:wrong")
        assert wrong.returncode == 1
        assert "does not let in who comes with PREFECT_API_AUTH_STRING" in wrong.stderr
        assert "Traceback" not in wrong.stderr
        # With a new password a door is another one, and the old one opens nothing.
        for name in ("PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_AUTH_ADMIN_PASSWORD"):
            there.settings[name] += "-new"
        again = there.call("up")
        assert again.returncode == 0, again.stderr
        address = f"http://127.0.0.1:{prefect}/api/admin/version"
        assert topology.asked(address, **topology.basic(secrets["PREFECT_SERVER_API_AUTH_STRING"])) == 401
        assert topology.asked(address, **topology.basic(there.settings["PREFECT_SERVER_API_AUTH_STRING"])) == 200
        assert topology.asked(runs, **topology.basic("admin:" + secrets["MLFLOW_AUTH_ADMIN_PASSWORD"])) == 401
        assert topology.asked(runs, **topology.basic("admin:" + there.settings["MLFLOW_AUTH_ADMIN_PASSWORD"])) == 200
        assert topology.MARKER not in again.stdout + again.stderr + there.call("status").stdout
    assert seen == []
    files = [p for p in project.root.rglob("*") if p.is_file()]
    assert {"prefect.log", "mlflow.log", "worker.log", "prefect.db", "mlflow.db", "out.parquet.receipt.json"} <= {
        p.name for p in files
    }
    assert [str(p) for p in files if topology.MARKER.encode() in p.read_bytes()] == []
