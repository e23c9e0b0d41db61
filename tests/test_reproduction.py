"""A version is built again from its own commit and data; what differs is named, and so is the likely cause."""

import json
import re
import sys

import pytest

from sevenfold import reproduction
from tests.conftest import make_project

SAME = dict.fromkeys(reproduction.PARTS, "a")
MACHINE = {
    "python": "3.11.7",
    "system": "Debian",
    "threads": 1,
    "torch": {"version": "2.13.0", "cuda": None},
    "packages": {"numpy": "2.4.6"},
    "hardware": {"processor": "X", "instructions": "AVX512", "cores": 2, "memory": 1, "gpus": []},
}


def causes(rebuilt, now=MACHINE, recorded=MACHINE, unkept=""):
    return reproduction.causes(reproduction.compare(SAME, {**SAME, **rebuilt}), recorded, now, unkept)


def test_what_is_identical_needs_no_cause():
    assert all(one.identical for one in reproduction.compare(SAME, SAME))
    assert causes({}, now={**MACHINE, "python": "3.12.0"}, unkept="they were lost") == ()


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"rebuilt": {"raw data": "b"}}, "data: the raw data are not those"),
        ({"rebuilt": {"weights": "b"}, "unkept": "they were too large"}, "code: .*uncommitted.*they were too large"),
        ({"rebuilt": {"weights": "b"}, "recorded": None}, "environment: none was recorded"),
        (
            {"rebuilt": {"weights": "b"}, "now": {**MACHINE, "packages": {"numpy": "2.5.0", "new": "1"}}},
            "environment: new absent, now 1; numpy 2.4.6, now 2.5.0",
        ),
        (
            {
                "rebuilt": {"bundle": "b"},
                "now": {**MACHINE, "hardware": {**MACHINE["hardware"], "instructions": "AVX2"}},
            },
            "hardware: instructions AVX512, now AVX2",
        ),
        ({"rebuilt": {"weights": "b"}}, "code: .* are those recorded, but weights came out otherwise"),
    ],
)
def test_each_difference_is_told_with_its_likely_cause(given, cause):
    found = causes(**given)
    assert len(found) == 1
    assert re.match(cause, found[0])


def test_a_digest_that_was_never_recorded_is_no_difference():
    compared = reproduction.compare({**SAME, "raw data": None}, SAME)
    report = reproduction.Report("a/1", "c", compared, (), (), 1.0, None)
    assert report.identical
    assert "not recorded, now a" in reproduction.text(report)


SHUFFLED = """

_committed = prepare


def prepare(*arguments, seed, **options):
    return _committed(*arguments, seed=seed + 1, **options)
"""
"""A change of the code that no commit has: rows go into other splits."""

HOLD = """
import sys
from sevenfold import election, provenance, workspace
from sevenfold.registry import tracking, versions
place = workspace.find()
place.initialise()
with place.settled():
    election.hold(place, "wdbc-anomaly")
    version = versions.every(place, "wdbc-anomaly")[-1]
    # As publishing does, for a version that was published without.
    if "lock_digest" not in version.tags:
        provenance.write(place, place.private / "kept", provenance.collect(place))
        tracking.client(place).log_artifacts(version.run_id, str(place.private / "kept"), "provenance")
        versions.annotate(place, version, provenance.collect(place).tags())
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = make_project(tmp_path_factory.mktemp("again") / "project")
    changed = project.root / "src" / "sevenfold" / "preparation.py"
    changed.write_text(changed.read_text(encoding="utf-8") + SHUFFLED, encoding="utf-8")
    project.run("dvc", "repro", "--quiet", "evaluate@wdbc-pca", "rivals@wdbc")
    project.run(sys.executable, "-c", HOLD)
    return project


@pytest.mark.slow
def test_a_version_is_identical_when_it_is_built_again_and_nothing_stays(project):
    before = project.run("git", "status", "--porcelain").stdout
    done = project.run("sevenfold", "reproduce", "wdbc-anomaly", "--json")
    report = json.loads(done.stdout)
    assert report["identical"]
    assert set(report["compared"]) == set(reproduction.PARTS)
    assert all(one["recorded"] == one["rebuilt"] for one in report["compared"].values())
    assert "train@wdbc-pca" in done.stderr
    assert list((project.root / ".sevenfold" / "reproductions").iterdir()) == []
    assert project.run("git", "status", "--porcelain").stdout == before


@pytest.mark.slow
def test_a_version_whose_record_is_otherwise_differs_and_the_cause_is_named(project):
    # The whole run has one, and so has the training: of either the version may tell.
    records = [*(project.root / ".sevenfold").glob("mlflow/artifacts/**/provenance/environment.json")]
    kept = {path: path.read_text(encoding="utf-8") for path in records}
    change = (
        "from sevenfold import workspace; from sevenfold.registry import versions; place = workspace.find()\n"
        "with place.settled():\n"
        "    version = versions.every(place, 'wdbc-anomaly')[-1]\n"
        "    versions.annotate(place, version, {'data_digest': VALUE})\n"
    )
    digest = json.loads(project.run("sevenfold", "lineage", "wdbc-anomaly", "--json").stdout)["data"]["prepared_digest"]
    try:
        for path, text in kept.items():
            changed = json.loads(text)
            changed["packages"]["numpy"] = "1.0"
            path.write_text(json.dumps(changed), encoding="utf-8")
        project.run(sys.executable, "-c", change.replace("VALUE", repr("0" * 64)))
        done = project.run("sevenfold", "reproduce", "wdbc-anomaly", check=False)
    finally:
        for path, text in kept.items():
            path.write_text(text, encoding="utf-8")
        project.run(sys.executable, "-c", change.replace("VALUE", repr(digest)))
    assert done.returncode == 1
    assert "prepared data  DIFFERENT  000000000000" in done.stdout
    assert "likely cause: environment: numpy 1.0, now " in done.stdout
    assert "NOT identical" in done.stdout
