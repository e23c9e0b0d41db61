"""Files elsewhere: `s3://bucket/rows.parquet` and whatever else fsspec knows, read and written by way of this machine.

The one home of fsspec. Keys come from the environment (of S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) or
fsspec's own configuration, never from an address, since an address is written into receipts and logs.

What is read is fetched to a local file for as long as somebody reads it. What is written is made on this machine and then
put there; while a job is under way its finished partitions lie beside the output as `.NAME.partial`, so that another
machine can go on. An object store has no rename: of a folder, what is there counts when its receipt is.
"""

import errno
import glob
import hashlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from sevenfold import files

KEPT = 1 << 28
"""Bytes of fetched files that stay although nobody reads them just now: the next partition may be of the same file."""

BEGINNING = 1 << 20
"""Bytes of a file in which its first line ends."""

CHUNK = 1 << 22
"""Bytes at a time that are fetched."""

BETWEEN_JOURNALS = 1.0
"""Seconds between two copies of the journal: it grows with the job, and is put there whole."""


class ChangedError(OSError):
    """A file is not the one any more that was listed, so nothing that was made of it counts.

    changes: what has happened, a sentence for each file.
    """

    def __init__(self, changes: Sequence[str]) -> None:
        super().__init__(f"the input changed while it was read: {'; '.join(changes[:5])}")
        self.changes = [*changes]


def is_url(given: str | Path) -> bool:
    """Say whether this is an address and no path."""
    return isinstance(given, str) and "://" in given


def parsed(text: str) -> str | Path:
    """Return what a user wrote as an address, or as a path, as which `file://` addresses come, too."""
    if not is_url(text):
        return Path(text)
    local = files.local_path(text)
    return text if local is None else local


def require(url: str) -> None:
    """Refuse an address that holds a secret, or that nothing here can read.

    Raises:
        ValueError: it does; the message does not repeat it.
    """
    parts = urlsplit(url)
    # One address may be reached through another: simplecache::https://...
    chained = [urlsplit(one) for one in url.split("::")]
    shown = f"{parts.scheme}://...{chained[-1].path}"
    # Azure's have a container there.
    if any("@" in one.netloc and one.scheme not in ("abfs", "abfss", "wasb", "wasbs", "az") for one in chained):
        raise ValueError(
            f"the address {shown} holds a user or a password; expected none, since addresses are written into receipts; "
            "give keys by the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    # A pattern may hold a question mark, too, and no NAME=VALUE.
    if any(one.query and (one.scheme in ("http", "https") or "=" in one.query) for one in chained):
        raise ValueError(
            f"the address {shown} holds a query, in which secrets may be; expected none; fetch the file and name it here"
        )
    _system(url)


@dataclass(frozen=True)
class Found:
    """A file elsewhere as it was when it was listed.

    url: its address. name: what it is called below the folder that was named. size: bytes.
    version: what another content would have otherwise: its ETag, or when it was written.
    """

    url: str
    name: str
    size: int
    version: str

    def changed(self) -> str | None:
        """Return what has happened to the file since, if anything."""
        system, path = _system(self.url)
        try:
            with _explained(self.url):
                system.invalidate_cache()
                about = system.info(path)
        except FileNotFoundError:
            return f"{self.url} is gone"
        if about["size"] != self.size:
            return f"{self.url} had {self.size:,} bytes and has {about['size']:,}"
        return f"{self.url} was written to" if _version(about) != self.version else None

    @contextmanager
    def here(self, room: Path) -> Iterator[Path]:
        """Give the local copy of the file for as long as the block reads it; one copy for all that do in this process.

        Args:
            room: a folder for copies; each process has its own in it.

        Raises:
            ChangedError: it is another one by now. OSError: it cannot be fetched.
        """
        with _copies.use(self, room) as path:
            yield path

    @contextmanager
    def beginning(self, *, whole: bool = False) -> Iterator[Path]:
        """Give a file with the beginning of this one, or all of it, for as long as the block reads it."""
        system, path = _system(self.url)
        with tempfile.TemporaryDirectory() as room:
            copy = Path(room) / PurePosixPath(self.name).name
            with _explained(self.url):
                if whole or self.size <= BEGINNING:
                    system.get_file(path, str(copy))
                else:
                    copy.write_bytes(system.cat_file(path, start=0, end=BEGINNING))
            yield copy

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Give the file to be read in pieces from where it is; for those who need little of it."""
        system, path = _system(self.url)
        with _explained(self.url), system.open(path, "rb", block_size=1 << 16) as handle:
            yield handle

    def digest(self) -> str:
        """Return the SHA-256 of the file: as it was fetched, where it was. Raises as `here` does."""
        known = _copies.digests.get((self.url, self.version))
        return known or _fetched(self, None)


def listed(url: str, wanted: Callable[[str], bool]) -> list[Found]:
    """Find the files that an address means: one, all in a folder, or those of a pattern, in the order of their names.

    Args:
        wanted: says of a file's name whether it counts in a folder.

    Raises:
        FileNotFoundError: there is nothing. PermissionError: nobody here may read it.
    """
    system, path = _system(url)
    named = ""
    with _explained(url):
        system.invalidate_cache()
        if glob.has_magic(path):
            parts = path.split("/")
            magic = next(i for i, part in enumerate(parts) if glob.has_magic(part))
            fixed, named = "/".join(parts[:magic]), "".join(part[:1] for part in parts[magic:])
            every = system.glob(path, detail=True)
        elif system.isfile(path):
            fixed, every = path.rpartition("/")[0], {path: system.info(path)}
        else:
            fixed, every = path.rstrip("/"), system.find(path, detail=True)
    one = list(every) == [path]
    start = url[: url.index(path)] if path in url else f"{urlsplit(url).scheme}://"
    found = []
    for place, about in sorted(every.items()):
        name = place.removeprefix(fixed).lstrip("/")
        # As of paths: a pattern may name the dot or the underscore.
        hidden = any(part[:1] in "._" and part[:1] not in named for part in name.split("/"))
        if about["type"] == "file" and (one or (not hidden and (named or wanted(name)))):
            found.append(Found(start + place, name, about["size"], _version(about)))
    if not every:
        raise FileNotFoundError(f"{url} does not exist; check the address")
    return found


def learn(digests: Sequence[tuple[str, str, str]]) -> None:
    """Take over what another process found: addresses, versions and SHA-256 of the files that it fetched."""
    _copies.digests.update({(url, version): digest for url, version, digest in digests})


def learned(found: Sequence[Found]) -> list[tuple[str, str, str]]:
    """Return addresses, versions and SHA-256 of those of the files that this process has fetched."""
    known = _copies.digests
    return [(f.url, f.version, known[f.url, f.version]) for f in found if (f.url, f.version) in known]


def _version(about: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "LastModified", "last_modified", "mtime", "created"):
        if (value := about.get(key)) is not None:
            # Some say it one way in a list and another way of one file.
            return str(value.timestamp() if isinstance(value, datetime) else value)
    return ""


def _system(url: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    import fsspec

    scheme = urlsplit(url).scheme
    try:
        system, path = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = "pip install 'sevenfold[s3]'" if scheme == "s3" else "pip install what it names"
        raise RuntimeError(f"{scheme}:// needs a library that is not installed ({error}); {extra}") from None
    except ValueError as error:
        raise ValueError(
            f"{scheme}:// is no kind of place that fsspec knows: {error}; expected s3://, for one"
        ) from None
    return system, str(path)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what a store's library says into an OSError that names the address, and no key."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{url} does not exist; check the address, and AWS_ENDPOINT_URL where it is not AWS"
        ) from None
    except PermissionError as error:
        raise PermissionError(
            f"{url}: {_said(error)}; give keys that may read and write there, such as by AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from None
    except ChangedError:
        raise
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"{url}: {_said(error)}") from error
    except Exception as error:  # botocore's errors are of many kinds, and none of them is an OSError
        if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec"):
            raise
        if "Credentials" in type(error).__name__:
            raise PermissionError(
                f"{url}: {_said(error)}; give keys by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        raise OSError(errno.EIO, f"{url}: {_said(error)}") from error


def _said(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error).strip() or type(error).__name__


@dataclass
class _Copy:
    path: Path
    size: int
    users: int = 0
    busy: threading.Lock = field(default_factory=threading.Lock)


class _Copies:
    """The local copies of this process: those in use, and some that were just now."""

    def __init__(self) -> None:
        self.digests: dict[tuple[str, str], str] = {}
        self._held: OrderedDict[tuple[str, str, Path], _Copy] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, found: Found, room: Path) -> Iterator[Path]:
        key = (found.url, found.version, room)
        with self._lock:
            copy = self._held.setdefault(key, _Copy(_own(room) / found.name, found.size))
            copy.users += 1
            self._held.move_to_end(key)
        try:
            with copy.busy:
                if not copy.path.exists():
                    self.digests[found.url, found.version] = _fetched(found, copy.path)
            yield copy.path
        finally:
            with self._lock:
                copy.users -= 1
                self._drop()

    def _drop(self) -> None:
        """Remove copies that nobody uses, the oldest first, until few enough bytes are left; the last one stays."""
        idle = [key for key, copy in self._held.items() if not copy.users]
        size = sum(self._held[key].size for key in idle)
        for key in idle[:-1]:
            if size <= KEPT:
                return
            gone = self._held.pop(key)
            gone.path.unlink(missing_ok=True)
            size -= gone.size


_copies = _Copies()


def _own(room: Path) -> Path:
    """Return the folder of this process: another one must not take away what this one reads."""
    return room / f"{socket.gethostname()}-{os.getpid()}"


def _fetched(found: Found, target: Path | None) -> str:
    """Fetch a file, or only read it for None, and return its SHA-256."""
    system, path = _system(found.url)
    digest, count = hashlib.sha256(), 0
    draft = None if target is None else target.with_name(f".{target.name}.{threading.get_ident()}")
    if draft is not None:
        draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            _explained(found.url),
            system.open(path, "rb", block_size=CHUNK, cache_type="readahead") as source,
            (draft or Path(os.devnull)).open("wb") as copy,
        ):
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                count += copy.write(chunk)
        # Pieces of two versions make none.
        if change := found.changed() or (f"{found.url} gave {count:,} bytes" if count != found.size else None):
            raise ChangedError([change])
        if draft is not None and target is not None:
            draft.rename(target)
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)
    return digest.hexdigest()


def home(url: str) -> Path:
    """Return the folder of this machine in which the output of an address is made, one for each address."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "sevenfold" / "jobs" / hashlib.sha256(url.encode()).hexdigest()[:16]


class Output:
    """An output elsewhere: what is made of it here, and what of that is there already.

    url: its address. path: where it is made on this machine.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        require(self.url)
        self._system, self._path = _system(self.url)
        self.path = home(self.url) / PurePosixPath(self._path).name
        self._partial = self._beside(f".{self.path.name}.partial")
        self._last = 0.0

    def beside(self, path: Path) -> str:
        """Return the address of what lies beside the output, as it is called on this machine."""
        return f"{self.url.rpartition('/')[0]}/{path.name}"

    def _beside(self, name: str) -> str:
        return f"{self._path.rpartition('/')[0]}/{name}"

    def check(self, source: str | Path, ours: Path) -> None:
        """Refuse an output that cannot be written.

        Args:
            ours: the file beside a folder that says that a job made it, as it is called on this machine.

        Raises:
            ValueError: it is the input. FileExistsError: other things are there. OSError: nothing can be written there.
        """
        if str(source).rstrip("/") == self.url:
            raise ValueError(f"input and output are both {source}; give the output another name")
        single = bool(self.path.suffix)
        with _explained(self.url):
            self._system.invalidate_cache()
            folder, file = self._system.isdir(self._path), self._system.isfile(self._path)
            strange = not single and self._sizes(self._path) and not self._system.exists(self._beside(ours.name))
        if single and folder:
            raise IsADirectoryError(f"the output {self.url} is a folder; expected a file's name; name a file inside it")
        if not single and file:
            raise FileExistsError(f"the output {self.url} is a file; expected a folder's name; give another one")
        if strange and not self.begun():
            raise FileExistsError(
                f"the output {self.url} holds files that no job wrote; expected a new or empty folder, or one that a job "
                "made; give another name"
            )
        with _explained(self.url):
            trial = f"{self._partial}/trial"
            self._system.pipe_file(trial, b"")
            self._system.rm_file(trial)

    def held(self, receipt: Path) -> tuple[bytes, list[str]] | None:
        """Return the receipt of the folder that is there, and the paths in it of all files; None where either is missing.

        Args:
            receipt: as it is called on this machine.
        """
        with _explained(self.url):
            self._system.invalidate_cache()
            names = [place.removeprefix(self._path).lstrip("/") for place in self._sizes(self._path)]
            names = [name for name in names if name and not name.endswith("/")]  # some list folders as files
            if self.path.suffix or not names or not self._system.exists(self._beside(receipt.name)):
                return None
            return bytes(self._system.cat_file(self._beside(receipt.name))), names

    def is_ours(self, ours: Path) -> bool:
        """Say whether a job made what is there, or has begun to; `ours` as for `check`."""
        with _explained(self.url):
            self._system.invalidate_cache()
            return bool(self._system.exists(self._beside(ours.name))) or self.begun()

    def begun(self) -> bool:
        """Say whether a job of any machine has begun to write this output, and has not ended."""
        with _explained(self.url):
            self._system.invalidate_cache()
            return bool(self._system.exists(f"{self._partial}/journal.jsonl"))

    def restore(self, folder: Path) -> None:
        """Fetch what another machine has done of this job, where this one knows nothing of it.

        Args:
            folder: where journal and parts lie on this machine.
        """
        journal = folder / "journal.jsonl"
        if journal.exists() or not self.begun():
            return
        with _explained(self.url):
            (folder / "parts").mkdir(parents=True, exist_ok=True)
            # The journal last: without it the parts count for nothing.
            for place in self._sizes(f"{self._partial}/parts"):
                target = folder / place.removeprefix(self._partial).lstrip("/")
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._get(place, target)
            self._get(f"{self._partial}/{journal.name}", journal)

    def _get(self, place: str, target: Path) -> None:
        draft = target.with_name(f".{target.name}")
        self._system.get_file(place, str(draft))
        draft.rename(target)

    def keep(self, folder: Path, *parts: Path) -> None:
        """Put parts that are done beside the output, for another machine to go on with."""
        with _explained(self.url):
            for part in parts:
                for file in _files(part):
                    self._system.put_file(str(file), f"{self._partial}/{file.relative_to(folder).as_posix()}")

    def keep_journal(self, journal: Path, *, now: bool = False) -> None:
        """Put the journal there, unless that was done just before."""
        if now or time.monotonic() - self._last >= BETWEEN_JOURNALS:
            with _explained(self.url):
                self._system.put_file(str(journal), f"{self._partial}/{journal.name}")
            self._last = time.monotonic()

    def forget(self) -> None:
        """Remove what was kept beside the output, the journal first."""
        with _explained(self.url):
            self._system.invalidate_cache()
            for place in (f"{self._partial}/journal.jsonl", self._partial):
                if self._system.exists(place):
                    self._system.rm(place, recursive=True)

    def publish(self, beside: Sequence[Path], receipt: Path) -> None:
        """Put the output there, and what lies beside it but for the receipt; what an earlier job left goes, its receipt first.

        Parts that are there already and are files of the output are copied by the store itself.

        Args:
            beside: files of this machine; one that is not there is one that this output does not have.
        """
        with _explained(self.url):
            self._system.invalidate_cache()
            for path in (receipt, *beside):
                if self._system.exists(self._beside(path.name)):
                    self._system.rm_file(self._beside(path.name))
            if self.path.is_dir():
                self._publish_folder()
            else:
                self._system.put_file(str(self.path), self._path)
            for path in beside:
                if path.exists():
                    self._system.put_file(str(path), self._beside(path.name))

    def _publish_folder(self) -> None:
        there = {}
        for place, size in self._sizes(f"{self._partial}/parts").items():
            name = place.removeprefix(f"{self._partial}/parts").lstrip("/")
            there[name] = there[name.partition("/")[2]] = place, size  # the output has the files of a folder without it
        made = {file.relative_to(self.path).as_posix(): file for file in _files(self.path)}
        for name, file in made.items():
            place, size = there.get(name, ("", -1))
            if size == file.stat().st_size:
                self._system.cp_file(place, f"{self._path}/{name}")
            else:
                self._system.put_file(str(file), f"{self._path}/{name}")
        for place in self._sizes(self._path):
            if place.removeprefix(self._path).lstrip("/") not in made:
                self._system.rm_file(place)

    def _sizes(self, folder: str) -> dict[str, int]:
        """Return the files below a folder, with their bytes; some stores list an empty folder as itself."""
        found = self._system.find(folder, detail=True)
        return {place: about["size"] for place, about in found.items() if about["type"] == "file"}

    def seal(self, receipt: Path) -> None:
        """Put the receipt there: all else is whole."""
        with _explained(self.url):
            self._system.put_file(str(receipt), self._beside(receipt.name))

    def remove(self) -> None:
        """Remove what was made on this machine; all of it is there."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
