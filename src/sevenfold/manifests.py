"""Manifests of jobs: which partitions are done, written down one by one, so that a job that ends early goes on there.

A job works in a hidden folder beside its output. What it does is a line of `journal.jsonl` there as soon as it is done; a
line that a kill cut off does not count. What is left of it at the end is the manifest beside the output.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sevenfold import files, places

FORMAT = 1


class ResumeError(ValueError):
    """What was begun cannot go on: it was another job, or its input is another one by now."""


@dataclass(frozen=True)
class Entry:
    """A partition that is done.

    number: its place, from 0.
    source: the file that its rows come from, as the job names it; of many files the first.
    first: the number of its first row in that file, or of its first file among all; from 0.
    rows: how many it holds of the output; 0 where all of them were put aside.
    quarantined: how many were put aside.
    file: its name in the folder of parts.
    digest: SHA-256 of it.
    numbers: what its sink counted, by name; see `sinks.Sink.write`.
    """

    number: int
    source: str
    first: int
    rows: int
    quarantined: int
    file: str
    digest: str
    numbers: Mapping[str, int] = field(default_factory=dict)


class Journal:
    """The folder that a job works in, and what it has done so far.

    elsewhere: the output if it is not on this machine; what is done is kept there, too.
    known: names of files that may be in the output's folder, see `outputs.require_known`; None where nobody wrote them down, as
        of a job of an earlier version.
    """

    def __init__(self, folder: Path, elsewhere: places.Output | None = None) -> None:
        self.folder = folder
        self.elsewhere = elsewhere
        self.ours = False  # whether this process has written of it
        self.parts = folder / "parts"
        self.path = folder / "journal.jsonl"
        self.job: dict[str, Any] | None = None
        self.entries: dict[int, Entry] = {}
        self.digests: dict[str, str] = {}
        self.known: set[str] | None = None
        self.ended = False
        self._read()

    @property
    def begun(self) -> bool:
        """Whether there is anything worth going on with."""
        return self.job is not None and not self.ended

    def _read(self) -> None:
        if not self.path.is_file():
            return
        whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            if "job" in record:
                self.job = record["job"]
            elif "partition" in record:
                entry = Entry(**record["partition"])
                self.entries[entry.number] = entry
            elif "inputs" in record:
                self.digests |= record["inputs"]
            elif "output" in record:
                self.known = (self.known or set()) | {*record["output"]}
            elif "ended" in record:
                self.ended = True
        # What a torn write left would take the next line with it.
        os.truncate(self.path, whole)

    def begin(self, job: Mapping[str, Any]) -> None:
        """Start anew, with nothing done."""
        self.clear()
        self.parts.mkdir(parents=True, exist_ok=True)
        self._append({"job": dict(job)})
        self.job = dict(job)
        self.ours = True
        if self.elsewhere is not None:
            self.elsewhere.forget()
            self.elsewhere.keep_journal(self.path, now=True)

    def verify(self) -> None:
        """Forget partitions whose files are not as they were written, and remove what a kill left half done.

        A disk may have lost what it had said to be safe; such partitions are made again.
        """
        for number, entry in [*self.entries.items()]:
            path = self.parts / entry.file
            if not path.exists() or files.digest(path) != entry.digest:
                del self.entries[number]
        for draft in [*self.folder.glob(".*"), *self.parts.glob(".*")]:
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()

    def keep(self, *parts: Path) -> None:
        """Put parts that are done beside an output elsewhere, before they are entries; on this machine they are there."""
        if self.elsewhere is not None:
            self.elsewhere.keep(self.folder, *parts)
            self.elsewhere.keep_journal(self.path)

    def add(self, entry: Entry) -> None:
        self.ours = True
        self._append({"partition": asdict(entry)})
        self.entries[entry.number] = entry

    def add_inputs(self, digests: Mapping[str, str]) -> None:
        """Write down the SHA-256 of input files, by their names."""
        self._append({"inputs": dict(digests)})
        self.digests |= digests

    def know(self, names: Collection[str]) -> None:
        """Write down what may be where the output goes: what was there before, and what is to come there."""
        self._append({"output": [*names]})
        self.known = (self.known or set()) | {*names}

    def end(self) -> None:
        """Say that output and receipt are whole: from here on the folder is of no use."""
        if self.elsewhere is not None:
            self.elsewhere.forget()  # first: what is left there would look like a job that ended early
        self._append({"ended": True})
        self.ended = True

    def clear(self) -> None:
        """Remove all that was done; the lock stays."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        self.job, self.entries, self.digests, self.ended = None, {}, {}, False
        self.known = None

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n"
        new = not self.path.exists()
        with self.path.open("ab") as handle:
            handle.write(line.encode())
            handle.flush()
            os.fsync(handle.fileno())
        if new:
            files.sync(self.folder)


@contextmanager
def journal(destination: Path, elsewhere: places.Output | None = None) -> Iterator[Journal]:
    """Give the journal of the job that writes this output; no other one of this machine writes it meanwhile.

    The lock dies with its holder. When nothing is worth keeping the folder goes at the end.

    Args:
        elsewhere: the output if it is made at `destination` to be put elsewhere. What another machine has begun there is
            fetched.

    Raises:
        BlockingIOError: another job is writing this output.
    """
    folder = workplace(destination)
    made = [p for p in (folder.parent, *folder.parent.parents) if not p.exists()]
    with _locked(folder, destination if elsewhere is None else elsewhere.url):
        if elsewhere is not None:
            elsewhere.restore(folder)
        found = Journal(folder, elsewhere)
        try:
            yield found
        finally:
            shutil.rmtree(inputs(destination), ignore_errors=True)
            if elsewhere is not None and found.ours and not found.ended:
                with suppress(OSError):  # what went wrong before says more
                    elsewhere.keep_journal(found.path, now=True) if found.entries else elsewhere.forget()
            if found.ended or not found.entries:
                if elsewhere is not None:
                    elsewhere.remove()
                shutil.rmtree(folder, ignore_errors=True)
                for empty in made:  # folders for an output that did not come
                    if empty.is_dir() and not any(empty.iterdir()):
                        empty.rmdir()


def path(output: Path) -> Path:
    """Return where the manifest of an output lies."""
    return output.with_name(f"{output.name}.manifest.json")


def begun(destination: Path, elsewhere: places.Output | None = None) -> dict[str, Any] | None:
    """Return what is known of the job that began to write this output and ended early, if there is one.

    Args:
        elsewhere: see `journal`.
    """
    folder = workplace(destination)
    if not (folder / "journal.jsonl").is_file() and (elsewhere is None or not elsewhere.begun()):
        return None
    try:
        with journal(destination, elsewhere) as found:
            return found.job if found.begun and found.entries else None
    except BlockingIOError:
        return None  # it is under way; whoever begins a second one is told


def workplace(destination: Path) -> Path:
    """Return the hidden folder in which an output is made."""
    return destination.with_name(f".{destination.name}.partial")


def inputs(destination: Path) -> Path:
    """Return the folder for what a job fetches from elsewhere while it reads it."""
    return workplace(destination) / "inputs"


@contextmanager
def _locked(folder: Path, destination: Path | str) -> Iterator[None]:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = (folder / "lock").open("ab")
        except FileNotFoundError:
            continue  # the job before has just removed its folder
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f"another job is writing {destination}; wait for it, stop it, or give this output another name"
                ) from None
            try:
                same = os.fstat(lock.fileno()).st_ino == (folder / "lock").stat().st_ino
            except FileNotFoundError:
                same = False
            if same:  # and not a file that went with the folder of the job before
                yield
                return


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words where two jobs differ."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            was, is_ = (_short(value.get(name)) for value in (before, now))
            found.append(f"{name} was {was} and is {is_}" if len(was) + len(is_) < 200 else f"{name} is another one")
    return found


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value, ensure_ascii=False)
