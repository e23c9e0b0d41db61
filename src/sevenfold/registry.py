"""The model registry, which is MLflow's: publish, promote, champion. The one file that talks to MLflow."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sevenfold import bundles, files, modules, operations
from sevenfold.bundles import Bundle, BundleError
from sevenfold.datasets.base import ImageSchema, Schema, TableSchema
from sevenfold.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

CHAMPION, CHALLENGER = "champion", "challenger"

_NOT_THERE = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
"""How MLflow answers to a name, alias or version that does not exist, or that none can have."""

_JUDGED = ("test.", "validation.", "rival.", "held_out.", "threshold")
"""How the names of metrics begin that are no curves."""

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
    """A model that a user named: its bundle's folder, what to call it, and the digest its weights must have.

    version: None where the user named a folder.
    """

    folder: Path
    label: str
    digest: str
    version: Version | None = None


def initialise(workspace: Workspace) -> None:
    """Make or upgrade the tracking database, once, under a lock: several processes on a fresh one would destroy it."""
    uri = workspace.tracking_uri
    if not uri.startswith("sqlite:///"):
        return  # a server looks after its own database
    database = Path(uri.removeprefix("sqlite:///"))
    mark = database.with_name(f"{database.name}.version")
    current = importlib.metadata.version("mlflow")

    def ready() -> bool:
        return database.exists() and mark.exists() and mark.read_text() == current

    if ready():
        return
    with workspace.lock("mlflow"):
        if ready():  # another process was first
            return
        if database.exists():
            _upgrade(workspace, database)
        else:
            # A new one is made beside its place: a kill halfway would leave tables that no upgrade mends.
            with files.whole(database) as draft:
                _upgrade(workspace, draft)
        files.write_text(mark, current)


def _upgrade(workspace: Workspace, database: Path) -> None:
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database}"]
    done = subprocess.run(command, env=workspace.environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        # Alembic's errors end with the statement that failed and a link.
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(("[SQL", "(Backgr"))]
        last = lines[-1] if lines else "no message"
        raise RuntimeError(
            f"MLflow cannot set up {database}: {last}; `sevenfold doctor` looks at it; restore it from a backup, or move it "
            "away to begin a new one"
        )
    database.chmod(0o600)


def server_command(workspace: Workspace, *, host: str, port: int) -> list[str]:
    """Return the command of a server that shows the workspace's own database and artifacts."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", workspace.tracking_uri]
    command += ["--artifacts-destination", str(workspace.model_artifacts), "--workers", "1"]
    return [*command, "--host", host, "--port", str(port)]


def may_pass(error: object) -> bool:
    """Say whether an error is trouble on the way to the tracking server, which may be over a little later."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"} or "API request to" in str(
            error
        )
    return isinstance(error, (requests.ConnectionError, requests.Timeout, ConnectionError, TimeoutError))


def _client(workspace: Workspace) -> "MlflowClient":
    import mlflow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this part of MLflow warns of itself while it is imported
        import mlflow.pyfunc
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

    The same digest is published once: a second call returns the version there is, as long as its files are whole.

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
        found = find(workspace, name, digest)
        if found is not None:
            return found, False
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            location = str(workspace.model_artifacts) if workspace.tracking_uri.startswith("sqlite:///") else None
            identifier = client.create_experiment(name, artifact_location=location)
        else:
            identifier = experiment.experiment_id
        every_tag = {k: str(v) for k, v in tags.items()} | {"digest": digest}
        with mlflow.start_run(
            experiment_id=identifier, run_name=bundle.origin["candidate"], tags=every_tag, description=description
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
            with _clean_copies(folder, workspace) as (code, copy), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # MLflow's use of pandas
                made = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(code / "served_model.py"),
                    artifacts={"bundle": str(copy)},
                    code_paths=[str(code)],
                    signature=signature(operations.accepting(bundle)),
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
        return _version(version, []), True


def republish(
    workspace: Workspace,
    version: Version,
    folder: Path,
    *,
    without: Sequence[str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    description: str,
) -> tuple[Version, bool]:
    """Publish a changed bundle of the same weights as a new version with the history of the one that it was made from.

    Parameters, metrics, curves, files and tags are those of that version, but for its decisions.

    Args:
        without: metrics that are no longer true.
        metrics, tags: new ones.
        description: in Markdown, shown on the version's page.
    """
    client = _client(workspace)
    run = client.get_run(version.run_id)
    kept = {n: v for n, v in run.data.metrics.items() if n not in without and n.startswith(_JUDGED)}
    curves: dict[str, dict[int, float]] = {}
    for name in run.data.metrics:
        if not name.startswith(_JUDGED):
            curves[name] = {point.step: point.value for point in client.get_metric_history(version.run_id, name)}
    names = [f.path for f in client.list_artifacts(version.run_id) if not f.is_dir]
    story = {n: v for n, v in version.tags.items() if not n.startswith(("decided_", "decision", "promoted_"))}
    copies = [artifact(workspace, version, name) for name in names]
    return publish(
        workspace,
        version.name,
        folder,
        params=dict(run.data.params),
        metrics={**kept, **metrics},
        curves=pd.DataFrame(curves).rename_axis("epoch").reset_index(),
        artifacts=[copy for copy in copies if copy is not None],
        tags={**story, **tags},
        description=description,
    )


def _plain_version(package: str) -> str:
    """The release without a local part such as "+cpu", which no index knows."""
    return importlib.metadata.version(package).split("+")[0]


@contextmanager
def _clean_copies(folder: Path, workspace: Workspace) -> Iterator[tuple[Path, Path]]:
    """Give copies of this package and of the bundle, for MLflow to take."""
    room = workspace.private / "code"
    room.mkdir(exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=room) as place:
        package = Path(__file__).parent
        # MLflow keeps the names of what it is given, and `bundle_folder` looks for this one.
        code, bundle = Path(place) / package.name, Path(place) / "bundle"
        # Without caches, so that a model's code holds no byte of some interpreter.
        shutil.copytree(package, code, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(folder, bundle)
        yield code, bundle


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


def versions(workspace: Workspace, name: str | None = None) -> list[Version]:
    """Return every version of a registered model, or of all of them, in order; none where there is no such model."""
    client = _client(workspace)
    found = []
    for model in _registered(client, name):
        aliases: dict[int, list[str]] = {}  # the search for versions leaves them out
        for alias, number in sorted(model.aliases.items()):
            aliases.setdefault(int(number), []).append(alias)
        for version in client.search_model_versions(f"name='{model.name}'"):
            found.append(_version(version, aliases.get(int(version.version), [])))
    return sorted(found, key=lambda v: (v.name, v.number))


def find(workspace: Workspace, name: str, digest: str) -> Version | None:
    """Return the version of a registered model whose bundle has this digest and still loads, or None."""
    for version in versions(workspace, name):
        if version.digest == digest:
            try:
                bundles.load(bundle_folder(workspace, version), expected=digest)
            except (BundleError, FileNotFoundError):
                continue
            return version
    return None


def _registered(client: "MlflowClient", name: str | None) -> "list[RegisteredModel]":
    """Return the registered model of this name, if there is one, or all of them."""
    import mlflow

    if name is not None:
        try:
            return [client.get_registered_model(name)]
        except mlflow.exceptions.MlflowException as error:
            if error.error_code in _NOT_THERE:
                return []
            raise
    found: list[RegisteredModel] = []
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _version(found: Any, aliases: Sequence[str]) -> Version:
    tags = dict(found.tags)
    return Version(found.name, int(found.version), tags.get("digest", ""), tuple(aliases), tags, found.run_id or "")


def _reread(client: "MlflowClient", version: Version) -> Version:
    found = client.get_model_version(version.name, str(version.number))
    return _version(found, sorted(found.aliases))


def by_alias(workspace: Workspace, name: str, alias: str) -> Version | None:
    import mlflow

    try:
        found = _client(workspace).get_model_version_by_alias(name, alias)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code in _NOT_THERE:
            return None
        raise
    return _version(found, sorted(found.aliases))


def champion(workspace: Workspace, name: str) -> Version | None:
    """Return today's champion of a contest such as "digits-anomaly", or None."""
    return by_alias(workspace, name, CHAMPION)


def challenge(workspace: Workspace, version: Version) -> None:
    """Mark a version as the one that last did not pass the gate."""
    _client(workspace).set_registered_model_alias(version.name, CHALLENGER, str(version.number))


def annotate(workspace: Workspace, version: Version, tags: Mapping[str, str]) -> None:
    """Write tags of a version, over those of the same name."""
    client = _client(workspace)
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.number), key, value)


def promote(workspace: Workspace, version: Version, *, reasons: Sequence[str]) -> Version:
    """Make a version the champion: verify its bundle, tag it, set the alias, and load it through the alias.

    If that fails, alias and tags are what they were before.

    Raises:
        BundleError: the bundle does not load, or its digest is not the version's.
    """
    client = _client(workspace)
    with workspace.lock("promotion"):
        bundles.load(bundle_folder(workspace, version), expected=version.digest)
        tags = _reread(client, version).tags
        before = champion(workspace, version.name)
        story = {
            "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "promoted_over": before.label if before else "none",
            "promoted_because": "; ".join(reasons)[:5000],
        }
        try:
            annotate(workspace, version, story)
            client.set_registered_model_alias(version.name, CHAMPION, str(version.number))
            resolved = resolve(workspace, f"{version.name}@{CHAMPION}")
            bundles.load(resolved.folder, expected=version.digest)
        except BaseException:
            if before is None:
                client.delete_registered_model_alias(version.name, CHAMPION)
            else:
                client.set_registered_model_alias(version.name, CHAMPION, str(before.number))
            for key in story.keys() - tags.keys():
                client.delete_model_version_tag(version.name, str(version.number), key)
            annotate(workspace, version, {key: tags[key] for key in story.keys() & tags.keys()})
            raise
        challenger = by_alias(workspace, version.name, CHALLENGER)
        if challenger is not None and challenger.number == version.number:
            client.delete_registered_model_alias(version.name, CHALLENGER)
        return _reread(client, version)


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


def artifact(workspace: Workspace, version: Version, name: str) -> Path | None:
    """Return a file that was logged with the version's run, fetched to this machine; None where there is none."""
    import mlflow

    _client(workspace)
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path=name))
    except (mlflow.exceptions.MlflowException, OSError):
        return None


def resolve(workspace: Workspace, model: str) -> Resolved:
    """Return the bundle that a user means by `NAME`, `NAME@ALIAS`, `NAME/VERSION` or a bundle's folder.

    Raises:
        LookupError: there is no such model, version or champion; the message says what there is.
    """
    folder = Path(model)
    # A folder that only shares its name with a model, such as the results of an earlier job, is not meant.
    if any((folder / name).exists() for name in bundles.FILES):
        return Resolved(folder, str(folder), bundles.digest(folder))
    form = re.fullmatch(r"(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<number>[0-9]+))?", model)
    if form is None:
        raise LookupError(
            f"{model!r} is no bundle's folder and no model's name; expected NAME, NAME@ALIAS, NAME/VERSION, or a folder with "
            f"{', '.join(bundles.FILES)}"
        )
    initialise(workspace)
    name, alias, number = form["name"], form["alias"], form["number"]
    known = versions(workspace, name)
    if not known:
        others = sorted({v.name for v in versions(workspace)})
        raise LookupError(
            f"no model {name!r}{modules.meant(name, others)} and no bundle's folder of that name; registered are: "
            f"{', '.join(others) or 'none'}; `sevenfold run` makes them"
        )
    chosen = [v for v in known if (v.number == int(number) if number else (alias or CHAMPION) in v.aliases)]
    if not chosen:
        there = ", ".join(v.label + "".join(f" ({a})" for a in v.aliases) for v in known)
        if number:
            raise LookupError(f"{name} has no version {number}; there are: {there}")
        if alias not in {None, CHAMPION}:
            raise LookupError(f"{name} has no version with the alias {alias!r}; there are: {there}")
        raise LookupError(
            f"{name} has no champion yet: no version passed the gate; name one to use it all the same ({there}), or run "
            "`sevenfold run` for a better one"
        )
    return Resolved(bundle_folder(workspace, chosen[0]), chosen[0].label, chosen[0].digest, chosen[0])
