"""Image files give the pixels that are in them, of 8 and of 16 bits, and hold those that were saved."""

import io
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sevenfold import formats, images


def noise(shape, dtype="uint8", seed=0):
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        return generator.random(shape) < 0.5
    if dtype == "float32":
        return generator.random(shape).astype(np.float32)
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


LOSSLESS = [
    (suffix, dtype, channels)
    for suffix, held in images.HOLDS.items()
    for dtype, counts in held.items()
    for channels in counts
    if suffix != ".jpg"
]


@pytest.mark.parametrize(("suffix", "dtype", "channels"), LOSSLESS)
def test_what_is_saved_is_loaded_to_the_last_bit(suffix, dtype, channels, tmp_path):
    pixels = noise((13, 17) if channels == 1 else (13, 17, channels), dtype)
    path = tmp_path / f"a{suffix}"
    images.save(path, pixels)
    found = images.load(path)
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)
    assert images.size(path) == (pixels.shape, pixels.dtype)
    first = path.read_bytes()
    images.save(path, pixels)
    assert path.read_bytes() == first


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_of_quality_95_with_all_its_colours(channels, tmp_path):
    smooth = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint8)
    pixels = smooth if channels == 1 else np.stack([smooth, 255 - smooth, smooth // 2], axis=2)
    images.save(tmp_path / "a.JPEG", pixels)
    assert np.abs(images.load(tmp_path / "a.JPEG").astype(int) - pixels).max() <= 4
    with Image.open(tmp_path / "a.JPEG") as image, io.BytesIO() as other:
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}
        Image.fromarray(pixels).save(other, "JPEG", quality=95, subsampling=0)
        assert image.quantization == Image.open(other).quantization


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(lines, width, height, colour, interlaced=0):
    """A PNG of 16 bits of these filtered lines, with nothing of the code that is tested."""
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (3, 2), (4, 6)])
def test_a_png_of_16_bits_by_somebody_else_is_read_as_it_is(channels, colour, tmp_path):
    pixels = noise((5, 7, channels), "uint16")
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    (tmp_path / "a.png").write_bytes(png(lines, 7, 5, colour))
    np.testing.assert_array_equal(images.load(tmp_path / "a.png").reshape(pixels.shape), pixels)


def unfiltered(data, height, step):
    """The lines of a PNG, (height, bytes), by the rules of the specification, byte by byte."""
    width = len(data) // height
    above, found = [0] * (width - 1), []
    for i in range(height):
        kind, line = data[i * width], []
        for j, byte in enumerate(data[i * width + 1 : (i + 1) * width]):
            a, b, c = (line[j - step] if j >= step else 0), above[j], (above[j - step] if j >= step else 0)
            p = a + b - c
            paeth = min((abs(p - v), k, v) for k, v in enumerate((a, b, c)))[2]
            line.append((byte + (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
        above = line
        found.append(line)
    return np.array(found, np.uint8)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4]), st.integers(0, 99))
def test_a_png_of_16_bits_is_written_by_the_specification(height, width, channels, seed):
    pixels = (np.cumsum(noise((height, width, channels), "uint8", seed).astype(np.uint16), axis=seed % 2) * 91).astype(
        np.uint16
    )
    data = images.encoded(".png", pixels if channels > 1 else pixels[..., 0])
    at, packed = 8, b""
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        assert data[at + 8 + length : at + 12 + length] == struct.pack(">I", zlib.crc32(name + content))
        packed += content if name == b"IDAT" else b""
        at += 12 + length
    lines = unfiltered(zlib.decompress(packed), height, 2 * channels)
    np.testing.assert_array_equal(lines.view(">u2").reshape(pixels.shape), pixels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("settings", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"rowsperstrip": 3}])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_tiff_of_16_bits_by_somebody_else_is_read_as_it_is(order, settings, channels, tmp_path):
    pixels = noise((29, 37) if channels == 1 else (29, 37, 3), "uint16")
    photometric = "minisblack" if channels == 1 else "rgb"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, byteorder=order, **settings)
    found = images.load(tmp_path / "a.tif")
    assert found.dtype == np.dtype("uint16")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, pixels)
    assert images.size(tmp_path / "a.tif") == (pixels.shape, pixels.dtype)


def test_16_bits_that_would_lose_half_of_themselves_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise((3, 8, 9), "uint16"), photometric="rgb", planarconfig="separate")
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in noise((5, 7, 2), "uint16"))
    (tmp_path / "b.png").write_bytes(png(lines, 7, 5, 4))
    for name in ("a.tif", "b.png"):
        for act in (images.load, images.size):
            with pytest.raises(
                formats.FormatError, match=rf"{name} cannot be read .* colours of 16 bits.*; convert it"
            ):
                act(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_viewers_show_it(suffix, orientation, tmp_path):
    image = Image.fromarray(np.kron(noise((3, 5, 3)), np.ones((16, 16, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x112] = orientation
    image.save(tmp_path / f"a{suffix}", exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    with Image.open(tmp_path / f"a{suffix}") as given:
        wanted = np.asarray(ImageOps.exif_transpose(given))
    np.testing.assert_array_equal(images.load(tmp_path / f"a{suffix}"), wanted)
    assert images.size(tmp_path / f"a{suffix}") == (wanted.shape, wanted.dtype)
    if suffix == ".tif":
        assert wanted.shape == ((80, 48, 3) if orientation > 4 else (48, 80, 3))


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_gives_its_colours(transparent, tmp_path):
    image = Image.fromarray(noise((6, 7, 3))).quantize(4)
    image.save(tmp_path / "a.png", **({"transparency": 0} if transparent else {}))
    wanted = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA" if transparent else "RGB"))
    np.testing.assert_array_equal(images.load(tmp_path / "a.png"), wanted)
    assert images.size(tmp_path / "a.png") == (wanted.shape, wanted.dtype)


def test_the_size_is_in_the_head_of_the_file(tmp_path):
    images.save(tmp_path / "a.png", noise((200, 300, 3)))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    assert images.size(tmp_path / "a.png") == ((200, 300, 3), np.dtype("uint8"))
    with pytest.raises(formats.FormatError, match=r"a.png cannot be read as an image: .*; mend or remove it"):
        images.load(tmp_path / "a.png")


def test_several_pages_are_refused_by_the_files_name(tmp_path):
    pages = [Image.fromarray(noise((5, 6), seed=i)) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for act in (images.load, images.size):
        with pytest.raises(formats.FormatError, match=r"a.tif cannot be read .* has 3 pages or frames; expected one"):
            act(tmp_path / "a.tif")
        with pytest.raises(FileNotFoundError):
            act(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("a.jpg", noise((4, 5), "uint16"), r"a.jpg cannot be written: .jpg cannot hold uint16 of shape \(4, 5\); it holds "
         "uint8 of 1 or 3 channels; use .png or .tif"),
        ("a.webp", noise((4, 5)), "it holds uint8 of 3 or 4 channels; use .png or .tif"),
        ("a.bmp", noise((4, 5, 4)), "it holds bool of 1 channel; uint8 of 1 or 3 channels; use .png or .tif"),
        ("a.png", noise((4, 5, 5)), "convert them to 8 or 16 bits"),
        ("a.gif", noise((4, 5)), "there are .bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp; use .png or .tif"),
        ("a", noise((4, 5)), "a cannot be written: no ending cannot hold uint8"),
    ],
)  # fmt: skip
def test_what_a_format_does_not_hold_is_said_with_what_does(name, pixels, message, tmp_path):
    with pytest.raises(formats.FormatError, match=message):
        images.save(tmp_path / name, pixels)
    assert not (tmp_path / name).exists()
    fitting = images.fitting(name, pixels)
    assert fitting == f"{name}{'.tif' if pixels.shape == (4, 5, 5) else '.png'}"


def folder(path):
    """Images of three kinds, and what is none."""
    kinds = {
        "b/1.png": noise((6, 8)),
        "b/2.PNG": noise((6, 8)),
        "b/3.tif": noise((6, 8), "uint16"),
        "c.webp": noise((5, 7, 3)),
        "a/x/1.bmp": noise((6, 8)),
    }
    for name, pixels in kinds.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        images.save(path / name, pixels)
    (path / "notes.txt").write_text("no image")
    (path / ".hidden").mkdir()
    (path / ".hidden" / "1.png").write_bytes(b"")
    (path / "b" / "._1.png").write_bytes(b"")
    (path / "folder.png").mkdir()
    return kinds


def test_images_are_found_sorted_and_hidden_ones_are_not(tmp_path):
    folder(tmp_path)
    assert images.find(tmp_path) == ["a/x/1.bmp", "b/1.png", "b/2.PNG", "b/3.tif", "c.webp"]


@pytest.mark.parametrize("most", [1, 96, 10**6])
def test_batches_hold_images_of_one_kind_in_order_and_no_more_than_fit(most, tmp_path):
    kinds, names = folder(tmp_path), images.find(tmp_path)
    parts = list(images.batches(tmp_path, names, most))
    assert pd.concat(part.frame for part in parts)["path"].tolist() == names
    assert pd.concat(part.frame for part in parts)["label"].isna().tolist() == [False] * 4 + [True]
    assert parts[0].frame["label"].tolist()[:1] == ["a/x"]
    for part in parts:
        assert len(part) == 1 or part.images[0].size * len(part) <= most
        for name, pixels in zip(part.frame["path"], part.images, strict=True):
            np.testing.assert_array_equal(pixels, kinds[name])
            assert pixels.dtype == kinds[name].dtype
    assert [len(part) for part in parts] == {1: [1] * 5, 96: [2, 1, 1, 1], 10**6: [3, 1, 1]}[most]


def test_a_part_of_a_folder_has_the_columns_of_the_whole(tmp_path):
    folder(tmp_path)
    (part,) = images.batches(tmp_path, ["c.webp"], 1000, labelled=True)
    assert part.frame.columns.tolist() == ["path", "label"]
    (part,) = images.batches(tmp_path, ["c.webp"], 1000)
    assert part.frame.columns.tolist() == ["path"]
    assert list(images.batches(tmp_path, [], 1000)) == []


def test_batches_of_a_folder_are_what_is_read_from_it_whole(tmp_path):
    for i in range(5):
        images.save(tmp_path / f"{i}.png", noise((6, 8), seed=i))
    whole = formats.read(tmp_path)
    parts = list(images.batches(tmp_path, images.find(tmp_path), 100))
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
    pd.testing.assert_frame_equal(pd.concat([part.frame for part in parts], ignore_index=True), whole.frame)
