"""The audit of continuous integration: what fails it, and what is nobody's fault."""

import os
import subprocess
from pathlib import Path

import pytest

CI = Path(__file__).parent.parent / ".ci"


def audit(tmp_path, told, *, code=1, listed=True):
    """Run .ci/audit where `make audit` says this and ends so, and the list of holes is within reach or not."""
    (tmp_path / "told").write_text(told)
    holed = "Found 5 known vulnerabilities in 1 package" if listed else "ERROR: pip: Dependency not found on PyPI"
    (tmp_path / "make").write_text(
        "#!/bin/sh\n"
        f'case "$*" in *AUDITED=.ci/holed*) echo "{holed}"; exit 1 ;; esac\n'
        f'cat "{tmp_path}/told"; exit {code}\n'
    )
    (tmp_path / "make").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run([CI / "audit"], env={"PATH": path}, capture_output=True, text=True, check=False)
    assert told in done.stdout or code == 0
    return done.returncode, "not done" in done.stdout


TROUBLE = [
    "ERROR:pip_audit._cli:aiobotocore: Dependency not found on PyPI and could not be audited: aiobotocore (3.10.0)\n",
    "ERROR: No matching distribution found for pip-audit==2.10.1\n",
    "requests.exceptions.SSLError: HTTPSConnectionPool: CERTIFICATE_VERIFY_FAILED\n",
    "/bin/sh: 1: .venv-audit/bin/pip-audit: not found\n",
]


@pytest.mark.parametrize("told", TROUBLE)
def test_trouble_fails_where_the_list_is_within_reach_and_is_passed_over_elsewhere(tmp_path, told):
    assert audit(tmp_path, told, listed=True) == (1, False)
    assert audit(tmp_path, told, listed=False) == (0, True)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    "told",
    [
        "Found 1 known vulnerability in 1 package\n",
        "WARNING:pip_audit._cli:--no-deps is supported\nFound 2 known vulnerabilities in 1 package\n",
        "pip-audit: error: unrecognized arguments: --strickt\n",
    ],
)
def test_a_hole_and_a_wrong_call_fail_anywhere(tmp_path, told, listed):
    assert audit(tmp_path, told, listed=listed) == (1, False)


def test_an_audit_that_finds_nothing_passes(tmp_path):
    assert audit(tmp_path, "No known vulnerabilities found\n", code=0) == (0, False)


def test_the_release_with_holes_is_one_release_by_its_version():
    lines = [line for line in (CI / "holed").read_text().splitlines() if not line.startswith("#")]
    assert [line.partition("==")[1] for line in lines] == ["=="]
