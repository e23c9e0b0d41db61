"""A bucket of an S3-compatible store, from its end to a backup and back.

Where the store is and who asks say AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; of sevenfold it needs nothing.
"""

import argparse
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds until a store that has just been started has to take a bucket."""


def main() -> int:
    """Do what the command line says; 0 after success, 1 where something is wrong, with one line that says what."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("make", "count", "save", "load", "empty"))
    parser.add_argument("bucket")
    parser.add_argument("file", nargs="?", type=Path, help="a tar file: made by save, read by load")
    given = parser.parse_args()
    if (given.file is None) == (given.step in {"save", "load"}):
        parser.error(f"{given.step} {'needs' if given.file is None else 'takes no'} file")
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client("s3")
    try:
        if given.step == "make":
            make(client, given.bucket)
        elif given.step == "count":
            print(sum(1 for _ in objects(client, given.bucket)))
        elif given.step == "save":
            print(f"{save(client, given.bucket, given.file):,} objects saved")
        elif given.step == "load":
            print(f"{load(client, given.bucket, given.file):,} objects loaded")
        else:
            for key in list(objects(client, given.bucket)):
                client.delete_object(Bucket=given.bucket, Key=key)
    except (BotoCoreError, ClientError, OSError, tarfile.TarError) as error:
        print(f"error: bucket {given.bucket}: {error}", file=sys.stderr)
        return 1
    finally:
        client.close()
    return 0


def make(client: Any, bucket: str) -> None:
    """Make the bucket, unless it is there."""
    from botocore.exceptions import BotoCoreError, ClientError

    end = time.monotonic() + PATIENCE
    while True:
        try:
            client.create_bucket(Bucket=bucket)
            return
        except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            return
        except (BotoCoreError, ClientError):  # the parts of a store find each other some seconds after it answers
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def objects(client: Any, bucket: str) -> Iterator[str]:
    """Give the key of every object."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            yield entry["Key"]


def save(client: Any, bucket: str, file: Path) -> int:
    """Write every object to a tar file, under its key, and return how many there are.

    In a tar file a key is a name like any other, also one that could be no path of a disk.
    """
    count = 0
    with tarfile.open(file, "w") as archive:
        for key in objects(client, bucket):
            found = client.get_object(Bucket=bucket, Key=key)
            entry = tarfile.TarInfo(key)
            # As the store says now, and not as it was listed: the two may differ.
            entry.size, entry.mtime = found["ContentLength"], int(found["LastModified"].timestamp())
            with found["Body"] as body:
                archive.addfile(entry, body)
            count += 1
    return count


def load(client: Any, bucket: str, file: Path) -> int:
    """Put every object of such a file into the bucket, and return how many there are."""
    count = 0
    with tarfile.open(file) as archive:
        for entry in archive:
            body = archive.extractfile(entry)
            if body is None:
                raise tarfile.ReadError(f"{file} holds {entry.name!r}, which is no file; expected one that save made")
            client.upload_fileobj(body, bucket, entry.name)
            count += 1
    return count


if __name__ == "__main__":
    sys.exit(main())
