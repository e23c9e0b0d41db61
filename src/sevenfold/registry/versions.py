"""Versions of registered models: published once per digest, listed, found, and fetched to this machine."""

import json
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from sevenfold import bundles, files, modules, provenance
from sevenfold.bundles import BundleError
from sevenfold.registry import packaging, runs, tracking
from sevenfold.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

CHAMPION, CHALLENGER = "champion", "challenger"

DECIDED = "decided."
"""How the tags begin that keep each decision of the gate on a version, `decided.0001`, ..., as JSON."""

CARD = "card.md"
"""With each version's run lies its card, as its page shows it."""

_JUDGED = ("test.", "validation.", "rival.", "held_out.", "threshold")
"""How the names of metrics begin that are no curves."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model.

    published: when it was made.
    model: the identifier of MLflow's logged model, which has its files; None of a version that was made otherwise.
    """

    name: str
    number: int
    digest: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    run_id: str
    published: datetime
    model: str | None

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
    folders: Mapping[str, Path] = MappingProxyType({}),
    run_id: str | None = None,
    about: str = "",
) -> tuple[Version, bool]:
    """Register a bundle as a version of `name`, and say whether it is a new one.

    The same digest is published once: a second call returns the version there is, as long as its files are whole.

    Args:
        folder: the bundle.
        params, metrics: of the run; nested params are flattened with dots.
        curves: one row per epoch, with a column `epoch`; every other column becomes a curve.
        artifacts: files to keep with the run, such as the scorecard.
        tags: of the run and the version; the digest is added.
        description: in Markdown, shown on the version's page.
        folders: what else to keep with the run: whole folders, by the name that they get there.
        run_id: the finished run of the candidate's training, to which all this is added; None makes a run.
        about: description of the registered model, in Markdown; "" stands for one in a sentence.
    """
    import mlflow
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

    bundle = bundles.load(folder)
    digest = bundles.digest(folder)
    client = tracking.client(workspace)
    with workspace.lock(f"publish-{name}"):
        found = find(workspace, name, digest)
        if found is not None:
            return found, False
        identifier = runs.experiment(workspace, name)
        every_tag = {k: str(v) for k, v in tags.items()} | {"digest": digest}
        begun = (
            mlflow.start_run(run_id=run_id)
            if run_id is not None
            else mlflow.start_run(
                experiment_id=identifier, run_name=bundle.origin["candidate"], description=description
            )
        )
        with begun as run:
            mlflow.set_tags(every_tag)
            mlflow.log_params({k: str(v)[:6000] for k, v in runs.flattened(params).items()})
            mlflow.log_metrics(dict(metrics))
            _log_curves(client, run.info.run_id, curves)
            source = LocalArtifactDatasetSource(str(bundle.origin["data_path"]))
            data = MetaDataset(  # type: ignore[abstract]
                source, name=bundle.origin["dataset"], digest=bundle.origin["data_digest"][:32]
            )
            mlflow.log_input(data, context="training")
            for artifact in artifacts:
                mlflow.log_artifact(str(artifact))
            for place, kept in folders.items():
                mlflow.log_artifacts(str(kept), place)
            with packaging.clean_copies(folder, workspace) as (code, copy), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # MLflow's use of pandas
                every_tag["code_digest"] = provenance.code_digest(code)
                made = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(code / "served_model.py"),
                    artifacts={"bundle": str(copy)},
                    code_paths=[str(code)],
                    signature=packaging.signature(bundle),
                    input_example=packaging.example(bundle),
                    pip_requirements=packaging.requirements(bundle),
                )
        try:
            client.create_registered_model(
                name,
                tags={"dataset": bundle.origin["dataset"], "application": bundle.application_name},
                description=about or f"Champions of {bundle.application_name} on {bundle.origin['dataset']}.",
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

    Parameters, metrics, curves, files, folders and tags are those of that version, but for its decisions.

    Args:
        without: metrics that are no longer true.
        metrics, tags: new ones.
        description: what was changed, in Markdown; on the version's page and in its card, the card of the version that it
            was made from follows.
    """
    client = tracking.client(workspace)
    run = client.get_run(version.run_id)
    kept = {n: v for n, v in run.data.metrics.items() if n not in without and n.startswith(_JUDGED)}
    curves: dict[str, dict[int, float]] = {}
    for name in run.data.metrics:
        if not name.startswith(_JUDGED):
            curves[name] = {point.step: point.value for point in client.get_metric_history(version.run_id, name)}
    there = client.list_artifacts(version.run_id)
    story = {
        n: v
        for n, v in version.tags.items()
        if not n.startswith(("decided_", DECIDED, "decision", "promoted_", "replaced_"))
    }
    copies = {f.path: artifact(workspace, version, f.path) for f in there}
    folders = {f.path for f in there if f.is_dir}
    said = client.get_model_version(version.name, str(version.number)).description or ""
    old = copies.pop(CARD, None)
    with tempfile.TemporaryDirectory() as room:
        card = Path(room) / CARD
        files.write_text(card, _changed_card(version, description, without, old.read_text("utf-8") if old else ""))
        return publish(
            workspace,
            version.name,
            folder,
            params=dict(run.data.params),
            metrics={**kept, **metrics},
            curves=pd.DataFrame(curves).rename_axis("epoch").reset_index(),
            artifacts=[card, *(copy for n, copy in copies.items() if copy is not None and n not in folders)],
            tags={**story, **tags},
            description=_changed_card(version, description, without, said),
            folders={n: copy for n, copy in copies.items() if copy is not None and n in folders},
        )


def _changed_card(version: Version, changed: str, without: Sequence[str], card: str) -> str:
    """Return the card of a version that was made from another: what was changed, and the other's card."""
    if not card:
        return changed
    lost = f" Of its numbers, {', '.join(without)} hold no longer." if without else ""
    return f"**{changed}** What follows is the card of {version.label}.{lost}\n\n{card}"


def _log_curves(client: "MlflowClient", run_id: str, curves: pd.DataFrame) -> None:
    points = runs.points(curves, int(datetime.now(UTC).timestamp() * 1000))
    for start in range(0, len(points), runs.MOST_METRICS):
        client.log_batch(run_id, metrics=points[start : start + runs.MOST_METRICS])


def champions(workspace: Workspace) -> dict[str, Version]:
    """Return the champion of each registered model that has one, by the model's name."""
    return {version.name: version for version in every(workspace) if CHAMPION in version.aliases}


def every(workspace: Workspace, name: str | None = None) -> list[Version]:
    """Return every version of a registered model, or of all of them, in order; none where there is no such model."""
    client = tracking.client(workspace)
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
    for version in every(workspace, name):
        if version.digest == digest:
            try:
                bundles.load(bundle_folder(workspace, version), expected=digest)
            except (BundleError, FileNotFoundError):
                continue
            return version
    return None


def registered(workspace: Workspace, name: str) -> "RegisteredModel | None":
    """Return MLflow's registered model of this name, with its tags and aliases, or None."""
    return next(iter(_registered(tracking.client(workspace), name)), None)


def pruned(workspace: Workspace, digest: str) -> tuple[str, dict[str, str]] | None:
    """Return what a version of this digest that was pruned was called, and what was kept of it; None where none was."""
    for model in _registered(tracking.client(workspace), None):
        for tag, text in model.tags.items():
            if tag.startswith("pruned.") and digest in text:
                return f"{model.name}/{tag.removeprefix('pruned.')}", dict(json.loads(text))
    return None


def unknown(workspace: Workspace, name: str) -> str:
    """Say that there is no such model, and what there is."""
    others = sorted({version.name for version in every(workspace)})
    return (
        f"no model {name!r}{modules.meant(name, others)}; registered are: {', '.join(others) or 'none'}; `sevenfold run` "
        "makes them"
    )


def numbered(workspace: Workspace, name: str, number: int) -> Version:
    """Return a version by its number.

    Raises:
        LookupError: there is no such model or version; the message says what there is.
    """
    known = every(workspace, name)
    if not known:
        raise LookupError(unknown(workspace, name))
    found = next((version for version in known if version.number == number), None)
    if found is None:
        raise LookupError(f"{name} has no version {number}; there are: {listed(known)}")
    return found


def listed(known: Sequence[Version]) -> str:
    """Return versions and their aliases as a line of text."""
    return ", ".join(version.label + "".join(f" ({alias})" for alias in version.aliases) for version in known)


def _registered(client: "MlflowClient", name: str | None) -> "list[RegisteredModel]":
    """Return the registered model of this name, if there is one, or all of them."""
    import mlflow

    if name is not None:
        try:
            return [client.get_registered_model(name)]
        except mlflow.exceptions.MlflowException as error:
            if error.error_code in tracking.NOT_THERE:
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
    source = found.source or ""
    return Version(
        name=found.name,
        number=int(found.version),
        digest=tags.get("digest", ""),
        aliases=tuple(aliases),
        tags=tags,
        run_id=found.run_id or "",
        published=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        model=source.removeprefix("models:/") if source.startswith("models:/") else None,
    )


def reread(workspace: Workspace, version: Version) -> Version:
    """Return the version with the tags and aliases that it has now."""
    found = tracking.client(workspace).get_model_version(version.name, str(version.number))
    return _version(found, sorted(found.aliases))


def by_alias(workspace: Workspace, name: str, alias: str) -> Version | None:
    import mlflow

    try:
        found = tracking.client(workspace).get_model_version_by_alias(name, alias)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code in tracking.NOT_THERE:
            return None
        raise
    return _version(found, sorted(found.aliases))


def champion(workspace: Workspace, name: str) -> Version | None:
    """Return today's champion of a contest such as "digits-anomaly", or None."""
    return by_alias(workspace, name, CHAMPION)


def annotate(workspace: Workspace, version: Version, tags: Mapping[str, str]) -> None:
    """Write tags of a version, over those of the same name."""
    client = tracking.client(workspace)
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.number), key, value)


def bundle_folder(workspace: Workspace, version: Version, *, alias: str | None = None) -> Path:
    """Return the version's bundle on this machine, fetched from the artifact store where it lies elsewhere.

    Args:
        alias: of the version, to reach it by as a batch job does; by default its number.

    Raises:
        BundleError: its files are not there any more. Trouble on the way to them, which may pass, is raised as it comes:
            who takes it for a loss would publish twice, or replace a champion that could not defend itself.
    """
    import mlflow

    tracking.client(workspace)
    where = f"{version.name}@{alias}" if alias is not None else f"{version.name}/{version.number}"
    try:
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{where}"))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        if tracking.may_pass(error):
            raise
        raise BundleError(
            f"the artifacts of {version.label} cannot be fetched ({error}); "
            "if the workspace was moved, run `sevenfold doctor`; else publish it again with `sevenfold run`"
        ) from error
    return folder / "artifacts" / "bundle"


def artifact(workspace: Workspace, version: Version, name: str) -> Path | None:
    """Return a file that was logged with the version's run, fetched to this machine; None where there is none.

    Trouble on the way to it, which may pass, is raised as it comes.
    """
    import mlflow

    tracking.client(workspace)
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path=name))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        if tracking.may_pass(error):
            raise
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
    tracking.initialise(workspace)
    name, alias, number = form["name"], form["alias"], form["number"]
    known = every(workspace, name)
    if not known:
        others = sorted({v.name for v in every(workspace)})
        raise LookupError(
            f"no model {name!r}{modules.meant(name, others)} and no bundle's folder of that name; registered are: "
            f"{', '.join(others) or 'none'}; `sevenfold run` makes them"
        )
    chosen = [v for v in known if (v.number == int(number) if number else (alias or CHAMPION) in v.aliases)]
    if not chosen:
        there = listed(known)
        if number:
            raise LookupError(f"{name} has no version {number}; there are: {there}")
        if alias not in {None, CHAMPION}:
            raise LookupError(f"{name} has no version with the alias {alias!r}; there are: {there}")
        raise LookupError(
            f"{name} has no champion yet: no version passed the gate; name one to use it all the same ({there}; "
            f"`sevenfold models {name}` tells why), or run `sevenfold run` for a better one"
        )
    return Resolved(bundle_folder(workspace, chosen[0]), chosen[0].label, chosen[0].digest, chosen[0])
