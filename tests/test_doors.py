"""Doors: which servers others can reach, and that these ask for a password."""

import configparser

import pytest

from sevenfold import doors
from sevenfold.registry import tracking
from sevenfold.workspace import Workspace


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_a_server_of_this_machine_alone_needs_no_password(host):
    doors.require(host, False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.7", "fe80::1", "example.org", "localhost.example.org"])
def test_a_server_that_others_reach_needs_one(host):
    doors.require(host, True)
    with pytest.raises(ValueError, match="can be reached from other machines") as error:
        doors.require(host, False)
    assert repr(host) in str(error.value)
    for word in ("127.0.0.1", "MLFLOW_AUTH_ADMIN_PASSWORD", "PREFECT_SERVER_API_AUTH_STRING"):
        assert word in str(error.value)


def test_the_tracking_server_refuses_to_be_reached_without_a_password(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    place = Workspace(tmp_path)
    with pytest.raises(ValueError, match=r"a server at '0\.0\.0\.0'"):
        tracking.server_command(place, host="0.0.0.0", port=5000)
    assert "basic-auth" not in tracking.server_command(place, host="127.0.0.1", port=5000)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "a-long-password")
    command = tracking.server_command(place, host="0.0.0.0", port=5000)
    assert command[command.index("--app-name") + 1] == "basic-auth"
    assert "a-long-password" not in command


def test_the_address_of_a_database_with_its_password_stands_in_no_command(tmp_path, monkeypatch):
    place = Workspace(tmp_path)
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:secret@db/mlflow")
    (tmp_path / "mlflow").mkdir()
    place.server_settings.write_text("# what it runs with\nMLFLOW_WORKERS=1\n\nMLFLOW_SERVER_ALLOWED_HOSTS=a=b\n")
    assert "secret" not in " ".join(tracking.server_command(place, host="127.0.0.1", port=5000))
    environment = tracking.server_environment(place)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://user:secret@db/mlflow"
    assert environment["MLFLOW_WORKERS"] == "1"
    assert environment["MLFLOW_SERVER_ALLOWED_HOSTS"] == "a=b"
    monkeypatch.setenv("MLFLOW_WORKERS", "2")
    assert tracking.server_environment(place)["MLFLOW_WORKERS"] == "2"


def test_a_server_shows_the_workspace_where_clients_go_to_a_server(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    command = tracking.server_command(Workspace(tmp_path), host="127.0.0.1", port=5000)
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/.sevenfold/mlflow/mlflow.db"


def test_users_are_kept_where_the_runs_are_in_a_file_that_nobody_else_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "a-long-password")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://user:p%40ss@db/mlflow")
    monkeypatch.delenv("MLFLOW_AUTH_CONFIG_PATH", raising=False)
    place = Workspace(tmp_path)
    (tmp_path / "mlflow").mkdir()
    place.server_settings.touch()
    place.server_rules.write_text("[mlflow]\ndefault_permission = READ\ndatabase_uri = postgresql:///mlflow\n")
    environment = tracking.server_environment(place)
    rules = tmp_path / ".sevenfold/mlflow/basic_auth.ini"
    assert environment["MLFLOW_AUTH_CONFIG_PATH"] == str(rules)
    assert rules.stat().st_mode & 0o777 == 0o600
    assert "a-long-password" not in rules.read_text()
    read = configparser.ConfigParser()  # with interpolation, as MLflow reads it
    read.read(rules)
    assert read["mlflow"]["database_uri"] == "postgresql://user:p%40ss@db/mlflow"
    assert read["mlflow"]["default_permission"] == "READ"
    assert len(environment["MLFLOW_FLASK_SERVER_SECRET_KEY"]) > 30
