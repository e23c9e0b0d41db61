"""Bundles of older formats, brought to the present one in memory. Their files, and so their digests, stay as they are.

What an upgrade promises is that the model computes what it computed; where the code of today cannot, it is refused with the
reason. Format 1 had no sums of its files, and a table's schema no words for gaps; 2 has them. Since 3 a model knows the
columns of a table. Since 4 there is a reference of the training rows, in a file of its own; nobody can tell it afterwards, so
older bundles have none. An option that a bundle lacks, since it was fixed in its time, is what it was then.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sevenfold.datasets.base import schema_from_json

Contents = tuple[dict[str, Any], dict[str, Tensor]]
"""What bundle.json says, and the model's weights by name."""


class UpgradeError(ValueError):
    """The code of today has no model or application that would compute the same."""


def upgraded(description: Mapping[str, Any], weights: Mapping[str, Tensor], *, to: int) -> Contents:
    """Return a bundle's description and weights in format `to`.

    Raises:
        UpgradeError: the code of today has no model or application that would compute the same.
    """
    contents = dict(description), dict(weights)
    try:
        for number in range(description["format"], to):
            contents = _STEPS[number](*contents)
    except UpgradeError as error:
        raise UpgradeError(
            f"it is of bundle format {description['format']}, {error}; train and publish it again, or use the sevenfold "
            "version that wrote it"
        ) from None
    return contents


def _from_1(description: dict[str, Any], weights: dict[str, Tensor]) -> Contents:
    schema = description["schema"]
    if schema["kind"] == "table":
        schema = {**schema, "gap_words": []}
    return {**description, "format": 2, "schema": schema}, weights


_PREFIXES = {
    "convolutional": {"encoder.{last}.": "encoder.{last}.0.", "decoder.0.": "decoder.0.0."},
    "contractive": {"biases.": "decoder.biases.", "standardise.": "cells.numbers."},
}
"""How names of weights began in format 2, and how they begin in 3. `last` is the layer at the code."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "convolutional": {"hidden": [], "blocks": 0},
    "deep": {"blocks": 0, "tied": False, "augment": [], "numbers": "standard", "categories": "one-hot"},
    "concrete": {"numbers": "standard"},
}
"""Options that 3 brought, at what 2 did."""


def _from_2(description: dict[str, Any], weights: dict[str, Tensor]) -> Contents:
    model, application = description["model"], description["application"]["name"]
    variant = model["variant"]
    if application != "reduction":
        raise UpgradeError(f"whose {application} scored rows by terms that are no more")
    layout = schema_from_json(description["schema"]).layout
    # These networks had gaps and categories enter as plain numbers, which those of today do not.
    if variant != "pca" and any(field.gaps or field.categorical for field in layout.fields):
        raise UpgradeError(f"whose {variant} took gaps and categories for numbers")
    options = model["options"] | _OPTIONS.get(variant, {"numbers": "standard", "categories": "one-hot"})
    if variant == "pca":
        options = model["options"]
    elif variant == "convolutional":
        weights = _renamed(weights, _PREFIXES[variant], last=1 + 2 * len(options["channels"]) + 1)
    else:
        weights = _renamed(weights, _PREFIXES.get(variant, {"standardise.": "cells.numbers."}))
        weights["cells.entropy"] = torch.ones(0)
    if variant == "denoising":
        # Of the training rows, by which noise was drawn: a trained model draws none.
        size = layout.shape[0] if len(layout.shape) == 1 else int(torch.Size(layout.shape).numel())
        weights |= {name: torch.zeros(size) for name in ("center", "low", "high")} | {"spread": torch.ones(())}
    fields = layout.to_json()["fields"]
    return {**description, "format": 3, "model": {**model, "fields": fields, "options": options}}, weights


def _from_3(description: dict[str, Any], weights: dict[str, Tensor]) -> Contents:
    application = description["application"]
    if application["name"] == "anomaly" and isinstance(options := application["options"], dict):
        application = {**application, "options": {"references": 4096} | options}
    return {**description, "format": 4, "application": application}, weights


def _renamed(weights: Mapping[str, Tensor], prefixes: Mapping[str, str], **numbers: int) -> dict[str, Tensor]:
    pairs = [(old.format(**numbers), new.format(**numbers)) for old, new in prefixes.items()]
    found = {}
    for name, value in weights.items():
        old, new = next(((o, n) for o, n in pairs if name.startswith(o)), ("", ""))
        found[new + name.removeprefix(old)] = value
    return found


_STEPS: dict[int, Callable[[dict[str, Any], dict[str, Tensor]], Contents]] = {
    1: _from_1,
    2: _from_2,
    3: _from_3,
}
