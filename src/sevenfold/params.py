"""params.yaml as typed, frozen values. A misspelled key is an error that names it; all problems come at once."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import ruamel.yaml
import ruamel.yaml.error
from pydantic import Field

from sevenfold import modules

Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]


class ParamsError(ValueError):
    """params.yaml does not say what it should."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        lines = "".join(f"\n  {p}" for p in problems)
        super().__init__(f"{path.name} has {len(problems)} problem{'s' * (len(problems) > 1)}:{lines}")
        self.problems = tuple(problems)


class _Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Fetch(_Frozen):
    """A built-in data set: the source's file name is the key."""

    path: str
    options: Mapping[str, Any] = {}


class Splits(_Frozen):
    validation: Share
    test: Share
    seed: int = Field(ge=0)


class DatasetParams(_Frozen):
    """Where a data set lies and what its columns mean; `Preparation` documents each."""

    path: str
    label: str | None = None
    normal: tuple[str, ...] | None = None
    id: str | None = None
    group: str | None = None
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    duplicates: Literal["error", "drop"] = "error"
    separator: str | None = None
    labels: str | None = None
    split: Splits

    @pydantic.field_validator("normal", mode="before")
    @classmethod
    def _labels_are_text(cls, value: Any) -> Any:
        """YAML reads 0 as a number, and labels are compared as text."""
        if isinstance(value, (str, int)):
            value = [value]
        return None if value is None else tuple(str(v) for v in value)

    @property
    def read_options(self) -> dict[str, str]:
        """What `formats.read` wants to know."""
        return {k: v for k, v in {"separator": self.separator, "labels": self.labels}.items() if v is not None}


class Training(_Frozen):
    epochs: int = Field(ge=1)
    patience: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    threads: int = Field(ge=1)


class Candidate(_Frozen):
    """One model to train: a variant with its options, on one data set, for these applications."""

    dataset: str
    applications: tuple[str, ...] = Field(min_length=1)
    variant: str
    options: Mapping[str, Any]
    training: Mapping[str, Any] = {}
    rows: Literal["all", "normal"] = "all"


class GateRule(_Frozen):
    must_beat_rivals: bool
    floor: float | None = None


class Params(_Frozen):
    seed: int = Field(ge=0)
    fetch: Mapping[Name, Fetch] = {}
    datasets: Mapping[Name, DatasetParams]
    applications: Mapping[Name, Mapping[Name, Mapping[str, Any]]] = {}
    training: Training
    candidates: Mapping[Name, Candidate] = {}
    gate: GateRule
    gates: Mapping[str, Mapping[str, Any]] = {}

    def settings(self, candidate: str) -> Training:
        """Return the training settings of a candidate: its own, over the common ones."""
        return Training(**self.training.model_dump() | dict(self.candidates[candidate].training))

    def rule(self, contest: str) -> GateRule:
        """Return the gate's rule for a contest: its own, over the common one."""
        return GateRule(**self.gate.model_dump() | dict(self.gates.get(contest, {})))

    def of_dataset(self, dataset: str) -> dict[str, Candidate]:
        return {name: c for name, c in self.candidates.items() if c.dataset == dataset}


def _yaml() -> ruamel.yaml.YAML:
    yaml = ruamel.yaml.YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    return yaml


def load(path: Path) -> Params:
    """Read params.yaml and check everything that can be checked without importing torch.

    Raises:
        ParamsError: with every problem found: unknown and missing keys, values of the wrong type or range, names that
            refer to nothing.
    """
    try:
        raw = ruamel.yaml.YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except ruamel.yaml.error.YAMLError as error:
        raise ParamsError(path, [f"not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(raw, dict):
        raise ParamsError(path, [f"got {type(raw).__name__}; expected a mapping with datasets, candidates, ..."])
    try:
        params = Params.model_validate(raw)
    except pydantic.ValidationError as error:
        raise ParamsError(path, [_explain(e) for e in error.errors()]) from None
    if problems := _references(params):
        raise ParamsError(path, problems)
    return params


def _explain(error: Any) -> str:
    """Say in one line what pydantic found, with the path of the key, and a near match for a misspelled one."""
    place = ".".join(str(p) for p in error["loc"] if p != "[key]")
    if error["type"] == "extra_forbidden":
        known = _fields_at(error["loc"][:-1])
        return f"{place}: unknown key{modules.meant(str(error['loc'][-1]), known)}; there are: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{place}: missing"
    if error["type"] == "string_pattern_mismatch":
        return f"{place}: a name is lower-case letters, digits, _ and -, and begins with a letter"
    return f"{place} is {error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that may stand at this place."""
    kinds: dict[str, type[pydantic.BaseModel]] = {
        "fetch": Fetch,
        "datasets": DatasetParams,
        "candidates": Candidate,
        "training": Training,
        "gate": GateRule,
    }
    if not location:
        return sorted(Params.model_fields)
    if location[-1] == "split":
        return sorted(Splits.model_fields)
    kind = kinds.get(str(location[0]))
    return sorted(kind.model_fields) if kind else []


def _references(params: Params) -> list[str]:
    """Return every name that refers to nothing, and every override that is no setting."""
    problems = []
    for key, known in (("fetch", modules.names("datasets")), ("applications", sorted(params.datasets))):
        for name in getattr(params, key):
            if name not in known:
                problems.append(
                    f"{key}.{name}: no such data set{modules.meant(name, known)}; there are: {', '.join(known)}"
                )
    for name, dataset in params.datasets.items():
        if dataset.split.validation + dataset.split.test >= 1:
            problems.append(
                f"datasets.{name}.split: validation and test leave nothing to train on; expected less than 1 in all"
            )
        if dataset.normal is not None and dataset.label is None:
            problems.append(f"datasets.{name}.normal: names labels, but there is no `label` column")
    known_applications, variants = modules.names("applications"), modules.names("models")
    for dataset_name, contests in params.applications.items():
        for application in contests:
            if application not in known_applications:
                problems.append(
                    f"applications.{dataset_name}.{application}: no such application{modules.meant(application, known_applications)}; "
                    f"there are: {', '.join(known_applications)}"
                )
    datasets = sorted(params.datasets)
    for name, candidate in params.candidates.items():
        place, variant = f"candidates.{name}", candidate.variant
        if candidate.dataset not in params.datasets:
            near = modules.meant(candidate.dataset, datasets)
            problems.append(
                f"{place}.dataset: no data set {candidate.dataset!r}{near}; there are: {', '.join(datasets)}"
            )
        if variant not in variants:
            near = modules.meant(variant, variants)
            problems.append(f"{place}.variant: no variant {variant!r}{near}; there are: {', '.join(variants)}")
        offered = sorted(params.applications.get(candidate.dataset, {}))
        for application in candidate.applications:
            if application not in offered:
                problems.append(
                    f"{place}.applications: {application!r} is not judged on {candidate.dataset}{modules.meant(application, offered)}; "
                    f"applications.{candidate.dataset} has: {', '.join(offered) or 'none'}"
                )
        problems += _override_problems(f"{place}.training", params.training, candidate.training)
    contests_known = [f"{d}-{a}" for d, contests in params.applications.items() for a in contests]
    for name, rule in params.gates.items():
        if name not in contests_known:
            near = modules.meant(name, contests_known)
            problems.append(f"gates.{name}: no such contest{near}; there are: {', '.join(contests_known)}")
        problems += _override_problems(f"gates.{name}", params.gate, rule)
    return problems


def _override_problems(place: str, common: _Frozen, own: Mapping[str, Any]) -> list[str]:
    try:
        type(common)(**common.model_dump() | dict(own))
    except pydantic.ValidationError as error:
        known = sorted(type(common).model_fields)
        problems = []
        for e in error.errors():
            key = str(e["loc"][0])
            if e["type"] == "extra_forbidden":
                problems.append(f"{place}.{key}: unknown key{modules.meant(key, known)}; there are: {', '.join(known)}")
            else:
                problems.append(f"{place}.{_explain(e)}")
        return problems
    return []


def add_dataset(path: Path, name: str, entry: Mapping[str, Any], more: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of params.yaml with one data set more; comments and order stay.

    Args:
        entry: goes under `datasets`.
        more: section -> entries to add there, for example a first candidate.
    """
    yaml = _yaml()
    document = yaml.load(path.read_text(encoding="utf-8"))
    document["datasets"][name] = dict(entry)
    for section, entries in more.items():
        if document.get(section) is None:
            document[section] = {}
        for key, value in entries.items():
            document[section][key] = value
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()
