"""The verdict on data: a Great Expectations suite, read, run over a frame, and what came of it.

The one home of GX, which takes seconds to import and so is imported inside the functions that need it. Describing
images, drafting suites and the page are files of their own; they are called through this module.
"""

import difflib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sevenfold import files, profiling
from sevenfold.datasets.base import DataError as DataError
from sevenfold.profiling import describe as describe
from sevenfold.profiling import draft as draft
from sevenfold.validation_page import page as page

SEVERITIES = ("critical", "warning", "info")
EXAMPLES = 5
KEYS = ("type", "kwargs", "severity", "notes", "meta", "description", "id", "rendered_content", "windows")
"""What GX itself writes for one expectation."""


class SuiteError(ValueError):
    """A suite that cannot judge: not there, unreadable, empty, or with expectations that GX does not know."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


@dataclass(frozen=True)
class Result:
    """What came of one expectation.

    column: the column or columns it is about; None for the table as a whole.
    unexpected, unexpected_percent: of the values that are there (for missing values: of all rows).
    examples, rows: the first few unexpected values as text, and the rows they are in, counted from 0.
    error: why the expectation could not run; it has failed then.
    """

    column: str | None
    type: str
    severity: str
    success: bool
    expected: str
    observed: str
    unexpected: int = 0
    unexpected_percent: float = 0.0
    examples: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    error: str = ""

    def __str__(self) -> str:
        place = f"column {self.column!r}" if self.column is not None else "the table"
        return f"{place}: expected {self.expected}, observed {self.observed}"


@dataclass(frozen=True)
class Verdict:
    """What a suite says of a data set, with one result per expectation, in the suite's order."""

    dataset: str
    passed: bool
    rows: int
    columns: int
    expectations: tuple[Result, ...]

    def failures(self, severity: str | None = None) -> tuple[Result, ...]:
        """Return what failed, of one severity, or all of them with the critical ones first."""
        wanted = SEVERITIES if severity is None else (severity,)
        return tuple(r for s in wanted for r in self.expectations if r.severity == s and not r.success)

    def to_json(self) -> str:
        """Return JSON that is equal byte for byte for equal data: no time, no random ids."""
        failed = {severity: len(self.failures(severity)) for severity in SEVERITIES}
        head = {"dataset": self.dataset, "passed": self.passed, "rows": self.rows, "columns": self.columns}
        value = head | {"failed": failed, "expectations": [asdict(r) for r in self.expectations]}
        return files.dumps(value)

    def require(self) -> None:
        """Raise a DataError that lists every critical expectation that failed, if there is one."""
        if critical := self.failures("critical"):
            count = f"{len(critical)} critical expectation{'s' * (len(critical) > 1)} failed"
            remedy = f"mend the data, or, if the change is right, edit data/expectations/{self.dataset}.json"
            raise DataError(f"{self.dataset}: {count}", [*map(str, critical), remedy])


def read_suite(path: Path) -> dict[str, Any]:
    """Read a suite in GX's JSON form.

    Raises:
        SuiteError: it is missing or cannot judge; one message lists every problem.
    """
    try:
        suite = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = f"`sevenfold dataset add {path.stem} PATH` drafts one from the data"
        raise SuiteError(f"there are no expectations at {path}; {remedy}") from None
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path} is not text in UTF-8 ({error}); restore it from git") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise SuiteError(f"{path} is not valid JSON ({error.msg}, {where}); mend it or restore it from git") from None
    _build(suite, str(path))
    return dict(suite)


def check(frame: pd.DataFrame, suite: Mapping[str, Any], *, dataset: str) -> Verdict:
    """Judge a frame by a suite.

    A frame without rows or with two columns of one name fails, whatever the suite says.

    Args:
        frame: a table, or what `describe` says of images.
        suite: as `draft` and `read_suite` return it.
        dataset: the name in the verdict.

    Raises:
        SuiteError: the suite cannot judge.
        DataError: the frame holds something that GX cannot handle at all.
    """
    expectations = _build(suite, f"the suite of {dataset}")
    names = [str(name) for name in frame.columns]
    families = {*profiling.NUMBERS, *profiling.TEXT, *profiling.TRUTH}
    exact = {t for e in suite["expectations"] for t in _types(e["kwargs"])} - families
    keep = {name for name, dtype in zip(names, frame.dtypes, strict=True) if str(dtype) in exact}
    plain = profiling.plain(frame, keep=keep)
    try:
        outcomes = _run(plain, expectations)
    except Exception as error:
        # GX and pandas have many kinds of error for a frame they cannot read; the user needs to know whose frame it is.
        raise DataError(dataset, [f"Great Expectations cannot read the data: {_last_line(str(error))}"]) from error
    if len(outcomes) != len(suite["expectations"]):
        # GX skips what it does not understand, and a suite that is skipped passes.
        raise SuiteError(
            f"the suite of {dataset} has {len(suite['expectations'])} expectations, but {len(outcomes)} ran"
        )
    # A column that the suite does not know may be a missing one under a new name.
    spare = sorted(set(names) - {name for e in suite["expectations"] for name in _columns(e["kwargs"])})
    results = [
        _result(outcome, e, frame, names, spare) for outcome, e in zip(outcomes, suite["expectations"], strict=True)
    ]
    results = _standing(names, len(frame)) + results
    passed = not any(r.severity == "critical" and not r.success for r in results)
    return Verdict(dataset, passed, len(frame), len(names), tuple(results))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep GX from phoning home, writing to the log, and warning about itself or about the damage it is to find."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    log, nowhere = logging.getLogger("great_expectations"), logging.NullHandler()
    before = log.propagate
    # Not by level: loggers below this one have levels of their own.
    log.propagate = False
    log.addHandler(nowhere)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # GX imports a deprecated module of Python at import.
            warnings.simplefilter("ignore", DeprecationWarning)
            # Sums over infinite values are what is being looked for.
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        log.removeHandler(nowhere)
        log.propagate = before


def _build(suite: Any, source: str) -> list[Any]:
    """Return the suite's expectations as GX objects, numbered in `meta`: GX returns results in another order."""
    if not isinstance(suite, Mapping) or not isinstance(suite.get("expectations"), list):
        raise SuiteError(f'{source} is no suite; expected {{"name": ..., "expectations": [...]}}')
    if not suite["expectations"]:
        raise SuiteError(f"{source} expects nothing, and would pass any data; add an expectation or draft it again")
    with _quiet():
        import great_expectations.expectations  # noqa: F401  # registers the core expectations
        from great_expectations.expectations import registry

        known = sorted(registry.list_registered_expectation_implementations())
        built, problems = [], []
        for position, e in enumerate(suite["expectations"]):
            found = _problems(e, known)
            if not found:
                extra = {key: e[key] for key in ("notes", "description") if e.get(key) is not None}
                implementation = registry.get_expectation_impl(e["type"])
                meta = {"position": position}
                try:
                    built.append(implementation(**e["kwargs"], severity=_severity(e), meta=meta, **extra))
                except (ValueError, TypeError) as error:
                    found = _argument_problems(e["type"], error)
            problems += [f"expectation {position + 1}: {problem}" for problem in found]
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise SuiteError(f"{source} has {count}:\n  " + "\n  ".join(problems))
    return built


def _problems(e: Any, known: list[str]) -> list[str]:
    """Return what is wrong with one expectation of a suite before its arguments are looked at."""
    if not isinstance(e, Mapping) or not isinstance(e.get("type"), str):
        return ['expected {"type": ..., "kwargs": {...}, "severity": ...}']
    problems = [f"{e['type']}: unknown key {k!r}{_near(str(k), KEYS)}" for k in e if k not in KEYS]
    if e["type"] not in known:
        problems.append(f"unknown type {e['type']!r}{_near(e['type'], known)}")
    if not isinstance(e.get("kwargs"), Mapping):
        problems.append(f"{e['type']}: expected `kwargs` with the arguments, got {e.get('kwargs')!r}")
    if _severity(e) not in SEVERITIES:
        problems.append(f"{e['type']}: unknown severity {e['severity']!r}; expected {', '.join(SEVERITIES)}")
    return problems


def _argument_problems(type_: str, error: Exception) -> list[str]:
    """Return GX's own complaints about the arguments, once each."""
    # The error is pydantic's, but of the version inside GX; only its list of dicts is used.
    details = error.errors() if hasattr(error, "errors") else [{"loc": (), "msg": str(error)}]
    texts = [": ".join(str(part) for part in (*d["loc"], d["msg"]) if part != "__root__") for d in details]
    return [f"{type_}: {text}" for text in dict.fromkeys(texts)]


def _severity(e: Mapping[str, Any]) -> Any:
    return e.get("severity") or "critical"


def _near(name: str, known: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are: {', '.join(known)}" if len(known) <= 10 else ""


def _run(frame: pd.DataFrame, expectations: list[Any]) -> list[Any]:
    """Return GX's results in the order of the expectations."""
    with _quiet():
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        context = gx.get_context(mode="ephemeral")
        context.enable_analytics(False)
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        # All at once: a suite that expectations are added to one by one takes quadratic time.
        suite = gx.ExpectationSuite(name="suite", expectations=expectations)
        source = context.data_sources.add_pandas("frame")
        definition = source.add_dataframe_asset("frame").add_batch_definition_whole_dataframe("frame")
        batch = definition.get_batch(batch_parameters={"dataframe": frame})
        # An empty list of index columns asks for row numbers.
        form = {"result_format": "SUMMARY", "partial_unexpected_count": EXAMPLES, "unexpected_index_column_names": []}
        results = batch.validate(suite, result_format=form).results
        # GX keeps the last context, and with it the frame, for as long as the process lives.
        context.data_sources.delete("frame")
        return sorted(results, key=lambda r: r.expectation_config.meta["position"])


def _standing(names: list[str], rows: int) -> list[Result]:
    """What holds for every data set: an empty one passes most expectations, and GX stumbles over a doubled column."""
    found = [
        Result(
            name, "column_is_there_once", "critical", False, "one column of this name", f"{names.count(name)} of them"
        )
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    if rows == 0:
        found.append(Result(None, "table_has_rows", "critical", False, "at least one row", "none"))
    return found


def _result(outcome: Any, e: Mapping[str, Any], frame: pd.DataFrame, names: list[str], spare: list[str]) -> Result:
    """Put one of GX's results into words."""
    kwargs, details = e["kwargs"], outcome.result
    asked = _columns(kwargs)
    column = ", ".join(map(str, asked)) or None
    head = (column, e["type"], _severity(e))
    expected = _expected(e["type"], kwargs)
    gone = [name for name in asked if name not in names]
    doubled = [name for name in asked if names.count(name) > 1]
    if e["type"] == "expect_column_to_exist":
        return Result(
            *head,
            bool(outcome.success),
            expected,
            f"no such column{_close(asked[0], spare)}" if gone else "it is there",
        )
    if gone or doubled:
        observed = (
            f"no such column{_close(gone[0], spare)}" if gone else f"{names.count(doubled[0])} columns of this name"
        )
        return Result(*head, False, expected, observed, error=observed)
    if error := _error(outcome.exception_info):
        return Result(*head, False, expected, f"an error: {error}", error=error)
    unexpected = int(details.get("unexpected_count") or 0)
    percent = float(details.get("unexpected_percent") or 0.0)
    examples = tuple(_text(v) for v in details.get("partial_unexpected_list") or [])
    places = tuple(int(i) for i in details.get("partial_unexpected_index_list") or [])
    observed = _observed(e["type"], details, examples, places)
    if "type" in e["type"].split("_"):
        observed = " ".join(
            [f"type {frame.dtypes.iloc[names.index(asked[0])]}", f"with {observed}" if unexpected else ""]
        ).strip()
    return Result(
        *head,
        bool(outcome.success),
        expected,
        observed,
        unexpected,
        _rounded(percent),
        examples,
        places if unexpected else (),
    )


def _observed(type_: str, details: Mapping[str, Any], examples: tuple[str, ...], places: tuple[int, ...]) -> str:
    if "unexpected_count" in details:
        missing = type_ == "expect_column_values_to_not_be_null"
        count = details["unexpected_count"] or 0
        total = (details.get("element_count") or 0) - (0 if missing else details.get("missing_count") or 0)
        if not count:
            return f"none missing in {total} rows" if missing else f"all {total} values"
        share = f"{float(details.get('unexpected_percent') or 0.0):.3g} %"
        first = [] if missing or not examples else [examples[0]]
        first += [f"row {places[0]}"] if places else []
        where = f", first: {' in '.join(first)}" if first else ""
        verb = "missing" if missing else "outside" if "between" in type_ or "in_set" in type_ else "unexpected"
        return f"{count} of {total} values {verb} ({share}{where})"
    mismatched = (details.get("details") or {}).get("mismatched") or {}
    if mismatched:
        words = {"missing": "missing", "unexpected": "not expected"}
        return "; ".join(f"{words.get(k, k)}: {_listed(v)}" for k, v in sorted(mismatched.items()))
    value = details.get("observed_value")
    if type_ == "expect_table_columns_to_match_set" and isinstance(value, list):
        return f"{len(value)} columns"
    return _listed(value) if isinstance(value, list) else _text(value)


def _expected(type_: str, kwargs: Mapping[str, Any]) -> str:
    """Put an expectation into words: those that a draft has in good ones, any other in GX's own."""
    mostly = kwargs.get("mostly")
    suffix = "" if mostly is None or mostly == 1 else f" for at least {_text(100 * mostly)} % of the values"
    where = f" where {kwargs['row_condition']}" if kwargs.get("row_condition") else ""
    suffix += where
    if type_ == "expect_column_to_exist":
        return "the column to be there"
    if type_ == "expect_column_values_to_not_be_null":
        return (f"at most {_text(100 * (1 - mostly))} % missing values" if mostly else "no missing values") + where
    if type_ == "expect_column_values_to_be_in_type_list":
        families = {"int64": "numbers", "str": "text", "bool": "truth values"}
        known = (profiling.NUMBERS, profiling.TEXT, profiling.TRUTH)
        types = kwargs.get("type_list") or ["any"]
        return (families[types[0]] if types in known else f"values of type {' or '.join(map(str, types))}") + suffix
    if type_ == "expect_column_values_to_be_in_set":
        return f"values in {{{_listed(kwargs.get('value_set') or [])}}}{suffix}"
    if type_ == "expect_column_unique_value_count_to_be_between":
        return _between(kwargs, "different values")
    if type_ == "expect_table_row_count_to_be_between":
        return _between(kwargs, "rows")
    if type_ == "expect_table_columns_to_match_set":
        extent = "at least" if kwargs.get("exact_match") is False else "just"
        return f"{extent} the columns {_listed(kwargs.get('column_set') or [], most=5)}"
    for statistic in ("mean", "median", "min", "max", "stdev", "sum"):
        if type_ == f"expect_column_{statistic}_to_be_between":
            return f"{statistic} {_between(kwargs, '')}"
    if type_ == "expect_column_values_to_be_between":
        if (kwargs.get("min_value"), kwargs.get("max_value")) == (-profiling.LARGEST, profiling.LARGEST):
            return f"finite numbers{suffix}"
        return f"values {_between(kwargs, '')}{suffix}"
    rest = {k: v for k, v in kwargs.items() if k not in ("column", "mostly", "row_condition")}
    words = type_.removeprefix("expect_").replace("_", " ")
    return " ".join([words, *([json.dumps(rest, ensure_ascii=False, default=str)] if rest else [])]) + suffix


def _between(kwargs: Mapping[str, Any], unit: str) -> str:
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    strict = [" (exclusive)" if kwargs.get(k) else "" for k in ("strict_min", "strict_max")]
    least, most = f"{_text(low)}{strict[0]}", f"{_text(high)}{strict[1]}"
    text = f"at most {most}" if low is None else f"at least {least}" if high is None else f"between {least} and {most}"
    return f"{text} {unit}".strip()


def _text(value: Any) -> str:
    """Write one value: text in quotes, numbers to six digits."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or value is None:
        return "missing" if value is None else str(value).lower()
    if isinstance(value, float):
        return "missing" if np.isnan(value) else f"{value:.6g}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _listed(values: Any, *, most: int = 10) -> str:
    texts = [_text(v) for v in values]
    return ", ".join(texts) if len(texts) <= most else f"{', '.join(texts[:most])} and {len(texts) - most} more"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _columns(kwargs: Mapping[str, Any]) -> list[str]:
    """The columns that an expectation is about."""
    single = [kwargs[key] for key in ("column", "column_A", "column_B") if key in kwargs]
    return [str(name) for name in [*single, *(kwargs.get("column_list") or [])]]


def _types(kwargs: Mapping[str, Any]) -> list[str]:
    """The types that an expectation names."""
    return [str(t) for t in [*(kwargs.get("type_list") or []), kwargs.get("type_")] if t]


def _close(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (there is {near[0]!r})" if near else ""


def _error(information: Mapping[str, Any]) -> str:
    """The message of the first exception in GX's report, which is one or one per metric."""
    entries = (
        [information]
        if "raised_exception" in information
        else [v for v in information.values() if isinstance(v, Mapping)]
    )
    messages = sorted(str(e.get("exception_message")) for e in entries if e.get("raised_exception"))
    return _last_line(messages[0]) if messages else ""


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:200].rstrip(".") if lines else "no message"
