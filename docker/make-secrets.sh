#!/bin/sh
# Make the secrets of the servers, each a file that only its owner reads. One that is there stays as it is.
#
#     docker/make-secrets.sh [FOLDER]        FOLDER is docker/secrets, which git ignores, where none is named
set -eu
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"

make() { # NAME [BEGINNING]
    [ -s "$folder/$1" ] || printf '%s%s' "${2:-}" "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" >"$folder/$1"
}

make postgres
make mlflow-database
make prefect-database
make mlflow-admin
make mlflow-forms
make prefect-api sevenfold:
make store-key
make store-secret
echo "secrets are in $folder; keep a copy of it apart from the backups"
