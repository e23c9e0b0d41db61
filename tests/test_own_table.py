"""What docs/own-data.md tells of a table with gaps and texts: two commands, and the gaps are filled."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import SMALL, make_project

PAGE = Path(__file__).parents[1] / "docs" / "own-data.md"


def people(count=600):
    """Return people whose numbers hang together by a curve, with one field in ten empty, and the same without gaps."""
    random = np.random.default_rng(4)
    age = random.integers(18, 80, count)
    town = random.choice(["Bern", "Oslo", "Rome"], count)
    rent = {"Bern": 30.0, "Oslo": 25.0, "Rome": 15.0}
    income = 20 + 1.5 * age - 0.012 * age**2 + np.array([rent[t] for t in town]) + random.normal(0, 1, count)
    height = np.array([f"{h:.2f}" for h in random.normal(1.7, 0.1, count)])
    whole = pd.DataFrame({"person": [f"{i:04}" for i in range(count)], "age": age, "town": town})
    whole = whole.assign(income=[f"{v:.1f}" for v in income], height=height).astype(str)
    gone = random.random((count, 4)) < 0.1
    given = whole.copy()
    for at, name in enumerate(["age", "town", "income", "height"]):
        given.loc[gone[:, at], name] = ""
    return given, whole


@pytest.mark.slow
def test_the_two_commands_of_the_page_fill_the_gaps_and_nothing_else(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    block = re.search(r"two commands\n.*?```console\n(.*?)```", text, re.DOTALL)[1]
    commands = [line.removeprefix("$ ").split() for line in block.splitlines()]
    assert len(commands) == 2
    project = make_project(
        tmp_path / "project", SMALL.replace("gates:\n  wdbc-anomaly: {must_beat_rivals: false, floor: 0.5}\n", "")
    )
    for section in ("fetch", "datasets", "applications", "candidates"):
        params = project.workspace.params.read_text()
        project.workspace.params.write_text(
            re.sub(rf"^{section}:\n(?:[ ].*\n)+", f"{section}: {{}}\n", params, flags=re.MULTILINE)
        )
    given, whole = people()
    given.to_csv(project.root / "people.csv", index=False)
    project.run(*commands[0])
    done = project.run(*commands[1], check=False)
    if done.returncode:
        # As the page says: a classical method fills as well here.
        assert "people-imputation has no champion yet: no version passed the gate" in done.stderr
        project.run(*[w.replace("people-imputation", "people-imputation@challenger") for w in commands[1]])
    filled = pd.read_csv(project.root / "filled.csv", dtype=str, keep_default_na=False)
    assert filled["person"].tolist() == whole["person"].tolist()
    for name in ("age", "town", "income", "height"):
        gap = given[name] == ""
        assert filled[name][~gap].tolist() == given[name][~gap].tolist()
        assert (filled[name] != "").all()
        assert (filled[f"{name}_imputed"] == "True").tolist() == gap.tolist()
    gap = given["income"] == ""
    assert set(filled["town"]) == {"Bern", "Oslo", "Rome"}
    wanted = whole["income"][gap].astype(float)
    error = np.sqrt(np.mean((filled["income"][gap].astype(float) - wanted) ** 2))
    assert error < 0.6 * wanted.std()
    receipt = json.loads((project.root / "filled.csv.receipt.json").read_text())
    assert (receipt["rows"], receipt["operation"]) == (600, "impute")
