"""The audit of continuous integration: what fails it, and what is nobody's fault."""

import os
import subprocess
from pathlib import Path

import pytest


def audit(tmp_path, told, *, code=1, listed=True):
    """Run .ci/audit where `make audit` says this and ends so, and the list is within reach or not."""
    (tmp_path / "told").write_text(told)
    for name, text in {"make": f'cat "{tmp_path}/told"; exit {code}', "python3": f"exit {0 if listed else 1}"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = Path(__file__).parent.parent / ".ci/audit"
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run([script], env={"PATH": path}, capture_output=True, text=True, check=False)
    assert told in done.stdout or code == 0
    return done.returncode, "not done" in done.stdout


UNLISTED = (
    "ERROR:pip_audit._cli:aiobotocore: Dependency not found on PyPI and could not be audited: aiobotocore (3.10.0)\n"
)
RETRIED = (
    "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(...)': /simple/pip-audit/\n"
)


@pytest.mark.parametrize(
    "told",
    [
        RETRIED + "ERROR: No matching distribution found for pip-audit==2.10.1\n",
        "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed\n",
        "File pip_audit/_cli.py\nConnectionError: Failed to resolve 'pypi.org' ([Errno -3] Temporary failure in name resolution)\n",
        "File pip_audit/_cli.py\nrequests.exceptions.ProxyError: HTTPSConnectionPool: Cannot connect to proxy\n",
        "File pip_audit/_cli.py\nrequests.exceptions.SSLError: HTTPSConnectionPool: CERTIFICATE_VERIFY_FAILED\n",
        "File pip_audit/_cli.py\nrequests.exceptions.ReadTimeout: HTTPSConnectionPool: Read timed out. (read timeout=15)\n",
    ],
)
def test_an_audit_without_a_way_to_the_list_is_passed_over(tmp_path, told):
    assert audit(tmp_path, told) == (0, True)


@pytest.mark.parametrize("told", [UNLISTED, "ERROR: No matching distribution found for pip-audit==2.10.1\n"])
def test_a_mirror_that_lists_no_release_is_no_way_to_the_list(tmp_path, told):
    assert audit(tmp_path, told, listed=False) == (0, True)


def test_a_hole_fails_even_where_the_list_is_out_of_reach_by_now(tmp_path):
    assert audit(tmp_path, "Found 1 known vulnerability in 1 package\n", listed=False) == (1, False)


@pytest.mark.parametrize(
    "told",
    [
        "Found 1 known vulnerability in 1 package\n",
        UNLISTED,
        "pip-audit: error: unrecognized arguments: --strickt\n",
        "/bin/sh: 1: .venv-audit/bin/pip-audit: not found\n",
        "ERROR: No matching distribution found for pip-audit==2.10.1\n",
        RETRIED + "ERROR:pip_audit._cli:requirement file line 3 is not valid\n",
        RETRIED + "WARNING:pip_audit._cli:--no-deps is supported\nFound 2 known vulnerabilities in 1 package\n",
    ],
)
def test_every_other_audit_that_does_not_end_well_fails(tmp_path, told):
    assert audit(tmp_path, told) == (1, False)


def test_an_audit_that_finds_nothing_passes(tmp_path):
    assert audit(tmp_path, "No known vulnerabilities found\n", code=0) == (0, False)
