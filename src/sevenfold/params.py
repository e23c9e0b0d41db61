"""params.yaml as typed, frozen values. A misspelled key is an error that names it; all problems come at once."""

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import ruamel.yaml
import ruamel.yaml.constructor
import ruamel.yaml.error
from pydantic import Field

from sevenfold import modules

# Strictly: true is no number, "8" is none, and neither infinity nor NaN is a setting. An integer is a number, too.
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Truth = Annotated[bool, Field(strict=True)]
Share = Annotated[Number, Field(gt=0, lt=1)]
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
    seed: Whole = Field(ge=0)


class DatasetParams(_Frozen):
    """Where a data set lies and what its columns mean; `preparation.prepare` documents each."""

    path: str
    label: str | None = None
    normal: tuple[str, ...] | None = None
    id: str | None = None
    group: str | None = None
    part: str | None = None
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    range: tuple[Number, Number] | None = None
    duplicates: Literal["error", "drop"] = "error"
    separator: str | None = None
    gaps: tuple[str, ...] = ()
    split: Splits

    @pydantic.field_validator("normal", "gaps", mode="before")
    @classmethod
    def _labels_are_text(cls, value: Any) -> Any:
        """YAML reads 0 as a number, and labels and words for gaps are compared as text."""
        if isinstance(value, (str, int, float)):
            value = [value]
        if not isinstance(value, (list, tuple)):
            return value  # None, or an error
        if None in value:
            raise ValueError("expected text; put the word null in quotes")
        return tuple(str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in value)

    @pydantic.field_validator("range")
    @classmethod
    def _range_is_ascending(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("expected the lower end first, then a higher one")
        return value

    @property
    def read_options(self) -> dict[str, Any]:
        """What `formats.read` wants to know."""
        return {name: value for name, value in {"separator": self.separator, "gaps": self.gaps}.items() if value}


class Training(_Frozen):
    epochs: Whole = Field(ge=1)
    patience: Whole = Field(ge=1)
    batch_size: Whole = Field(ge=1)
    learning_rate: Number = Field(gt=0)
    warmup: Number = Field(ge=0, lt=1)
    weight_decay: Number = Field(ge=0)
    gradient_clip: Number = Field(gt=0)
    threads: Whole = Field(ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto"] | Truth = "auto"


class Candidate(_Frozen):
    """One model to train: a variant with its options, on one data set, for these applications; with none it has no rival.

    rows: what it learns from: all training rows, those of the normal class, or all without the worst of them, which a first
        training finds and which may be anomalies.
    trim: the share of rows that "trimmed" leaves out.
    """

    dataset: str
    applications: tuple[str, ...]
    variant: str
    options: Mapping[str, Any]
    training: Mapping[str, Any] = {}
    rows: Literal["all", "normal", "trimmed"] = "all"
    trim: Number | None = Field(default=None, gt=0, le=0.5)


class Resources(_Frozen):
    """What a training asks of the machine that does it; no stage depends on it.

    gpus: 1 for one of its own, 0 for none.
    """

    gpus: Whole = Field(ge=0, le=1)


class Rivals(_Frozen):
    """seconds: what each classical rival may take in all; one that takes longer has no result, and the report says so."""

    seconds: Number = Field(gt=0)


class GateRule(_Frozen):
    """What a candidate has to show to become champion; `gate.Rule` says what each means."""

    must_beat_rivals: Truth
    floor: Number | None = None
    floors: Mapping[str, Number] = {}
    margin: Number = Field(default=0.0, ge=0)
    slices: tuple[str, ...] = ()
    slice_tolerance: Number = Field(default=0.0, ge=0)
    max_megabytes: Number | None = Field(default=None, gt=0)
    max_milliseconds: Number | None = Field(default=None, gt=0)


class Params(_Frozen):
    seed: Whole = Field(ge=0)
    fetch: Mapping[Name, Fetch] = {}
    datasets: Mapping[Name, DatasetParams]
    applications: Mapping[Name, Mapping[Name, Mapping[str, Any]]] = {}
    rivals: Rivals
    training: Training
    candidates: Mapping[Name, Candidate] = {}
    gate: GateRule
    gates: Mapping[str, Mapping[str, Any]] = {}
    resources: Mapping[Name, Resources] = {}

    def settings(self, candidate: str) -> Training:
        """Return the training settings of a candidate: its own, over the common ones."""
        return Training(**self.training.model_dump() | dict(self.candidates[candidate].training))

    def rule(self, contest: str) -> GateRule:
        """Return the gate's rule for a contest, such as "digits-anomaly": its own, over its application's, over the common one."""
        application = contest.rpartition("-")[2]
        own = dict(self.gates.get(application, {})) | dict(self.gates.get(contest, {}))
        return GateRule(**self.gate.model_dump() | own)

    def gpus(self, candidate: str) -> int | None:
        """Return how many GPUs a training asks for, as its candidate says, else its variant; None where neither does."""
        known = self.candidates.get(candidate)
        named = (candidate,) if known is None else (candidate, known.variant)
        return next((self.resources[name].gpus for name in named if name in self.resources), None)

    def of_dataset(self, dataset: str) -> dict[str, Candidate]:
        return {name: c for name, c in self.candidates.items() if c.dataset == dataset}


def load(path: Path) -> Params:
    """Read params.yaml and check everything that can be checked without importing torch.

    Raises:
        ParamsError: with every problem found: unknown and missing keys, values of the wrong type or range, names that
            refer to nothing.
    """
    params, problems = examine(path)
    if problems:
        raise ParamsError(path, problems)
    return params


def require_name(name: str) -> None:
    """Raise a ValueError unless params.yaml may hold this name."""
    try:
        pydantic.TypeAdapter(Name).validate_python(name)
    except pydantic.ValidationError:
        rule = "lower-case letters, digits, _ and -, and begins with a letter"
        raise ValueError(f"{name!r} is no name for a data set; a name is {rule}") from None


def examine(path: Path, text: str | None = None) -> tuple[Params, list[str]]:
    """Return params.yaml and every problem that can be found without importing torch.

    Where there are problems, the params are only for finding more of them: entries that make no sense are left out,
    and so may be sections.

    Args:
        text: what the file is going to hold; by default what it holds.

    Raises:
        ParamsError: it is no YAML, or no mapping.
    """
    try:
        raw = ruamel.yaml.YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8") if text is None else text)
    except ruamel.yaml.error.YAMLError as error:
        raise ParamsError(path, [_not_yaml(error)]) from None
    except UnicodeDecodeError as error:
        raise ParamsError(path, [f"not text in UTF-8: {error}; save it as UTF-8"]) from None
    if not isinstance(raw, dict):
        raise ParamsError(path, [f"got {type(raw).__name__}; expected a mapping with datasets, candidates, ..."])
    try:
        params, problems = Params.model_validate(raw), []
    except pydantic.ValidationError as error:
        params, problems = _sound_part(raw, error), [_explain(e) for e in error.errors()]
    return _known_part(params), problems + _references(params, raw)


def plain(path: Path) -> Any:
    """Return what some YAML file says, such as dvc.lock.

    Raises:
        ParamsError: it is no YAML.
    """
    try:
        return ruamel.yaml.YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except ruamel.yaml.error.YAMLError as error:
        raise ParamsError(path, [_not_yaml(error)]) from None


def _not_yaml(error: Any) -> str:
    """Say what the YAML library found, without its advice on itself, which is of no use here."""
    reason = str(getattr(error, "problem", None) or error).partition("\n")[0]
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}" if mark else ""
    if isinstance(error, ruamel.yaml.constructor.DuplicateKeyError):
        return (
            f"{reason.partition(' with value')[0].removeprefix('found ')}{place}; expected each key once; leave one out"
        )
    return f"not valid YAML: {reason}{place}; mend it there"


def _sound_part(raw: Mapping[str, Any], error: pydantic.ValidationError) -> Params:
    """Return what is left without unknown keys, without entries that lack or mistake a value, and without such sections."""
    sound = copy.deepcopy(dict(raw))
    for e in error.errors():
        keys = [k for k in e["loc"] if k != "[key]"]
        if e["type"] != "extra_forbidden":
            keys = keys[: 2 if keys[0] in _ENTRIES else 1]
        parent: Any = sound
        for key in keys[:-1]:
            parent = parent.get(key, {}) if isinstance(parent, dict) else {}
        if isinstance(parent, dict):
            parent.pop(keys[-1], None)
    fields = {}
    for name, field in Params.model_fields.items():
        annotation: Any = field.annotation
        if name in sound:
            fields[name] = pydantic.TypeAdapter(annotation).validate_python(sound[name])
    return Params.model_construct(**{"datasets": {}, "seed": 0, **fields})


def _known_part(params: Params) -> Params:
    """Leave out what names no source, application or variant, so that whoever looks at their options finds each."""
    return params.model_copy(
        update={
            "fetch": {n: f for n, f in params.fetch.items() if n in modules.names("datasets")},
            "applications": {
                d: {a: o for a, o in some.items() if a in modules.names("applications")}
                for d, some in params.applications.items()
            },
            "candidates": {n: c for n, c in params.candidates.items() if c.variant in modules.names("models")},
        }
    )


def _explain(error: Any) -> str:
    """Say in one line what pydantic found, with the path of the key, and a near match for a misspelled one."""
    place = ".".join(str(p) for p in error["loc"] if p != "[key]")
    if error["type"] == "extra_forbidden":
        known = _fields_at(error["loc"][:-1])
        return f"{place}: unknown key{modules.meant(str(error['loc'][-1]), known)}; there are: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{place}: missing; add it"
    if error["type"] == "string_pattern_mismatch":
        return f"{place}: a name is lower-case letters, digits, _ and -, and begins with a letter"
    reason = error["msg"].removeprefix("Value error, ")
    return f"{place} is {error['input']!r}: {reason[:1].lower()}{reason[1:]}"


_ENTRIES: dict[str, type[pydantic.BaseModel] | None] = {
    "fetch": Fetch,
    "datasets": DatasetParams,
    "applications": None,
    "candidates": Candidate,
    "gates": None,
    "resources": Resources,
}
"""Sections of named entries, with what an entry is where its keys are always the same."""


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that may stand at this place."""
    if not location:
        kind: type[pydantic.BaseModel] | None = Params
    elif len(location) == 3 and location[2] == "split":
        kind = Splits
    else:
        kind = {**_ENTRIES, "rivals": Rivals, "training": Training, "gate": GateRule}[str(location[0])]
    return sorted(kind.model_fields) if kind else []


def _references(params: Params, raw: Mapping[str, Any]) -> list[str]:
    """Return every name that refers to nothing, and every override that is no setting.

    Args:
        raw: the whole file; an entry that was left out of `params` as unsound is still there to be referred to.
    """
    problems = []
    datasets, offered = _keys(raw, "datasets"), {d: _keys(raw, "applications", d) for d in _keys(raw, "applications")}
    sources, variants, applications = (modules.names(p) for p in ("datasets", "models", "applications"))

    def unknown(place: str, what: str, name: str, known: list[str], where: str = "there are") -> None:
        if name not in known:
            near = modules.meant(name, known)
            problems.append(f"{place}: {what}{near}; {where}: {', '.join(known) or 'none'}")

    for name in params.fetch:
        unknown(f"fetch.{name}", "no such data set", name, sources)
    for name, dataset in params.datasets.items():
        if dataset.split.validation + dataset.split.test >= 1:
            problems.append(
                f"datasets.{name}.split: validation and test leave nothing to train on; expected less than 1 in all"
            )
        if dataset.normal is not None and dataset.label is None:
            problems.append(f"datasets.{name}.normal: names labels, but there is no `label` column; name it in `label`")
    for name, contests in params.applications.items():
        if "datasets" in raw:
            unknown(f"applications.{name}", "no such data set", name, datasets)
        for application in contests:
            unknown(f"applications.{name}.{application}", "no such application", application, applications)
    for name, candidate in params.candidates.items():
        place = f"candidates.{name}"
        if "datasets" in raw:
            unknown(f"{place}.dataset", f"no data set {candidate.dataset!r}", candidate.dataset, datasets)
        unknown(f"{place}.variant", f"no variant {candidate.variant!r}", candidate.variant, variants)
        if (candidate.rows == "trimmed") != (candidate.trim is not None):
            problems.append(
                f"{place}.trim is {candidate.trim} with rows {candidate.rows}; expected a share, such as 0.05, with `rows: "
                "trimmed` and with nothing else"
            )
        for application in candidate.applications if candidate.dataset in datasets else ():
            unknown(
                f"{place}.applications",
                f"{application!r} is not judged on {candidate.dataset}",
                application,
                offered.get(candidate.dataset, []),
                f"applications.{candidate.dataset} has",
            )
        if "training" in params.model_fields_set:
            problems += _override_problems(f"{place}.training", params.training, candidate.training)
    known = [f"{d}-{a}" for d, contests in offered.items() for a in contests]
    known += sorted({a for contests in offered.values() for a in contests})
    for name, rule in params.gates.items():
        unknown(f"gates.{name}", "no such contest or application", name, known)
        if "gate" in params.model_fields_set:
            problems += _override_problems(f"gates.{name}", params.gate, rule)
    for name in params.resources:
        unknown(
            f"resources.{name}", "no such candidate or variant", name, sorted({*_keys(raw, "candidates"), *variants})
        )
    return problems


def _keys(raw: Any, *path: str) -> list[str]:
    for key in path:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return sorted(map(str, raw)) if isinstance(raw, dict) else []


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
    lines = path.read_text(encoding="utf-8").splitlines()
    for section, entries in {"datasets": {name: entry}, **more}.items():
        _insert(lines, section, entries)
    return "\n".join(lines) + "\n"


def _insert(lines: list[str], section: str, entries: Mapping[str, Any]) -> None:
    """Add entries after the last one of a section, which is made where there is none.

    By lines and not by a YAML library, which would move comments from what follows them to what they follow.
    """
    yaml = ruamel.yaml.YAML()
    yaml.default_flow_style = None  # the innermost collections on one line, as the file has them
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump({section: _plain(entries)}, out)
    new = out.getvalue().splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(f"{section}:")), None)
    if start is None:
        lines += ["", *new]
        return
    if lines[start].partition(":")[2].partition("#")[0].strip() in {"{}", "null", "~"}:
        lines[start] = f"{section}:"
    end = start + 1
    for i in range(start + 1, len(lines)):
        if lines[i].startswith("#") or not lines[i].strip():
            continue  # belongs to what comes after it, unless more of the section follows
        if not lines[i].startswith(" "):
            break
        end = i + 1
    lines[end:end] = new[1:]


def _plain(value: Any) -> Any:
    """Return nested mappings and sequences as dicts and lists, which is all that YAML knows."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
