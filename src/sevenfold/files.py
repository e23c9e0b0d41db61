"""Whole files or none: write beside, flush to disk, rename. Digests of what was written, and bounds of what is parsed."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

MOST_JSON = 64 << 20
"""Bytes of JSON that are parsed: far above any file of ours, and below what would fill the memory."""

MOST_HEADER = 16 << 20
"""Bytes of a safetensors header that are parsed; a model of 100,000 tensors needs about as many."""


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole(path: Path, room: Path | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there becomes `path` at the end of the block, or never.

    Works for a file and for a folder. After an error or a kill `path` is what it was before. One gap is left: a folder
    in the way of a new one has to step aside first; a kill just then leaves both in the hidden folder beside `path`.

    Args:
        room: a folder of the caller's on the same disk, for the temporary path; a kill leaves it to the caller. By default
            one beside `path`.

    Raises:
        FileNotFoundError: the block wrote nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent if room is None else room))
    try:
        draft = room / path.name
        yield draft
        if not draft.exists():
            raise FileNotFoundError(f"nothing was written that could become {path}")
        for file in [draft, *draft.rglob("*")] if draft.is_dir() else [draft]:
            sync(file)
        if path.is_dir():
            # A folder cannot be renamed over a full one.
            path.rename(room / "replaced")
        try:
            draft.rename(path)
        except BaseException:  # a signal, too
            if (room / "replaced").exists():
                (room / "replaced").rename(path)
            raise
        sync(path.parent)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def write_text(path: Path, text: str, room: Path | None = None) -> None:
    """Write a file whole or not at all; `room` as of `whole`."""
    with whole(path, room) as draft:
        draft.write_text(text, encoding="utf-8")


def dumps(value: Any) -> str:
    """Return `value` as JSON with sorted keys: equal values give equal bytes. NaN is refused."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any, room: Path | None = None) -> None:
    write_text(path, dumps(value), room)


def read_json(path: Path, *, remedy: str = "run `dvc repro` or `sevenfold run` to make it") -> Any:
    """Read JSON, naming the file in the error where it is missing, damaged or too large to be what it should.

    Args:
        remedy: what to do where it is missing.
    """
    try:
        return parse_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}; remove it and run `dvc repro`") from None


def parse_json(path: Path) -> Any:
    """Return what a file of bounded size says.

    Raises:
        ValueError: it is larger, or no JSON; the message says which, without the file's name.
    """
    with path.open("rb") as handle:
        content = handle.read(MOST_JSON + 1)
    if len(content) > MOST_JSON:
        raise ValueError(f"has {path.stat().st_size:,} bytes; expected JSON of at most {MOST_JSON:,}")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not valid JSON ({error})") from None


def header_problem(path: Path) -> str | None:
    """Return what is wrong with the size that a safetensors file claims for its header, which is JSON; None if nothing."""
    with path.open("rb") as handle:
        start = handle.read(8)
    if len(start) < 8:
        return f"has {len(start)} bytes; expected a safetensors file, which begins with the size of its header"
    claimed, there = int.from_bytes(start, "little"), path.stat().st_size - 8
    if claimed > there:
        return (
            f"claims a header of {claimed:,} bytes and has {there:,} after that; it is truncated or no safetensors file"
        )
    if claimed > MOST_HEADER:
        return f"has a header of {claimed:,} bytes; expected at most {MOST_HEADER:,}"
    return None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's relative names and contents, as hexadecimal text."""
    if path.is_dir():
        return digest_of((p.relative_to(path).as_posix(), digest(p)) for p in path.rglob("*") if p.is_file())
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_unless(path: Path, stopped: Callable[[], bool]) -> str | None:
    """Return the SHA-256 of a file; None where it is no longer wanted before its end is reached."""
    found, room = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as handle:
        while count := handle.readinto(room):
            if stopped():
                return None
            found.update(room[:count])
    return found.hexdigest()


def digest_of(entries: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 of a folder whose files have these names, relative to it, and digests."""
    return hashlib.sha256("".join(f"{name}\0{value}\n" for name, value in sorted(entries)).encode()).hexdigest()


def local_path(location: str) -> Path | None:
    """Return the path that the address of a file or folder means on this machine; None where it is elsewhere."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(location) if not parts.scheme else None
