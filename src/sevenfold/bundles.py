"""Models on disk: JSON and safetensors, never pickle, with a digest of the content.

A bundle is all that a batch job needs: the model, the schema of its samples, and one calibrated application.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch

from sevenfold import files, modules
from sevenfold.applications.base import Application
from sevenfold.datasets.base import Schema, schema_from_json
from sevenfold.models.base import Autoencoder, ModelSpec

FORMAT = 1
FILES = ("application.safetensors", "bundle.json", "model.safetensors")
_LARGEST_HEADER = 16 << 20  # bytes; far above any real one, far below what would fill the memory


class BundleError(ValueError):
    """A folder is no bundle, or not the one it was."""


@dataclass(frozen=True)
class Bundle:
    """A model ready for work.

    origin: where it comes from, as plain JSON: data set, candidate, digest of the prepared data, seed.
    """

    spec: ModelSpec
    model: Autoencoder
    schema: Schema
    application_name: str
    application: Application
    origin: Mapping[str, Any]


def save_model(folder: Path, spec: ModelSpec, model: Autoencoder) -> None:
    """Write a model that has no application yet: `model.json` and `model.safetensors`."""
    with files.whole(folder) as draft:
        draft.mkdir()
        files.write_json(draft / "model.json", spec.to_json())
        _save_weights(draft / "model.safetensors", model)


def load_model(folder: Path) -> tuple[ModelSpec, Autoencoder]:
    """Read what `save_model` wrote."""
    spec = ModelSpec.from_json(files.read_json(folder / "model.json"))
    return spec, _load_weights(folder / "model.safetensors", spec)


def save(folder: Path, bundle: Bundle) -> str:
    """Write a bundle and return its digest. Equal bundles give equal bytes."""
    with files.whole(folder) as draft:
        draft.mkdir()
        description = {
            "format": FORMAT,
            "model": bundle.spec.to_json(),
            "schema": bundle.schema.to_json(),
            "application": {"name": bundle.application_name, "options": dict(bundle.application.options)},
            "origin": dict(bundle.origin),
        }
        files.write_json(draft / "bundle.json", description)
        _save_weights(draft / "model.safetensors", bundle.model)
        state = dict(sorted(bundle.application.state.items()))
        safetensors.numpy.save_file(state, draft / "application.safetensors")
    return digest(folder)


def load(folder: Path, *, expected: str | None = None) -> Bundle:
    """Read a bundle.

    Args:
        expected: the digest that the bundle must have, where it is known.

    Raises:
        FileNotFoundError: there is no such folder.
        BundleError: files are missing, added, damaged or of a newer format, or the digest is another.
    """
    if problems := _problems(folder):
        raise BundleError(f"{folder} is no sound bundle: {'; '.join(problems)}; take it from the registry again")
    if expected is not None and (got := digest(folder)) != expected:
        raise BundleError(
            f"{folder} has digest {got[:12]}; expected {expected[:12]}; it was changed; take it from the registry again"
        )
    description = files.read_json(folder / "bundle.json")
    if description.get("format") != FORMAT:
        raise BundleError(
            f"{folder} has bundle format {description.get('format')!r}; this version reads {FORMAT}; "
            "use the sevenfold version that wrote it"
        )
    spec = ModelSpec.from_json(description["model"])
    name = description["application"]["name"]
    kind: Any = modules.member("applications", name, Application)
    application: Application = kind(**description["application"]["options"])
    return Bundle(
        spec,
        _load_weights(folder / "model.safetensors", spec),
        schema_from_json(description["schema"]),
        name,
        application.with_state(safetensors.numpy.load_file(folder / "application.safetensors")),
        description["origin"],
    )


def digest(folder: Path) -> str:
    """Return the SHA-256 over names and contents of the bundle's files, as hexadecimal text."""
    return files.digest(folder)


def describe(folder: Path) -> dict[str, Any]:
    """Return the bundle's own JSON without loading its weights."""
    if problems := _problems(folder):
        raise BundleError(f"{folder} is no sound bundle: {'; '.join(problems)}; take it from the registry again")
    description: dict[str, Any] = files.read_json(folder / "bundle.json")
    return description


def _problems(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; expected a bundle's folder")
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*")}
    problems = [f"{name} is missing" for name in FILES if name not in found]
    problems += [f"{name} does not belong there" for name in sorted(found) if name not in FILES]
    problems += [f"{name} is a link; expected a plain file" for name, p in sorted(found.items()) if p.is_symlink()]
    for name, path in sorted(found.items()):
        if name in FILES and not path.is_symlink() and (trouble := _damage(path)):
            problems.append(f"{name} {trouble}")
    return problems


def _damage(path: Path) -> str | None:
    """Look at a file's outside before a library parses it."""
    size = path.stat().st_size
    if path.suffix == ".json":
        if size > _LARGEST_HEADER:
            return f"has {size} bytes; expected at most {_LARGEST_HEADER}"
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            return f"is not valid JSON ({error})"
        return None
    with path.open("rb") as handle:
        start = handle.read(8)
        if len(start) < 8:
            return f"has {size} bytes; it is truncated"
        (header,) = struct.unpack("<Q", start)
        if header > min(size - 8, _LARGEST_HEADER):
            return f"announces a header of {header} bytes in a file of {size}; it is damaged"
        try:
            layout = json.loads(handle.read(header))
        except ValueError:
            return "has a header that is not valid JSON; it is damaged"
    ends = [8 + header + entry["data_offsets"][1] for name, entry in layout.items() if name != "__metadata__"]
    wanted = max(ends, default=8 + header)
    return None if wanted == size else f"has {size} bytes; its header wants {wanted}; it is truncated or damaged"


def _save_weights(path: Path, model: Autoencoder) -> None:
    weights = {name: value.detach().cpu().contiguous() for name, value in sorted(model.state_dict().items())}
    safetensors.torch.save_file(weights, path)


def _load_weights(path: Path, spec: ModelSpec) -> Autoencoder:
    model = spec.build()
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.eval()
