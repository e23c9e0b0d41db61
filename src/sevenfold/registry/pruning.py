"""What may go: versions that nobody uses any more, and files in the artifact store that nothing leads to."""

import shutil
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sevenfold import files
from sevenfold.registry import locking, promotion, receipts, tracking, versions
from sevenfold.registry.versions import Version
from sevenfold.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

SETTLED = timedelta(days=1)
"""What is younger may be of a publication under way, and is left alone."""


@dataclass(frozen=True)
class Entry:
    """One version, and why it stays.

    size: of its files, in bytes; None where they are lost.
    kept: why it stays; None where it may go.
    """

    version: Version
    size: int | None
    kept: str | None


@dataclass(frozen=True)
class Orphan:
    """Files that nothing leads to.

    place: a folder, or the address of a logged model.
    reason: what they are, as far as can be told.
    model: the identifier of a logged model that no version refers to; None for a folder that the store does not know.
    """

    place: str
    size: int
    reason: str
    model: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a pruning would remove and keep."""

    days: float
    entries: tuple[Entry, ...]
    orphans: tuple[Orphan, ...]

    @property
    def doomed(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.kept is None)

    @property
    def size(self) -> int:
        """Return the bytes that would be free."""
        return sum(entry.size or 0 for entry in self.doomed) + sum(orphan.size for orphan in self.orphans)


def plan(workspace: Workspace, *, days: float, name: str | None = None, now: datetime | None = None) -> Plan:
    """Return what may go: of one registered model, or of all of them with the orphans.

    Args:
        days: what was published, or used by a job, within so many days stays; 0 or more.
        now: the time to count from.

    Raises:
        ValueError: days is negative.
        LookupError: there is no such model.
    """
    if not days >= 0:
        raise ValueError(f"days is {days:g}; expected 0 or more")
    now = now or datetime.now(UTC)
    # Of others who share the store nothing is touched.
    found = [version for version in versions.every(workspace, name) if version.digest and "code_digest" in version.tags]
    if name is not None and not found:
        raise LookupError(f"no model {name!r}; `sevenfold models` lists those there are")
    client = tracking.client(workspace)
    entries = []
    for model in sorted({version.name for version in found}):
        before = promotion.previous(workspace, model)
        own = [v for v in found if v.name == model]
        entries += _with_origins([_entry(workspace, client, v, before, now - timedelta(days=days)) for v in own])
    ours = {version.name for version in found}
    return Plan(days, tuple(entries), tuple(_orphans(workspace, client, ours, now)) if name is None else ())


def _with_origins(entries: Sequence[Entry]) -> list[Entry]:
    """Keep what a kept version was made from by moving its threshold: its story begins there."""
    there = {entry.version.label: entry for entry in entries}
    for entry in entries:
        label = entry.version.label
        while there[label].kept is not None and (origin := there[label].version.tags.get("moved_from")) in there:
            if there[origin].kept is None:
                there[origin] = replace(there[origin], kept=f"{label} was made from it")
            label = origin
    return [there[entry.version.label] for entry in entries]


def _entry(
    workspace: Workspace, client: "MlflowClient", version: Version, previous: Version | None, since: datetime
) -> Entry:
    used = [receipt.ended for receipt in receipts.of(workspace, version.digest)]
    kept = None
    if version.aliases:
        kept = f"it is {' and '.join(version.aliases)}"
    elif previous is not None and previous.number == version.number:
        kept = "it was champion before, and `sevenfold rollback` goes back to it"
    elif promotion.displaced_by_hand(workspace, version) is not None:
        kept = "a person replaced it, and what stands here keeps a run from promoting it again"
    elif used and max(used) >= since:
        kept = f"a job used it on {max(used):%Y-%m-%d}"
    elif version.published >= since:
        kept = f"it was published on {version.published:%Y-%m-%d}"
    return Entry(version, _model_size(client, version.model), kept)


def carry_out(workspace: Workspace, planned: Plan, *, now: datetime | None = None) -> Plan:
    """Remove what a plan says may go, and return what went.

    Each version is looked at again under the lock of its model, so that one that became champion meanwhile stays.
    Version and tags go first and files last: a kill in between leaves orphans, which the next pruning finds. Runs stay,
    with their numbers and curves, and so do the receipts of jobs.
    """
    client = tracking.client(workspace)
    gone = []
    for name in sorted({entry.version.name for entry in planned.doomed}):
        with locking.held(workspace, name):
            still = {entry.version.number for entry in plan(workspace, days=planned.days, name=name, now=now).doomed}
            for entry in (e for e in planned.doomed if e.version.name == name and e.version.number in still):
                _remove_version(client, entry)
                gone.append(entry)
    for orphan in planned.orphans:
        if orphan.model is not None:
            _remove_model(client, orphan.model)
        else:
            shutil.rmtree(orphan.place, ignore_errors=True)
    return Plan(planned.days, tuple(gone), planned.orphans)


def _remove_version(client: "MlflowClient", entry: Entry) -> None:
    version = entry.version
    # So that a receipt that names it leads somewhere.
    facts = {
        "digest": version.digest,
        "run": version.run_id,
        "candidate": version.tags.get("candidate", ""),
        "published": version.published.isoformat(timespec="seconds"),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    client.set_registered_model_tag(version.name, f"pruned.{version.number}", files.dumps(facts))
    client.delete_model_version(version.name, str(version.number))
    if version.model is not None:
        _remove_model(client, version.model)


def _remove_model(client: "MlflowClient", identifier: str) -> None:
    model = _logged_model(client, identifier)
    if model is None:
        return
    client.delete_logged_model(identifier)
    _artifacts(model).delete_artifacts()
    place = files.local_path(model.artifact_location)
    if place is not None and place.parent.is_dir() and not any(place.parent.iterdir()):
        place.parent.rmdir()  # the folder of this model alone


def _logged_model(client: "MlflowClient", identifier: str | None) -> "LoggedModel | None":
    import mlflow

    if identifier is None:
        return None
    try:
        return client.get_logged_model(identifier)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code in tracking.NOT_THERE:
            return None
        raise


def _artifacts(model: "LoggedModel") -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(model.artifact_location)


def _model_size(client: "MlflowClient", identifier: str | None) -> int | None:
    model = _logged_model(client, identifier)
    return None if model is None else sum(_sizes(_artifacts(model)))


def _sizes(repository: Any, path: str | None = None) -> Iterator[int]:
    for entry in repository.list_artifacts(path):
        if entry.is_dir:
            yield from _sizes(repository, entry.path)
        else:
            yield entry.file_size or 0


def _orphans(workspace: Workspace, client: "MlflowClient", ours: Set[str], now: datetime) -> Iterator[Orphan]:
    every = list(_pages(client.search_experiments, view_type=_EVERY))
    experiments = [e.experiment_id for e in every]
    models = list(_pages(client.search_logged_models, experiment_ids=experiments)) if experiments else []
    own = {e.experiment_id for e in every if e.name in ours}
    wanted = {version.model for version in versions.every(workspace)}
    for model in models:
        made = datetime.fromtimestamp(model.creation_timestamp / 1000, UTC)
        if model.experiment_id in own and model.model_id not in wanted and made < now - SETTLED:
            size = sum(_sizes(_artifacts(model)))
            reason = f"a model that was logged on {made:%Y-%m-%d} and never became a version"
            yield Orphan(model.artifact_location, size, reason, model.model_id)
    if not tracking.is_own(workspace):
        return  # what else lies in a store of several is for its keeper to see
    # Deleted runs count: who deleted them may restore them.
    runs = {r.info.run_id for r in _pages(client.search_runs, experiment_ids=experiments, run_view_type=_EVERY)}
    known = {"models"} | runs | set(experiments)  # under its number a server puts an experiment's files
    folders = [p for p in _folders(workspace.model_artifacts) if p.name not in known]
    folders += [p for p in _folders(workspace.model_artifacts / "models") if p.name not in {m.model_id for m in models}]
    for folder in folders:
        touched = datetime.fromtimestamp(max(p.lstat().st_mtime for p in (folder, *folder.rglob("*"))), UTC)
        if touched < now - SETTLED:
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
            yield Orphan(str(folder), size, f"of {touched:%Y-%m-%d}; no run or model leads there")


_EVERY = 3
"""MLflow's ViewType.ALL, whose import would be that of MLflow."""


def _folders(place: Path) -> Sequence[Path]:
    return sorted(p for p in place.iterdir() if p.is_dir() and not p.is_symlink()) if place.is_dir() else []


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return
