"""Whole files or none: write beside, flush to disk, rename. And digests of what was written."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there becomes `path` at the end of the block, or never.

    Works for a file and for a folder. After an error or a kill `path` is what it was before. One gap is left: a folder
    in the way of a new one has to step aside first; a kill just then leaves both in the hidden folder beside `path`.

    Raises:
        FileNotFoundError: the block wrote nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        draft = room / path.name
        yield draft
        if not draft.exists():
            raise FileNotFoundError(f"nothing was written that could become {path}")
        for file in [draft, *draft.rglob("*")] if draft.is_dir() else [draft]:
            _sync(file)
        if path.is_dir():
            # A folder cannot be renamed over a full one.
            path.rename(room / "replaced")
        try:
            draft.rename(path)
        except OSError:
            if (room / "replaced").exists():
                (room / "replaced").rename(path)
            raise
        _sync(path.parent)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def dumps(value: Any) -> str:
    """Return `value` as JSON with sorted keys: equal values give equal bytes. NaN is refused."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, dumps(value))


def read_json(path: Path) -> Any:
    """Read JSON, naming the file in the error where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; run `dvc repro` or `sevenfold run` to make it") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); remove it and run `dvc repro`") from None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's relative names and contents, as hexadecimal text."""
    if path.is_dir():
        entries = sorted((p.relative_to(path).as_posix(), digest(p)) for p in path.rglob("*") if p.is_file())
        return hashlib.sha256("".join(f"{name}\0{value}\n" for name, value in entries).encode()).hexdigest()
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
