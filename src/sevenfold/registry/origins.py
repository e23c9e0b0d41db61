"""Where a registered version comes from: its run, the files kept with it, and the version that it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sevenfold.registry import tracking, versions
from sevenfold.registry.versions import Version
from sevenfold.workspace import Workspace

PROVENANCE = "provenance"
"""The folder, among a run's artifacts, of what its result rests on."""


@dataclass(frozen=True)
class Origin:
    """The run behind a version.

    published: when the version was made, in UTC.
    params: as logged, flattened with dots.
    dataset: the name and the first 32 digits of the digest of the data set logged with it, or None.
    """

    run_id: str
    run_name: str
    experiment: str
    published: datetime
    params: Mapping[str, str]
    dataset: tuple[str, str] | None


def of(workspace: Workspace, version: Version) -> Origin:
    """Return where a version comes from.

    Raises:
        MlflowException: its run is gone, or the store cannot be reached.
    """
    client = tracking.client(workspace)
    run = client.get_run(version.run_id)
    made = client.get_model_version(version.name, str(version.number))
    data = [found.dataset for found in run.inputs.dataset_inputs] if run.inputs else []
    return Origin(
        run_id=version.run_id,
        run_name=run.info.run_name or version.run_id,
        experiment=client.get_experiment(run.info.experiment_id).name,
        published=datetime.fromtimestamp(made.creation_timestamp / 1000, UTC),
        params=dict(run.data.params),
        dataset=(data[0].name, data[0].digest) if data else None,
    )


def kept(workspace: Workspace, version: Version, name: str) -> Path | None:
    """Return a file of the version's provenance on this machine, or None where none was kept."""
    return versions.artifact(workspace, version, f"{PROVENANCE}/{name}")


def chain(workspace: Workspace, version: Version) -> list[Version]:
    """Return the version, the one whose threshold was moved to make it, and so on back to the one that was trained."""
    there = {found.label: found for found in versions.every(workspace, version.name)}
    found = [version]
    while (before := there.get(found[-1].tags.get("moved_from", ""))) is not None and before not in found:
        found.append(before)
    return found
