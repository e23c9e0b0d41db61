"""Archives: images in `.7f` containers with their names, types and a digest of the decoded pixels, and back to image files.

Each chunk has notes that tell of its images; they share its checksum, so that damage loses images and names together:

    notes    length of the type's name, the type's name, axes of an image's array (2 or 3); for each image length of the
             name, the name in UTF-8, digest of its decoded pixels (8 bytes)

The numbers are varints. A digest is the start of the BLAKE2b of type, shape and pixels. See docs/compression.md.
"""

import copy
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from sevenfold import containers, entropy, formats, images
from sevenfold.applications.compression import Compression, decibels
from sevenfold.bundles import Bundle
from sevenfold.containers import Chunk, ContainerError, Damage
from sevenfold.datasets.base import ImageSchema
from sevenfold.models.base import Autoencoder

SUFFIX = ".7f"

DIGEST = 8
"""Bytes of the digest of an image's pixels: a change that nobody meant is found, one that somebody forges is not."""

LONGEST = 4096
"""Bytes of the longest name, as file systems have it."""

SHOWN = 20
"""Images that the text of an inspection lists."""

_FRAME = len(containers.MAGIC) + 1 + containers.DIGEST + 4 + 2 + 1 + 4
"""Bytes of a container of one image beside its chunk: header and end."""

_PARTED = 8
"""What is added to the number of axes in notes that tell of a group, too."""


@dataclass(frozen=True)
class Entry:
    """What became of an image.

    shape: (height, width) or (height, width, channels).
    rung: of the model's ladder, from 1; 0 where the image is stored without loss.
    size: bytes, of a file of its own all of them, else its share of its chunk.
    psnr: of the decoded pixels, in decibels; `quality.BEST` where they are the very same.
    lossless: bytes of the smallest file without loss, of PNG and WebP; None for a type that neither holds.
    reached: whether the target was reached; True where there was none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    rung: int
    size: int
    psnr: float
    lossless: int | None
    reached: bool

    @property
    def rate(self) -> float:
        """Return bits per pixel."""
        return 8 * self.size / (self.shape[0] * self.shape[1])

    @property
    def larger(self) -> bool:
        """Return whether a file without loss would be smaller."""
        return self.lossless is not None and self.size > self.lossless


@dataclass(frozen=True)
class Unpacked:
    """What came out of a container.

    names: of the image files that were written, in order.
    inexact: names of images whose decoded pixels are not to the last bit those that the encoder saw: another machine's or
        library's arithmetic rounded otherwise. What was entropy coded is proven to be right.
    damage: what is lost.
    """

    names: list[str]
    inexact: list[str]
    damage: list[Damage]


@dataclass(frozen=True)
class _Group:
    """Where images of a chunk stand among those that came together and were parted, those of a rung in a chunk.

    size: images of the group. before: those of them in chunks before this one. places: of the images of this one, from 0.
    """

    size: int
    before: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class _Notes:
    dtype: np.dtype[Any]
    axes: int
    names: list[str]
    digests: list[bytes]
    group: "_Group | None" = None


@dataclass(frozen=True)
class _Target:
    """At most one of rate, in bits per pixel, and psnr, in decibels."""

    rate: float | None
    psnr: float | None

    def __post_init__(self) -> None:
        if self.rate is not None and self.psnr is not None:
            raise ValueError(f"rate is {self.rate} and psnr is {self.psnr}; expected one of them; leave the other out")
        for name, value in (("rate", self.rate), ("psnr", self.psnr)):
            if value is not None and not 0 < value < math.inf:
                unit = "bits per pixel" if name == "rate" else "decibels"
                raise ValueError(f"{name} is {value}; expected {unit}, above 0 and finite; try {name} 1 or 30")


def pack(
    bundle: Bundle,
    parts: Iterable[formats.Rows],
    out: Path,
    *,
    rate: float | None = None,
    psnr: float | None = None,
    lossless_if_smaller: bool = False,
) -> list[Entry]:
    """Compress images into one archive, and return what became of each.

    Small images that follow each other and have one size and type share chunks. In memory is one chunk's images.

    Args:
        bundle: of the application `compression`, as `operations.accepting` returns it.
        parts: images, each part of one size and type; `path` is their name, or else their number is.
        out: is written over; whole or not at all is up to the caller.
        rate: bits per pixel, at most: the highest rung that stays within it is taken for each image.
        psnr: decibels of each image, at least: the lowest rung that reaches it is taken. With neither, the rung for which
            the bundle was calibrated. Where no rung will do, the nearest one is taken, and the entry says so.
        lossless_if_smaller: store a PNG or WebP without loss in place of a stream that is larger.

    Raises:
        ValueError: the bundle is for something else, or a target is out of range, or both are given.
        DataError: images do not fit the model.
    """
    with out.open("wb") as file:
        packer = _Packer(bundle, _Target(rate, psnr), lossless_if_smaller=lossless_if_smaller, frame=0)
        writer = containers.Writer(file, packer.digest)
        entries = [entry for group in packer.groups(parts) for entry in packer.write(writer, *group)]
        writer.close()
    return entries


def pack_each(
    bundle: Bundle,
    parts: Iterable[formats.Rows],
    folder: Path,
    *,
    rate: float | None = None,
    psnr: float | None = None,
    lossless_if_smaller: bool = False,
) -> list[Entry]:
    """Compress each image into a file of its own, `NAME.7f` in a folder, with the sub-folders of its name.

    Header, end and notes count as the image's bytes. Args and Raises: as `pack`.
    """
    packer = _Packer(bundle, _Target(rate, psnr), lossless_if_smaller=lossless_if_smaller, frame=_FRAME)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for names, pixels in packer.groups(parts, alone=True):
        file = folder / f"{names[0]}{SUFFIX}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            raise FileExistsError(f"two images become {file.name}; expected different names; rename one in the input")
        with file.open("wb") as out:
            writer = containers.Writer(out, packer.digest)
            entries += packer.write(writer, names, pixels)
            writer.close()
    return entries


def join(parts: Sequence[Path], out: Path) -> None:
    """Make one archive of several by one model, their images in order; chunks stay as they are, but for their numbers.

    Raises:
        ValueError: there are none.
        FileNotFoundError, ContainerError: a part is missing, damaged, or by another model than the first.
    """
    if not parts:
        raise ValueError("no archives to join; expected one or more; give their files")
    digest = model_of(parts[0])
    with out.open("wb") as file:
        writer = containers.Writer(file, digest)
        for part in parts:
            for one in containers.read(part, digest):
                if isinstance(one, Damage):
                    raise ContainerError(f"{part} is damaged: {one}")
                writer.add(one.payload, one.count, one.shape, one.rung, one.kind, one.notes)
        writer.close()


class Reader:
    """Decodes containers of one model.

    It computes in double precision. In single precision sums round otherwise with other threads or on other machines, which one
    pixel in some hundred thousands would show, and one in a few thousands of 16 bits.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Get ready.

        Raises:
            ValueError: the bundle is for something else.
        """
        self._application, self._schema = _parts_of(bundle)
        self._digest = self._application.digest(bundle.model)
        self._model = _precise(bundle.model)

    def read(self, source: Path) -> Iterator[formats.Rows | Damage]:
        """Give the images of a container in the order in which they came, in their own types and ranges, and what is lost.

        Images that were parted, those of a rung in a chunk, come back together. Each part has `path`, their names, and
        `exact`: whether the pixels are to the last bit those that the encoder saw. Images without a name, of a container
        that `Compression.write` made, are named by their numbers.

        Raises:
            FileNotFoundError, ContainerError: there is no such file, or it is no container that this model wrote.
        """
        held: list[tuple[formats.Rows, _Group]] = []
        first = -1  # the number of the first image of the group that is held
        for one in containers.read(source, self._digest):
            if isinstance(one, Damage):
                yield one
                continue
            try:
                notes = _notes(one)
                part = self._decoded(one, notes)
            except (entropy.DamagedStreamError, ContainerError) as error:
                yield Damage(one.first, one.first + one.count - 1, str(error))
                continue
            begins = one.first if notes.group is None else one.first - notes.group.before
            if held and begins != first:
                yield _sorted(held)
                held = []
            if notes.group is None:
                yield part
                continue
            held.append((part, notes.group))
            first = begins
        if held:
            yield _sorted(held)

    def _decoded(self, chunk: Chunk, notes: _Notes) -> formats.Rows:
        """Return the images of a chunk with `path` and `exact`."""
        channels, height, width = chunk.shape
        shape = (height, width) if notes.axes == 2 and channels == 1 else (height, width, channels)
        if chunk.kind == "file":
            found = _stored(chunk.payload, shape)[None]
        else:
            made = self._schema.inverse(
                self._application.images(self._model, chunk), dtype=notes.dtype if chunk.notes else None
            ).images
            assert made is not None
            found = made.reshape(chunk.count, *(shape if chunk.notes else made.shape[1:]))
        exact = [not wanted or digest(one) == wanted for wanted, one in zip(notes.digests, found, strict=True)]
        if chunk.kind == "file" and not all(exact):
            raise ContainerError("its pixels are not those that were stored; take it from its source again")
        names = notes.names if chunk.notes else [images.fitting(name, found[0]) for name in notes.names]
        return formats.Rows(pd.DataFrame({"path": names, "exact": exact}), found)


def _sorted(parts: Sequence[tuple[formats.Rows, _Group]]) -> formats.Rows:
    """Return the images of a group in the order in which they came."""
    places = np.concatenate([group.places for _, group in parts])
    return formats.joined([rows for rows, _ in parts]).take(np.argsort(places, kind="stable"))


class _Same:
    """A bundle as the key of a cache: just itself, whatever its values."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def __hash__(self) -> int:
        return id(self.bundle)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.bundle is self.bundle


@functools.lru_cache(maxsize=1)
def _reader(same: _Same) -> Reader:
    return Reader(same.bundle)


def reader(bundle: Bundle) -> Reader:
    """Return a reader for a bundle, the same for the same one: it takes a moment to make. Raises: as `Reader`."""
    return _reader(_Same(bundle))


def wrong(bundle: Bundle, paths: Sequence[Path]) -> list[str]:
    """Return which of these files are no containers of this model, and why."""
    application, _ = _parts_of(bundle)
    digest, problems = application.digest(bundle.model)[: containers.DIGEST], []
    for path in paths:
        try:
            found = model_of(path)
        except ContainerError as error:
            problems.append(str(error))
            continue
        if found != digest:
            problems.append(
                f"{path} was written by model {found.hex()}; this is model {digest.hex()}; use the one that wrote it"
            )
    return problems


def unpack(bundle: Bundle, source: Path, folder: Path) -> Unpacked:
    """Decompress a container, or a folder of them, to image files of the names that they had.

    Files are of the format that their names say, without further loss but for JPEG; see `images.fitting` for formats that do
    not hold the pixels. Images that are sound are written whatever is damaged.

    Raises:
        ValueError: the bundle is for something else, or there is no container in the folder.
        FileNotFoundError, ContainerError: as `Reader.read`.
        FormatError: an image cannot be written.
    """
    names: list[str] = []
    inexact: list[str] = []
    damage: list[Damage] = []
    reader = Reader(bundle)
    for file in found(source):
        for part in reader.read(file):
            if isinstance(part, Damage):
                damage.append(part if source == file else Damage(part.first, part.last, f"{file}: {part.reason}"))
                continue
            assert part.images is not None
            for name, exact, pixels in zip(part.frame["path"], part.frame["exact"], part.images, strict=True):
                fitting = images.fitting(name, pixels)
                path = folder / fitting
                path.parent.mkdir(parents=True, exist_ok=True)
                images.save(path, pixels)
                names.append(fitting)
                inexact += [] if exact else [fitting]
    return Unpacked(names, inexact, damage)


def found(source: Path) -> list[Path]:
    """Return a container, or those in a folder and its sub-folders in order; hidden ones are left out.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there is no container in the folder.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; check the path")
    if not source.is_dir():
        return [source]
    files = [
        file
        for file in sorted(source.rglob(f"*{SUFFIX}"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(source).parts)
    ]
    if not files:
        raise ValueError(f"{source} holds no container; expected files that end in {SUFFIX}; name another folder")
    return files


def model_of(source: Path) -> bytes:
    """Return the digest of the model that wrote a container, `containers.DIGEST` bytes.

    Raises:
        FileNotFoundError, ContainerError: as `containers.read`.
    """
    with source.open("rb") as file:
        start = file.read(64)
    try:
        return containers.written_by(start)
    except ContainerError as error:
        raise ContainerError(f"{source} {error}") from None


def inspect(source: Path) -> dict[str, Any]:
    """Return what a container holds, or a folder of them, without the model, as JSON takes it.

    `files`, `bytes`, `images`, `pixels`, `bits_per_pixel`, `models` (digests), `rungs` and `stored` (how many images of each),
    `entries` (of each image name, width, height, channels, type, rung, how it is stored, bytes: its share of its chunk, or
    all of a file of its own), and `damage`. Checksums are checked; that pixels decode to what they were, only `unpack` can tell.

    Raises:
        FileNotFoundError, ValueError: as `found`.
        ContainerError: a file is no container.
    """
    entries: list[dict[str, Any]] = []
    damage: list[str] = []
    models: set[str] = set()
    files = found(source)
    for file in files:
        models.add(model_of(file).hex())
        before = len(entries)
        for one in containers.read(file):
            if isinstance(one, Damage):
                damage.append(f"{file.name}: {one}")
                continue
            try:
                notes = _notes(one)
            except ContainerError as error:
                damage.append(f"{file.name}: {Damage(one.first, one.first + one.count - 1, str(error))}")
                continue
            channels, height, width = one.shape
            entries += [
                {
                    "name": name,
                    "width": width,
                    "height": height,
                    "channels": channels,
                    "type": str(notes.dtype) if one.notes else None,
                    "rung": one.rung or None,
                    "stored": "lossless" if one.kind == "file" else "stream",
                    "bytes": round(one.size / one.count, 2),
                }
                for name in notes.names
            ]
        if len(entries) == before + 1:
            entries[-1]["bytes"] = file.stat().st_size
    size = sum(file.stat().st_size for file in files)
    pixels = sum(entry["width"] * entry["height"] for entry in entries)
    return {
        "files": len(files),
        "bytes": size,
        "images": len(entries),
        "pixels": pixels,
        "bits_per_pixel": round(8 * size / pixels, 4) if pixels else None,
        "models": sorted(models),
        "rungs": {str(rung): count for rung, count in sorted(Counter(e["rung"] for e in entries if e["rung"]).items())},
        "stored": dict(sorted(Counter(entry["stored"] for entry in entries).items())),
        "entries": entries,
        "damage": damage,
    }


def told(inspection: dict[str, Any]) -> str:
    """Return an inspection as text for people, of which the first images are a table."""
    entries = inspection["entries"]
    rate = f", {inspection['bits_per_pixel']:.3f} bits per pixel" if entries else ""
    lines = [
        f"{inspection['images']:,} images in {inspection['bytes']:,} bytes{rate}, "
        f"{inspection['files']:,} file{'s' * (inspection['files'] != 1)}",
        f"written by model {', '.join(inspection['models'])}",
    ]
    rungs = ", ".join(f"{count:,} at rung {rung}" for rung, count in inspection["rungs"].items())
    if lossless := inspection["stored"].get("lossless"):
        rungs += f"{', ' * bool(rungs)}{lossless:,} without loss"
    lines += [rungs] if rungs else []
    if entries:
        wide = max(len(entry["name"]) for entry in entries[:SHOWN])
        lines.append("")
    for entry in entries[:SHOWN]:
        kind = f"{entry['type'] or '?'} x {entry['channels']}"
        quality = "lossless" if entry["rung"] is None else f"rung {entry['rung']}"
        lines.append(
            f"{entry['name']:<{wide}}  {entry['width']}x{entry['height']}  {kind}  "
            f"{quality}  {entry['bytes']:,.0f} bytes"
        )
    if len(entries) > SHOWN:
        lines.append(f"and {len(entries) - SHOWN:,} more")
    if inspection["damage"]:
        lines += ["", "damaged:", *(f"  {one}" for one in inspection["damage"])]
    else:
        lines += ["", "every checksum is right"]
    return "\n".join(lines)


class _Packer:
    """Chooses rungs and writes chunks."""

    def __init__(self, bundle: Bundle, target: _Target, *, lossless_if_smaller: bool, frame: int) -> None:
        """Set up; `frame` is the number of bytes that count as an image's beside its chunk."""
        self._application, self._schema = _parts_of(bundle)
        self._model, self._precise = bundle.model, _precise(bundle.model)
        self._target = target
        self._lossless_if_smaller = lossless_if_smaller
        self._frame = frame
        self._rungs = self._application.rungs(self._model)
        self.digest = self._application.digest(self._model)

    def groups(self, parts: Iterable[formats.Rows], *, alone: bool = False) -> Iterator[tuple[list[str], np.ndarray]]:
        """Cut images into groups of one size and type that may share a chunk, whatever the parts they come in."""
        names: list[str] = []
        waiting: list[np.ndarray] = []
        count = 0
        for part in parts:
            self._schema.require(part, "images")
            assert part.images is not None
            given = part.frame["path"].astype(str) if "path" in part.frame else None
            for i, one in enumerate(part.images):
                if waiting and (one.shape, one.dtype) != (waiting[0].shape, waiting[0].dtype):
                    yield names, np.stack(waiting)
                    names, waiting = [], []
                name = images.fitting(f"{count:08d}", one) if given is None else str(given.iloc[i])
                names.append(_checked_name(name))
                waiting.append(one)
                count += 1
                channels = one.shape[2] if one.ndim == 3 else 1
                if alone or len(waiting) == self._application.together((channels, *one.shape[:2])):
                    yield names, np.stack(waiting)
                    names, waiting = [], []
        if waiting:
            yield names, np.stack(waiting)

    def write(self, writer: containers.Writer, names: list[str], pixels: np.ndarray) -> list[Entry]:
        """Write images of one size and type, (n, height, width[, channels]), those of a rung in a chunk."""
        x, _ = self._schema.transform(formats.Rows(pd.DataFrame({"path": names}), pixels))
        rungs, reached = self._chosen(x, names, pixels)
        lossless = [_lossless(one) for one in pixels]
        entries: dict[int, Entry] = {}

        def group(rows: np.ndarray) -> _Group | None:
            parted = len(rows) < len(names)
            return _Group(len(names), len(entries), tuple(rows.tolist())) if parted else None

        for rung in np.unique(rungs):
            rows = np.flatnonzero(rungs == rung)
            chunk, psnr, sizes = self._made(x[rows], [names[i] for i in rows], pixels[rows], int(rung), group(rows))
            stored = np.array(
                [
                    self._is_smaller(s, lossless[i], names[i], pixels[i], group(rows[k : k + 1]))
                    for k, (i, s) in enumerate(zip(rows, sizes, strict=True))
                ]
            )
            if stored.any() and not stored.all():  # what is stored otherwise leaves the chunk
                kept = rows[~stored]
                chunk, psnr, sizes = self._made(x[kept], [names[i] for i in kept], pixels[kept], int(rung), group(kept))
            if not stored.all():
                kept = rows[~stored]
                writer.add(chunk.payload, chunk.count, chunk.shape, chunk.rung, chunk.kind, chunk.notes)
                for i, size, decibel in zip(kept, sizes, psnr, strict=True):
                    entries[i] = self._entry(
                        names[i], pixels[i], int(rung), size, decibel, lossless[i], bool(reached[i])
                    )
            for i in rows[stored]:
                one = self._file(lossless[i], names[i], pixels[i], group(np.array([i])))
                added = writer.add(one.payload, 1, one.shape, 0, one.kind, one.notes)
                entries[i] = self._entry(
                    names[i], pixels[i], 0, added.size + self._frame, decibels(0.0), lossless[i],
                    self._target.rate is None or 8 * (added.size + self._frame) <= self._target.rate * math.prod(x.shape[2:]),
                )  # fmt: skip
        return [entries[i] for i in range(len(names))]

    def _entry(
        self, name: str, pixels: np.ndarray, rung: int, size: float, psnr: float, lossless: bytes | None, reached: bool
    ) -> Entry:
        count = None if lossless is None else len(lossless)
        return Entry(name, pixels.shape, pixels.dtype.name, rung, math.ceil(size), float(psnr), count, reached)

    def _chosen(self, x: np.ndarray, names: list[str], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rung of each image, and whether it reaches the target, (n,) each."""
        n, area = len(x), math.prod(x.shape[2:])
        if self._target.rate is None and self._target.psnr is None:
            return np.full(n, int(self._application.state["rung"][0])), np.ones(n, bool)
        falling = self._target.rate is not None
        rungs, reached = np.full(n, 1 if falling else self._rungs), np.zeros(n, bool)
        for rung in range(self._rungs, 0, -1) if falling else range(1, self._rungs + 1):
            left = np.flatnonzero(~reached)
            if not len(left):
                break
            some = [names[i] for i in left]
            if self._target.rate is not None:
                good = self._alone(x[left], some, pixels[left], rung, n) * 8 <= self._target.rate * area
            else:
                assert self._target.psnr is not None
                good = self._made(x[left], some, pixels[left], rung)[1] >= self._target.psnr
            rungs[left[good]], reached[left[good]] = rung, True
        return rungs, reached

    def _alone(self, x: np.ndarray, names: list[str], pixels: np.ndarray, rung: int, size: int) -> np.ndarray:
        """Return how many bytes each image of a group of this size would take in a chunk of its own, or a bit more, (n,)."""
        payload = self._application.payload(self._model, x, rung)
        if len(x) == 1:
            sizes = np.array([len(payload.content)])
        else:
            # A stream has a checksum and is made of words; what follows after the point is of sums in another order.
            sizes = np.ceil(payload.bits * 1.0001 / 8) + math.ceil(entropy.OVERHEAD / 8) + 4
        digests = [bytes(DIGEST)]
        group = None if size == 1 else _Group(size, size, (size,))  # no image's own takes more bytes
        frames = [
            Chunk(1 << 47, 1, _shape(one), rung, b"", payload.kind, _written(one, [name], digests, group)).size + 4
            for one, name in zip(pixels, names, strict=True)
        ]
        return np.asarray(sizes + frames + self._frame)

    def _made(
        self, x: np.ndarray, names: list[str], pixels: np.ndarray, rung: int, group: _Group | None = None
    ) -> tuple[Chunk, np.ndarray, np.ndarray]:
        """Return a chunk of images, the PSNR and the bytes of each when it is decoded, (n,)."""
        payload = self._application.payload(self._model, x, rung)
        bare = Chunk(0, len(x), _shape(pixels[0]), rung, payload.content, payload.kind)
        output = self._schema.inverse(self._application.images(self._precise, bare), dtype=pixels.dtype).images
        assert output is not None
        output = output.reshape(pixels.shape)
        low, high = self._schema.range_of(pixels.dtype)
        psnr = np.array([decibels(_error(a, b) / (high - low) ** 2) for a, b in zip(output, pixels, strict=True)])
        notes = _written(output[0], names, [digest(one) for one in output], group)
        chunk = Chunk(0, len(x), bare.shape, rung, payload.content, payload.kind, notes)
        own = np.array([len(name.encode()) for name in names])
        shares = payload.bits / payload.bits.sum() if payload.bits.sum() > 0 else np.full(len(x), 1 / len(x))
        return chunk, psnr, own + (chunk.size - own.sum()) * shares + self._frame

    def _file(self, content: bytes | None, name: str, pixels: np.ndarray, group: _Group | None) -> Chunk:
        assert content is not None
        return Chunk(0, 1, _shape(pixels), 0, content, "file", _written(pixels, [name], [digest(pixels)], group))

    def _is_smaller(
        self, size: float, content: bytes | None, name: str, pixels: np.ndarray, group: _Group | None
    ) -> bool:
        """Return whether to store an image without loss."""
        if not self._lossless_if_smaller or content is None:
            return False
        return self._file(content, name, pixels, group).size + self._frame < size


def _parts_of(bundle: Bundle) -> tuple[Compression, ImageSchema]:
    if not isinstance(bundle.application, Compression) or not isinstance(bundle.schema, ImageSchema):
        raise ValueError(
            f"this model is for {bundle.application_name}; expected one for compression; name another model"
        )
    # A chunk says of which size its images are, and its notes of which type.
    return bundle.application, bundle.schema


def _precise(model: Autoencoder) -> Autoencoder:
    """Return a copy of double precision."""
    return copy.deepcopy(model).double().eval()


def _stored(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the pixels of an image file without loss.

    Raises:
        ContainerError: it is none, or none of this shape.
    """
    try:
        _, one = images.decoded(content)
    except Exception as error:  # Pillow's errors are of many kinds
        raise ContainerError(f"its file without loss cannot be read ({error}); take it from its source again") from None
    # A grey WebP has three equal channels.
    grey = one[..., 0] if one.ndim == 3 and (len(shape) == 2 or shape[2] == 1) else one
    if grey.size != math.prod(shape):
        raise ContainerError(f"its file holds {one.shape}; expected {shape}; take it from its source again")
    return grey.reshape(shape)


def _written(like: np.ndarray, names: Sequence[str], digests: Sequence[bytes], group: _Group | None = None) -> bytes:
    """Return the notes of images as `like`, (height, width) or (height, width, channels)."""
    kind = like.dtype.name.encode()
    numbers = [like.ndim] if group is None else [like.ndim + _PARTED, group.size, group.before, *group.places]
    head = containers.varint(len(kind)) + kind + b"".join(map(containers.varint, numbers))
    texts = [name.encode() for name in names]
    return head + b"".join(
        containers.varint(len(text)) + text + digest for text, digest in zip(texts, digests, strict=True)
    )


def _notes(chunk: Chunk) -> _Notes:
    """Return what the notes of a chunk tell; without notes names are numbers, and digests are empty.

    Raises:
        ContainerError: they are no notes, or a name leads out of the folder that it is meant for.
    """
    if not chunk.notes:
        names = [f"{chunk.first + i:08d}" for i in range(chunk.count)]
        return _Notes(np.dtype("uint8"), 3, names, [b""] * chunk.count)
    try:
        length, at = containers.number(chunk.notes, 0)
        kind, at = np.dtype(chunk.notes[at : at + length].decode("ascii")), at + length
        axes, at = containers.number(chunk.notes, at)
        group = None
        if axes > _PARTED:
            axes -= _PARTED
            numbers = []
            for _ in range(2 + chunk.count):
                value, at = containers.number(chunk.notes, at)
                numbers.append(value)
            group = _Group(numbers[0], numbers[1], tuple(numbers[2:]))
            if max(group.before, *group.places) >= group.size:
                raise ValueError(f"they tell of images beyond the {group.size} of their group")
        names, digests = [], []
        while at < len(chunk.notes):
            length, at = containers.number(chunk.notes, at)
            names.append(_checked_name(chunk.notes[at : at + length].decode()))
            digests.append(chunk.notes[at + length : at + length + DIGEST])
            at += length + DIGEST
        if at != len(chunk.notes) or len(names) != chunk.count or axes not in (2, 3) or kind.kind not in "biuf":
            raise ValueError(f"they tell of {len(names)} images with {axes} axes of type {kind}")
    except (TypeError, ValueError) as error:
        raise ContainerError(
            f"its notes are not as this program writes them ({error}); take it from its source again"
        ) from None
    return _Notes(kind, axes, names, digests, group)


def _checked_name(name: str) -> str:
    """Return a name that stays in its folder.

    Raises:
        ValueError: it does not.
    """
    path = PurePosixPath(name)
    if (
        not path.name
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
        or ":" in path.parts[0]
    ):
        raise ValueError(f"the name {name!r} leads out of its folder; expected a relative one; rename the image")
    if len(name.encode()) > LONGEST:
        raise ValueError(f"a name of {len(name.encode())} bytes; expected at most {LONGEST}; rename the image")
    return name


def _shape(pixels: np.ndarray) -> tuple[int, int, int]:
    return pixels.shape[2] if pixels.ndim == 3 else 1, pixels.shape[0], pixels.shape[1]


def digest(pixels: np.ndarray) -> bytes:
    """Return the digest of an image's pixels, `DIGEST` bytes."""
    found = hashlib.blake2b(f"{pixels.dtype.name} {pixels.shape} ".encode(), digest_size=DIGEST)
    plain = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    found.update(plain.reshape(-1).data)
    return found.digest()


def _error(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean squared error of two images, some rows at a time."""
    rows = max(1, (1 << 20) // max(1, one[0].size))
    total = 0.0
    for start in range(0, len(one), rows):
        total += float(
            np.square(
                one[start : start + rows].astype(np.float64) - other[start : start + rows].astype(np.float64)
            ).sum()
        )
    return total / one.size


def _lossless(pixels: np.ndarray) -> bytes | None:
    """Return the smallest file that Pillow makes of an image without loss, of PNG and WebP; None where neither holds it."""
    found = []
    if images.holds(".png", pixels):
        found.append(images.encoded(".png", pixels))
    grey = pixels.reshape(pixels.shape[:2]) if _shape(pixels)[0] == 1 else None
    colours = pixels if grey is None else np.repeat(grey[..., None], 3, axis=2)
    if images.holds(".webp", colours) and max(pixels.shape[:2]) <= 16383:  # WebP's largest edge
        found.append(images.encoded(".webp", colours))
    return min(found, key=len, default=None)
