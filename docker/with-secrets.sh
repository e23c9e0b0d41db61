#!/bin/sh
# Run a command whose secrets lie in files: a variable NAME_FILE names the file, and the command finds its content in NAME.
# What a command holds, `ps` shows to everybody; its variables only its own user sees.
#
#     MLFLOW_TRACKING_PASSWORD_FILE=/run/secrets/mlflow-admin docker/with-secrets.sh sevenfold run
set -eu

names="POSTGRES_PASSWORD PGPASSWORD MLFLOW_DATABASE_PASSWORD PREFECT_DATABASE_PASSWORD
    PREFECT_SERVER_DATABASE_PASSWORD PREFECT_SERVER_API_AUTH_STRING PREFECT_API_AUTH_STRING
    MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_TRACKING_PASSWORD
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY"

if [ $# -eq 0 ]; then
    echo "error: no command; expected \`with-secrets.sh COMMAND ...\`" >&2
    exit 2
fi
wrong=0
for name in $names; do
    eval "file=\${${name}_FILE:-}"
    [ -n "$file" ] || continue
    # An empty secret would start a server without a door.
    if [ ! -r "$file" ] || [ ! -s "$file" ]; then
        echo "error: ${name}_FILE names $file, which is empty or cannot be read by user $(id -u);" \
            "write the secret there, for that user to read, as docker/make-secrets.sh does" >&2
        wrong=1
        continue
    fi
    value=$(cat "$file")
    export "$name=$value"
    unset "${name}_FILE"
done
[ "$wrong" -eq 0 ] || exit 1
exec "$@"
