"""What MLflow is told of a bundle so that it can serve it: code, requirements, signature, and an example of its input."""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import sevenfold
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import ImageSchema, Schema, TableSchema
from sevenfold.workspace import Workspace

_SERVING = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "scikit-learn", "scipy", "torch")
"""What a published model needs beside its own code."""


@contextmanager
def clean_copies(folder: Path, workspace: Workspace) -> Iterator[tuple[Path, Path]]:
    """Give copies of this package and of the bundle, for MLflow to take."""
    room = workspace.private / "code"
    room.mkdir(exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=room) as place:
        package = Path(sevenfold.__file__).parent
        # MLflow keeps the names of what it is given, and `bundle_folder` looks for this one.
        code, bundle = Path(place) / package.name, Path(place) / "bundle"
        # Without caches, so that a model's code holds no byte of some interpreter.
        shutil.copytree(package, code, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(folder, bundle)
        yield code, bundle


def requirements() -> list[str]:
    """Return the installed releases of what a published model needs beside its own code."""
    return [f"{package}=={_plain_version(package)}" for package in _SERVING]


def _plain_version(package: str) -> str:
    """The release without a local part such as "+cpu", which no index knows."""
    return importlib.metadata.version(package).split("+")[0]


def example(bundle: Bundle) -> Any:
    """Return two rows such as the model takes: each value at the mean of the training rows, or in mid-range."""
    middle = 0.5 if isinstance(bundle.schema, ImageSchema) else 0.0
    rows = bundle.schema.inverse(np.full((2, *bundle.schema.shape), middle, np.float32))
    return rows.frame if rows.images is None else rows.images


def signature(bundle: Bundle) -> Any:
    """Return the model's signature: raw rows in, and the operation as a parameter."""
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    params = ParamSchema([ParamSpec("op", "string", bundle.application.operation)])
    return ModelSignature(inputs=_input_schema(bundle.schema), params=params)


def _input_schema(schema: Schema) -> Any:
    from mlflow.types import ColSpec, DataType, TensorSpec
    from mlflow.types import Schema as Inputs
    from mlflow.types.schema import AnyType

    if isinstance(schema, ImageSchema):
        channels, height, width = schema.shape
        shape = (-1, height, width) if channels == 1 else (-1, height, width, channels)
        return Inputs([TensorSpec(np.dtype(schema.dtype), shape)])
    assert isinstance(schema, TableSchema)

    def kind(dtype: str) -> DataType:
        return DataType.long if np.dtype(dtype).kind in "iu" else DataType.double

    other = AnyType()  # type: ignore[no-untyped-call]  # categories may be text, numbers or booleans
    return Inputs(
        [ColSpec(kind(c.dtype) if c.kind == "numeric" else other, c.name, required=not c.gaps) for c in schema.columns]
    )
