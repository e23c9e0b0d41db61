"""The built-in data at their full settings: what the README says of them, and that a run gives the same again."""

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import make_project
from sevenfold import files, stages, workspace
from sevenfold.registry import versions

ROOT = Path(__file__).parents[1]

BARE = "  digits-bare: {dataset: digits, applications: [], variant: pca, options: {code: 4}}\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the repository's own params, and a candidate without applications, after one `sevenfold run`."""
    project = make_project(tmp_path_factory.mktemp("whole") / "project", params=None)
    params = project.workspace.params
    text = params.read_text(encoding="utf-8").replace("\ncandidates:\n", f"\ncandidates:\n{BARE}", 1)
    params.write_text(text, encoding="utf-8")
    project.run("git", "rm", "--quiet", "--cached", "dvc.lock")
    (project.root / "dvc.lock").unlink()
    project.run("sevenfold", "run")
    return project


def numbers(value):
    """Return every number of nested JSON, by its path."""
    if isinstance(value, dict):
        return {f"{key}.{inner}": n for key, more in value.items() for inner, n in numbers(more).items()}
    return {"": value} if isinstance(value, float) else {}


def test_a_run_gives_the_numbers_that_are_committed(project):
    committed, found = (json.loads((place / "results/metrics.json").read_text()) for place in (ROOT, project.root))
    committed, found = numbers(committed), numbers(found)
    assert len(found) > 30
    assert found.keys() == committed.keys()
    # Another kind of processor rounds otherwise, and what is chosen may then be another of equals. Between two kinds decibels
    # differed by up to 0.09, the end of an interval of decibels that rests on a few photographs by 0.105, all else by 0.004.
    for names, absolute in (
        ([k for k in found if ".denoising." in k or ".psnr" in k], 0.25),
        ([k for k in found if ".denoising." not in k and ".psnr" not in k], 0.02),
    ):
        assert names
        np.testing.assert_allclose([found[k] for k in names], [committed[k] for k in names], 0, absolute)


def test_each_contest_is_published_and_those_that_pass_the_gate_have_a_champion(project):
    settings = stages.check(project.workspace)
    names = [f"{dataset}-{application}" for dataset, application in stages.contests(settings)]
    assert {v.name for v in versions.every(project.workspace)} == set(names)
    champions = [name for name in names if versions.champion(project.workspace, name)]
    assert {"digits-reduction", "digits-anomaly", "wdbc-anomaly"} <= set(champions)


def test_a_candidate_without_applications_is_trained_and_takes_part_in_no_contest(project):
    assert (project.workspace.candidate("digits-bare") / "model.safetensors").is_file()
    assert [p.name for p in project.workspace.evaluation("digits-bare").iterdir()] == ["applications.json"]
    assert "digits-bare" not in project.workspace.comparison.read_text()


def test_a_second_run_does_nothing(project):
    assert "nothing to train, nothing to publish" in project.run("sevenfold", "run").stdout
    assert "up to date" in project.run("dvc", "status").stdout


def test_deep_halves_the_error_of_principal_components_on_digits(project):
    deep = files.read_json(project.workspace.evaluation("digits-deep") / "reduction" / "scores.json")
    pca = files.read_json(project.workspace.rivals("digits") / "reduction" / "pca" / "scores.json")
    assert deep["test"]["mse"] <= 0.5 * pca["test"]["mse"]


def test_anomalies_of_wdbc_are_found_on_every_one_of_five_splits(project, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import seeds

    place = workspace.Workspace(project.root)
    settings = stages.check(place)
    held = [seeds.contest(place, settings, "wdbc", "anomaly", seed) for seed in range(5)]
    aurocs = [contest.candidates[contest.chosen].test.metrics["auroc"] for contest in held]
    assert np.mean(aurocs) >= 0.985
    assert min(aurocs) >= 0.97
