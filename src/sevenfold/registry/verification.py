"""Does a published version do what it says? Nothing of it is parsed or run before it is known to be as it was published."""

import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from sevenfold import bundles, files, provenance, variables
from sevenfold.bundles import BundleError
from sevenfold.registry import versions
from sevenfold.registry.versions import Version
from sevenfold.workspace import Workspace

LOADER = "mlflow.pyfunc.loaders.code_model"
"""How MLflow loads a model from its code; its other loaders unpickle."""

_ALLOWED = re.compile(
    r"MLmodel|(conda|python_env)\.yaml|requirements\.txt|(serving_)?input_example\.json|served_model\.py|registered_model_meta"
    r"|artifacts/bundle/(" + "|".join(map(re.escape, bundles.FILES)) + r")"
    r"|code/sevenfold/([a-z_]+/)?([a-z_0-9]+\.py|py\.typed)"
)
"""The files of a version."""

MOST_MODEL = 1 << 20
"""Bytes of MLmodel that are parsed."""


def verify(workspace: Workspace, version: Version, *, alias: str | None = None) -> None:
    """Check a version's files, its digest, and what it makes of its own example.

    Args:
        alias: reach it by this alias, as a batch job does; by default by its number.

    Raises:
        BundleError: files are missing, added, changed or may unpickle, or the model's answer is not finite or not what its
            signature says. The message lists every problem.
    """
    if alias is not None:
        found = versions.by_alias(workspace, version.name, alias)
        if found is None or found.number != version.number:
            raise BundleError(
                f"{version.name}@{alias} is {found.label if found else 'nothing'}; expected {version.label}; somebody moves "
                "the alias by other means; look at its page in MLflow"
            )
    folder = versions.bundle_folder(workspace, version, alias=alias).parents[1]
    # What Python left beside code that it has loaded is none of what was published, and would be run in its place.
    for cache in [path for path in folder.rglob("__pycache__") if path.is_dir() and not path.is_symlink()]:
        shutil.rmtree(cache)
    # Of the bundle first: what is not as it was published needs no second look.
    bundles.load(folder / "artifacts" / "bundle", expected=version.digest)
    if problems := _file_problems(folder, version) or _description_problems(folder) or _answer_problems(folder):
        raise BundleError(
            f"{version.label} is not sound: {'; '.join(problems)}; publish it again with `sevenfold run`, or promote another"
        )


def _file_problems(folder: Path, version: Version) -> list[str]:
    problems = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            problems.append(f"{name} is a link; expected a plain file")
        elif path.is_file():
            if not _ALLOWED.fullmatch(name):
                problems.append(f"{name} does not belong there")
            elif path.suffix != ".safetensors" and path.stat().st_size > files.MOST_JSON:
                problems.append(f"{name} has {path.stat().st_size:,} bytes; expected at most {files.MOST_JSON:,}")
            elif path.suffix != ".safetensors" and _first_byte(path) == b"\x80":  # theirs is of the header's size
                problems.append(f"{name} is a pickle; expected text or tensors")
    package = folder / "code" / "sevenfold"
    expected = version.tags.get("code_digest")
    if not problems and expected is not None and provenance.code_digest(package) != expected:
        problems.append("its code was changed since it was published")
    runs, known = folder / "served_model.py", package / "served_model.py"
    if not problems and not (runs.is_file() and known.is_file() and runs.read_bytes() == known.read_bytes()):
        problems.append("served_model.py was changed since it was published")
    return problems


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(1)


def _description_problems(folder: Path) -> list[str]:
    """Return what in MLmodel is not as `publish` makes it: another loader, or paths that lead elsewhere."""
    from mlflow.models import Model

    path = folder / "MLmodel"
    if not path.is_file():
        return ["MLmodel is missing"]
    if path.stat().st_size > MOST_MODEL:
        return [f"MLmodel has {path.stat().st_size:,} bytes; expected at most {MOST_MODEL:,}"]
    try:
        model = Model.load(str(path))
        flavors = model.flavors
        function = flavors["python_function"]
        parts = function["artifacts"]
        paths = {f"artifact {name}": str(part["path"]) for name, part in parts.items()} | {
            "code": str(function["code"])
        }
        example = model.saved_input_example_info or {}
        paths["its example"] = str(example.get("artifact_path", "none"))
        code, loader = PurePosixPath(str(function["model_code_path"])).name, function["loader_module"]
    except Exception as error:  # whatever YAML that is none makes a library say
        return [f"MLmodel cannot be read ({_said(error)})"]
    problems = [f"MLmodel has the flavor {name}" for name in sorted(flavors) if name != "python_function"]
    if loader != LOADER:
        problems.append(f"MLmodel loads by {loader}, which may unpickle; expected {LOADER}")
    if unknown := sorted(function.keys() & {"python_model", "data", "model_path"}):
        problems.append(f"MLmodel names {', '.join(unknown)}, which may be a pickle")
    if code != "served_model.py":
        problems.append(f"MLmodel runs {code}; expected served_model.py")
    wanted = {"artifact bundle": "artifacts/bundle", "code": "code", "its example": "input_example.json"}
    problems += [
        f"MLmodel has {name} at {where!r}; expected {wanted.get(name, 'none')!r}"
        for name, where in paths.items()
        if wanted.get(name) != where
    ]
    return problems


def _answer_problems(folder: Path) -> list[str]:
    """Load the model as MLflow serves it, have it answer its example, and return what is wrong with that."""
    import mlflow

    with _path_kept(), variables.within(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"):
        try:
            served = mlflow.pyfunc.load_model(str(folder))
            example = served.input_example
            if example is None:
                return ["it has no example of its input"]
            answer = served.predict(example)
        except Exception as error:  # whatever its code or MLflow says
            return [f"it does not answer its example ({_said(error)})"]
    problems = []
    if len(answer) != len(example):
        problems.append(f"it answers {len(example)} rows with {len(answer)}")
    signature = served.metadata.signature
    wanted = None if signature is None else signature.outputs
    if isinstance(answer, pd.DataFrame):
        columns = {str(name): values.to_numpy() for name, values in answer.items()}
        if wanted is not None and [*columns] != wanted.input_names():
            problems.append(
                f"its answer has the columns {', '.join(columns)}; its signature has {', '.join(wanted.input_names())}"
            )
        elif wanted is not None:
            problems += _type_problems(columns, wanted)
    else:
        columns = {"answer": np.asarray(answer)}
        if wanted is not None:
            problems += _shape_problems(columns["answer"], wanted)
    problems += [
        f"its answer to its example is not finite in {name}"
        for name, values in columns.items()
        if values.dtype.kind == "f" and not np.isfinite(values).all()
    ]
    return problems


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _type_problems(columns: Mapping[str, np.ndarray], wanted: Any) -> list[str]:
    """Return which columns are not of the signature's type; text and what may be anything fits."""
    problems = []
    for spec in wanted.inputs:
        got, promised = columns[spec.name].dtype, getattr(spec.type, "to_numpy", lambda: np.dtype(object))()
        # A whole number is "long" in a signature, of however many bits it is.
        fits = {"i": got.kind in "iu", "b": got.kind == "b", "f": got == promised}.get(promised.kind, True)
        if not fits:
            problems.append(f"its answer has {got} in {spec.name}; its signature has {promised}")
    return problems


def _shape_problems(answer: np.ndarray, wanted: Any) -> list[str]:
    if not wanted.is_tensor_spec():
        return ["its answer is an array; its signature has columns"]
    spec = wanted.inputs[0]
    fits = len(spec.shape) == answer.ndim and all(
        w in (-1, got) for w, got in zip(spec.shape, answer.shape, strict=True)
    )
    if fits and spec.type == answer.dtype:
        return []
    return [f"its answer is {answer.dtype} {answer.shape}; its signature has {spec.type} {tuple(spec.shape)}"]


@contextmanager
def _path_kept() -> Iterator[None]:
    """Keep MLflow from putting a model's code in front of everything else for good, and Python from writing beside it."""
    before, writes = list(sys.path), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:] = before
        sys.dont_write_bytecode = writes
