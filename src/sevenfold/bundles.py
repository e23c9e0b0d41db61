"""Models on disk: JSON and safetensors, never pickle, with a digest of the content.

A bundle is all that a batch job needs: the model, the schema of its samples, one calibrated application, and what the rows
looked like that the model learned from.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from sevenfold import drift, files, modules, upgrades
from sevenfold.applications.base import Application
from sevenfold.datasets.base import ImageSchema, Schema, TableSchema, schema_from_json
from sevenfold.models.base import Autoencoder, ModelSpec

FORMAT = 4
TENSORS = ("application.safetensors", "model.safetensors", "reference.safetensors")
FILES = ("bundle.json", *TENSORS)

_REFERENCED = 4
"""The first format with a reference."""


class BundleError(ValueError):
    """A folder is no bundle, or not the one it was."""


@dataclass(frozen=True)
class Bundle:
    """A model ready for work.

    origin: where it comes from, as plain JSON: data set, candidate, digest of the prepared data, seed.
    reference: what rows are compared with for drift; None for a model that was trained before bundles had one.
    """

    spec: ModelSpec
    model: Autoencoder
    schema: Schema
    application_name: str
    application: Application
    origin: Mapping[str, Any]
    reference: drift.Reference | None = None


def save_model(folder: Path, spec: ModelSpec, model: Autoencoder) -> None:
    """Write a model that has no application yet: `model.json` and `model.safetensors`."""
    with files.whole(folder) as draft:
        draft.mkdir()
        files.write_json(draft / "model.json", spec.to_json())
        _save_weights(draft / "model.safetensors", model)


def load_model(folder: Path) -> tuple[ModelSpec, Autoencoder]:
    """Read what `save_model` wrote."""
    spec = ModelSpec.from_json(files.read_json(folder / "model.json"))
    path = folder / "model.safetensors"
    if problem := files.header_problem(path):
        raise BundleError(f"{path} {problem}; run `dvc repro` to make it again")
    return spec, _with_weights(spec, safetensors.torch.load_file(path), path)


def save(folder: Path, bundle: Bundle) -> str:
    """Write a bundle and return its digest. Equal bundles give equal bytes."""
    with files.whole(folder) as draft:
        draft.mkdir()
        _save_weights(draft / "model.safetensors", bundle.model)
        # safetensors writes the memory as it lies: of an array with gaps or another order, the wrong numbers.
        state = {name: np.ascontiguousarray(value) for name, value in sorted(bundle.application.state.items())}
        safetensors.numpy.save_file(state, draft / "application.safetensors")
        # Of no reference a file without arrays, so that all bundles of one format have the same files.
        reference = {} if bundle.reference is None else bundle.reference.arrays()
        safetensors.numpy.save_file(reference, draft / "reference.safetensors")
        description: dict[str, Any] = {
            "format": FORMAT,
            "model": bundle.spec.to_json(),
            "schema": bundle.schema.to_json(),
            "application": {"name": bundle.application_name, "options": dict(bundle.application.options)},
            "origin": dict(bundle.origin),
            # So that a damaged file is known and named even where nobody knows the digest of the whole.
            "sha256": {name: files.digest(draft / name) for name in TENSORS},
        }
        description["sha256"]["bundle.json"] = digest_of(description)
        files.write_json(draft / "bundle.json", description)
    return digest(folder)


def load(folder: Path, *, expected: str | None = None) -> Bundle:
    """Read a bundle, of this format or an older one, which is upgraded in memory.

    Args:
        expected: the digest that the bundle must have, where it is known.

    Raises:
        FileNotFoundError: there is no such folder.
        BundleError: files are missing, added, damaged, or of a newer format or one that cannot be upgraded, or the digest is
            another.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; expected a bundle's folder")
    description = _description(folder)
    problems = _problems(folder, description)
    if expected is not None and not problems and (got := digest(folder)) != expected:
        problems = [f"its digest is {got[:12]}; expected {expected[:12]}, so it was changed"]
    if problems:
        raise _unsound(folder, "; ".join(problems))
    written = description["format"]
    try:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        description, weights = upgrades.upgraded(description, weights, to=FORMAT)
        spec = ModelSpec.from_json(description["model"])
        name = description["application"]["name"]
        kind: Any = modules.member("applications", name, Application)
        options = description["application"]["options"]
        schema = schema_from_json(description["schema"])
        for owner, given in ((spec.variant, spec.options), (name, options)):
            if not isinstance(given, dict):
                raise ValueError(f"the options of {owner} are {given!r}; expected an object")
        problems = spec.problems() + modules.option_problems(kind, options, of=name) + _contradictions(spec, schema)
        if problems:
            raise ValueError("; ".join(problems))
        application: Application = kind(**options)
        return Bundle(
            spec,
            _with_weights(spec, weights, folder / "model.safetensors"),
            schema,
            name,
            application.with_state(safetensors.numpy.load_file(folder / "application.safetensors")),
            description["origin"],
            _reference(folder, schema) if written >= _REFERENCED else None,
        )
    except upgrades.UpgradeError as error:
        raise BundleError(f"{folder} cannot be read: {error}") from None
    except KeyError as error:
        raise _unsound(folder, f"bundle.json has no entry {error}") from None
    except (ValueError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise _unsound(folder, str(error)) from None


def digest(folder: Path) -> str:
    """Return the SHA-256 over names and contents of the bundle's files, as hexadecimal text."""
    return files.digest(folder)


def digest_of(description: Mapping[str, Any]) -> str:
    """Return the SHA-256 over all that a description says but for this sum itself, as hexadecimal text."""
    sums = description.get("sha256")
    others = {name: value for name, value in sums.items() if name != "bundle.json"} if isinstance(sums, dict) else sums
    return hashlib.sha256(json.dumps({**description, "sha256": others}, sort_keys=True).encode()).hexdigest()


def _contradictions(spec: ModelSpec, schema: Schema) -> list[str]:
    """Return what no training can have written: sizes that differ, and units without an extent."""
    found = []
    if spec.shape != schema.shape:
        found.append(f"the schema makes samples of shape {schema.shape}; the model wants {spec.shape}")
    elif spec.fields != schema.layout.fields:
        found.append("the schema has other columns than the model")
    if isinstance(schema, TableSchema):
        scales = {c.name: c.scale for c in schema.columns}
        found += [
            f"column {n!r} has scale {v}; expected more than 0" for n, v in scales.items() if not 0 < v < math.inf
        ]
    if isinstance(schema, ImageSchema) and not schema.low < schema.high:
        found.append(f"images have values from {schema.low} to {schema.high}; expected the lower end first")
    return found


def _reference(folder: Path, schema: Schema) -> drift.Reference | None:
    arrays = safetensors.numpy.load_file(folder / "reference.safetensors")
    return drift.Reference.from_arrays(arrays, schema) if arrays else None


def _unsound(folder: Path, why: str) -> BundleError:
    return BundleError(f"{folder} is no sound bundle: {why}; take it from the registry again")


def _description(folder: Path) -> dict[str, Any]:
    """Read bundle.json; its format is looked at first, since a newer one may differ in everything else."""
    path = folder / "bundle.json"
    if path.is_symlink() or not path.is_file():
        return {}  # `_problems` tells
    try:
        description = files.parse_json(path)
    except ValueError as error:
        raise _unsound(folder, f"bundle.json {error}") from None
    if not isinstance(description, dict):
        raise _unsound(folder, f"bundle.json holds {type(description).__name__}; expected an object")
    found = description.get("format")
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise BundleError(
            f"{folder} has bundle format {found!r}; this version of sevenfold reads 1 to {FORMAT}; "
            "use the sevenfold version that wrote it, or a newer one"
        )
    return description


def _problems(folder: Path, description: Mapping[str, Any]) -> list[str]:
    """Return every file that is missing, added or not as it was written. Nothing is parsed, no link is followed."""
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*"))}
    referenced = not description or description["format"] >= _REFERENCED
    wanted = [name for name in FILES if referenced or name != "reference.safetensors"]
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} does not belong there" for name in found if name not in wanted]
    sums = description.get("sha256")
    sums = sums if isinstance(sums, dict) else {}
    problems += [
        f"bundle.json names {name!r}, which is no file of a bundle and not looked at"
        for name in sums
        if name not in wanted
    ]
    # The first format had no sums of its own; of such a bundle only the digest of the whole tells.
    summed = bool(description) and description["format"] > 1
    for name in wanted:
        if name not in found:
            continue
        path = found[name]
        if path.is_symlink() or not path.is_file():
            problems.append(f"{name} is a link or a folder; expected a plain file")
        elif name == "bundle.json":
            if summed and sums.get(name) != digest_of(description):
                problems.append(f"{name} is damaged or was changed: what it says has another SHA-256")
        elif summed and files.digest(path) != sums.get(name):
            problems.append(f"{name} is truncated or damaged: its {path.stat().st_size} bytes have another SHA-256")
        elif problem := files.header_problem(path):
            problems.append(f"{name} {problem}")
    return problems


def _save_weights(path: Path, model: Autoencoder) -> None:
    weights = {name: value.detach().cpu().contiguous() for name, value in sorted(model.state_dict().items())}
    safetensors.torch.save_file(weights, path)


def _with_weights(spec: ModelSpec, weights: Mapping[str, torch.Tensor], path: Path) -> Autoencoder:
    model = spec.build()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{path} does not hold the weights of {spec.variant} {dict(spec.options)}: {reason}"
        ) from None
    return model.eval()
