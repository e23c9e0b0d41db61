"""How an error ends a flow's process: as a sentence, or, for those who debug, as it came."""

import importlib
import json
import os
import subprocess
import sys

import pytest
from mlflow.exceptions import MlflowException
from prefect import flow
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from conftest import ROOT, SMALL
from flows import console, deployments, errors, server, training
from sevenfold import files, params
from sevenfold.registry import tracking
from sevenfold.workspace import Workspace

BACKFILL = {
    "deployment": "batch",
    "partitions": ["a"],
    "between": None,
    "parameters": {},
    "concurrency": 1,
    "again": False,
}
CALLS = {  # what a flow's process is called with, and the function that then does the work
    "__main__": ([], "_run"),
    "training": ([], "training"),
    "batch": (["score", "model", "rows.csv", "out.csv"], "batch"),
    "indexes": (["search", "{}"], "search"),
    "monitoring": ([], "monitoring"),
    "backfill": ([json.dumps(BACKFILL)], "backfill"),
    "services": (["status"], "states"),
}
AWAY = (
    "API request to http://user:hunter2@127.0.0.1:9/api failed with exception Max retries exceeded",
    "error: the tracking store does not do as it should: API request to http://127.0.0.1:9/api failed with exception "
    "Max retries exceeded; look at the tracking server, and repeat once it answers\n",
)


@pytest.fixture
def away(tmp_path, monkeypatch):
    """A workspace whose tracking server is not there, and is asked for once."""
    for name, value in {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    place = Workspace(tmp_path)
    place.initialise()
    with place.settled():
        yield place


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Return a call of a flow's `main` whose work ends in an error."""

    def call(name, error, **variables):
        module = importlib.import_module(f"flows.{name}")
        arguments, work = CALLS[name]

        def fail(*_, **__):
            raise error

        monkeypatch.setattr(module, work, fail)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr("flows.process.ends_in_order", lambda: None)  # signals are this process's own
        monkeypatch.delenv("PREFECT_API_URL", raising=False)
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        for file in ("params.yaml", "dvc.yaml"):
            (tmp_path / file).touch()
        monkeypatch.setenv("SEVENFOLD_WORKSPACE", str(tmp_path))
        return module.main()

    return call


def test_every_flow_that_a_process_is_made_of_is_looked_at_here():
    with_main = {path.stem for path in (ROOT / "flows").glob("*.py") if "\ndef main(" in path.read_text()}
    assert with_main - {"pages"} == set(CALLS)  # that one serves until it is ended


@pytest.mark.parametrize("name", CALLS)
def test_an_error_of_mlflows_is_a_sentence_without_a_password_at_the_end_of_every_flow(name, main, capsys):
    said, sentence = AWAY
    assert main(name, MlflowException(said)) == 1
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize("name", CALLS)
def test_an_error_is_a_sentence_and_shows_where_it_came_from_to_those_who_debug(name, main, capsys):
    assert main(name, LookupError("no such thing")) == 1
    assert capsys.readouterr().err == "error: no such thing\n"
    with pytest.raises(LookupError, match="no such thing"):
        main(name, LookupError("no such thing"), SEVENFOLD_DEBUG="1")


def test_an_error_that_nobody_foresaw_is_not_made_a_sentence():
    with pytest.raises(TypeError, match="no axes"):
        errors.tell(TypeError("no axes"))
    assert tracking.sentence(TypeError("no axes")) == ""


@pytest.mark.parametrize("command", [["run"], ["backfill", "batch", "--partitions", "a"]])
def test_a_command_hands_debug_on_to_its_flow(command, tmp_path):
    flows = tmp_path / "flows"
    flows.mkdir()
    (flows / "__init__.py").touch()
    for name in ("__main__", "backfill"):
        (flows / f"{name}.py").write_text("import os\nprint(os.environ.get('SEVENFOLD_DEBUG'))\n")
    code = "from sevenfold import cli; from sevenfold.commands import base; base.initialised = lambda **_: None; cli.main()"
    for file in ("params.yaml", "dvc.yaml"):
        (tmp_path / file).touch()
    variables = {name: value for name, value in os.environ.items() if name != "SEVENFOLD_DEBUG"}
    variables |= {"SEVENFOLD_WORKSPACE": str(tmp_path)}
    for more, handed in ([], "None"), (["--debug"], "1"):
        called = [sys.executable, "-c", code, *command, *more]
        done = subprocess.run(called, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == handed


def test_a_table_without_a_registry_says_that_champions_are_unknown(away):
    assert console.champions(away) is None
    table = console.results({"table": {"anomaly": {"verdict": "it wins"}}}, None)
    assert list(table.columns[-1].cells) == ["unknown"]


def test_what_failed_is_an_artifact_of_a_run_also_where_mlflow_is_away(away):
    away.metrics.parent.mkdir()
    files.write_json(away.metrics, {"table": {"anomaly": {"verdict": "it wins"}}})
    away.params.write_text(SMALL)
    settings = params.load(away.params)

    @flow
    def run():
        training._write_artifacts(away, settings, {"elect table-anomaly": "MLflow is away"})

    with server.standing(away) as url, deployments.client_of({"PREFECT_API_URL": url}) as client:
        with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):  # no log is sent once the server is gone
            run()
        found = {one.key: one.data for one in client.read_artifacts()}
    assert "**elect table-anomaly**: MLflow is away" in found["failures"]
    assert json.loads(found["scorecard"])[0]["champion"] == "unknown"
