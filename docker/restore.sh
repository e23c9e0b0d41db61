#!/bin/sh
# Bring back what docker/backup.sh saved, into servers that have made nothing yet; end MLflow, Prefect and workers before.
#
#     docker/restore.sh FOLDER [--force]
#
# The same variables as for backup.sh say where. --force removes what is there first.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
force=no
[ "${2:-}" != --force ] || force=yes
if [ $# -lt 1 ] || [ $# -gt 2 ] || { [ $# -eq 2 ] && [ "$force" = no ]; }; then
    echo "error: expected \`restore.sh FOLDER [--force]\`" >&2
    exit 2
fi
folder=$1
bucket=${BUCKET:-mlflow}
store() { "${PYTHON:-python3}" "$here/bucket.py" "$@"; }
ask() { psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --dbname "$1" --command "$2"; }

[ -f "$folder/SHA256SUMS" ] || { echo "error: $folder holds no backup; expected SHA256SUMS in it" >&2; exit 1; }
(cd "$folder" && sha256sum --check --quiet --strict SHA256SUMS) || {
    echo "error: $folder is not what was saved; take another backup" >&2
    exit 1
}
# Everything that stands in the way is told at once, before anything is changed. PostgreSQL's own, such as its vacuum, does not.
wrong=0
for database in mlflow prefect; do
    others=$(ask "$database" "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'")
    tables=$(ask "$database" "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    if [ "$others" -ne 0 ]; then
        echo "error: $others others use the database $database; end the servers and workers first" >&2
        wrong=1
    fi
    if [ "$tables" -ne 0 ] && [ "$force" = no ]; then
        echo "error: the database $database has $tables tables; --force removes them" >&2
        wrong=1
    fi
done
store make "$bucket"
count=$(store count "$bucket")
if [ "$count" -ne 0 ] && [ "$force" = no ]; then
    echo "error: the bucket $bucket has $count objects; --force removes them" >&2
    wrong=1
fi
[ "$wrong" -eq 0 ] || exit 1

# The bucket first, so that no database ever names a file that is not there.
[ "$count" -eq 0 ] || store empty "$bucket"
store load "$bucket" "$folder/bucket.tar"
for database in mlflow prefect; do
    # The schema is made anew by who owns the database: what stands in it is then the owner's, whoever restores.
    ask "$database" "SET client_min_messages = warning; SET ROLE $database;
        DROP SCHEMA public CASCADE; CREATE SCHEMA public" >/dev/null
    pg_restore --no-owner --role "$database" --no-comments --exit-on-error --single-transaction \
        --dbname "$database" "$folder/$database.dump"
done
echo "restored from $folder"
