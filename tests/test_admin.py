"""The password of MLflow's first user: a new one holds from the next start of a server on, in every kind of store."""

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import sqlalchemy
from werkzeug.security import check_password_hash

from tests import postgresql, topology

OLD, NEW = f"{topology.MARKER}-old", f"{topology.MARKER}-new"
MADE = """
import sys, warnings
warnings.simplefilter("ignore")
from mlflow.server.auth.config import read_auth_config
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
store = SqlAlchemyStore()
store.init_db(read_auth_config().database_uri)
store.create_user("admin", sys.argv[1], is_admin=True)
store.create_user("another", sys.argv[1])
"""


class Users:
    """MLflow's users in a store, as a server that is started next would find them."""

    def __init__(self, room, uri):
        self.room, self.uri = room, uri
        rules = room / "basic_auth.ini"
        escaped = uri.replace("%", "%%")
        rules.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {escaped}\nadmin_username = admin\n")
        self.variables = {"PATH": os.environ["PATH"], "MLFLOW_AUTH_CONFIG_PATH": str(rules), "DO_NOT_TRACK": "true"}

    def python(self, *arguments, **variables):
        called = [sys.executable, *arguments]
        return subprocess.run(
            called, cwd=self.room, env=self.variables | variables, capture_output=True, text=True, check=False
        )

    def begin(self, **variables):
        """Start what starts a server, with a command in the place of the server."""
        return self.python(topology.ROOT / "docker/admin.py", sys.executable, "-c", "print('begun')", **variables)

    def make(self):
        made = self.python("-c", MADE, OLD)
        assert made.returncode == 0, made.stderr

    def password(self, name):
        """Return which of the two passwords a user has."""
        engine = sqlalchemy.create_engine(self.uri)
        with engine.connect() as connection:
            hashes = dict(
                tuple(row) for row in connection.execute(sqlalchemy.text("SELECT username, password_hash FROM users"))
            )
        engine.dispose()
        (there,) = [p for p in (OLD, NEW) if check_password_hash(hashes[name], p)]
        return there


@pytest.fixture(params=["sqlite", "postgresql"])
def users(request, tmp_path):
    own = request.param == "sqlite"
    with nullcontext(f"sqlite:///{tmp_path}/users.db") if own else postgresql.server() as uri:
        yield Users(tmp_path, uri)


def test_a_new_password_of_the_first_user_takes_the_place_of_the_old_one_and_nobody_elses(users):
    users.make()
    for password, told in ((NEW, "MLflow's first user has a new password\n"), (NEW, "")):
        done = users.begin(MLFLOW_AUTH_ADMIN_PASSWORD=password)
        assert (done.returncode, done.stdout) == (0, "begun\n"), done.stderr
        assert done.stderr == told
        assert users.password("admin") == password
    assert users.password("another") == OLD


def test_where_no_store_or_no_password_is_nothing_is_touched(users):
    assert users.begin(MLFLOW_AUTH_ADMIN_PASSWORD=NEW).stdout == "begun\n"
    assert not (users.room / "users.db").exists()
    users.make()
    assert users.begin().stdout == "begun\n"
    assert users.password("admin") == OLD


def test_a_password_that_mlflow_does_not_take_is_told_and_begins_nothing(tmp_path):
    users = Users(tmp_path, f"sqlite:///{tmp_path}/users.db")
    users.make()
    done = users.begin(MLFLOW_AUTH_ADMIN_PASSWORD="hunter2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: MLFLOW_AUTH_ADMIN_PASSWORD cannot be made the first user's: Password must be at least 12 characters; set "
        "another, or look at the database\n"
    )
    assert users.password("admin") == OLD
