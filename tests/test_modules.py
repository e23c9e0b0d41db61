"""Variants, data sets and applications are found by their file's name, and their keywords are the schema of their options."""

import math
import re
from pathlib import Path
from typing import Literal

import pytest

from sevenfold import modules
from sevenfold.applications.base import Application
from sevenfold.models.base import Autoencoder

SOURCE = Path(modules.__file__).parent
PACKAGES = ("datasets", "models", "applications")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_file_names_are_the_names(package):
    found = modules.names(package)
    assert found == sorted(p.stem for p in (SOURCE / package).glob("*.py") if p.stem not in ("__init__", "base"))
    assert found


@pytest.mark.parametrize(("package", "base"), [("models", Autoencoder), ("applications", Application)])
def test_every_file_defines_one_member(package, base):
    for name in modules.names(package):
        member = modules.member(package, name, base)
        assert issubclass(member, base)
        assert member.__module__ == f"sevenfold.{package}.{name}"


@pytest.mark.parametrize(("package", "name", "meant"), [("models", "depe", "deep"), ("datasets", "digit", "digits")])
def test_a_misspelled_name_is_named_with_what_was_meant_and_what_there_is(package, name, meant):
    known = ", ".join(modules.names(package))
    with pytest.raises(ValueError, match=rf"no '{name}' in {package}/, did you mean '{meant}'\?; there are: {known}"):
        modules.load(package, name)
    with pytest.raises(ValueError, match=r"no '\.\./cli' in models/; there are"):
        modules.load("models", "../cli")
    with pytest.raises(ValueError, match="no 'base' in models/"):
        modules.load("models", "base")


def test_a_file_with_no_member_is_named():
    with pytest.raises(TypeError, match=r"digits\.py defines 0 classes of kind Autoencoder; expected exactly one"):
        modules.member("datasets", "digits", Autoencoder)


def variant(
    shape, *, code: int, hidden: list[int], level: float, noise: Literal["gaussian", "mask"], bias: bool = True
):
    """Stands for a constructor."""


class Variant:
    def __init__(
        self,
        shape,
        *,
        code: int,
        hidden: list[int],
        level: float,
        noise: Literal["gaussian", "mask"],
        bias: bool = True,
    ):
        pass


GOOD = {"code": 8, "hidden": [64, 32], "level": 0.3, "noise": "mask"}


@pytest.mark.parametrize("made", [variant, Variant])
def test_right_options_have_no_problems(made):
    assert modules.option_problems(made, GOOD, of="demo") == []
    assert modules.option_problems(made, GOOD | {"level": 1, "bias": True}, of="demo") == []


@pytest.mark.parametrize("made", [variant, Variant])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GOOD | {"hiden": [3]}, "demo: unknown option 'hiden', did you mean 'hidden'?; there are: bias, code, hidden, level, noise"),
        (GOOD | {"shape": (3,)}, "demo: unknown option 'shape'; there are: bias,"),
        ({k: v for k, v in GOOD.items() if k != "code"}, "demo: option missing: code"),
        ({"code": 1}, "demo: options missing: hidden, level, noise"),
        (GOOD | {"code": "8"}, "demo: option 'code' is '8': input should be a valid integer"),
        (GOOD | {"code": True}, "demo: option 'code' is True: input should be a valid integer"),
        (GOOD | {"code": 8.5}, "demo: option 'code' is 8.5: input should be a valid integer"),
        (GOOD | {"level": math.inf}, "demo: option 'level' is inf: input should be finite"),
        (GOOD | {"level": math.nan}, "demo: option 'level' is nan: input should be finite"),
        (GOOD | {"hidden": [64, -math.inf]}, "demo: option 'hidden' is [64, -inf]: input should be finite"),
        (GOOD | {"hidden": 64}, "demo: option 'hidden' is 64: input should be a valid list"),
        (GOOD | {"hidden": [64, "x"]}, "demo: option 'hidden' is [64, 'x']: input should be a valid integer"),
        (GOOD | {"level": None}, "demo: option 'level' is None: input should be a valid number"),
        (GOOD | {"noise": "gausian"}, "demo: option 'noise' is 'gausian': input should be 'gaussian' or 'mask'"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(made, options, message):
    (problem,) = modules.option_problems(made, options, of="demo")
    assert re.match(re.escape(message), problem)


def test_all_wrong_options_come_at_once():
    assert len(modules.option_problems(variant, {"cod": 1, "hidden": 3, "level": "x"}, of="demo")) == 4
    assert modules.option_problems(lambda: None, {"a": 1}, of="demo") == ["demo: unknown option 'a'; there are: none"]
