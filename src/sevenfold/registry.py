"""The model registry, which is MLflow's: publish, promote, champion. The one file that talks to MLflow."""

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sevenfold import bundles, files
from sevenfold.bundles import Bundle, BundleError
from sevenfold.datasets.base import ImageSchema, Schema, TableSchema
from sevenfold.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"

_SERVING = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "scikit-learn", "scipy", "torch")
"""What a published model needs beside its own code."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    number: int
    digest: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    run_id: str

    @property
    def label(self) -> str:
        return f"{self.name}/{self.number}"


@dataclass(frozen=True)
class Resolved:
    """A model that a user named: its bundle's folder, what to call it, and the digest its weights must have."""

    folder: Path
    label: str
    digest: str


def initialise(workspace: Workspace) -> None:
    """Make or upgrade the tracking database, once, under a lock: several processes on a fresh one would destroy it."""
    uri = workspace.tracking_uri
    if not uri.startswith("sqlite:///"):
        return  # a server looks after its own database
    database = Path(uri.removeprefix("sqlite:///"))
    mark = database.with_name(f"{database.name}.version")
    current = importlib.metadata.version("mlflow")
    if database.exists() and mark.exists() and mark.read_text() == current:
        return
    with workspace.lock("mlflow"):
        database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
        done = subprocess.run(command, env=workspace.environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"`mlflow db upgrade {uri}` failed: {done.stderr.strip()[-500:]}")
        database.chmod(0o600)
        files.write_text(mark, current)


def _client(workspace: Workspace) -> "MlflowClient":
    import mlflow

    mlflow.set_tracking_uri(workspace.tracking_uri)
    mlflow.set_registry_uri(workspace.tracking_uri)
    return mlflow.MlflowClient()


def publish(
    workspace: Workspace,
    name: str,
    folder: Path,
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    curves: pd.DataFrame,
    artifacts: Sequence[Path],
    tags: Mapping[str, str],
    description: str,
) -> tuple[Version, bool]:
    """Register a bundle as a version of `name`, and say whether it is a new one.

    The same digest is published once: a second call returns the version there is.

    Args:
        folder: the bundle.
        params, metrics: of the run; nested params are flattened with dots.
        curves: one row per epoch, with a column `epoch`; every other column becomes a curve.
        artifacts: files to keep with the run, such as the report.
        tags: of the run and the version; the digest is added.
        description: in Markdown, shown on the version's page.
    """
    import mlflow
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

    bundle = bundles.load(folder)
    digest = bundles.digest(folder)
    client = _client(workspace)
    with workspace.lock(f"publish-{name}"):
        for found in versions(workspace, name):
            if found.digest == digest:
                return found, False
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            location = str(workspace.model_artifacts) if workspace.tracking_uri.startswith("sqlite:///") else None
            identifier = client.create_experiment(name, artifact_location=location)
        else:
            identifier = experiment.experiment_id
        every_tag = {k: str(v) for k, v in tags.items()} | {"digest": digest}
        with mlflow.start_run(
            experiment_id=identifier, run_name=tags["candidate"], tags=every_tag, description=description
        ) as run:
            mlflow.log_params({k: str(v)[:6000] for k, v in _flattened(params).items()})
            mlflow.log_metrics(dict(metrics))
            _log_curves(client, run.info.run_id, curves)
            source = LocalArtifactDatasetSource(str(bundle.origin["data_path"]))
            data = MetaDataset(  # type: ignore[abstract]
                source, name=bundle.origin["dataset"], digest=bundle.origin["data_digest"][:32]
            )
            mlflow.log_input(data, context="training")
            for artifact in artifacts:
                mlflow.log_artifact(str(artifact))
            package = Path(__file__).parent
            with _clean_copy(package, workspace) as code:
                made = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(package / "served_model.py"),
                    artifacts={"bundle": str(folder)},
                    code_paths=[str(code)],
                    signature=signature(bundle),
                    input_example=_example(bundle),
                    pip_requirements=[f"{p}=={_plain_version(p)}" for p in _SERVING],
                )
        try:
            client.create_registered_model(
                name, description=f"Champions of {bundle.application_name} on {bundle.origin['dataset']}."
            )
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            name, made.model_uri, run.info.run_id, tags=every_tag, description=description, model_id=made.model_id
        )
        return _version(client.get_model_version(name, version.version)), True


def _plain_version(package: str) -> str:
    """The release without a local part such as "+cpu", which no index knows."""
    return importlib.metadata.version(package).split("+")[0]


@contextmanager
def _clean_copy(package: Path, workspace: Workspace) -> Iterator[Path]:
    """Give a copy of the package without caches, so that a model's code holds no byte of some interpreter."""
    room = workspace.private / "code"
    room.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=room) as folder:
        target = Path(folder) / package.name
        shutil.copytree(package, target, ignore=shutil.ignore_patterns("__pycache__"))
        yield target


def _log_curves(client: "MlflowClient", run_id: str, curves: pd.DataFrame) -> None:
    from mlflow.entities import Metric

    now = int(datetime.now(UTC).timestamp() * 1000)
    points = [
        Metric(column, float(value), now, int(epoch))
        for column in curves.columns
        if column != "epoch"
        for epoch, value in zip(curves["epoch"], curves[column], strict=True)
    ]
    for start in range(0, len(points), 1000):  # MLflow takes at most so many at once
        client.log_batch(run_id, metrics=points[start : start + 1000])


def _flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flattened(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


def _example(bundle: Bundle) -> Any:
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

    if isinstance(schema, ImageSchema):
        channels, height, width = schema.shape
        shape = (-1, height, width) if channels == 1 else (-1, height, width, channels)
        return Inputs([TensorSpec(np.dtype(schema.dtype), shape)])
    assert isinstance(schema, TableSchema)

    def kind(dtype: str) -> DataType:
        return DataType.long if np.dtype(dtype).kind in "iu" else DataType.double

    return Inputs(
        [
            ColSpec(kind(c.dtype) if c.kind == "numeric" else DataType.string, c.name, required=not c.gaps)
            for c in schema.columns
        ]
    )


def versions(workspace: Workspace, name: str | None = None) -> list[Version]:
    """Return every version of a registered model, or of all of them, in order."""
    client = _client(workspace)
    names = [name] if name else [m.name for m in client.search_registered_models()]
    found = [v for n in names for v in client.search_model_versions(f"name='{n}'")]
    # The search leaves aliases out.
    return sorted(
        (_version(client.get_model_version(v.name, v.version)) for v in found), key=lambda v: (v.name, v.number)
    )


def _version(found: Any) -> Version:
    tags = dict(found.tags)
    return Version(
        found.name, int(found.version), tags.get("digest", ""), tuple(found.aliases), tags, found.run_id or ""
    )


def by_alias(workspace: Workspace, name: str, alias: str) -> Version | None:
    import mlflow

    try:
        return _version(_client(workspace).get_model_version_by_alias(name, alias))
    except mlflow.exceptions.MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise


def champion(workspace: Workspace, name: str) -> Version | None:
    """Return today's champion of a contest such as "digits-anomaly", or None."""
    return by_alias(workspace, name, CHAMPION)


def challenge(workspace: Workspace, version: Version) -> None:
    """Mark a version as the one that was last published without passing the gate."""
    _client(workspace).set_registered_model_alias(version.name, CHALLENGER, str(version.number))


def promote(workspace: Workspace, version: Version, *, reasons: Sequence[str]) -> Version:
    """Make a version the champion: verify its bundle, tag it, set the alias, and load it through the alias.

    If the last step fails, the alias is what it was before.

    Raises:
        BundleError: the bundle does not load, or its digest is not the version's.
    """
    client = _client(workspace)
    with workspace.lock("promotion"):
        bundles.load(bundle_folder(workspace, version), expected=version.digest)
        before = champion(workspace, version.name)
        story = {
            "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "promoted_over": before.label if before else "none",
            "promoted_because": "; ".join(reasons)[:5000],
        }
        for key, value in story.items():
            client.set_model_version_tag(version.name, str(version.number), key, value)
        client.set_registered_model_alias(version.name, CHAMPION, str(version.number))
        try:
            resolved = resolve(workspace, f"{version.name}@{CHAMPION}")
            bundles.load(resolved.folder, expected=version.digest)
        except BaseException:
            if before is None:
                client.delete_registered_model_alias(version.name, CHAMPION)
            else:
                client.set_registered_model_alias(version.name, CHAMPION, str(before.number))
            raise
        challenger = by_alias(workspace, version.name, CHALLENGER)
        if challenger is not None and challenger.number == version.number:
            client.delete_registered_model_alias(version.name, CHALLENGER)
    return _version(client.get_model_version(version.name, str(version.number)))


def bundle_folder(workspace: Workspace, version: Version) -> Path:
    """Return the version's bundle on this machine, fetched from the artifact store where it lies elsewhere."""
    import mlflow

    _client(workspace)
    try:
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.number}"))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise BundleError(
            f"the artifacts of {version.label} cannot be fetched ({error}); "
            "if the workspace was moved, run `sevenfold doctor`; else publish it again with `sevenfold run`"
        ) from error
    return folder / "artifacts" / "bundle"


def resolve(workspace: Workspace, model: str) -> Resolved:
    """Return the bundle that a user means by `NAME`, `NAME@ALIAS`, `NAME/VERSION` or a bundle's folder.

    Raises:
        LookupError: there is no such model, version or champion; the message says what there is.
    """
    folder = Path(model)
    if folder.is_dir():
        return Resolved(folder, str(folder), bundles.digest(folder))
    initialise(workspace)
    name, _, number = model.partition("/")
    name, _, alias = name.partition("@")
    known = versions(workspace, name) if _is_registered(workspace, name) else []
    if not known:
        others = sorted({v.name for v in versions(workspace)})
        raise LookupError(
            f"no model {name!r} and no folder of that name; registered are: {', '.join(others) or 'none'}; "
            "run `sevenfold run` first"
        )
    if number:
        chosen = [v for v in known if str(v.number) == number]
        if not chosen:
            raise LookupError(f"{name} has no version {number}; there are: {', '.join(str(v.number) for v in known)}")
    else:
        chosen = [v for v in known if (alias or CHAMPION) in v.aliases]
        if not chosen:
            latest = known[-1]
            hint = f"{latest.label} is published but did not pass the gate; name it to use it all the same"
            raise LookupError(f"{name} has no {alias or CHAMPION} yet; {hint}, or run `sevenfold run`")
    return Resolved(bundle_folder(workspace, chosen[0]), chosen[0].label, chosen[0].digest)


def _is_registered(workspace: Workspace, name: str) -> bool:
    return any(m.name == name for m in _client(workspace).search_registered_models(f"name='{name}'"))
