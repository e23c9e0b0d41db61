#!/bin/sh
# Save the databases of MLflow and Prefect and the bucket of model files, while the servers run.
#
#     docker/backup.sh FOLDER
#
# PGHOST, PGUSER, PGPASSWORD lead to PostgreSQL; AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY to the store;
# BUCKET is the bucket (mlflow), PYTHON a Python with boto3 (python3). FOLDER appears whole or not at all.
set -eu
umask 077
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
[ $# -eq 1 ] || { echo "error: expected \`backup.sh FOLDER\`" >&2; exit 2; }
folder=${1%/}
[ ! -e "$folder" ] || { echo "error: $folder is there already; name another folder for this backup" >&2; exit 1; }

draft="$folder.partial"
rm -rf "$draft"
mkdir -p "$draft"
trap 'rm -rf "$draft"' EXIT
trap 'exit 1' HUP INT TERM
# The databases first: every file that they name is in the bucket by then, and one that is there in excess does no harm.
for database in mlflow prefect; do
    pg_dump --format custom --no-owner --file "$draft/$database.dump" --dbname "$database"
done
"${PYTHON:-python3}" "$here/bucket.py" save "${BUCKET:-mlflow}" "$draft/bucket.tar"
(cd "$draft" && sha256sum -- mlflow.dump prefect.dump bucket.tar >SHA256SUMS)
sync
mv "$draft" "$folder"
trap - EXIT
echo "saved in $folder"
