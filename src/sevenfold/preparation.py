"""From raw rows to a data set: leave out what is not a feature, split, learn the schema, transform.

Statistics are learned from the training rows alone. Just what there may be, categories and gaps, is taken from all rows.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from sevenfold import formats
from sevenfold.datasets import base
from sevenfold.datasets.base import DataError, Dataset, ImageSchema, Split, TableSchema


def prepare(
    name: str,
    rows: formats.Rows,
    *,
    label: str | None,
    normal: Sequence[str] | None,
    identifier: str | None,
    group: str | None,
    drop: Sequence[str],
    categorical: Sequence[str],
    value_range: tuple[float, float] | None,
    duplicates: str,
    validation: float,
    test: float,
    seed: int,
    part: str | None = None,
) -> Dataset:
    """Split raw rows and turn them into tensors.

    Args:
        label: column that judges; rows are stratified by it.
        normal: labels of the normal class; every other label is an anomaly.
        identifier: column that identifies a row; its position does where there is none.
        group: column whose values never spread over two splits.
        drop: columns that are no features.
        categorical: numeric columns to be taken as categories.
        value_range: lowest and highest value of images whose type does not say it.
        duplicates: "error" refuses rows that are in two splits, "drop" keeps the first of equal rows.
        validation, test: share of the rows, 0 to 1.
        seed: of the split.
        part: column that says which split each row is in; one that no row names is drawn from those that say "train".

    Raises:
        DataError: one message with every problem found.
    """
    problems = _column_problems(rows.frame, label, normal, identifier, group, part, drop, categorical)
    if problems:
        raise DataError(name, problems)
    notes = []
    features = _features(rows, (label, identifier, group, part, *drop))
    if duplicates == "drop":
        kept = _first_of_equals(features)
        if len(kept) < len(rows):
            notes.append(f"{len(rows) - len(kept)} repeated rows left out")
        rows, features = rows.take(kept), features.take(kept)

    y = None if label is None else base.as_text(rows.frame[label]).to_numpy(dtype=object)
    places = _places(rows, label, group, part, validation=validation, test=test, seed=seed)
    more = "rows" if group is None else f"groups in {group!r}"
    if part is not None:
        more += f", or let some say so in {part!r}"
    problems = [
        f"the {name} split is empty; expected at least one row; give it a larger share, or bring more {more}"
        for name, place in places.items()
        if not len(place)
    ]
    if problems:
        raise DataError(name, problems)
    problems = _crossing(features, places)
    schema, more_problems = _learn(features.take(places["train"]), features, tuple(categorical), value_range)
    problems += more_problems
    if schema is not None:
        # Statistics are of the training rows only: values of the other splits that are no numbers come to light here.
        problems += schema.problems(features)
    if problems or schema is None:
        raise DataError(name, problems)

    ids = rows.frame[identifier].to_numpy() if identifier else np.arange(len(rows))
    groups = None if group is None else base.as_text(rows.frame[group]).to_numpy(dtype=object)
    is_normal = None if normal is None or y is None else np.isin(y.astype(str), list(normal))
    prints = pd.util.hash_array(_fingerprints(features))
    splits = {}
    for split_name, place in places.items():
        x, observed = schema.transform(features.take(place))
        splits[split_name] = Split(
            x,
            observed,
            None if y is None else y[place],
            None if is_normal is None else is_normal[place],
            ids[place],
            None if groups is None else groups[place],
            prints[place],
        )
    return Dataset(name, schema, notes=tuple(notes), **splits)


def _learn(
    train: formats.Rows,
    domain: formats.Rows,
    categorical: tuple[str, ...],
    value_range: tuple[float, float] | None,
) -> tuple[base.Schema | None, list[str]]:
    """Return the schema, as far as there is one, and what is wrong."""
    if train.images is None:
        return TableSchema.examine(train, categorical=categorical, domain=domain)
    try:
        return ImageSchema.learn(train, value_range=value_range), []
    except DataError as error:
        return None, list(error.problems)


def _features(rows: formats.Rows, aside: Sequence[str | None]) -> formats.Rows:
    """The rows without what is no feature: for images, everything beside them."""
    columns = [] if rows.images is not None else [c for c in rows.frame if c not in aside]
    return formats.Rows(rows.frame[columns], rows.images)


def _first_of_equals(features: formats.Rows) -> np.ndarray:
    return np.flatnonzero(~pd.Series(_fingerprints(features)).duplicated().to_numpy())


def training_rows(
    rows: formats.Rows,
    *,
    label: str | None,
    identifier: str | None,
    group: str | None,
    drop: Sequence[str],
    duplicates: str,
    validation: float,
    test: float,
    seed: int,
    part: str | None = None,
) -> formats.Rows:
    """Return the raw rows that `prepare` trains on, which is all that a profile of the data may look at."""
    if duplicates == "drop":
        rows = rows.take(_first_of_equals(_features(rows, (label, identifier, group, part, *drop))))
    return rows.take(_places(rows, label, group, part, validation=validation, test=test, seed=seed)["train"])


def _places(
    rows: formats.Rows,
    label: str | None,
    group: str | None,
    part: str | None,
    *,
    validation: float,
    test: float,
    seed: int,
) -> dict[str, np.ndarray]:
    y = None if label is None else base.as_text(rows.frame[label]).to_numpy(dtype=object)
    groups = None if group is None else base.as_text(rows.frame[group]).to_numpy(dtype=object)
    if part is None:
        return split(len(rows), y, groups, validation=validation, test=test, seed=seed)
    given = base.as_text(rows.frame[part]).to_numpy(dtype=object)
    places = {name: np.flatnonzero(given == name) for name in base.SPLITS}
    open_, shares = places["train"], {"validation": validation, "test": test}
    drawn = split(
        len(open_),
        None if y is None else y[open_],
        None if groups is None else groups[open_],
        seed=seed,
        **{name: 0.0 if len(places[name]) else share for name, share in shares.items()},
    )
    return {name: open_[drawn[name]] if len(drawn[name]) or name == "train" else places[name] for name in base.SPLITS}


def split(
    count: int,
    y: np.ndarray | None,
    groups: np.ndarray | None,
    *,
    validation: float,
    test: float,
    seed: int,
) -> dict[str, np.ndarray]:
    """Return the sorted row positions of "train", "validation" and "test".

    Rows are laid out by label, in random order within each. The test split takes its share in even steps along that
    line (systematic sampling), then the validation split from what is left: each label is in the test split in
    proportion to within one row, and in the others to within two. With groups, whole groups are laid out in random
    order instead, and labels fall as they may.
    """
    generator = np.random.default_rng(seed)
    if groups is not None:
        names, member = np.unique(groups.astype(str), return_inverse=True)
        order = generator.permutation(len(names))
        part = np.empty(len(names), int)
        part[order] = _deal(len(names), validation, test, generator)
        part = part[member]
    else:
        keys = generator.random(count)
        order = np.argsort(keys) if y is None else np.lexsort((keys, y.astype(str)))
        part = np.empty(count, int)
        part[order] = _deal(count, validation, test, generator)
    return {name: np.flatnonzero(part == i) for i, name in enumerate(base.SPLITS)}


def _deal(count: int, validation: float, test: float, generator: np.random.Generator) -> np.ndarray:
    """Return (count,) of 0 for train, 1 for validation, 2 for test, each share spread evenly."""
    part = np.zeros(count, int)
    for value, share in ((2, test), (1, validation / (1 - test))):
        left = np.flatnonzero(part == 0)
        steps = np.floor(np.arange(len(left) + 1) * share + generator.random())
        part[left[np.diff(steps) > 0]] = value
    return part


def _fingerprints(features: formats.Rows) -> np.ndarray:
    """Return one text per row that is equal for equal rows."""
    if features.images is not None:
        flat = np.ascontiguousarray(features.images.reshape(len(features), -1))
        return np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in flat])
    # What is no number, text or truth value is refused later; pandas cannot hash lists and the like.
    frame = features.frame.apply(lambda values: values if base.kind_of(values) else values.map(repr))
    # 64 bits collide among billions of rows; two different keys make 128.
    halves = [
        pd.util.hash_pandas_object(frame, index=False, hash_key=key) for key in ("sevenfold-rows-1", "sevenfold-rows-2")
    ]
    return (halves[0].astype(str) + halves[1].astype(str)).to_numpy()


def _crossing(features: formats.Rows, places: dict[str, np.ndarray]) -> list[str]:
    """Count the rows whose values are also in an earlier split."""
    if features.images is None and not len(features.frame.columns):
        return []  # without features all rows are equal, which says nothing
    prints = _fingerprints(features)
    seen: dict[str, set[str]] = {part: set(prints[place]) for part, place in places.items()}
    found = []
    for i, one in enumerate(base.SPLITS):
        for other in base.SPLITS[i + 1 :]:
            shared = [p for p in places[other] if prints[p] in seen[one]]
            if shared:
                found.append(
                    f"{len(shared)} rows of the {other} split are also in the {one} split (first: row {shared[0]}); expected "
                    "none, since they would be judged on what they learned; set `duplicates: drop`, or `group` by what repeats"
                )
    return found


def _column_problems(
    frame: pd.DataFrame,
    label: str | None,
    normal: Sequence[str] | None,
    identifier: str | None,
    group: str | None,
    part: str | None,
    drop: Sequence[str],
    categorical: Sequence[str],
) -> list[str]:
    found = []
    roles = {"label": [label], "id": [identifier], "group": [group], "part": [part]}
    roles |= {"drop": [*drop], "categorical": [*categorical]}
    known = [str(c) for c in frame.columns]
    for role, names in roles.items():
        for name in names:
            if name is not None and name not in frame.columns:
                found.append(
                    f"`{role}` names column {name!r}, which is not there; there are: {', '.join(known) or 'none'}"
                )
    if group in frame.columns and (gaps := frame[group].isna()).any():
        found.append(
            f"group {group!r} has {gaps.sum()} gaps (first: row {gaps.idxmax()}); expected a group in each row; fill them"
        )
    if part in frame.columns:
        found += _part_problems(frame[part], frame[group] if group in frame.columns else None)
    if label in frame.columns:
        y = base.as_text(frame[label])
        if y.isna().any():
            found.append(
                f"label {label!r} has {y.isna().sum()} gaps (first: row {y.index[y.isna()][0]}); expected a label in each row"
            )
        classes = sorted(y.dropna().unique())
        if len(classes) < 2:
            found.append(
                f"label {label!r} has one class only ({', '.join(classes) or 'none'}); expected two or more; leave `label` out"
            )
        elif normal is not None:
            if unknown := [n for n in normal if n not in classes]:
                found.append(
                    f"`normal` names {', '.join(map(repr, unknown))}; the labels are {', '.join(map(repr, classes[:20]))}; correct `normal`"
                )
            elif set(classes) <= set(normal):
                found.append(
                    "`normal` names every class; expected at least one class of anomalies; leave that one out of `normal`"
                )
    elif normal is not None and label is None:
        found.append("`normal` needs a `label` column; name it, or leave `normal` out")
    if identifier in frame.columns:
        again = frame[identifier].duplicated()
        if again.any():
            found.append(
                f"id {identifier!r} repeats in {again.sum()} rows (first: row {again.idxmax()}); expected one per row"
            )
    return found


def _part_problems(part: pd.Series, groups: pd.Series | None) -> list[str]:
    """Return what keeps a column from saying which split each row is in."""
    found = []
    given = base.as_text(part)
    strange = given[~given.isin(base.SPLITS)]
    if len(strange):
        names = formats.shown(sorted(strange.fillna("(a gap)").unique()))
        found.append(
            f"part {part.name!r} has {len(strange)} rows that say {names} (first: row {strange.index[0]}); expected "
            f"{', '.join(base.SPLITS)}; mend them"
        )
    if groups is not None:
        spread = given.groupby(base.as_text(groups)).nunique()
        if (spread > 1).any():
            found.append(
                f"{(spread > 1).sum()} groups of {groups.name!r} are in more than one part (first: {spread.idxmax()!r}); "
                "expected each in one; mend the column, or leave `group` out"
            )
    return found
