"""Small real things for tests: rows, a model trained on them in a moment, and a workspace with an empty registry."""

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from sevenfold import bundles, drift, evaluation, formats, jobs, modules, preparation, training
from sevenfold.applications.base import Application
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import Dataset
from sevenfold.models.base import ModelSpec
from sevenfold.registry import tracking, versions
from sevenfold.registry.versions import Version
from sevenfold.workspace import Workspace

SETTINGS = training.Settings(
    epochs=3, patience=3, batch_size=32, learning_rate=0.01, warmup=0.1, weight_decay=0.0, gradient_clip=1.0, threads=1
)
ANOMALY = {
    "policy": "false-positive-rate",
    "value": 0.1,
    "share": None,
    "neighbours": 3,
    "references": 4096,
    "reasons": 2,
}
REDUCTION = {"code": 2, "neighbours": 3}
OPTIONS = {
    "anomaly": ANOMALY,
    "reduction": REDUCTION,
    "imputation": {"share": 0.2, "passes": 2, "aids": ["linear"], "draws": None, "flags": True},
    "denoising": {"levels": [0.1], "known": False},
    "compression": {"steps": [5.6, 4.0, 2.8, 2.0, 1.4, 1.0, 0.7], "decibels": 24.0, "chunk": 64},
    "search": {"neighbours": 5, "recall": 0.95},
}


def table(count: int = 120, seed: int = 0) -> formats.Rows:
    """Return customers: an identifier, four features of all kinds, one with gaps, and a label; one in ten is odd."""
    random = np.random.default_rng(seed)
    odd = np.arange(count) % 10 == 9
    income = random.normal(30, 5, count) + 40 * odd
    income[::7] = np.nan
    return formats.Rows(
        pd.DataFrame(
            {
                "customer": [f"{i:05d}" for i in range(count)],
                "city": random.choice(["Bern", "Oslo", "Rome"], count),
                "age": random.integers(20, 60, count) + 30 * odd,
                "income": income,
                "vip": random.random(count) < 0.3,
                "kind": np.where(odd, "odd", "normal"),
            }
        )
    )


def images(count: int = 80, seed: int = 0) -> formats.Rows:
    """Return grey pictures of 8x6 pixels, each a bright column on dark ground, labelled by where it is."""
    random = np.random.default_rng(seed)
    where = random.integers(0, 6, count)
    pixels = random.integers(0, 60, (count, 8, 6), dtype=np.uint8)
    pixels[np.arange(count), :, where] += 150
    return formats.Rows(pd.DataFrame({"label": [f"column {w}" for w in where]}), pixels)


@functools.cache
def dataset(kind: str) -> Dataset:
    """Return "table" or "images", prepared."""
    rows, normal = (table(), ["normal"]) if kind == "table" else (images(), None)
    return preparation.prepare(
        kind,
        rows,
        label="kind" if kind == "table" else "label",
        normal=normal,
        identifier="customer" if kind == "table" else None,
        group=None,
        drop=(),
        categorical=(),
        value_range=None,
        duplicates="error",
        validation=0.2,
        test=0.2,
        seed=0,
    )


DEEP = {
    "code": 2,
    "hidden": [8],
    "activation": "silu",
    "blocks": 0,
    "tied": False,
    "augment": [],
    "numbers": "standard",
    "categories": "one-hot",
}
"""Options of the variant `deep`."""


@functools.cache
def bundle(kind: str, name: str, seed: int = 0) -> Bundle:
    """Return a deep autoencoder of "table" or "images" with the application of this name, trained and calibrated."""
    data = dataset(kind)
    application = modules.member("applications", name, Application)(**OPTIONS[name])
    spec = ModelSpec.of(
        "deep",
        data.schema.layout,
        DEEP,
    )
    learn = evaluation.learned_from(application, data)
    model, _ = training.fit(
        spec, learn, data.validation, SETTINGS, seed=seed, device="cpu", on_epoch=lambda epoch: None
    )
    calibrated, _ = evaluation.judge(application, model, data)
    origin = {
        "dataset": kind,
        "candidate": f"{kind}-deep",
        "data_path": f"data/raw/{kind}.parquet",
        "data_digest": "d" * 64,
        "seed": seed,
    }
    reference = drift.Reference.learn(model, data.schema, data.train, data.validation)
    return Bundle(spec, model, data.schema, name, calibrated, origin, reference)


def saved(folder: Path, kind: str, name: str, seed: int = 0) -> Path:
    """Write such a bundle and return its folder."""
    bundles.save(folder, bundle(kind, name, seed))
    return folder


@functools.cache
def _database() -> tuple[tuple[str, bytes], ...]:
    """Return the files of an empty tracking database: making one takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        place = Workspace(Path(folder))
        tracking.initialise(place)
        return tuple((p.name, p.read_bytes()) for p in (place.private / "mlflow").iterdir())


@contextmanager
def workspace(root: Path) -> Iterator[Workspace]:
    """Give a workspace with an empty registry, and hold the process to it; the caller's variables must not name one."""
    place = Workspace(root)
    place.initialise()
    for name, content in _database():
        (place.private / "mlflow" / name).write_bytes(content)
    with place.settled():
        yield place


def job(
    source,
    output,
    operation="encode",
    kind="table",
    name="anomaly",
    given=None,
    on_progress=None,
    digest="d" * 64,
    **more,
):
    """Run a job with such a bundle. more: settings of the job; by default two workers, in batches of 64 rows."""
    return jobs.apply(
        given or bundle(kind, name),
        "model/1",
        digest,
        operation,
        source,
        output,
        jobs.Settings(**{"batch_size": 64, "partition_rows": 64, "workers": 2} | more),
        on_progress=on_progress or (lambda progress: None),
    )


def published(place: Workspace, folder: Path) -> Version:
    """Publish a bundle's folder as a version of table-anomaly, with nothing beside it, and return it."""
    return versions.publish(
        place,
        "table-anomaly",
        folder,
        params={},
        metrics={},
        curves=pd.DataFrame({"epoch": [0], "loss": [1.0]}),
        artifacts=[],
        tags={},
        description="",
    )[0]
