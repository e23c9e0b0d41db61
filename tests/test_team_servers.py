"""Servers for a team, as docker/compose.yaml describes them, with passwords: from data to a champion, a backup and back."""

import json
import re
import subprocess
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import ONE_TABLE, make_project
from flows import server
from sevenfold.registry import tracking
from tests import tiny, topology

PARAMS = (
    ONE_TABLE
    + """\
training: {epochs: 2, patience: 2, batch_size: 64, learning_rate: 0.003, warmup: 0.05, weight_decay: 0.0001, gradient_clip: 1.0, threads: 1}
candidates:
  wdbc-pca: {dataset: wdbc, applications: [anomaly], rows: normal, variant: pca, options: {code: 8}}
rivals: {seconds: 600}
gate: {must_beat_rivals: false, floor: 0.5}
"""
)


@dataclass(frozen=True)
class Run:
    """What came of `sevenfold run` through the servers of a team, and of their end.

    outages: how many times PostgreSQL was away in its middle.
    seen: commands of processes that had the marker of a secret in them meanwhile.
    """

    project: object
    output: str
    outages: int
    room: Path
    seen: list[str]
    dumps: dict[str, str]
    backup: Path
    told: dict[str, subprocess.CompletedProcess]
    pools: dict[str, dict]


def worker(team, project, **more):
    """Return the environment of a worker of compose.yaml that works on a project."""
    return project.environment(**team.environment("worker", project.root) | more)


def call(team, project, *command, **more):
    """Run a command as the worker would."""
    return subprocess.run(
        team.command("worker", *command),
        cwd=project.root,
        env=worker(team, project, **more),
        capture_output=True,
        text=True,
        check=False,
    )


def query(team, database, sql):
    found = team.run("backup", "psql", "-XAt", "-d", database, "-c", sql, PGUSER="sevenfold")
    assert found.returncode == 0, found.stderr
    return found.stdout.split("\n")[:-1]


def make_pools(team):
    """Make a work pool of each template on Prefect's server, and return what it took."""
    found = {}
    secret = (team.secrets / "prefect-api").read_text()
    for file in sorted((topology.ROOT / "docker/work-pools").glob("*.json")):
        pool = {"name": file.stem, "type": file.stem, "base_job_template": json.loads(file.read_text())}
        request = urllib.request.Request(f"{team.prefect}/api/work_pools/", json.dumps(pool).encode(), method="POST")
        for header in ({"Content-Type": "application/json"} | topology.basic(secret)).items():
            request.add_header(*header)
        with urllib.request.urlopen(request, timeout=30) as response:
            found[file.stem] = json.load(response)
    return found


def run_with_outages(team, project):
    """Take PostgreSQL away before the training, where Prefect has to hear of steps, and before the election, where MLflow has to.

    Whoever gives up meanwhile is started once more. Return how many times it was away, and all that was printed.
    """
    lines, outages = [], 0
    with subprocess.Popen(
        team.command("worker", "sevenfold", "run"),
        cwd=project.root,
        env=worker(team, project),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if re.search(r"\[[26]/8\] ", line):
                team.postgres.stop()
                outages += 1
                threading.Timer(8, team.postgres.start).start()
    if process.returncode:
        assert re.search("^error: ", "".join(lines), re.MULTILINE), "".join(lines)
        again = call(team, project, "sevenfold", "run")
        assert again.returncode == 0, "".join([*lines, again.stdout, again.stderr])
        assert "wdbc-pca: in closed form" not in again.stdout  # what was trained is not trained again
        lines += [again.stdout, again.stderr]
    return outages, "".join(lines)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A project that was run through all servers, which were backed up then, and ended with all they had."""
    place = tmp_path_factory.mktemp("team")
    project = make_project(place / "project", PARAMS)
    secrets = topology.secrets(place / "secrets")
    told = {}
    with (
        topology.commands_with_secrets() as seen,
        topology.team(place / "room", secrets) as team,
        team.serving("mlflow"),
        team.serving("prefect"),
    ):
        outages, output = run_with_outages(team, project)
        logs = {p.name: p.read_text(errors="replace") for p in team.room.glob("*.log")}
        assert "569 rows by wdbc-anomaly/1" in output, f"{output}{logs}"
        told["history"] = call(team, project, "sevenfold", "history", "wdbc-anomaly")
        pools = make_pools(team)
        (secrets / "wrong").write_text("not-the-password")
        told["wrong for MLflow"] = call(
            team,
            project,
            "sevenfold",
            "history",
            "wdbc-anomaly",
            MLFLOW_TRACKING_PASSWORD_FILE=str(secrets / "wrong"),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_API_URL", f"{team.prefect}/api")
            patch.setenv("PREFECT_API_AUTH_STRING", "not-the-password")
            with pytest.raises(PermissionError) as refusal, server.standing(project.workspace):
                pass
            told["wrong for Prefect"] = str(refusal.value)
        told["no door"] = topology.asked(f"{team.mlflow}/api/2.0/mlflow/experiments/search?max_results=1")
        told["another name"] = topology.asked(
            f"{team.mlflow}/api/2.0/mlflow/experiments/search?max_results=1", Host="evil.example"
        )
        dumps = {}
        for database in ("mlflow", "prefect"):
            dump = team.run("backup", "pg_dump", database, PGUSER="sevenfold")
            assert dump.returncode == 0, dump.stderr
            dumps[database] = dump.stdout
        told["backup"] = step(team, "backup.sh", str(place / "backup"))
        told["backup again"] = step(team, "backup.sh", str(place / "backup"))
        told["restore over running servers"] = step(team, "restore.sh", str(place / "backup"))
        dumps["runs"] = "\n".join(
            query(team, "prefect", "SELECT flow.name, state_name FROM flow_run JOIN flow ON flow.id = flow_id")
        )
    return Run(project, output, outages, place / "room", seen, dumps, place / "backup", told, pools)


def step(team, script, *arguments):
    return team.run("backup", str(topology.ROOT / "docker" / script), *arguments, PGUSER="sevenfold")


@pytest.mark.slow
def test_data_become_a_champion_and_a_job_through_servers_with_passwords(ran):
    assert "569 rows by wdbc-anomaly/1" in ran.output
    assert {"batch|Completed", "training|Completed"} <= set(ran.dumps["runs"].split("\n"))
    assert "mlflow-artifacts:/" in ran.dumps["mlflow"]
    assert not (ran.project.root / ".sevenfold/mlflow/mlflow.db").exists()


@pytest.mark.slow
def test_a_database_that_was_away_in_the_middle_of_a_run_costs_no_training_and_makes_no_second_version(ran):
    assert ran.outages == 2
    assert ran.output.count("wdbc-pca: in closed form") == 1
    history = ran.told["history"].stdout
    assert (history.count("published"), history.count("became champion")) == (1, 1), history
    assert "Running" not in ran.dumps["runs"]


@pytest.mark.slow
def test_nobody_gets_in_without_the_password_or_by_another_name(ran):
    assert (ran.told["no door"], ran.told["another name"]) == (401, 403)


@pytest.mark.slow
def test_a_wrong_password_is_told_with_its_variable_and_without_a_traceback(ran):
    done = ran.told["wrong for MLflow"]
    assert done.returncode == 1
    assert done.stderr.startswith("error: the tracking server at 127.0.0.1 does not let in 'admin' with this password")
    assert "MLFLOW_TRACKING_PASSWORD" in done.stderr
    assert "Traceback" not in done.stderr
    assert "whose server does not let in who comes with PREFECT_API_AUTH_STRING" in ran.told["wrong for Prefect"]
    assert "not-the-password" not in done.stdout + done.stderr + ran.told["wrong for Prefect"]


@pytest.mark.slow
def test_no_secret_stands_in_a_command_a_log_a_file_or_a_database(ran, tmp_path):
    marker = topology.MARKER
    assert ran.seen == []
    leaks = [name for name, text in {"output": ran.output, **ran.dumps}.items() if marker in text]
    leaks += [done.args[1] for done in ran.told.values() if isinstance(done, subprocess.CompletedProcess)
              and marker in done.stdout + done.stderr]  # fmt: skip
    files = [p for folder in (ran.project.root, ran.room, ran.backup) for p in folder.rglob("*") if p.is_file()]
    names = {p.name for p in files}
    assert {
        "dvc.lock",
        "params.yaml",
        "wdbc-anomaly.parquet.receipt.json",
        "mlflow.log",
        "prefect.log",
        "bucket.tar",
    } <= names
    # The store's own disk apart, which is the store.
    leaks += [str(p) for p in files if not p.is_relative_to(ran.room / "data") and marker.encode() in p.read_bytes()]
    assert leaks == []
    status = ran.project.run("git", "status", "--porcelain", "--untracked-files=all").stdout.split()
    assert status == ["??", "dvc.lock", "??", "results/metrics.json"]


@pytest.mark.slow
def test_prefect_takes_the_templates_of_work_pools(ran):
    assert sorted(ran.pools) == ["docker", "kubernetes", "process"]
    for name, pool in ran.pools.items():
        assert pool["base_job_template"] == json.loads((topology.ROOT / f"docker/work-pools/{name}.json").read_text())


@pytest.mark.slow
def test_a_backup_never_goes_over_another_and_never_into_servers_in_use(ran):
    assert ran.told["backup"].returncode == 0, ran.told["backup"].stderr
    assert ran.told["backup again"].returncode == 1
    assert "is there already" in ran.told["backup again"].stderr
    refused = ran.told["restore over running servers"]
    assert refused.returncode == 1
    for problem in ("others use the database mlflow", "others use the database prefect", "tables; --force removes them",
                    "objects; --force removes them"):  # fmt: skip
        assert problem in refused.stderr


@pytest.mark.slow
def test_a_backup_brings_back_the_champion_with_its_answers_to_the_byte(ran, tmp_path):
    project = ran.project
    with topology.team(tmp_path / "room", topology.secrets(tmp_path / "secrets")) as team:
        damaged = tmp_path / "damaged"
        damaged.mkdir()
        for file in ran.backup.iterdir():
            (damaged / file.name).write_bytes(file.read_bytes()[: 1000 if file.name == "mlflow.dump" else None])
        refused = step(team, "restore.sh", str(damaged))
        assert refused.returncode == 1
        assert "mlflow.dump: FAILED" in refused.stdout
        assert "is not what was saved" in refused.stderr
        restored = step(team, "restore.sh", str(ran.backup))
        assert restored.returncode == 0, restored.stderr
        refused = step(team, "restore.sh", str(ran.backup))
        assert refused.returncode == 1
        assert "the database mlflow has" in refused.stderr
        again = step(team, "restore.sh", str(ran.backup), "--force")
        assert again.returncode == 0, again.stderr
        with team.serving("mlflow"):
            done = call(
                team,
                project,
                "sevenfold",
                "score",
                "wdbc-anomaly",
                "data/raw/wdbc.parquet",
                str(tmp_path / "again.parquet"),
            )
            assert done.returncode == 0, done.stderr
        runs = query(team, "prefect", "SELECT flow.name, state_name FROM flow_run JOIN flow ON flow.id = flow_id")
        assert "\n".join(runs) == ran.dumps["runs"]
        owners = query(team, "prefect", "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        assert owners == ["prefect"]
    before = project.root / ".sevenfold/batches/wdbc-anomaly.parquet"
    assert (tmp_path / "again.parquet").read_bytes() == before.read_bytes()


@pytest.mark.slow
def test_a_server_of_one_machine_asks_for_a_password_where_one_is_set(tmp_path, monkeypatch):
    for name in ("mlflow/server.env", "mlflow/basic_auth.ini", "docker/admin.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((topology.ROOT / name).read_bytes())
    with tiny.workspace(tmp_path) as place:
        password = f"{topology.MARKER}-100%"
        monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", password)
        port = server.free_port(0)
        command = tracking.server_command(place, host="127.0.0.1", port=port)
        assert password not in " ".join(command)
        environment = tracking.server_environment(place)
        rules = Path(environment["MLFLOW_AUTH_CONFIG_PATH"])
        assert rules.stat().st_mode & 0o777 == 0o600
        assert topology.MARKER not in rules.read_text()
        address = f"http://127.0.0.1:{port}"
        with server.running(command, environment, tmp_path / "log", f"{address}/health"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            with pytest.raises(PermissionError, match="does not let in those who give no name"):
                tracking.client(place)
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            assert [e.name for e in tracking.client(place).search_experiments()] == ["Default"]
        assert topology.MARKER not in (tmp_path / "log").read_text()
