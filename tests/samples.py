"""Small data sets for contract tests, and the options that params.yaml gives each variant and application."""

import functools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import threadpoolctl
import torch
from sklearn import neighbors

from sevenfold import evaluation, formats, modules, params, preparation, training
from sevenfold.applications.base import Application
from sevenfold.datasets.base import Split
from sevenfold.models.base import ModelSpec

# Tests run side by side: with threads of their own they would wait for each other, several times as long as for the work.
threadpoolctl.threadpool_limits(1)

PARAMS = params.load(Path(__file__).parents[1] / "params.yaml")
CODE = 4
"""The number of directions in which the samples' normal rows really vary."""

SETTINGS = training.Settings(
    epochs=20,
    patience=20,
    batch_size=32,
    learning_rate=0.01,
    warmup=0.05,
    weight_decay=0.0001,
    gradient_clip=1.0,
    threads=1,
    precision="float32",  # on every processor
    compile=False,
)


def _latent(rows, width, seed):
    """Rows of `CODE` factors; every eighth is an anomaly, whose columns keep their distribution and lose their company."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, CODE)) @ np.random.default_rng(0).normal(size=(CODE, width))
    x += 0.1 * generator.normal(size=x.shape)
    odd = np.arange(rows) % 8 == 0
    x[odd] = generator.permuted(x[odd], axis=0)
    return x, np.where(odd, "odd", np.where(x[:, 0] > 0, "high", "low"))


def _prepare(name, rows):
    return preparation.prepare(
        name,
        rows,
        label="label",
        normal=["high", "low"],
        identifier=None,
        group=None,
        drop=(),
        categorical=(),
        value_range=None,
        duplicates="error",
        validation=0.3,
        test=0.3,
        seed=0,
    )


def table(gaps, rows=480):
    """Twelve numeric columns in units of their own, and one of three categories that follows from them."""
    x, label = _latent(rows, 12, seed=1)
    frame = pd.DataFrame(x * np.geomspace(0.01, 100, 12) + 3, columns=[f"column_{i}" for i in range(12)])
    frame.insert(
        5, "city", np.array(["Kyoto", "Lima", "Oslo"], object)[np.digitize(x[:, 1], np.quantile(x[:, 1], [0.3, 0.6]))]
    )
    if gaps:
        frame = frame.mask(np.random.default_rng(2).random(frame.shape) < 0.1)
    return _prepare("gaps" if gaps else "table", formats.Rows(frame.assign(label=label)))


def images(rows=480):
    """Grey images 6x5 of four factors."""
    x, label = _latent(rows, 30, seed=1)
    pixels = np.clip(128 + 12 * x, 0, 255).astype(np.uint8).reshape(-1, 6, 5)
    return _prepare("images", formats.Rows(pd.DataFrame({"label": label}), pixels))


DATASETS = {"table": lambda: table(gaps=False), "gaps": lambda: table(gaps=True), "images": images}


@functools.cache
def dataset(kind):
    return DATASETS[kind]()


def options(variant):
    """Return the options of the variant's first candidate in params.yaml, with a code that suits the samples here.

    The code of some variants has no option of its own: it follows from others, and from the sample.
    """
    for candidate in PARAMS.candidates.values():
        if candidate.variant == variant:
            options = {**candidate.options} | ({"code": CODE} if "code" in candidate.options else {})
            # The pixels of the samples' images are columns of a table: none may stand in the place of another.
            return options | ({"augment": []} if "augment" in options else {})
    raise AssertionError(
        f"no candidate in params.yaml is of variant {variant!r}: add one, so that it is tested and run"
    )


def smaller(value):
    """Return a number, or a list's last number, less one."""
    return [*value[:-1], value[-1] - 1] if isinstance(value, list) else value - 1


def spec(variant, kind):
    return ModelSpec.of(variant, dataset(kind).schema.layout, options(variant))


def refusal(variant, shape):
    """Return why a variant does not take samples of this shape, or None.

    Only an error that names the shape, what the variant takes and what to use instead is a refusal; others go through.
    """
    try:
        ModelSpec(variant, tuple(shape), options(variant)).build()
    except ValueError as error:
        if not re.fullmatch(rf"shape is {re.escape(str(tuple(shape)))}; expected .+; use .+", str(error)):
            raise
        return f"{variant}: {error}"
    return None


@torch.inference_mode(False)  # whoever asks first may be a test that only looks
def fit(of, train, validation, *, seed=0, settings=SETTINGS, on_epoch=lambda epoch: None):
    return training.fit(of, train, validation, settings, seed=seed, device="cpu", on_epoch=on_epoch)


@functools.cache
def trained(variant, kind, rows="all"):
    """A model trained on all rows or on the normal ones. Shared: who changes it takes a copy."""
    data = dataset(kind)
    parts = [data.train, data.validation]
    return fit(spec(variant, kind), *(p.only_normal() if rows == "normal" else p for p in parts))[0]


def application(name):
    """Return the application with the options of its first contest in params.yaml."""
    for contests in PARAMS.applications.values():
        if name in contests:
            wanted = dict(contests[name])
            return modules.member("applications", name, Application)(
                **wanted | ({"code": CODE} if "code" in wanted else {})
            )
    raise AssertionError(
        f"no data set in params.yaml has the application {name!r}: add it, so that it is tested and run"
    )


def unsuited(name, kind):
    """Return why an application does not suit a kind of samples, or None."""
    return application(name).unsuited(
        code=CODE, images=len(dataset(kind).schema.shape) == 3, labelled=True, normal=True
    )


@functools.cache
def judged(name, kind):
    """The application calibrated to the samples' best model, and the judgement. Shared: who changes it takes a copy."""
    wanted = application(name)
    return evaluation.judge(wanted, trained("pca", kind, wanted.learns_from), dataset(kind))


@functools.cache
def rivals(name, kind):
    return evaluation.judge_rivals(application(name), dataset(kind))


def split(x, observed=None, normal=None, y=None):
    return Split(np.asarray(x, np.float32), observed, y, normal, np.arange(len(x)))


def nearest(reference, rows, k):
    distances, found = neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute").fit(reference).kneighbors(rows)
    return found, distances


def cloud(count, dimensions=16, seed=0):
    """Vectors around 40 centres."""
    generator = np.random.default_rng(seed)
    centers = np.random.default_rng(9).normal(size=(40, dimensions))
    x = centers[generator.integers(40, size=count)] + 0.4 * generator.normal(size=(count, dimensions))
    return x.astype(np.float32)


def overlap(ids, truth):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(ids.tolist(), truth.tolist(), strict=True)])
