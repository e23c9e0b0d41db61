"""Take a user's own data set in: copy it under DVC, draft its suite, and write its entries into params.yaml.

Everything is tried in memory before the first file is written, and what was written is taken back if a later step fails.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sevenfold import files, formats, params, preparation, profiling, stages
from sevenfold.datasets import base
from sevenfold.datasets.base import DataError
from sevenfold.workspace import Workspace

SPLIT: dict[str, Any] = {"validation": 0.2, "test": 0.2, "seed": 0}


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
    part: str | None,
    drop: Sequence[str],
    categorical: Sequence[str],
    value_range: tuple[float, float] | None,
    separator: str | None,
    gaps: Sequence[str],
    labels: Path | None,
    only: Sequence[str] = (),
    track: Callable[[Workspace, Path], Path],
) -> Enrolled:
    """Add a data set to the workspace.

    Args:
        path: a file or folder of any format that `formats.read` knows; it is copied to data/raw/ unless it lies there.
        label, normal, identifier, group, part, drop, categorical, value_range: as `preparation.prepare` takes them.
        separator, gaps: as `formats.read` takes them.
        labels: a second file with one label per row. Both become one npz file, so that neither changes without the
            other; the labels are its column `label`, which judges unless `label` says otherwise.
        only: the applications that contests are proposed for; by default all that suit the data.
        track: puts a path under DVC and returns its pointer file, which lies beside it as `<path>.dvc`.

    Raises:
        FileNotFoundError, FormatError: there is nothing to read, or it is damaged.
        DataError: the data cannot become a data set as they are.
        ValueError: the name is taken, or no name that params.yaml allows; or no contest of `only` suits the data.
    """
    settings = params.load(workspace.params)
    params.require_name(name)
    if name in settings.datasets:
        raise ValueError(f"data set {name!r} is in params.yaml already; choose another name, or edit its entry")
    reading = {"separator": separator, "gaps": list(gaps)}
    reading = {option: value for option, value in reading.items() if value}
    if labels is not None:
        rows, label = formats.read(path, **reading, labels=labels.resolve()), label or "label"
    else:
        rows = formats.read(path, **reading)
    entry, notes = _entry(rows, label, normal, identifier, group, part, drop, categorical, value_range)
    entry |= reading
    prepared, repeated = _try(name, rows, entry)
    notes += repeated
    suite = draft_suite(name, rows, entry, dict(SPLIT))
    notes += _relax(suite, rows, name)

    root, source = workspace.root.resolve(), path.resolve()
    inside = labels is None and source.is_relative_to(root / "data" / "raw")
    suffix = ".npz" if labels is not None else formats.suffix(path)
    raw = source if inside else root / "data" / "raw" / f"{name}{suffix}"
    if labels is not None:
        notes.append(f"{path.name} and {labels.name} are one file now, {raw.name}, with the labels as column `label`")
    if raw.exists() and not inside:
        raise ValueError(f"{raw} exists already; remove it, or choose another name")
    entry = {"path": raw.relative_to(root).as_posix(), **entry, "split": dict(SPLIT)}
    more = _contests(name, prepared, only)
    text = params.add_dataset(workspace.params, name, entry, more)
    planned, problems = params.examine(workspace.params, text)
    if problems := problems or stages.problems(workspace, planned):
        raise params.ParamsError(workspace.params, problems)

    made = [raw.with_name(f"{raw.name}.dvc"), raw.parent / ".gitignore", workspace.suite(name)]
    with _undone_on_error(*made, *([] if inside else [raw])):
        if labels is not None:
            formats.write_rows(raw, rows)
        elif not inside:
            _copy(path, raw)
        track(workspace, raw)
        if workspace.suite(name).exists():
            notes.append(f"{workspace.suite(name).relative_to(workspace.root)} was there and stays as it is")
        else:
            files.write_json(workspace.suite(name), suite)
        files.write_text(workspace.params, text)
    return Enrolled(workspace.root / entry["path"], workspace.suite(name), tuple(more["candidates"]), tuple(notes))


@contextmanager
def _undone_on_error(*paths: Path) -> Iterator[None]:
    """If the block fails, remove these files and folders, or put back the text that they held before."""
    before = {path: path.read_bytes() for path in paths if path.exists()}
    try:
        yield
    except BaseException:
        for path in paths:
            if path in before:
                path.write_bytes(before[path])
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        raise


def _relax(suite: dict[str, Any], rows: formats.Rows, name: str) -> list[str]:
    """Make warnings of what the draft calls critical and the data do not meet as they are; return a note for each.

    A draft knows the training rows alone, and a rare gap or category may be in none of them.
    """
    from sevenfold import validation

    verdict = validation.check(stages.to_validate(rows), suite, dataset=name)
    notes = []
    # What holds for every data set comes before the suite's own expectations.
    for expectation, result in zip(
        suite["expectations"], verdict.expectations[-len(suite["expectations"]) :], strict=True
    ):
        if result.severity == "critical" and not result.success:
            expectation["severity"] = "warning"
            notes.append(f"{result}; training rows know nothing of it, so the draft only warns")
    return notes


def draft_suite(name: str, rows: formats.Rows, entry: dict[str, Any], split: dict[str, Any]) -> dict[str, Any]:
    """Return a suite drafted from the training rows alone; `entry` and `split` are as in params.yaml."""
    label, identifier, group, part = (entry.get(role) for role in ("label", "id", "group", "part"))
    drop, duplicates = entry.get("drop", []), entry.get("duplicates", "error")
    train = preparation.training_rows(
        rows, label=label, identifier=identifier, group=group, part=part, drop=drop, duplicates=duplicates, **split
    )
    frame = stages.to_validate(train)
    aside = {identifier, group, part, *drop}
    if train.images is not None:
        # Beside the facts about each image nothing but the label matters.
        aside = {*frame.columns} - {*profiling.describe(train.images[:1], None).columns}
    return profiling.draft(
        frame,
        name=name,
        categorical=[*([label] if label else []), *entry.get("categorical", [])],
        ignored=sorted(aside - {None, label}),
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
    part: str | None,
    drop: Sequence[str],
    categorical: Sequence[str],
    value_range: tuple[float, float] | None,
) -> tuple[dict[str, Any], list[str]]:
    """Return the entry for params.yaml, with columns left out that no model can use, and a note for each."""
    dropped, notes = list(drop), []
    if rows.images is None:
        for column in rows.frame.columns.difference([label, identifier, group, part, *drop, *categorical], sort=False):
            values = rows.frame[column]
            words = base.words_among_numbers(values) if base.kind_of(values) == "categorical" else {}
            beside = f"{base.counted(words)} among {len(values.dropna()) - sum(words.values())} numbers"
            remedy = "; say --gap for a word that means a gap, or --categorical if the column holds no numbers"
            reason = _useless(values)
            if words and (reason or any(word.strip().lower() in base.GAP_WORDS for word in words)):
                dropped.append(str(column))
                notes.append(f"column {column!r} is left out (`drop`): it holds {beside}{remedy}")
            elif reason:
                dropped.append(str(column))
                notes.append(f"column {column!r} is left out (`drop`): {reason}")
            elif words:
                notes.append(f"column {column!r} is taken as text: it holds {beside}{remedy}")
    elif value_range is None and rows.images.dtype.name not in base.TYPE_RANGES:
        value_range = (float(np.nanmin(rows.images)), float(np.nanmax(rows.images)))
        notes.append(
            f"`range` is what the images hold, {value_range[0]:g} to {value_range[1]:g}; mend it if it should be wider"
        )
    optional = {
        "label": label,
        "normal": list(normal),
        "id": identifier,
        "group": group,
        "part": part,
        "drop": dropped,
        "categorical": list(categorical),
        "range": list(value_range) if value_range else None,
    }
    return {key: value for key, value in optional.items() if value}, notes


def _useless(values: pd.Series) -> str | None:
    present = values.dropna()
    kind = base.kind_of(values)
    if kind is None and len(present):
        return f"its values are of type {values.dtype}; convert them to numbers or text to use them"
    different = present.nunique()
    if different < 2:
        return "it has no two different values"
    if kind == "numeric" and len(present) == len(values) > 2 and (np.diff(values.to_numpy(np.float64)) == 1).all():
        return "it counts the rows"
    if kind == "categorical" and different > max(50, 0.5 * len(present)):
        return f"its {different} different texts in {len(present)} rows look like an identifier or free text"
    return None


def _try(name: str, rows: formats.Rows, entry: dict[str, Any]) -> tuple[base.Dataset, list[str]]:
    """Prepare the data set in memory; where equal rows are all that is wrong, set `duplicates: drop`, with a note."""
    prepare = partial(
        preparation.prepare,
        name,
        rows,
        label=entry.get("label"),
        normal=entry.get("normal"),
        identifier=entry.get("id"),
        group=entry.get("group"),
        part=entry.get("part"),
        drop=entry.get("drop", []),
        categorical=entry.get("categorical", []),
        value_range=entry.get("range"),
        **SPLIT,
    )
    try:
        return prepare(duplicates="error"), []
    except DataError as error:
        try:
            prepared = prepare(duplicates="drop")
        except DataError:
            raise error from None
        crossing = [problem.partition(";")[0] for problem in error.problems]
    entry["duplicates"] = "drop"
    left_out = len(rows) - sum(len(getattr(prepared, part)) for part in base.SPLITS)
    note = f"{left_out} of {len(rows)} rows equal an earlier one and are left out (`duplicates: drop`); otherwise "
    return prepared, [note + ", and ".join(crossing)]


def _contests(name: str, dataset: base.Dataset, only: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return first contests, each that suits the data, and first candidates for them: small ones, to be edited."""
    applications, candidates = _proposed(name, dataset, fill="imputation" in only)
    if odd := [asked for asked in only if asked not in applications]:
        raise ValueError(
            f"{', '.join(odd)} cannot be judged on {name}; expected some of {', '.join(applications)}; leave it out"
        )
    wanted = {n: options for n, options in applications.items() if not only or n in only}
    for candidate in candidates.values():
        candidate["applications"] = [judged for judged in candidate["applications"] if judged in wanted]
    candidates = {n: candidate for n, candidate in candidates.items() if candidate["applications"]}
    return {"applications": {name: wanted}, "candidates": candidates}


def _proposed(name: str, dataset: base.Dataset, *, fill: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return applications with options, and candidates. fill: whether filling gaps is wanted where there are none, too."""
    train = dataset.train
    size = int(np.prod(dataset.schema.shape))
    code = max(1, min(16, size // 4, len(train.only_normal()) // 4))
    images, gaps = isinstance(dataset.schema, base.ImageSchema), train.observed is not None or fill
    gaps = gaps and not images
    body = {"hidden": [max(16, min(256, 2 * size))], "activation": "silu"}
    cells = {"numbers": "standard", "categories": "one-hot"}

    applications: dict[str, Any] = {"reduction": {"code": code, "neighbours": 12}}
    if train.y is not None:
        applications["features"] = {"code": code}
    applications["search"] = {"neighbours": 10, "recall": 0.99}
    shared = [*applications]
    policy = {"policy": "false-positive-rate", "value": 0.05, "share": None}
    applications["anomaly"] = {**policy, "neighbours": 5, "references": 16384, "reasons": 3}
    if gaps:
        applications["imputation"] = {
            "share": 0.2, "passes": 10, "aids": ["linear", "neighbours"], "draws": None, "flags": False
        }  # fmt: skip
    if images:
        applications["denoising"] = {"levels": [0.06, 0.1, 0.2], "known": False}
        applications["compression"] = {"steps": [5.6, 4.0, 2.8, 2.0, 1.4, 1.0, 0.7], "decibels": 30.0, "chunk": 1024}

    candidates: dict[str, Any] = {}

    def candidate(suffix: str, judged: list[str], variant: str, options: dict[str, Any], **more: Any) -> None:
        entry = {"dataset": name, "applications": judged, "variant": variant, "options": options}
        candidates[f"{name}-{suffix}"] = entry | more

    deep = {"code": code, **body, "blocks": 0, "tied": False, "augment": [], **cells}
    candidate("pca", shared, "pca", {"code": code})
    candidate("deep", [*shared, *(["compression"] if images else [])], "deep", deep)
    # An anomaly among the rows that say what is normal is worth no trust; where nobody knows them, the worst rows go.
    rows = {"rows": "normal"} if train.normal is not None else {"rows": "trimmed", "trim": 0.05}
    noise = {"noise": "gaussian", "level": 0.3, **cells, "numbers": "quantile"}
    candidate("anomaly-pca", ["anomaly"], "pca", {"code": code}, **rows)
    candidate(
        "anomaly-denoising", ["anomaly"], "denoising", {"code": code if images else size, **body, **noise}, **rows
    )
    if gaps:
        hiding = {"blocks": 0, "bins": 8, "share": 0.2, "visible": 0.1}
        candidate("imputation-masked", ["imputation"], "masked", {"code": code, **body, **hiding, **cells})
    if images:
        training = {"epochs": 40, "learning_rate": 0.005}
        restorer = {"channels": [32, 64], "blocks": 1, "activation": "relu", "shuffle": 2, "levels": [0.0, 0.22]}
        candidate(
            "denoising-residual",
            ["denoising"],
            "residual",
            {**restorer, "doubt": 0.1, "augment": []},
            training=training,
        )
    return applications, candidates
