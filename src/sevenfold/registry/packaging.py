"""What MLflow is told of a bundle so that it can serve it: code, requirements, signature, and an example of its input."""

import functools
import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

import sevenfold
from sevenfold import operations, serving
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import ImageSchema, Schema, TableSchema
from sevenfold.workspace import Workspace

_SERVING = ("filelock", "mlflow", "numpy", "pandas", "pydantic", "safetensors", "scipy", "torch")
"""What every published model needs beside its own code; SciPy is imported by some only when they work."""


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


def requirements(bundle: Bundle) -> list[str]:
    """Return the installed releases of what this model needs beside its own code, sorted.

    Beside what every one needs, that is what the modules of its variant and its application import, and the modules of
    this package that these import.
    """
    found, seen = set(_SERVING), set[str]()
    waiting = [type(bundle.model).__module__, type(bundle.application).__module__]
    distributions = _distributions()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for value in vars(sys.modules[name]).values():
            origin = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if not isinstance(origin, str):
                continue
            if origin.split(".")[0] == sevenfold.__name__:
                waiting += [origin] if origin in sys.modules else []
            else:
                found |= set(distributions.get(origin.split(".")[0], ())[:1])
    return [f"{package}=={_plain_version(package)}" for package in sorted(found, key=str.lower)]


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Return the distributions behind each name that can be imported."""
    return importlib.metadata.packages_distributions()


def _plain_version(package: str) -> str:
    """The release without a local part such as "+cpu", which no index knows."""
    return importlib.metadata.version(package).split("+")[0]


def example(bundle: Bundle) -> Any:
    """Return two rows such as the model takes: each value at the mean of the training rows, or in mid-range."""
    middle = 0.5 if isinstance(bundle.schema, ImageSchema) else 0.0
    rows = bundle.schema.inverse(np.full((2, *bundle.schema.shape), middle, np.float32))
    return rows.frame if rows.images is None else rows.images


def signature(bundle: Bundle) -> Any:
    """Return the model's signature: raw rows in, what its own operation makes of them, and the operation as a parameter."""
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    params = ParamSchema([ParamSpec("op", "string", bundle.application.operation)])
    outputs = _output_schema(serving.predict(bundle, example(bundle)))
    return ModelSignature(inputs=_input_schema(operations.accepting(bundle).schema), outputs=outputs, params=params)


def _output_schema(made: pd.DataFrame | np.ndarray) -> Any:
    from mlflow.types import ColSpec, DataType, TensorSpec
    from mlflow.types import Schema as Outputs
    from mlflow.types.schema import AnyType

    if isinstance(made, np.ndarray):
        return Outputs([TensorSpec(made.dtype, (-1, *made.shape[1:]))])

    def kind(column: "pd.Series[Any]") -> Any:
        if pd.api.types.is_bool_dtype(column.dtype):
            return DataType.boolean
        if pd.api.types.is_integer_dtype(column.dtype):
            return DataType.long
        if pd.api.types.is_float_dtype(column.dtype):
            return DataType.float if column.dtype == np.float32 else DataType.double
        if len(column) and all(isinstance(value, bytes) for value in column):
            return DataType.binary
        return AnyType()  # type: ignore[no-untyped-call]  # text, or a category that may be anything

    return Outputs([ColSpec(kind(made[name]), name) for name in made.columns])


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
