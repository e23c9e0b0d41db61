#!/bin/sh
# Make the databases of MLflow and Prefect in a new PostgreSQL, each owned by a role of its name that can do nothing else.
# The image of PostgreSQL runs it once; elsewhere PGHOST, PGUSER and PGPASSWORD say where and who.
set -eu
export PGUSER="${PGUSER:-${POSTGRES_USER:-postgres}}"

make() { # NAME, with its password in PASSWORD: psql takes it from there, and it stands in no command
    psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --dbname postgres --set name="$1" <<'SQL'
\getenv password PASSWORD
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

PASSWORD="$MLFLOW_DATABASE_PASSWORD" make mlflow
PASSWORD="$PREFECT_DATABASE_PASSWORD" make prefect
