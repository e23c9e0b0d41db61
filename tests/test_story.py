"""The whole story of a model, as its users live it: by the command line, on a table of their own."""

import json
import re

import pytest
import ruamel.yaml

from tests import tiny
from tests.conftest import SMALL, make_project

NAME = "sales-anomaly"


def only_one_contest(path):
    """Leave one contest and one candidate of what `dataset add` proposed, and a gate that takes the first one."""
    yaml = ruamel.yaml.YAML(typ="safe", pure=True)
    settings = yaml.load(path.read_text())
    settings["applications"] = {"sales": {"anomaly": settings["applications"]["sales"]["anomaly"]}}
    name = next(n for n, c in settings["candidates"].items() if "anomaly" in c["applications"])
    settings["candidates"] = {
        name: settings["candidates"][name] | {"applications": ["anomaly"], "training": {"epochs": 5}}
    }
    settings["gate"] = {"must_beat_rivals": False, "floor": 0.1}
    path.write_text(json.dumps(settings))  # which is YAML, too


@pytest.mark.slow
def test_train_promote_refuse_promote_by_hand_roll_back_and_reproduce(tmp_path):
    project = make_project(
        tmp_path / "project", SMALL.replace("gates:\n  wdbc-anomaly: {must_beat_rivals: false, floor: 0.5}\n", "")
    )
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")

    def run(*command):
        return project.run("sevenfold", *command).stdout

    def commit(message):
        project.run("git", "add", "--all")
        project.run("git", *author, "commit", "--quiet", "--message", message)

    def model(asked=NAME):
        return json.loads(run("lineage", asked, "--json"))["model"]

    tiny.table(400).frame.to_csv(tmp_path / "sales.csv", index=False)
    for section in ("fetch", "datasets", "applications", "candidates"):
        text = project.workspace.params.read_text()
        project.workspace.params.write_text(
            re.sub(rf"^{section}:\n(?:[ ].*\n)+", f"{section}: {{}}\n", text, flags=re.MULTILINE)
        )
    run(
        "dataset",
        "add",
        "sales",
        str(tmp_path / "sales.csv"),
        "--label",
        "kind",
        "--normal",
        "normal",
        "--id",
        "customer",
    )
    only_one_contest(project.workspace.params)
    commit("sales")
    run("run")
    first = model()
    assert first["label"] == f"{NAME}/1"

    # More rows, of the same kind: the new model is not proven better, so the gate refuses it.
    raw = project.root / "data" / "raw" / "sales.csv"
    tiny.table(500, seed=1).frame.to_csv(raw, index=False)
    project.run("dvc", "add", "--quiet", str(raw))
    run("run")
    assert model()["digest"] == first["digest"]
    refused = model(f"{NAME}/2")["tags"]
    assert refused["decision"] == "challenger"
    assert "not proven better than today's champion" in refused["decided_because"]

    run("promote", NAME, "2", "--reason", "the new rows are those of today")
    assert model()["label"] == f"{NAME}/2"
    run("rollback", NAME, "--reason", "it flags too much")
    assert model()["digest"] == first["digest"]
    story = run("history", NAME)
    told = [
        "version 1 became champion as the first, by a run",
        "gate on version 2: challenger: ",
        "the new rows are those of today",
        "it flags too much",
        f"champion: {NAME}/1; `sevenfold rollback` goes to: none",
    ]
    assert all(line in story for line in told), story
    # Nor does the next run overrule the person.
    assert "nothing to train, nothing to publish" in run("run")

    for version in (1, 2):
        again = json.loads(run("reproduce", f"{NAME}/{version}", "--json"))
        assert again["identical"], again
    output = next((project.root / ".sevenfold" / "batches").glob("*.parquet"))
    assert f"{NAME}/1" in run("lineage", str(output))
