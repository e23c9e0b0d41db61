"""Build a registered version again from its own commit, data and settings, and say what is identical and what is not."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevenfold import files, params, pipeline, provenance, worktrees
from sevenfold.registry import origins, versions
from sevenfold.registry.versions import Version
from sevenfold.workspace import Workspace

PARTS = ("raw data", "prepared data", "weights", "bundle")
"""What is compared, each made from those before it."""

_MOST_PACKAGES = 8


@dataclass(frozen=True)
class Comparison:
    """A digest as it was recorded and as it was built again; None where nothing was recorded."""

    part: str
    recorded: str | None
    rebuilt: str

    @property
    def identical(self) -> bool:
        return self.recorded == self.rebuilt


@dataclass(frozen=True)
class Report:
    """What came of building a version again.

    causes: what may explain a difference; empty where there is none.
    folder: of the checkout, where it was kept.
    """

    label: str
    commit: str
    compared: tuple[Comparison, ...]
    causes: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    folder: Path | None

    @property
    def identical(self) -> bool:
        return all(one.identical for one in self.compared if one.recorded is not None)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.label,
            "commit": self.commit,
            "identical": self.identical,
            "compared": {one.part: {"recorded": one.recorded, "rebuilt": one.rebuilt} for one in self.compared},
            "causes": list(self.causes),
            "notes": list(self.notes),
            "seconds": round(self.seconds, 1),
            "folder": None if self.folder is None else str(self.folder),
        }


def reproduce(workspace: Workspace, model: str, *, keep: bool, say: Callable[[str], None]) -> Report:
    """Build a registered version again, in a checkout of its own, from nothing that was built before.

    The commit's own code runs, with the recorded uncommitted changes, params.yaml and data; neither outputs in DVC's cache
    nor its run cache are taken. The workspace stays as it is.

    Args:
        model: `NAME` (its champion), `NAME@ALIAS` or `NAME/VERSION`.
        keep: leave the checkout.
        say: called with a line of progress.

    Raises:
        LookupError: there is no such version, or its commit, settings or data are not to be had any more.
        pipeline.StageError: a stage fails.
    """
    start = time.perf_counter()
    version = versions.resolve(workspace, model).version
    if version is None:
        raise LookupError(f"{model} is a folder; expected a registered model, which knows its commit; name one")
    trained = origins.chain(workspace, version)[-1]
    commit = trained.tags.get("git_commit", "none").partition("-")[0]
    _require_sources(workspace, trained, commit)
    notes = []
    if trained.number != version.number:
        notes.append(
            f"{version.label} is {trained.label} with its threshold moved; weights are those of {version.label}"
        )
    dirty, patch = trained.tags.get("git_dirty") == "true", origins.kept(workspace, trained, provenance.PATCH)
    with _room(workspace, keep) as room:
        say(f"checking out {commit[:12]}{' with its uncommitted changes' if patch else ''}")
        place = _checkout(workspace, trained, commit, patch, room)
        _fetch_data(workspace, place, trained.tags["dataset"], say)
        _build(place, trained.tags["candidate"], say)
        rebuilt = _rebuilt(place, trained)
        threads = params.load(place.params).training.threads
    told = origins.kept(workspace, trained, provenance.ENVIRONMENT)
    compared = compare(_recorded(workspace, version, trained), rebuilt)
    recorded = files.read_json(told) if told is not None else None
    lost = "they were not kept" if dirty and patch is None else ""
    unkept = trained.tags.get("git_patch", lost).removeprefix(provenance.PARTLY) if dirty else ""
    return Report(
        label=version.label,
        commit=commit,
        compared=compared,
        causes=causes(compared, recorded, provenance.environment(threads), unkept),
        notes=tuple(notes),
        seconds=time.perf_counter() - start,
        folder=room if keep else None,
    )


def compare(recorded: Mapping[str, str | None], rebuilt: Mapping[str, str]) -> tuple[Comparison, ...]:
    """Return the digests side by side, in the order in which the parts are made."""
    return tuple(Comparison(part, recorded.get(part), rebuilt[part]) for part in PARTS)


def causes(
    compared: Sequence[Comparison], recorded: Mapping[str, Any] | None, now: Mapping[str, Any], unkept: str
) -> tuple[str, ...]:
    """Return what may explain the first difference: code, data, environment, hardware; nothing where there is none.

    Args:
        recorded, now: environments as `provenance.environment` gives them; None where none was recorded.
        unkept: why uncommitted changes of the code, or some of them, were not kept, or "".
    """
    different = [one.part for one in compared if one.recorded is not None and not one.identical]
    if not different:
        return ()
    found = []
    if unkept:
        found.append(f"code: the commit had uncommitted changes, and {unkept}")
    if different[0] == PARTS[0]:
        found.append("data: the raw data are not those that the version was made from")
    if recorded is None:
        found.append("environment: none was recorded with this version")
    else:
        found += _environment_differences(recorded, now)
    if not found:
        found.append(
            f"code: commit, data, packages and hardware are those recorded, but {different[0]} came out otherwise; "
            "the computation is not the same each time, or the record is not of this commit"
        )
    return tuple(found)


def _environment_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    then, here = recorded.get("packages", {}), now["packages"]
    moved = [
        f"{name} {then.get(name, 'absent')}, now {here.get(name, 'absent')}"
        for name in sorted({*then, *here})
        if then.get(name) != here.get(name)
    ]
    if len(moved) > _MOST_PACKAGES:
        moved[_MOST_PACKAGES:] = [f"and {len(moved) - _MOST_PACKAGES} more packages"]
    plain = [(n, recorded.get(n), now[n]) for n in ("python", "system", "threads") if recorded.get(n) != now[n]]
    moved += [f"{name} {before}, now {after}" for name, before, after in plain]
    if recorded.get("torch") != now["torch"]:
        moved.append(f"torch build {recorded.get('torch')}, now {now['torch']}")
    found = [f"environment: {'; '.join(moved)}"] if moved else []
    old, new = recorded.get("hardware", {}), now["hardware"]
    # Memory bounds what fits, and changes no sum.
    other = [f"{n} {old.get(n)}, now {new[n]}" for n in new if n != "memory" and old.get(n) != new[n]]
    return found + ([f"hardware: {'; '.join(other)}"] if other else [])


def _require_sources(workspace: Workspace, trained: Version, commit: str) -> None:
    missing = []
    if commit == "none":
        missing.append("it was made outside git, so there is no commit to check out")
    elif not provenance.has_commit(workspace, commit):
        missing.append(f"its commit {commit} is not in this repository; fetch the branch that has it")
    missing += [
        f"no {n} was kept with it"
        for n in (provenance.PARAMS, provenance.LOCK)
        if not origins.kept(workspace, trained, n)
    ]
    missing += [f"it has no tag {tag}" for tag in ("candidate", "dataset") if tag not in trained.tags]
    if missing:
        raise LookupError(f"{trained.label} cannot be built again: {'; '.join(missing)}")


@contextmanager
def _room(workspace: Workspace, keep: bool) -> Iterator[Path]:
    """Give a folder on the workspace's own disk, which is removed afterwards, whatever happens."""
    workspace.reproductions.mkdir(exist_ok=True, mode=0o700)
    room = Path(tempfile.mkdtemp(dir=workspace.reproductions))
    try:
        yield room
    finally:
        if not keep:
            shutil.rmtree(room, ignore_errors=True)


def _checkout(workspace: Workspace, trained: Version, commit: str, patch: Path | None, room: Path) -> Workspace:
    """Check out the commit with its changes, params.yaml and dvc.lock, and return the workspace in it."""
    place = worktrees.checkout(workspace, commit, room)
    if patch is not None:
        worktrees.apply(patch, room)
    for name in (provenance.PARAMS, provenance.LOCK):
        kept = origins.kept(workspace, trained, name)
        assert kept is not None
        shutil.copyfile(kept, place.root / name)
    return place


def _fetch_data(workspace: Workspace, place: Workspace, dataset: str, say: Callable[[str], None]) -> None:
    """Bring the raw files of a data set that lie under DVC, from the cache, else from the remote."""
    entry = params.load(place.params).datasets[dataset].model_dump(mode="json")
    pointers = [place.root / f"{value}.dvc" for value in entry.values() if isinstance(value, str)]
    for pointer in (p for p in pointers if p.is_file()):
        name = str(pointer.relative_to(place.root))
        say(f"fetching {name.removesuffix('.dvc')}")
        pipeline.bring(place, name)


def _build(place: Workspace, candidate: str, say: Callable[[str], None]) -> None:
    """Run what the candidate's evaluation needs, with the checkout's own code, each stage in any case."""
    graph = {stage.name: stage for stage in pipeline.stages(place)}
    last = f"evaluate@{candidate}"
    if last not in graph:
        raise LookupError(f"dvc.yaml of that commit has no stage {last}; it has: {', '.join(sorted(graph))}")
    wanted, open_ = {last}, [last]
    while open_:
        for name in graph[open_.pop()].needs - wanted:
            wanted.add(name)
            open_.append(name)
    order = [name for name in graph if name in wanted]
    with pipeline.Reproduction(place) as building:
        for number, name in enumerate(order, 1):
            start = time.perf_counter()
            building.run(name, {"PYTHONPATH": worktrees.python_path(place)}, lambda line: None, anew=True)
            say(f"{number}/{len(order)} {name}: {time.perf_counter() - start:.1f} s")


def _recorded(workspace: Workspace, version: Version, trained: Version) -> dict[str, str | None]:
    lock = origins.kept(workspace, trained, provenance.LOCK)
    raw = origins.of(workspace, trained).params.get("dataset.path", "")
    weights = versions.bundle_folder(workspace, version) / "model.safetensors"
    found = (provenance.locked(lock).get(raw) if lock else None, trained.tags.get("data_digest"))
    # Where the version whose threshold was moved is gone, nobody knows the bundle that a stage made.
    bundle = None if "moved_from" in trained.tags else trained.digest
    return dict(zip(PARTS, (*found, files.digest(weights), bundle), strict=True))


def _rebuilt(place: Workspace, trained: Version) -> dict[str, str]:
    dataset, candidate = trained.tags["dataset"], trained.tags["candidate"]
    bundle = place.evaluation(candidate) / trained.tags["application"] / "bundle"
    raw = params.load(place.params).datasets[dataset].path
    found = (
        provenance.locked(place.root / provenance.LOCK).get(raw, ""),
        files.digest(place.prepared(dataset)),
        files.digest(bundle / "model.safetensors"),
        files.digest(bundle),
    )
    return dict(zip(PARTS, found, strict=True))


def text(report: Report) -> str:
    """Return the report for people."""
    lines = []
    for one in report.compared:
        if one.recorded is None:
            what = f"not recorded, now {one.rebuilt[:12]}"
        elif one.identical:
            what = f"identical  {one.rebuilt[:12]}"
        else:
            what = f"DIFFERENT  {one.recorded[:12]}, now {one.rebuilt[:12]}"
        lines.append(f"  {one.part:<14} {what}")
    lines += [f"likely cause: {cause}" for cause in report.causes]
    lines += [f"note: {note}" for note in report.notes]
    if report.folder is not None:
        lines.append(f"the checkout stays in {report.folder}")
    end = "identical" if report.identical else "NOT identical"
    return "\n".join([*lines, f"{report.label}: {end}, built again in {report.seconds:.0f} s"])
