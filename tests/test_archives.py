"""Images come out of archives as they were promised: by name, in their types, at the quality or the size that was asked for."""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import metrics

from sevenfold import archives, bundles, containers, formats, images, operations
from sevenfold.containers import Chunk, ContainerError, Damage
from sevenfold.datasets.base import DataError
from vectors import write as vectors

FOLDERS = {
    path.name: path for path in sorted((Path(__file__).parent / "vectors").glob("*")) if (path / "bundle").is_dir()
}
FILES = [(name, file.name) for name, folder in FOLDERS.items() for file in sorted(folder.glob("*.7f"))]


@functools.cache
def bundle(name="convolutional"):
    return operations.accepting(bundles.load(FOLDERS[name] / "bundle"))


def rows(names, pixels):
    return formats.Rows(pd.DataFrame({"path": names}), pixels)


def some(count=6, edge=32, seed=7):
    return rows([f"{i % 2}/{i}.png" for i in range(count)], vectors.mosaics(count, seed, edge))


def decoded(one, file):
    """The pixels of a container by name."""
    found = {}
    for part in archives.Reader(one).read(file):
        found |= dict(zip(part.frame["path"], part.images, strict=True))
    return found


def expected(name, file):
    folder = FOLDERS[name]
    told = json.loads((folder / "expected.json").read_text())[file]
    with np.load(folder / "pixels.npz") as arrays:
        stem = file.removesuffix(".7f")
        pixels = {key.removeprefix(f"{stem}:"): arrays[key] for key in arrays if key.startswith(f"{stem}:")}
    return told, pixels


def test_images_come_back_in_their_order_however_their_rungs_part_them(tmp_path):
    pixels = vectors.mosaics(24, 5, 32)
    pixels[::5] = np.random.default_rng(0).integers(
        0, 256, pixels[::5].shape
    )  # which take more bytes than there may be
    pixels[3::4] = 128  # which PNG holds in fewer bytes
    given = rows([f"{i:02d}.png" for i in range(24)], pixels)
    entries = archives.pack(bundle(), [given], tmp_path / "a.7f", rate=1.0, lossless_if_smaller=True)
    assert len({entry.rung for entry in entries}) > 2
    assert 0 in {entry.rung for entry in entries}
    archives.join([tmp_path / "a.7f", tmp_path / "a.7f"], tmp_path / "twice.7f")
    for file, wanted in (("a.7f", [given]), ("twice.7f", [given, given])):
        parts = [*archives.Reader(bundle()).read(tmp_path / file)]
        assert [name for part in parts for name in part.frame["path"]] == [
            n for one in wanted for n in one.frame["path"]
        ]
        exact = [bool(one) for part in parts for one in part.frame["exact"]]
        assert all(exact)
    found = decoded(bundle(), tmp_path / "a.7f")
    for i, entry in enumerate(entries):
        if entry.rung == 0:
            np.testing.assert_array_equal(found[f"{i:02d}.png"], pixels[i])


def test_there_are_vectors_of_every_kind_of_model_and_payload():
    assert len(FILES) >= 9
    kinds = {c.kind for name, file in FILES for c in containers.read(FOLDERS[name] / file)}
    assert kinds == set(containers.KINDS)
    versions = {(FOLDERS[name] / file).read_bytes()[len(containers.MAGIC)] for name, file in FILES}
    assert versions == {1, containers.VERSION}


@pytest.mark.parametrize(("name", "file"), FILES)
def test_streams_in_the_repository_hold_the_integers_and_give_the_pixels_that_they_did(name, file):
    one, (told, pixels) = bundle(name), expected(name, file)
    chunks = list(containers.read(FOLDERS[name] / file))
    assert [vectors.integers(one.application, one.model, chunk) for chunk in chunks] == told["integers"]
    for part in archives.Reader(one).read(FOLDERS[name] / file):
        for path, exact, array in zip(part.frame["path"], part.frame["exact"], part.images, strict=True):
            assert array.dtype == pixels[path].dtype
            # Another machine may round a value between two steps otherwise, and then says so.
            steps = np.abs(array.astype(int) - pixels[path].astype(int))
            assert steps.max() <= (1 if array.dtype == np.uint8 else 8)
            assert (steps > 0).mean() < (0.001 if array.dtype == np.uint8 else 0.2)
            if file != "version_1.7f":  # which holds no digests
                assert exact == (archives.digest(array).hex() == told["pixels"][path])


DECODE = """if True:
    import json, pathlib, sys, torch
    folder, threads = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    sys.path.insert(0, str(folder.parents[1]))
    from vectors import write
    from sevenfold import bundles, operations
    one = operations.accepting(bundles.load(folder / "bundle"))
    print(json.dumps({file.name: write.expected(one, file)[0] for file in sorted(folder.glob("*.7f"))}))
"""


def elsewhere(name, threads, **environment):
    run = subprocess.run(
        [sys.executable, "-c", DECODE, str(FOLDERS[name]), str(threads)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.parametrize("threads", [1, 2])
def test_another_process_decodes_the_same_pixels_with_any_number_of_threads(threads):
    found = elsewhere("convolutional", threads)
    here = {file: vectors.expected(bundle(), FOLDERS["convolutional"] / file)[0] for file in found}
    assert found == here


def test_another_processors_arithmetic_decodes_the_same_integers_and_pixels():
    """Without the instructions of this one, sums of floating-point numbers round otherwise."""
    found = elsewhere(
        "convolutional", 1, ONEDNN_MAX_CPU_ISA="SSE41", ATEN_CPU_CAPABILITY="default", MKL_CBWR="COMPATIBLE"
    )
    assert found == json.loads((FOLDERS["convolutional"] / "expected.json").read_text())


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_packed_comes_back_with_its_name_and_type_near_what_it_was(name, tmp_path):
    one, given = bundle(name), list(vectors.parts(name))
    entries = archives.pack(one, given, tmp_path / "a.7f")
    found = decoded(one, tmp_path / "a.7f")
    wanted = {path: image for part in given for path, image in zip(part.frame["path"], part.images, strict=True)}
    assert found.keys() == wanted.keys() == {entry.name for entry in entries}
    for entry in entries:
        image, truth = found[entry.name], wanted[entry.name]
        assert (image.dtype.name, image.shape) == (entry.dtype, entry.shape)
        assert (image.dtype, image.size) == (truth.dtype, truth.size)
        top = np.iinfo(truth.dtype).max
        if entry.psnr < 99:
            ratio = metrics.peak_signal_noise_ratio(truth.reshape(image.shape), image, data_range=top)
            assert entry.psnr == pytest.approx(ratio, abs=1e-6)


def test_every_image_knows_that_it_is_what_its_encoder_saw(tmp_path):
    archives.pack(bundle(), [some()], tmp_path / "a.7f")
    assert all(part.frame["exact"].all() for part in archives.Reader(bundle()).read(tmp_path / "a.7f"))
    # As on a machine whose sums round otherwise: the digest tells.
    chunk = next(containers.read(tmp_path / "a.7f"))
    forged = chunk.notes[:-1] + bytes([chunk.notes[-1] ^ 1])
    with (tmp_path / "b.7f").open("wb") as out:
        writer = containers.Writer(out, archives.model_of(tmp_path / "a.7f"))
        writer.add(chunk.payload, chunk.count, chunk.shape, chunk.rung, chunk.kind, forged)
        writer.close()
    (part,) = archives.Reader(bundle()).read(tmp_path / "b.7f")
    assert part.frame["exact"].tolist() == [True] * (chunk.count - 1) + [False]
    unpacked = archives.unpack(bundle(), tmp_path / "b.7f", tmp_path / "out")
    assert unpacked.inexact == unpacked.names[-1:]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_an_archive_does_not_depend_on_the_parts_that_images_come_in(cuts):
    import tempfile

    whole, at, parts = some(11), 0, []
    for cut in cuts:
        parts.append(whole.take(np.arange(at, min(at + cut, 11))))
        at = min(at + cut, 11)
    parts = [part for part in [*parts, whole.take(np.arange(at, 11))] if len(part)]
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "one.7f", Path(folder) / "other.7f"
        assert archives.pack(bundle(), [whole], one) == archives.pack(bundle(), parts, other)
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("psnr", [12.0, 16.0, 90.0])
def test_each_image_has_the_lowest_rung_that_reaches_the_decibels(name, psnr, tmp_path):
    one, given = bundle(name), some(9, vectors.MODELS[name][0])
    entries = archives.pack(one, [given], tmp_path / "a.7f", psnr=psnr)
    ladder = []
    for rung in range(1, one.application.rungs(one.model) + 1):
        fixed = one.application.with_state(one.application.state | {"rung": np.array([rung])})
        ladder.append(archives.pack(bundles.Bundle(**vars(one) | {"application": fixed}), [given], tmp_path / "b.7f"))
    for i, entry in enumerate(entries):
        good = [rung for rung, made in enumerate(ladder, 1) if made[i].psnr >= psnr]
        assert entry.reached is bool(good)
        assert entry.rung == (good[0] if good else len(ladder))
        if entry.reached:
            assert entry.psnr >= psnr
    assert {entry.reached for entry in entries} == (
        {False} if psnr == 90 else {entry.psnr >= psnr for entry in entries}
    )


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("each", [True, False])
def test_each_image_stays_within_the_rate_at_the_highest_rung_that_does(name, each, tmp_path):
    one, edge = bundle(name), vectors.MODELS[name][0]
    given = some(9, edge)
    for rate in (1.2 if edge == 32 else 10.0, 0.01, 100.0):
        if each:
            folder = tmp_path / f"each at {rate}"
            entries = archives.pack_each(one, [given], folder, rate=rate)
            sizes = {entry.name: (folder / f"{entry.name}.7f").stat().st_size for entry in entries}
            assert {entry.name: entry.size for entry in entries} == sizes
        else:
            entries = archives.pack(one, [given], tmp_path / "a.7f", rate=rate)
        rungs = {entry.rung for entry in entries}
        assert all(entry.rate <= rate for entry in entries if entry.reached)
        if rate == 100:
            assert rungs == {one.application.rungs(one.model)}
            assert all(entry.reached for entry in entries)
        if rate == 0.01:
            assert rungs == {1}
            assert not any(entry.reached for entry in entries)


def test_bytes_of_the_images_add_up_to_those_of_the_archive(tmp_path):
    entries = archives.pack(bundle(), vectors.parts("convolutional"), tmp_path / "a.7f", lossless_if_smaller=True)
    total = (tmp_path / "a.7f").stat().st_size
    assert 0 <= sum(entry.size for entry in entries) - (total - 28) <= len(entries)


def test_what_would_be_smaller_without_loss_is_told_and_by_option_stored_so(tmp_path):
    given = list(vectors.parts("convolutional"))
    plain = {e.name: e for e in archives.pack(bundle(), given, tmp_path / "a.7f", psnr=60.0)}
    best = {e.name: e for e in archives.pack(bundle(), given, tmp_path / "b.7f", psnr=60.0, lossless_if_smaller=True)}
    larger = {name for name, entry in plain.items() if entry.larger}
    assert larger >= {"board.png", "deep board.tif", "empty.webp"}
    assert {name for name, entry in best.items() if entry.rung == 0} <= larger
    truth = {path: image for part in given for path, image in zip(part.frame["path"], part.images, strict=True)}
    found = decoded(bundle(), tmp_path / "b.7f")
    for name in ("board.png", "deep board.tif", "empty.webp"):
        assert best[name].rung == 0
        assert best[name].reached
        assert best[name].size < plain[name].size
        np.testing.assert_array_equal(found[name], truth[name])
        assert found[name].dtype == truth[name].dtype
    for part in given:
        for name, image in zip(part.frame["path"], part.images, strict=True):
            images.save(tmp_path / "l.png", image)
            assert plain[name].lossless <= (tmp_path / "l.png").stat().st_size


def test_files_for_each_image_have_its_path_and_unpack_to_it(tmp_path):
    given = list(vectors.parts("convolutional"))
    entries = archives.pack_each(bundle(), given, tmp_path / "packed")
    files = sorted(p.relative_to(tmp_path / "packed").as_posix() for p in (tmp_path / "packed").rglob("*.7f"))
    assert files == sorted(f"{entry.name}.7f" for entry in entries)
    unpacked = archives.unpack(bundle(), tmp_path / "packed", tmp_path / "out")
    archives.pack(bundle(), given, tmp_path / "a.7f")
    # WebP has no grey, so that it cannot give back what came from elsewhere.
    names = [name if name != "empty.webp" else "empty.webp.png" for name in (e.name for e in entries)]
    assert sorted(unpacked.names) == sorted(names) == sorted(images.find(tmp_path / "out"))
    assert (unpacked.inexact, unpacked.damage) == ([], [])
    for file in files:
        for name, image in decoded(bundle(), tmp_path / "packed" / file).items():
            written = images.load(tmp_path / "out" / images.fitting(name, image))
            np.testing.assert_array_equal(written, image.reshape(written.shape))
            assert written.dtype == image.dtype


def test_joined_archives_hold_what_their_parts_did(tmp_path):
    parts = [some(5, seed=1), some(6, seed=2), some(1, seed=3)]
    for i, part in enumerate(parts):
        archives.pack(
            bundle(), [rows([f"{i}/{path}" for path in part.frame["path"]], part.images)], tmp_path / f"{i}.7f"
        )
    archives.join([tmp_path / f"{i}.7f" for i in range(3)], tmp_path / "all.7f")
    whole = {}
    for i in range(3):
        whole |= decoded(bundle(), tmp_path / f"{i}.7f")
    found = decoded(bundle(), tmp_path / "all.7f")
    assert list(found) == list(whole)
    assert all((found[name] == whole[name]).all() for name in whole)
    assert len(whole) == 12
    archives.pack(bundle("layers"), [some(2, 8)], tmp_path / "other.7f")
    with pytest.raises(ContainerError, match=r"other.7f was written by model"):
        archives.join([tmp_path / "0.7f", tmp_path / "other.7f"], tmp_path / "mixed.7f")
    (tmp_path / "1.7f").write_bytes((tmp_path / "1.7f").read_bytes()[:-3])
    with pytest.raises(ContainerError, match=r"1.7f is damaged: images from 6 on: the file ends before"):
        archives.join([tmp_path / f"{i}.7f" for i in range(3)], tmp_path / "all.7f")
    with pytest.raises(ValueError, match="no archives to join"):
        archives.join([], tmp_path / "none.7f")


@functools.cache
def archive():
    """An archive with chunks of all kinds, the bytes where each chunk ends, and its images."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.7f"
        archives.pack(bundle(), vectors.parts("convolutional"), file, lossless_if_smaller=True)
        sizes = [chunk.size for chunk in containers.read(file)]
        return file.read_bytes(), list(np.cumsum([20, *sizes])), list(archives.Reader(bundle()).read(file))


@given(st.integers(0, 10**9), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_damage_loses_the_images_and_names_of_its_chunk_and_no_other(at, change):
    import tempfile

    data, ends, whole = archive()
    at = 20 + at % (ends[-1] - 20)
    hit = int(np.searchsorted(ends, at, side="right")) - 1
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.7f"
        file.write_bytes(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
        found = list(archives.Reader(bundle()).read(file))
        told = archives.inspect(file)
    lost = [one for one in found if isinstance(one, Damage)]
    kept = [part for i, part in enumerate(whole) if i != hit]
    parts = [one for one in found if not isinstance(one, Damage)]
    assert len(lost) == len(told["damage"]) == 1
    assert [list(part.frame["path"]) for part in parts] == [list(part.frame["path"]) for part in kept]
    for part, same in zip(parts, kept, strict=True):
        np.testing.assert_array_equal(part.images, same.images)
    assert told["images"] == sum(map(len, kept))


@pytest.mark.parametrize(
    "name", ["../out.png", "/etc/x.png", "a/../../b.png", "c:/x.png", "a\\..\\b.png", "", "x\0.png", "y" * 5000]
)
def test_a_name_that_leads_out_of_the_folder_is_neither_packed_nor_written(name, tmp_path):
    image = some(1).images
    with pytest.raises(ValueError, match=r"leads out of its folder; expected a relative one|expected at most 4096"):
        archives.pack(bundle(), [rows([name], image)], tmp_path / "a.7f")
    archives.pack(bundle(), [rows(["a.png"], image)], tmp_path / "a.7f")
    chunk = next(containers.read(tmp_path / "a.7f"))
    text = name.encode()
    notes = chunk.notes.replace(b"\x05a.png", containers.varint(len(text)) + text)
    with (tmp_path / "b.7f").open("wb") as out:
        writer = containers.Writer(out, archives.model_of(tmp_path / "a.7f"))
        writer.add(chunk.payload, 1, chunk.shape, chunk.rung, chunk.kind, notes)
        writer.close()
    unpacked = archives.unpack(bundle(), tmp_path / "b.7f", tmp_path / "deep" / "out")
    assert unpacked.names == []
    assert "its notes are not as this program writes them" in str(unpacked.damage[0])
    assert "its notes are not as this program writes them" in archives.inspect(tmp_path / "b.7f")["damage"][0]
    assert not (tmp_path / "deep").exists()


def test_images_of_16_bits_keep_more_than_8_of_them_through_a_model_of_8(tmp_path):
    coarse = some(3)
    archives.pack(bundle(), [coarse], tmp_path / "a.7f")
    archives.pack(bundle(), [rows(coarse.frame["path"], coarse.images.astype(np.uint16) * 257)], tmp_path / "b.7f")
    one, other = (decoded(bundle(), tmp_path / f"{name}.7f") for name in "ab")
    for name, image in other.items():
        assert image.dtype == np.uint16
        assert np.abs(image / 257 - one[name]).max() < 0.502
        assert len(np.unique(image % 257)) > 100  # levels between those of 8 bits


def test_images_without_names_are_named_by_their_numbers(tmp_path):
    pixels = some(3).images
    entries = archives.pack(bundle(), [formats.Rows(pd.DataFrame(index=range(3)), pixels)], tmp_path / "a.7f")
    assert [entry.name for entry in entries] == ["00000000.png", "00000001.png", "00000002.png"]
    old = FOLDERS["convolutional"] / "version_1.7f"
    unpacked = archives.unpack(bundle(), old, tmp_path / "old")
    assert unpacked.names == [f"{i:08d}.png" for i in range(7)]
    assert {row["type"] for row in archives.inspect(old)["entries"]} == {None}


def test_an_inspection_tells_what_is_there_without_the_model(tmp_path):
    entries = archives.pack(bundle(), vectors.parts("convolutional"), tmp_path / "a.7f", lossless_if_smaller=True)
    found = archives.inspect(tmp_path / "a.7f")
    assert json.loads(json.dumps(found)) == found
    assert found["images"] == len(entries) == 12
    assert found["bytes"] == (tmp_path / "a.7f").stat().st_size
    assert found["pixels"] == sum(math.prod(entry.shape[:2]) for entry in entries)
    assert found["bits_per_pixel"] == pytest.approx(8 * found["bytes"] / found["pixels"], abs=1e-4)
    assert found["models"] == [bundle().application.digest(bundle().model)[: containers.DIGEST].hex()]
    by_name = {row["name"]: row for row in found["entries"]}
    for entry in entries:
        row = by_name[entry.name]
        assert (row["height"], row["width"], row["type"]) == (*entry.shape[:2], entry.dtype)
        assert (row["rung"] or 0) == entry.rung
        assert row["stored"] == ("stream" if entry.rung else "lossless")
    text = archives.told(found)
    assert "12 images in" in text
    assert "deep board.tif" in text
    assert "every checksum is right" in text
    each = archives.pack_each(bundle(), vectors.parts("convolutional"), tmp_path / "each")
    sizes = {row["name"]: row["bytes"] for row in archives.inspect(tmp_path / "each")["entries"]}
    assert sizes == {entry.name: entry.size for entry in each}


def test_what_cannot_be_packed_or_unpacked_is_said_with_what_would_do(tmp_path):
    with pytest.raises(ValueError, match=r"rate is 1 and psnr is 30; expected one of them; leave the other out"):
        archives.pack(bundle(), [some()], tmp_path / "a.7f", rate=1, psnr=30)
    with pytest.raises(ValueError, match=r"rate is -1; expected bits per pixel, above 0 and finite"):
        archives.pack(bundle(), [some()], tmp_path / "a.7f", rate=-1)
    with pytest.raises(ValueError, match=r"psnr is nan; expected decibels"):
        archives.pack(bundle(), [some()], tmp_path / "a.7f", psnr=math.nan)
    colours = rows(["a.png"], np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(
        DataError, match=r"got images 32x32 with 3 channels; expected images of any size with 1 channel"
    ):
        archives.pack(bundle(), [colours], tmp_path / "a.7f")
    with pytest.raises(DataError, match=r"got images 32x32 with 1 channel; expected images 8x8 with 1 channel"):
        archives.pack(bundle("layers"), [some()], tmp_path / "a.7f")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; check the path"):
        archives.inspect(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no container; expected files that end in .7f"):
        archives.unpack(bundle(), tmp_path / "empty", tmp_path / "out")
    archives.pack(bundle(), [some()], tmp_path / "a.7f")
    with pytest.raises(ContainerError, match=r"a.7f was written by model .*; use the one that wrote it"):
        list(archives.Reader(bundle("layers")).read(tmp_path / "a.7f"))
    (tmp_path / "no.7f").write_bytes(b"GIF89a" * 9)
    with pytest.raises(ContainerError, match=r"no.7f starts with b'GIF89aG'"):
        archives.inspect(tmp_path / "no.7f")


def test_a_model_for_something_else_is_refused(tmp_path):
    import tiny

    with pytest.raises(
        ValueError, match="this model is for reduction; expected one for compression; name another model"
    ):
        archives.pack(tiny.bundle("images", "reduction"), [some(1)], tmp_path / "a.7f")


def test_a_file_without_loss_that_is_none_is_damage(tmp_path):
    def written(payload):
        head = archives._written(np.zeros((8, 8), np.uint8), ["a.png"], [bytes(8)])
        with (tmp_path / "a.7f").open("wb") as out:
            writer = containers.Writer(out, bundle().application.digest(bundle().model))
            writer.add(payload, 1, (1, 8, 8), 0, "file", head)
            writer.close()
        (damage,) = archives.Reader(bundle()).read(tmp_path / "a.7f")
        return str(damage)

    assert "its file without loss cannot be read" in written(b"no image")
    assert "its file holds (9, 8); expected (8, 8)" in written(images.encoded(".png", np.zeros((9, 8), np.uint8)))
    assert "not those that were stored" in written(images.encoded(".png", np.zeros((8, 8), np.uint8)))
    assert Chunk(0, 1, (1, 8, 8), 0, b"").kind == "stream"


def test_a_compressing_bundle_takes_any_size_only_if_its_network_does():
    for name in FOLDERS:
        free = bundle(name).schema.problems(rows(["a.png"], np.zeros((1, 17, 5), np.uint8))) == []
        assert free is (name == "convolutional")
        assert (
            bundle(name).schema.problems(rows(["a.png"], np.zeros((1, *bundle(name).schema.shape[1:]), np.uint16)))
            == []
        )
