"""The password of MLflow's first user, which is MLFLOW_AUTH_ADMIN_PASSWORD from the next start of a server on.

MLflow itself takes it only where there is no such user yet. Who that is, and where users are kept, says MLFLOW_AUTH_CONFIG_PATH; of
sevenfold it needs nothing. This process then becomes the command that it is given:

    python docker/admin.py mlflow server --app-name basic-auth
"""

import os
import sys
import warnings
from pathlib import Path
from typing import NoReturn


def main() -> NoReturn:
    """Have the password hold where one is set, and run the command; ends with 1 where something is wrong, and says what."""
    command = sys.argv[1:]
    if not command:
        sys.exit("error: no command; expected `admin.py COMMAND ...`")
    password = os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD")
    try:
        if password and renew(password):
            print("MLflow's first user has a new password", file=sys.stderr, flush=True)
    except Exception as error:  # MLflow's, or the database's, which name a statement and its values in further lines
        told = str(error).partition("\n")[0].removesuffix(".")
        sys.exit(
            f"error: MLFLOW_AUTH_ADMIN_PASSWORD cannot be made the first user's: {told}; set another, or look at the database"
        )
    os.execvp(command[0], command)


def renew(password: str) -> bool:
    """Give the first user this password, where that one is there and has another; return whether it was so."""
    import sqlalchemy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this part of MLflow warns of itself while it is imported
        from mlflow.server.auth.config import read_auth_config
        from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    settings = read_auth_config()
    url = sqlalchemy.make_url(settings.database_uri)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        return False  # to look would make it
    engine = sqlalchemy.create_engine(url)
    try:
        if not sqlalchemy.inspect(engine).has_table("users"):
            return False  # the server makes both, the store and its first user
    finally:
        engine.dispose()
    store = SqlAlchemyStore()
    store.init_db(settings.database_uri)
    try:
        name = settings.admin_username
        if not store.has_user(name) or store.authenticate_user(name, password):
            return False
        store.update_user(name, password=password)
        return True
    finally:
        store.engine.dispose()


if __name__ == "__main__":
    main()
