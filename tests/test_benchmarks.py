"""The benchmark of trainings runs, and prints what it measured."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
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


def _idx(path, array):
    """Write an array of bytes as the IDX format of MNIST has it: zeros, type, dimensions, sizes, values."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.mark.slow  # every rival of two contests
def test_the_benchmark_of_codes_prints_a_table_for_each_contest(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for stem, count in (("train", 240), ("t10k", 90)):
        y = (np.arange(count) % 3).astype(np.uint8)
        images = generator.integers(0, 60, (count, 28, 28)) + 60 * y[:, None, None]
        _idx(folder / f"{stem}-images-idx3-ubyte.gz", images.astype(np.uint8))
        _idx(folder / f"{stem}-labels-idx1-ubyte.gz", y)
    small = ["--seeds", "1", "--rows", "240", "--codes", "16", "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, "benchmarks/features.py", str(tmp_path), *small],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reduced, featured, fashion = re.split(r"^## .+$", done.stdout, flags=re.MULTILINE)[1:]
    for name in ("pca", "sevenfold", "digits-pca"):
        assert f"\n| {name} | 0." in reduced
    assert "| raw | 0." in featured
    assert "| fashion-mnist-16-convolutional | " in fashion


@pytest.mark.slow  # three rivals, and four indexes
def test_the_search_benchmark_prints_a_contest_and_the_speed_of_indexes(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for stem, count in (("train", 360), ("t10k", 60)):
        y = (np.arange(count) % 3).astype(np.uint8)
        images = generator.integers(0, 60, (count, 28, 28)) + 60 * y[:, None, None]
        _idx(folder / f"{stem}-images-idx3-ubyte.gz", images.astype(np.uint8))
        _idx(folder / f"{stem}-labels-idx1-ubyte.gz", y)
    small = ["--rows", "360", "--epochs", "1", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "benchmarks/search.py", str(tmp_path), *small],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    contest, indexes = done.stdout.split("Indexes of the codes")
    for name in ("**convolutional, code 64**", "raw", "pca", "pca_hnsw"):
        assert f"\n| {name} | " in contest
    for name in ("chosen by sevenfold", "exact", "graph"):
        assert f"\n| {name} | " in indexes


@pytest.mark.slow  # ten rivals
def test_the_anomaly_benchmark_prints_a_line_for_each_set(tmp_path):
    generator = np.random.default_rng(0)
    mixed = generator.normal(size=(300, 3)) @ generator.normal(size=(3, 6)) + 0.1 * generator.normal(size=(300, 6))
    odd = np.arange(300) % 10 == 0
    mixed[odd] = generator.permuted(mixed[odd], axis=0)
    for number, name in enumerate(("first", "second")):
        np.savez(tmp_path / f"{number}_{name}.npz", X=mixed * (number + 1), y=odd)
    done = subprocess.run(
        [sys.executable, "benchmarks/anomaly.py", str(tmp_path), "--seeds", "1", "--rows", "250"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for table in done.stdout.split("| set | sevenfold | ")[1:]:
        for name in ("first", "second", "mean"):
            assert f"\n| {name} | " in table
    assert done.stdout.count("| set | sevenfold | ") == 3


@pytest.mark.slow  # several processes import torch
def test_the_compression_benchmark_compares_a_model_with_codecs_by_real_bytes(tmp_path):
    import skimage.data
    import skimage.io

    (tmp_path / "kodak").mkdir()
    skimage.io.imsave(tmp_path / "kodak" / "cat.png", skimage.data.chelsea())
    small = ["--images", "1", "--crop", "192", "--epochs", "1", "--patches", "160", "--channels", *"884"]
    small += ["--model", str(tmp_path / "model")]
    command = [sys.executable, "benchmarks/compression.py", str(tmp_path), *small]
    for how in ("160 patches, 1 epochs", "trained before, kept in model"):
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert how in done.stdout
        assert "| JPEG | -0.0% |" in done.stdout or "| JPEG | +0.0% |" in done.stdout
        for name in ("WebP", "AVIF", "sevenfold, compressive"):
            assert f"| {name}, rung 1 | " in done.stdout


@pytest.mark.slow  # imports torch, trains, and tunes filters
def test_the_denoising_benchmark_compares_a_model_with_filters_on_kept_photographs(tmp_path):
    import skimage.data
    import skimage.io

    for folder, names in (("Train400", ("brick", "grass", "gravel")), ("Set12", ("camera",))):
        (tmp_path / "denoise" / folder).mkdir(parents=True)
        for name in names:
            image = getattr(skimage.data, name)()[100:196, 100:196]
            skimage.io.imsave(tmp_path / "denoise" / folder / f"{name}.png", image, check_contrast=False)
    small = ["--epochs", "1", "--channels", "4", "4", "--blocks", "1", "--edge", "8", "--step", "16", "--threads", "1"]
    small += ["--levels", "25", "--rivals", "gaussian"]
    command = [sys.executable, "benchmarks/denoising.py", str(tmp_path), *small]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1 photographs of Set12" in done.stdout
    for name in ("residual autoencoder", "gaussian"):
        assert f"\n| {name} | " in done.stdout


@pytest.mark.slow  # imports torch, trains, and chains equations
def test_the_imputation_benchmark_compares_the_fill_with_the_rivals_on_the_same_cells(tmp_path):
    (tmp_path / "tables").mkdir()
    numbers = np.random.default_rng(0).normal(size=(150, 2)) @ np.random.default_rng(1).normal(size=(2, 8))
    pd.DataFrame(numbers).to_csv(tmp_path / "tables" / "winequality-white.csv", sep=";", index=False)
    small = ["--tables", "wine", "--seeds", "1", "--epochs", "2", "--trees", "5", "--threads", "1"]
    command = [sys.executable, "benchmarks/imputation.py", str(tmp_path), *small]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^\| white wine 4898x12 \| ([^|]+) \| ([0-9.]+) \|", done.stdout, re.MULTILINE))
    names = {"mean", "KNNImputer", "IterativeImputer", "missForest of ExtraTrees", "network alone"}
    assert found.keys() == names | {"network, linear model and neighbours"}
    # Two directions are behind all columns: a fill by the other cells errs much less than the mean.
    assert float(found["IterativeImputer"]) < 0.7 * float(found["mean"])
    assert float(found["network, linear model and neighbours"]) < 0.7 * float(found["mean"])
