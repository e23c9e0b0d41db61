"""Find variants, data sources and applications by file name: one file is one thing, and its name is the name everywhere."""

import difflib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

PACKAGES = ("datasets", "models", "applications")


def names(package: str) -> list[str]:
    """Return the file names in `package` ("datasets", "models" or "applications"), sorted. Imports none of them."""
    folder = Path(__file__).parent / package
    return sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if m.name != "base")


def load(package: str, name: str) -> ModuleType:
    """Import the file `name` of `package`.

    Raises:
        ValueError: there is no such file; the message lists those there are.
    """
    known = names(package)
    if name not in known:
        raise ValueError(f"no {name!r} in {package}/{meant(name, known)}; there are: {', '.join(known)}")
    return importlib.import_module(f"sevenfold.{package}.{name}")


def member(package: str, name: str, base: type[T]) -> type[T]:
    """Return the one subclass of `base` that the file `name` of `package` defines."""
    module = load(package, name)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    found = [value for value in found if not value.__name__.startswith("_") and not inspect.isabstract(value)]
    if len(found) != 1:
        raise TypeError(f"{module.__file__} defines {len(found)} classes of kind {base.__name__}; expected exactly one")
    return found[0]


def meant(name: str, known: list[str]) -> str:
    """Return ", did you mean ...?" for a near match of a misspelled name, else nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def option_problems(function: Callable[..., Any], options: Mapping[str, Any], *, of: str) -> list[str]:
    """Return what is wrong with `options` as the keywords of `function`: unknown, missing and mistyped ones.

    The keyword-only parameters of the function are the schema of its options.
    """
    import pydantic

    target = function.__init__ if inspect.isclass(function) else function
    keywords = {p.name: p for p in inspect.signature(target).parameters.values() if p.kind is p.KEYWORD_ONLY}
    problems = []
    for name, value in options.items():
        if name not in keywords:
            known = sorted(keywords)
            problems.append(
                f"{of}: unknown option {name!r}{meant(name, known)}; there are: {', '.join(known) or 'none'}"
            )
            continue
        if not _is_finite(value):
            problems.append(f"{of}: option {name!r} is {value!r}: input should be finite")
            continue
        try:
            # Strictly: the constructor gets the value as it stands, and "8" or true is no number.
            pydantic.TypeAdapter(keywords[name].annotation).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            reasons = "; ".join(f"{e['msg'][:1].lower()}{e['msg'][1:]}" for e in error.errors())
            problems.append(f"{of}: option {name!r} is {value!r}: {reasons}")
    missing = [n for n, p in keywords.items() if p.default is p.empty and n not in options]
    if missing:
        problems.append(f"{of}: option{'s' * (len(missing) > 1)} missing: {', '.join(missing)}")
    return problems


def _is_finite(value: Any) -> bool:
    """Say whether a value holds neither infinity nor NaN, at any depth: neither is a setting, and JSON has none."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
