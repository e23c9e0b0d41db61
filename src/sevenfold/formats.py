"""Rows as they lie in files: CSV, Parquet, npz, npy, IDX and folders of images, in and out.

Data sets and batch jobs read through the same functions, so that what was measured is what runs.
"""

import csv
import gzip
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sevenfold import files

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})


class FormatError(ValueError):
    """A file is not what its name says, or nothing here can read it."""


@dataclass(frozen=True)
class Rows:
    """Rows of one source. A table has only `frame`; an image set has `images` and, in `frame`, what else is known of each.

    frame: one row per sample, index 0..n-1.
    images: (n, H, W) or (n, H, W, C), or None.
    """

    frame: pd.DataFrame
    images: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.images is not None and len(self.images) != len(self.frame):
            raise FormatError(f"{len(self.images)} images but {len(self.frame)} rows beside them; expected as many")

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, rows: np.ndarray) -> "Rows":
        """Return the rows at these positions, in this order."""
        images = None if self.images is None else self.images[rows]
        return Rows(self.frame.iloc[rows].reset_index(drop=True), images)


def read(path: Path, **options: Any) -> Rows:
    """Read a whole file or folder of any supported format.

    Args:
        path: `.csv`, `.parquet`, `.npz`, `.npy`, IDX (`-idx3-ubyte`, `.idx`), each text or IDX file `.gz` too, or a
            folder of images, whose sub-folders, where it has any, are labels.
        options: `separator` for CSV (found from the header by default), `labels` for IDX and npy: a second file with
            one label per row, which becomes the column `label`.

    Raises:
        FileNotFoundError: nothing is there.
        FormatError: the file is damaged, empty, or of an unknown kind.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path, or `dvc pull` if it is tracked by DVC")
    reader = _reader(path)
    try:
        rows = reader(path, options)
    except FormatError:
        raise
    except Exception as error:
        # Every library has its own errors for a damaged file; the user needs to know just which file it is.
        raise FormatError(
            f"{path} cannot be read as {reader.__name__.removeprefix('_read_')}: {str(error).strip() or type(error).__name__}; "
            "it may be truncated or of another format than its name says"
        ) from error
    if not len(rows):
        raise FormatError(f"{path} has no rows; expected at least one")
    return rows


def batches(path: Path, size: int, **options: Any) -> Iterator[Rows]:
    """Yield the rows of a file in order, at most `size` at a time. Parquet, CSV and npy are never in memory whole."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path")
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    try:
        if suffix == ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as source:
                for part in source.iter_batches(batch_size=size):
                    yield Rows(part.to_pandas())
            return
        if suffix in {".csv", ".csv.gz"}:
            with pd.read_csv(path, sep=_separator(path, options), chunksize=size) as source:
                for part in source:
                    yield Rows(part.reset_index(drop=True))
            return
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise FormatError(f"{path} cannot be read: {error}; it may be truncated") from error
    rows = read(path, **options)
    for start in range(0, len(rows), size):
        yield rows.take(np.arange(start, min(start + size, len(rows))))


def _reader(path: Path) -> Callable[[Path, Mapping[str, Any]], Rows]:
    if path.is_dir():
        return _read_images
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".csv"):
        return _read_csv
    if name.endswith(".parquet"):
        return _read_parquet
    if name.endswith(".npz"):
        return _read_npz
    if name.endswith(".npy"):
        return _read_npy
    if name.endswith((".idx", "ubyte")):
        return _read_idx
    raise FormatError(
        f"{path}: unknown kind of file {''.join(path.suffixes) or path.name!r}; "
        "expected .csv, .parquet, .npz, .npy, an IDX file or a folder of images"
    )


def _separator(path: Path, options: Mapping[str, Any]) -> str:
    if options.get("separator"):
        return str(options["separator"])
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as handle:
        header = handle.readline()
    try:
        return csv.Sniffer().sniff(header, delimiters=",;\t|").delimiter
    except csv.Error:
        return ","  # a single column has no separator


def _read_csv(path: Path, options: Mapping[str, Any]) -> Rows:
    return Rows(pd.read_csv(path, sep=_separator(path, options)))


def _read_parquet(path: Path, options: Mapping[str, Any]) -> Rows:
    return Rows(pd.read_parquet(path).reset_index(drop=True))


def _read_npz(path: Path, options: Mapping[str, Any]) -> Rows:
    with np.load(path, allow_pickle=False) as archive:
        return _from_arrays({name: archive[name] for name in archive.files}, path)


def _from_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> Rows:
    """One array of 3 or 4 dimensions is the images; a matrix is numbered columns; a vector is a column of its name."""
    images = {n: a for n, a in arrays.items() if a.ndim in (3, 4)}
    odd = [f"{n!r} {a.shape}" for n, a in arrays.items() if a.ndim not in (1, 2, 3, 4)]
    if odd or len(images) > 1:
        raise FormatError(
            f"{path}: expected vectors, matrices and at most one array of images (n, H, W) or (n, H, W, C); "
            f"got {', '.join(odd or [f'{n!r} {a.shape}' for n, a in images.items()])}"
        )
    lengths = {n: len(a) for n, a in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise FormatError(f"{path}: arrays of different lengths {lengths}; expected one row per sample in each")
    columns: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim == 1:
            columns[name] = array
        elif array.ndim == 2:
            columns |= {f"{name}_{i}": array[:, i] for i in range(array.shape[1])}
    count = next(iter(lengths.values()), 0)
    return Rows(pd.DataFrame(columns, index=pd.RangeIndex(count)), next(iter(images.values()), None))


def _with_labels(arrays: dict[str, np.ndarray], path: Path, options: Mapping[str, Any]) -> Rows:
    if options.get("labels"):
        labels = path.parent / str(options["labels"])
        if not labels.exists():
            raise FileNotFoundError(f"{labels} does not exist; `labels` names a file beside {path.name}")
        arrays["label"] = _load_idx(labels) if _reader(labels) is _read_idx else np.load(labels, allow_pickle=False)
    return _from_arrays(arrays, path)


def _read_npy(path: Path, options: Mapping[str, Any]) -> Rows:
    return _with_labels({"x": np.load(path, allow_pickle=False)}, path, options)


def _read_idx(path: Path, options: Mapping[str, Any]) -> Rows:
    return _with_labels({"x": _load_idx(path)}, path, options)


def _load_idx(path: Path) -> np.ndarray:
    """Read LeCun's IDX format: two zero bytes, a type, the number of dimensions, the sizes, the values, big-endian."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as handle:
        head = handle.read(4)
        kinds = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in kinds:
            raise FormatError(
                f"{path} is no IDX file: it begins with {head.hex(' ')!r}; expected two zero bytes and a type"
            )
        sizes = struct.unpack(f">{head[3]}I", handle.read(4 * head[3]))
        kind = np.dtype(kinds[head[2]])
        wanted = int(np.prod(sizes)) * kind.itemsize
        body = handle.read(wanted + 1)
    if len(body) != wanted:
        raise FormatError(
            f"{path} holds {len(body)} bytes of values; its header {sizes} wants {wanted}; it is truncated"
        )
    values = np.frombuffer(body, kind).reshape(sizes)
    return values.astype(kind.newbyteorder("="))


def _read_images(path: Path, options: Mapping[str, Any]) -> Rows:
    from PIL import Image

    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FormatError(f"{path} holds no images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    images, kinds = [], {}
    for file in found:
        with Image.open(file) as image:
            images.append(np.asarray(image))
            kinds[file] = (image.mode, images[-1].shape[:2])
    if len(set(kinds.values())) > 1:
        common = max(sorted(set(kinds.values())), key=list(kinds.values()).count)
        others = {file: kind for file, kind in kinds.items() if kind != common}
        first, (mode, size) = next(iter(others.items()))
        raise FormatError(
            f"{path}: {len(others)} of {len(found)} images differ from the others, which are {common[0]} "
            f"{common[1][1]}x{common[1][0]} (first: {first.relative_to(path)} is {mode} {size[1]}x{size[0]}); "
            "expected one size and mode; resize or convert them"
        )
    frame = pd.DataFrame({"path": [file.relative_to(path).as_posix() for file in found]})
    if any(file.parent != path for file in found):
        frame["label"] = [file.parent.relative_to(path).as_posix() for file in found]
    return Rows(frame, np.stack(images))


OUTPUT_SUFFIXES = (".parquet", ".csv", ".npz")


class Writer:
    """Write frames one after the other to one Parquet, CSV or npz file. Use it on the draft path of `files.whole`."""

    def __init__(self, path: Path) -> None:
        if path.suffix not in OUTPUT_SUFFIXES:
            raise FormatError(
                f"{path}: cannot write {path.suffix or path.name!r}; expected {', '.join(OUTPUT_SUFFIXES)}"
            )
        self._path = path
        self._parquet: Any = None
        self._parts: list[pd.DataFrame] = []
        self._begun = False

    def write(self, frame: pd.DataFrame) -> None:
        """Append rows; every call has the same columns."""
        if self._path.suffix == ".csv":
            frame.to_csv(self._path, mode="a", header=not self._begun, index=False)
        elif self._path.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            table = pyarrow.Table.from_pandas(frame, preserve_index=False)
            if self._parquet is None:
                # Dictionaries make floats slower to write and no smaller.
                text = [f.name for f in table.schema if not pyarrow.types.is_floating(f.type)]
                self._parquet = pyarrow.parquet.ParquetWriter(self._path, table.schema, use_dictionary=text)
            self._parquet.write_table(table.cast(self._parquet.schema))
        else:
            self._parts.append(frame)
        self._begun = True

    def close(self) -> None:
        if self._parquet is not None:
            self._parquet.close()
        if self._path.suffix == ".npz" and self._parts:
            frame = pd.concat(self._parts, ignore_index=True)
            np.savez(self._path, **{str(c): _plain(frame[c]) for c in frame})  # type: ignore[arg-type]


def _plain(column: pd.Series) -> np.ndarray:
    """A column as an array that needs no pickle: text becomes fixed-width Unicode, gaps in it the empty text."""
    if pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        return column.to_numpy()
    return column.astype("object").where(column.notna(), "").astype(str).to_numpy(dtype=np.str_)


def write(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame as Parquet, CSV or npz, by the suffix of `path`, whole or not at all."""
    with files.whole(path) as draft:
        writer = Writer(draft)
        writer.write(frame)
        writer.close()
