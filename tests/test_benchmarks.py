"""The benchmark of trainings runs, and prints what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow  # several processes import torch
def test_the_training_benchmark_prints_a_table_of_its_contenders(tmp_path):
    small = ["--cases", "narrow", "images", "--rounds", "1", "--rows", "600", "--epochs", "2", "--threads", "1"]
    command = [sys.executable, "benchmarks/training.py", *small, "--json", str(tmp_path / "found.json")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads((tmp_path / "found.json").read_text())["cases"]
    for case, contenders in (
        ("narrow", {"sevenfold", "plain loop", "scikit-learn"}),
        ("images", {"sevenfold", "plain loop"}),
    ):
        assert contenders <= set(found[case]["contenders"])
        for name, one in found[case]["contenders"].items():
            assert one["rate"] > 0
            assert f"| {name} | {one['rate']:,.0f} (" in done.stdout
