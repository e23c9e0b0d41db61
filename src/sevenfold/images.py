"""Image files: which there are, what they hold, and pixels in and out as they are, of 8 and of 16 bits.

Pillow decodes, but has no mode for colours of 16 bits; these are decoded twice, once for each half of a number.
"""

import io
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from sevenfold import formats

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})

JPEG: dict[str, Any] = {"quality": 95, "subsampling": "4:4:4", "optimize": True}
"""How JPEG is written, the only format that loses something: a copy of a copy differs by little."""

HOLDS: dict[str, dict[str, tuple[int, ...]]] = {
    ".png": {"bool": (1,), "uint8": (1, 2, 3, 4), "uint16": (1, 3, 4)},
    ".jpg": {"uint8": (1, 3)},
    ".webp": {"uint8": (3, 4)},  # grey ones become colours, and would come back as another kind
    ".tif": {"bool": (1,), "uint8": (1, 3, 4), "uint16": (1, 3, 4), "float32": (1,)},
    ".bmp": {"bool": (1,), "uint8": (1, 3)},
}
"""What each format can hold: types of pixels, and numbers of channels of each."""

_SAME = {".jpeg": ".jpg", ".tiff": ".tif"}
_TYPES = {"1": "bool", "I;16": "uint16", "I;16B": "uint16", "I;16L": "uint16", "I;16N": "uint16", "I": "int32"}
_CHANNELS = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3, "LAB": 3, "HSV": 3, "PA": 2, "La": 2, "RGBa": 4}
_ORIENTATION, _BITS = 0x112, 258
# Of EXIF: whether rows and columns change places, and along which axes pixels are then turned round.
_TURNS = {2: (False, (1,)), 3: (False, (0, 1)), 4: (False, (0,)), 5: (True, ()), 6: (True, (1,)), 7: (True, (0, 1)),
          8: (True, (0,))}  # fmt: skip


def find(folder: Path) -> list[str]:
    """Return the images in a folder and its sub-folders, as sorted relative names with slashes.

    Hidden ones are left out: macOS and notebooks leave such files behind.
    """
    found = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if not file.is_dir())
    return [
        name.as_posix()
        for name in found
        if name.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in name.parts)
    ]


def load(path: Path) -> np.ndarray:
    """Return an image's pixels, (height, width) or (height, width, channels), in their own type.

    Palettes become colours. Where a camera noted that it was held upright, or a scanner that the page lay on its side, the
    pixels are turned as viewers do it (the EXIF orientation); of PNG only a note before the pixels counts.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: it is damaged, no image, of several pages, or of a kind that cannot be read without loss.
    """
    try:
        return decoded(path)[1]
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's errors are of many kinds and seldom name the file
        raise _unreadable(path, error) from error


def size(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the type of what `load` returns, from the file's head alone.

    Raises:
        FileNotFoundError, FormatError: as `load`, as far as the head tells.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            _require_one_page(image)
            mode = _plain_mode(image)
            width, height = image.size
            if _TURNS.get(_orientation(image), (False, ()))[0]:
                width, height = height, width
            kind = np.dtype("uint16" if _is_deep(image) else "float32" if mode == "F" else _TYPES.get(mode, "uint8"))
            return (height, width, *([_CHANNELS[mode]] if mode in _CHANNELS else [])), kind
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def decoded(source: Path | bytes) -> tuple[str, np.ndarray]:
    """Return an image's mode in Pillow's words, with ";16" for colours of 16 bits, and its pixels as `load` does.

    Raises:
        Exception: whatever Pillow raises, and ValueError where pixels would lose something.
    """
    from PIL import Image

    def opened() -> Image.Image:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)

    with opened() as image:
        _require_one_page(image)
        turn = _TURNS.get(_orientation(image))
        mode = _plain_mode(image)
        if deep := _is_deep(image):
            high = _half(image, 0)
            with opened() as again:
                pixels = (high.astype(np.uint16) << 8) | _half(again, 1)
            mode = f"{mode};16"
        else:
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
            pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if turn is not None:
        turned = pixels.swapaxes(0, 1) if turn[0] else pixels
        pixels = np.ascontiguousarray(np.flip(turned, turn[1]) if turn[1] else turned)
    assert not deep or pixels.dtype == np.uint16
    return mode, pixels


def holds(suffix: str, pixels: np.ndarray) -> bool:
    """Say whether files of this ending hold such pixels: these very ones, or nearly so in JPEG."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    return pixels.ndim in (2, 3) and channels in HOLDS.get(_format(suffix), {}).get(pixels.dtype.name, ())


def fitting(name: str, pixels: np.ndarray) -> str:
    """Return the name, with `.png` or `.tif` appended where the format of its ending does not hold such pixels."""
    if holds(PurePosixPath(name).suffix, pixels):
        return name
    return f"{name}.png" if holds(".png", pixels) else f"{name}.tif"


def encoded(suffix: str, pixels: np.ndarray) -> bytes:
    """Return the bytes of a file of this ending, such as ".png": without loss, but for JPEG, which is of quality 95 with
    all its colours (4:4:4). Equal pixels give equal bytes.

    Raises:
        ValueError: the format does not hold such pixels; the message says what it holds.
    """
    from PIL import Image

    kind = _format(suffix)
    if not holds(suffix, pixels):
        told = "; ".join(
            f"{name} of {' or '.join(map(str, channels))} channel{'s' * (channels != (1,))}"
            for name, channels in HOLDS.get(kind, {}).items()
        )
        wanted = f"it holds {told}" if told else f"there are {', '.join(sorted(SUFFIXES))}"
        remedy = (
            "use .png or .tif" if holds(".png", pixels) or holds(".tif", pixels) else "convert them to 8 or 16 bits"
        )
        raise ValueError(
            f"{suffix or 'no ending'} cannot hold {pixels.dtype} of shape {pixels.shape}; {wanted}; {remedy}"
        )
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if kind == ".png" and flat.dtype == np.uint16:
        return _png(flat)
    out = io.BytesIO()
    if kind == ".tif" and flat.dtype != bool:
        import tifffile

        tifffile.imwrite(
            out,
            flat,
            photometric="rgb" if flat.ndim == 3 else "minisblack",
            extrasamples=["unassalpha"] if flat.shape[2:] == (4,) else None,
            compression="zlib",
            metadata=None,
            software=False,
        )
        return out.getvalue()
    settings: dict[str, Any] = {
        ".jpg": JPEG,
        ".png": {"optimize": True},
        ".webp": {"lossless": True, "exact": True},
    }.get(kind, {})
    image = Image.fromarray(np.ascontiguousarray(flat))
    image.save(out, {".jpg": "JPEG", ".tif": "TIFF"}.get(kind, kind[1:].upper()), **settings)
    return out.getvalue()


def save(path: Path, pixels: np.ndarray) -> None:
    """Write pixels, (height, width) or (height, width, channels), to a file of the format that its ending names.

    See `encoded`. A file that is there is written over; whole or not at all is up to the caller.

    Raises:
        FormatError: the format does not hold such pixels; the message names the file, and what it holds.
    """
    try:
        content = encoded(path.suffix, pixels)
    except Exception as error:  # Pillow has limits of its own, such as WebP's 16383 pixels
        raise formats.FormatError(f"{path} cannot be written: {error}") from error
    path.write_bytes(content)


def batches(
    root: Path, names: Sequence[str], most_pixels: int, *, labelled: bool | None = None
) -> Iterator[formats.Rows]:
    """Yield images in the order of their names, consecutive ones of one shape and type together.

    Each part has `path`, the name, and, where sub-folders are labels, `label`. In memory are a part and the image after it.

    Args:
        names: relative to `root`, as `find` returns them.
        most_pixels: height x width of a part's images together; a larger image is a part of its own.
        labelled: whether sub-folders are labels; None: they are if a name has one. A part of a folder's names does not tell.

    Raises:
        FileNotFoundError, FormatError: as `load`.
    """
    labelled = any("/" in name for name in names) if labelled is None else labelled
    paths: list[str] = []
    pixels: list[np.ndarray] = []
    for name in names:
        one = load(root / name)
        full = (len(pixels) + 1) * one.shape[0] * one.shape[1] > most_pixels
        if pixels and (full or (one.shape, one.dtype) != (pixels[0].shape, pixels[0].dtype)):
            yield _rows(paths, pixels, labelled=labelled)
            paths, pixels = [], []
        paths.append(name)
        pixels.append(one)
        del one
    if pixels:
        yield _rows(paths, pixels, labelled=labelled)


def frame(names: Sequence[str], *, labelled: bool) -> pd.DataFrame:
    """Return what names tell of images: `path` and, where sub-folders are labels, `label`, a gap where there is none."""
    columns: dict[str, Any] = {"path": list(names)}
    if labelled:
        folders = [PurePosixPath(name).parent.as_posix() for name in names]
        columns["label"] = pd.Series([None if folder == "." else folder for folder in folders], dtype="str")
    return pd.DataFrame(columns)


def _rows(paths: list[str], pixels: list[np.ndarray], *, labelled: bool) -> formats.Rows:
    stacked = pixels[0][None] if len(pixels) == 1 else np.stack(pixels)
    return formats.Rows(frame(paths, labelled=labelled), stacked)


def _unreadable(path: Path, error: Exception) -> formats.FormatError:
    reason = str(error).replace(str(path), path.name).strip() or type(error).__name__
    return formats.FormatError(
        f"{path} cannot be read as an image: {reason}; expected {', '.join(sorted(SUFFIXES))}; mend or remove it"
    )


def _require_one_page(image: Any) -> None:
    # A telephone's JPEG may carry a small preview behind the picture, which nobody misses.
    if (pages := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        raise ValueError(f"it has {pages} pages or frames; expected one image; save each to a file of its own")


def _plain_mode(image: Any) -> str:
    """Return the mode of an image's pixels; the numbers of a palette are names of colours."""
    if image.mode == "P":
        return "RGBA" if image.has_transparency_data else "RGB"
    return str(image.mode)


def _orientation(image: Any) -> int:
    """Return how an image lies by EXIF, 1 for upright. Pillow turns TIFF itself; of PNG it would decode all to find out."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    found = image.getexif().get(_ORIENTATION, 1)
    return found if isinstance(found, int) else 1


def _raw_modes(image: Any) -> list[str]:
    return [str(tile.args if isinstance(tile.args, str) else tile.args[0]) for tile in image.tile if tile.args]


def _is_deep(image: Any) -> bool:
    """Say whether an image that Pillow takes for one of 8 bits has colours of 16.

    Raises:
        ValueError: it has, in an order of bytes that Pillow does not take apart.
    """
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    modes = _raw_modes(image)
    if modes and all(mode[:-1] == f"{image.mode};16" for mode in modes):
        return True
    bits = image.tag_v2.get(_BITS, (8,)) if image.format == "TIFF" else (16 if any(";16" in m for m in modes) else 8,)
    if max(bits) > 8:
        raise ValueError(
            f"it has colours of {max(bits)} bits, laid out as {', '.join(sorted(set(modes)))}; expected grey, RGB or RGBA, "
            "pixel by pixel; convert it"
        )
    return False


def _half(image: Any, which: int) -> np.ndarray:
    """Return the high (0) or the low (1) bytes of colours of 16 bits, (height, width, channels) uint8.

    Pillow keeps the first byte of what is said to be big-endian, and the second of what is said to be little-endian. So the
    other order gives the other half.
    """
    if which:
        native = {"little": "L", "big": "B"}[sys.byteorder]
        other = {"L": "B", "B": "L"}

        def swapped(mode: str) -> str:
            return mode[:-1] + other[native if mode[-1] == "N" else mode[-1]]

        image.tile = [
            tile._replace(
                args=swapped(tile.args) if isinstance(tile.args, str) else (swapped(tile.args[0]), *tile.args[1:])
            )
            for tile in image.tile
        ]
    return np.asarray(image)


def _png(pixels: np.ndarray) -> bytes:
    """Return the file of an image of 16 bits, (height, width) or (height, width, 3 or 4) uint16 (W3C, PNG, third edition).

    Each row is filtered in the way that leaves the least sum of absolute differences, as the specification advises.
    """
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    step = 2 * channels  # bytes of a pixel
    lines = pixels.astype(">u2").reshape(height, -1).view(np.uint8)  # (height, bytes)
    above = np.zeros_like(lines[0])
    rows = []
    for line in lines:
        left, corner = (np.concatenate([np.zeros(step, np.uint8), some[:-step]]) for some in (line, above))
        a, b, c = (some.astype(np.int16) for some in (left, above, corner))
        near = np.stack([np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)])  # Paeth's, of left, above and corner
        nearest = np.choose(near.argmin(axis=0), [left, above, corner])
        made = [line, line - left, line - above, line - ((a + b) // 2).astype(np.uint8), line - nearest]
        costs = [int(np.abs(some.view(np.int8).astype(np.int16)).sum()) for some in made]
        best = int(np.argmin(costs))
        rows.append(bytes([best]) + made[best].tobytes())
        above = line

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", head)
        + part(b"IDAT", zlib.compress(b"".join(rows), 9))
        + part(b"IEND", b"")
    )


def _format(suffix: str) -> str:
    lowered = suffix.lower()
    return _SAME.get(lowered, lowered)
