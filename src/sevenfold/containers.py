"""The `.7f` container: streams of many images in one file, of which damage takes only what it hits.

    header   magic (7 bytes), version (1), digest of the model that wrote it (8), CRC-32 of these (4)
    chunk    0xF7 0x43, number of its first image, images, channels, height, width, rung, length of the payload (seven
             varints), CRC-32 of the payload and of all this (4 each), payload
    told     0xF7 0x41, the same seven varints, kind of the payload, length of the notes (two more), CRC-32 of notes and
             payload and of all this (4 each), notes, payload
    end      0xF7 0x45, number of images (a varint), CRC-32 of this (4)

Numbers are little-endian; a varint has 7 bits to a byte, the lowest first, the top bit says that more follow. Chunks are
written one after the other, as images come, and each tells what it holds: the file needs no index, and a reader that
meets damage goes on at the next chunk whose head is sound. A chunk with notes, such as the names of its images, keeps or
loses them with the images. What notes and payload mean is up to whoever writes them.

Version 1 had no chunks with notes; nothing else was different.
"""

import itertools
import mmap
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGIC = b"\x897F\r\n\x1a\n"
"""As of PNG: a transfer that changes ends of lines, or drops the eighth bit, changes it."""

VERSION = 2

KINDS = ("stream", "tiles", "file")
"""What a payload is: one stream of a model; one for each tile of a large image; or an image file of another format."""

DIGEST = 8
"""Bytes of a model's digest that a container holds: enough to tell models apart, too few to vouch for one."""

_CHUNK, _TOLD, _END = b"\xf7C", b"\xf7A", b"\xf7E"
_NUMBERS = {_CHUNK: 7, _TOLD: 9, _END: 1}
_CHECK = 4
_HEADER = len(MAGIC) + 1 + DIGEST + _CHECK
_LARGEST = 1 << 48  # of any number in a head
_LONGEST = 7  # bytes of a varint below it

Buffer = bytes | mmap.mmap


class ContainerError(ValueError):
    """A file is no container, or none that can be read here."""


@dataclass(frozen=True)
class Chunk:
    """Images of one size.

    first: the number of its first image in the container, from 0.
    shape: (channels, height, width) of each.
    rung: of the ladder of rates, from 1; 0 where there is none.
    kind: one of `KINDS`.
    notes: what is told of the images.
    """

    first: int
    count: int
    shape: tuple[int, int, int]
    rung: int
    payload: bytes
    kind: str = KINDS[0]
    notes: bytes = b""

    @property
    def size(self) -> int:
        """Return how many bytes it takes in its container."""
        return len(_written(self)) + len(self.notes) + len(self.payload)


@dataclass(frozen=True)
class Damage:
    """Images that are lost.

    first, last: their numbers; `last` is None where nobody knows how many there were.
    """

    first: int
    last: int | None
    reason: str

    def __str__(self) -> str:
        if self.last is None:
            return f"images from {self.first} on: {self.reason}"
        return f"{'image' if self.first == self.last else 'images'} {self.numbers}: {self.reason}"

    @property
    def numbers(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"


class Writer:
    """Writes a container to a file that is open for binary writing, chunk by chunk; it never goes back."""

    def __init__(self, out: BinaryIO, digest: bytes) -> None:
        """Write the header; of the model's digest the first `DIGEST` bytes count."""
        self._out = out
        self._images = 0
        out.write(_checked(MAGIC + bytes([VERSION]) + _short(digest)))

    def add(
        self,
        payload: bytes,
        count: int,
        shape: tuple[int, int, int],
        rung: int,
        kind: str = KINDS[0],
        notes: bytes = b"",
    ) -> Chunk:
        """Write a chunk of `count` images, and return it."""
        chunk = Chunk(self._images, count, shape, rung, payload, kind, notes)
        self._out.write(_written(chunk) + notes + payload)
        self._images += count
        return chunk

    def close(self) -> None:
        """Write the end, by which a reader knows that nothing is missing."""
        self._out.write(_checked(_END + varint(self._images)))


def read(path: Path, digest: bytes | None = None) -> Iterator[Chunk | Damage]:
    """Give the chunks of a file in order, and in their places the images that are lost.

    The file is mapped, so that memory does not grow with it.

    Args:
        digest: of the model that is to decode it; None to read it whatever model wrote it.

    Raises:
        FileNotFoundError: there is no such file.
        ContainerError: it is no container, or a newer one, or another model wrote it.
    """
    with path.open("rb") as file:
        if not file.seek(0, 2):
            raise ContainerError(
                f"{path} is empty; expected a .7f container; take it from where it was written to again"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                yield from parse(data, digest)
            except ContainerError as error:
                raise ContainerError(f"{path} {error}") from None


def parse(data: Buffer, digest: bytes | None = None) -> Iterator[Chunk | Damage]:
    """As `read`, of a container's bytes."""
    written_by(data, digest)
    at, expected = _HEADER, 0
    while at < len(data):
        head = _head(data, at)
        if head is None:
            # Whatever is here, the next sound head says how much of it there was.
            at = _next(data, at + 1)
            if at < len(data):
                continue
            break
        if head.first > expected:
            yield Damage(expected, head.first - 1, "their chunk is damaged; take the file from its source again")
            expected = head.first
        if head.end:
            if head.start < len(data):
                yield Damage(expected, None, f"{len(data) - head.start} bytes behind the end; expected none")
            return
        body = data[head.start : head.start + head.noted + head.length]
        if len(body) == head.noted + head.length and _crc(body) == head.check:
            at = head.start + len(body)
            if head.first == expected:  # else it is there twice
                expected += head.count
                notes, payload = body[: head.noted], body[head.noted :]
                yield Chunk(head.first, head.count, head.shape, head.rung, payload, head.kind, notes)
            continue
        at = _next(data, head.start)
        if at >= len(data):
            break
        if head.first == expected and head.count:
            expected += head.count
            yield Damage(
                head.first, expected - 1, "their chunk fails its checksum; take the file from its source again"
            )
    yield Damage(
        expected, None, "the file ends before its end was written; it was cut off: take it from its source again"
    )


def joined(parts: Sequence[bytes]) -> bytes:
    """Return parts of a payload as one, which `parted` takes apart again."""
    return b"".join(map(varint, [len(parts), *map(len, parts)])) + b"".join(parts)


def parted(payload: bytes) -> list[bytes]:
    """Return the parts that were joined.

    Raises:
        ContainerError: nothing that was joined looks like this.
    """
    count, at = number(payload, 0)
    lengths: list[int] = []
    while len(lengths) < count and at < len(payload):
        length, at = number(payload, at)
        lengths.append(length)
    if len(lengths) < count or at + sum(lengths) != len(payload):
        raise ContainerError(
            f"a payload of {len(payload)} bytes does not fall into {count} parts; expected what this program wrote; take "
            "the file from its source again"
        )
    ends = list(itertools.accumulate(lengths, initial=at))
    return [payload[a:b] for a, b in itertools.pairwise(ends)]


def written_by(data: Buffer, digest: bytes | None = None) -> bytes:
    """Return the digest of the model that wrote a container, `DIGEST` bytes, of which `digest` has to start with these.

    Raises:
        ContainerError: as of `read`.
    """
    start = bytes(data[: len(MAGIC)])
    if start != MAGIC:
        raise ContainerError(f"starts with {start!r}; expected {MAGIC!r}, as a .7f container does; name another file")
    if len(data) < _HEADER:
        raise ContainerError(f"has {len(data)} bytes; a header alone has {_HEADER}; take it from its source again")
    version = data[len(MAGIC)]
    if version > VERSION:
        raise ContainerError(f"has version {version}; this program reads up to {VERSION}; use a newer sevenfold")
    header = bytes(data[:_HEADER])
    if _checked(header[:-_CHECK]) != header or not version:
        raise ContainerError("has a damaged header; take it from its source again")
    found = header[len(MAGIC) + 1 : -_CHECK]
    if digest is not None and found != _short(digest):
        raise ContainerError(
            f"was written by model {found.hex()}; this is model {_short(digest).hex()}; use the one that wrote it"
        )
    return found


@dataclass(frozen=True)
class _Head:
    """The start of a chunk, or the end of a container, which begins with the number of an image that is not there."""

    end: bool
    first: int
    count: int
    shape: tuple[int, int, int]
    rung: int
    length: int
    kind: str
    noted: int
    check: bytes
    start: int


def _head(data: Buffer, at: int) -> _Head | None:
    """Return the head at a place, if there is a sound one."""
    mark = bytes(data[at : at + 2])
    if mark not in _NUMBERS:
        return None
    place, numbers = at + 2, []
    for _ in range(_NUMBERS[mark]):
        value, place = number(data, place)
        numbers.append(value)
    check = b"" if mark == _END else bytes(data[place : place + _CHECK])
    place += len(check)
    raw = bytes(data[at : place + _CHECK])
    if _checked(raw[: place - at]) != raw:
        return None
    first, count, channels, height, width, rung, length, kind, noted = numbers + [0] * (9 - len(numbers))
    if kind >= len(KINDS):
        return None
    shape = (channels, height, width)
    return _Head(mark == _END, first, count, shape, rung, length, KINDS[kind], noted, check, place + _CHECK)


def _written(chunk: Chunk) -> bytes:
    """Return the head of a chunk."""
    plain = chunk.kind == KINDS[0] and not chunk.notes
    numbers = [chunk.first, chunk.count, *chunk.shape, chunk.rung, len(chunk.payload)]
    if not plain:
        numbers += [KINDS.index(chunk.kind), len(chunk.notes)]
    head = (_CHUNK if plain else _TOLD) + b"".join(map(varint, numbers))
    return _checked(head + _crc(chunk.notes + chunk.payload))


def number(data: Buffer, at: int) -> tuple[int, int]:
    """Return the varint at a place, and the place behind it; whatever the bytes are, some number."""
    value, shift = 0, 0
    while at < len(data) and shift < 7 * _LONGEST:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            break
    return value, at


def _next(data: Buffer, at: int) -> int:
    """Return where the next sound head is from a place on; the length of the data where there is none."""
    while 0 <= (at := data.find(_CHUNK[:1], at)) < len(data):
        if _head(data, at) is not None:
            return at
        at += 1
    return len(data)


def varint(value: int) -> bytes:
    """Return a number from 0 on as bytes."""
    if not 0 <= value < _LARGEST:
        raise ValueError(f"{value} in a container's head; expected 0 or more, and less than 2^48")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _short(digest: bytes) -> bytes:
    if len(digest) < DIGEST:
        raise ValueError(f"a digest of {len(digest)} bytes; expected {DIGEST} or more")
    return bytes(digest[:DIGEST])


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECK, "little")


def _checked(data: bytes) -> bytes:
    return data + _crc(data)
