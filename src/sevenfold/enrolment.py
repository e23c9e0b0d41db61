"""Take a user's own data set in: copy it under DVC, draft its suite, and write its entries into params.yaml.

Everything is tried in memory before the first file is written, and what was written is taken back if a later step fails.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sevenfold import files, formats, params, preparation, profiling, stages
from sevenfold.datasets import base
from sevenfold.datasets.base import DataError
from sevenfold.workspace import Workspace

SPLIT = {"validation": 0.2, "test": 0.2, "seed": 0}


@dataclass(frozen=True)
class Enrolled:
    """What was made for a data set: its files, the names of its first candidates, and what a reader should know."""

    raw: Path
    suite: Path
    candidates: tuple[str, ...]
    notes: tuple[str, ...]


def add(
    workspace: Workspace,
    name: str,
    path: Path,
    *,
    label: str | None,
    normal: Sequence[str],
    identifier: str | None,
    group: str | None,
    drop: Sequence[str],
    value_range: tuple[float, float] | None,
    track: Any,
) -> Enrolled:
    """Add a data set to the workspace.

    Args:
        path: a file or folder of any format that `formats.read` knows; it is copied to data/raw/ unless it lies there.
        label, normal, identifier, group, drop, value_range: as `preparation.prepare` takes them.
        track: puts a path under DVC.

    Raises:
        DataError: the data cannot become a data set as they are; nothing was written.
        ValueError: the name is taken, or no name that params.yaml allows.
    """
    settings = params.load(workspace.params)
    if name in settings.datasets:
        raise ValueError(f"data set {name!r} is in params.yaml already; choose another name, or edit its entry")
    rows = formats.read(path)
    entry, notes = _entry(rows, label, normal, identifier, group, drop, value_range)
    prepared = _try(name, rows, entry)
    if entry.get("duplicates") == "drop":
        notes.append("equal rows are kept once (`duplicates: drop`)")
    suite = draft_suite(name, rows, entry, dict(SPLIT))

    inside = path.resolve().is_relative_to((workspace.root / "data" / "raw").resolve())
    raw = path.resolve() if inside else workspace.raw(name + "".join(path.suffixes if path.is_file() else []))
    if raw.exists() and not inside:
        raise ValueError(f"{raw} exists already; remove it, or choose another name")
    entry = {"path": raw.relative_to(workspace.root).as_posix(), **entry, "split": dict(SPLIT)}
    more = _contests(name, prepared, bool(normal))
    text = params.add_dataset(workspace.params, name, entry, more)

    written: list[Path] = []
    try:
        if not inside:
            written.append(raw)
            _copy(path, raw)
        pointer = track(workspace, raw)
        written += [] if inside else [pointer]
        if not workspace.suite(name).exists():
            written.append(workspace.suite(name))
            files.write_json(workspace.suite(name), suite)
        else:
            notes.append(f"{workspace.suite(name).relative_to(workspace.root)} was there and stays as it is")
        files.write_text(workspace.params, text)
    except BaseException:
        for made in written:
            shutil.rmtree(made, ignore_errors=True) if made.is_dir() else made.unlink(missing_ok=True)
        raise
    return Enrolled(raw, workspace.suite(name), tuple(more["candidates"]), tuple(notes))


def draft_suite(name: str, rows: formats.Rows, entry: dict[str, Any], split: dict[str, Any]) -> dict[str, Any]:
    """Return a suite drafted from the training rows alone; `entry` and `split` are as in params.yaml."""
    label, group = entry.get("label"), entry.get("group")
    train = preparation.training_rows(rows, label=label, group=group, **split)
    aside = {entry.get("id"), group, *entry.get("drop", [])} - {None}
    return profiling.draft(
        stages.to_validate(train),
        name=name,
        categorical=[label] if label else [],
        ignored=sorted(aside),
        pixels=(_pixel_range(rows, entry) if rows.images is not None else None),
    )


def _pixel_range(rows: formats.Rows, entry: dict[str, Any]) -> tuple[float, float]:
    """Return the lowest and highest value that a pixel may have."""
    given = entry.get("range")
    schema = base.ImageSchema.learn(rows, value_range=None if given is None else (given[0], given[1]))
    return schema.low, schema.high


def _copy(path: Path, target: Path) -> None:
    with files.whole(target) as draft:
        if path.is_dir():
            shutil.copytree(path, draft)
        else:
            shutil.copyfile(path, draft)


def _entry(
    rows: formats.Rows,
    label: str | None,
    normal: Sequence[str],
    identifier: str | None,
    group: str | None,
    drop: Sequence[str],
    value_range: tuple[float, float] | None,
) -> tuple[dict[str, Any], list[str]]:
    """Return the entry for params.yaml, with columns left out that no model can use, and a note for each."""
    dropped, notes = list(drop), []
    if rows.images is None:
        for column in rows.frame.columns.difference([label, identifier, group, *drop], sort=False):
            if reason := _useless(rows.frame[column]):
                dropped.append(str(column))
                notes.append(f"column {column!r} is left out (`drop`): {reason}")
    elif value_range is None and rows.images.dtype.kind == "f":
        value_range = (float(np.nanmin(rows.images)), float(np.nanmax(rows.images)))
        notes.append(
            f"`range` is what the images hold, {value_range[0]:g} to {value_range[1]:g}; mend it if it should be wider"
        )
    optional = {
        "label": label,
        "normal": list(normal),
        "id": identifier,
        "group": group,
        "drop": dropped,
        "range": list(value_range) if value_range else None,
    }
    return {key: value for key, value in optional.items() if value}, notes


def _useless(values: pd.Series) -> str | None:
    present = values.dropna()
    if present.nunique() < 2:
        return "it has no two different values"
    if pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_timedelta64_dtype(values):
        return f"its values are of type {values.dtype}; convert them to numbers to use them"
    if base.is_text(values) and present.nunique() > max(50, 0.5 * len(present)):
        return f"its {present.nunique()} different texts in {len(present)} rows look like an identifier or free text"
    return None


def _try(name: str, rows: formats.Rows, entry: dict[str, Any]) -> base.Dataset:
    """Prepare the data set in memory; sets `duplicates: drop` in the entry where that is all that is wrong."""
    arguments: dict[str, Any] = {
        "label": entry.get("label"),
        "normal": entry.get("normal"),
        "identifier": entry.get("id"),
        "group": entry.get("group"),
        "drop": entry.get("drop", []),
        "categorical": [],
        "value_range": entry.get("range"),
        **SPLIT,
    }
    try:
        return preparation.prepare(name, rows, duplicates="error", **arguments)
    except DataError as error:
        if not all("split are also in" in problem for problem in error.problems):
            raise
    prepared = preparation.prepare(name, rows, duplicates="drop", **arguments)
    entry["duplicates"] = "drop"
    return prepared


def _contests(name: str, dataset: base.Dataset, has_normal: bool) -> dict[str, dict[str, Any]]:
    """Return first applications and candidates: small ones, to be edited."""
    size = int(np.prod(dataset.schema.shape))
    code = max(1, min(16, size // 4, len(dataset.train.only_normal()) // 4))
    hidden = [max(16, min(256, 2 * size))]
    applications: dict[str, Any] = {"reduction": {"code": code, "neighbours": 12}}
    candidates: dict[str, Any] = {}

    def candidate(variant: str, application: str, options: dict[str, Any]) -> dict[str, Any]:
        rows = {"rows": "normal"} if application == "anomaly" else {}
        return {"dataset": name, "applications": [application], **rows, "variant": variant, "options": options}

    if has_normal:
        applications["anomaly"] = {"false_positive_rate": 0.05, "neighbours": 5, "reasons": 3}
    for application in applications:
        candidates[f"{name}-{application}-pca"] = candidate("pca", application, {"code": code})
        deep = {"code": code, "hidden": hidden, "activation": "silu"}
        candidates[f"{name}-{application}-deep"] = candidate("deep", application, deep)
    return {"applications": {name: applications}, "candidates": candidates}
