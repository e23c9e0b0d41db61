"""Containers give back what was written, and damage takes only the chunks that it hits."""

import io
import re
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevenfold import containers
from sevenfold.containers import Chunk, Damage

DIGEST = bytes(range(32))
HEADER = 20


def written(chunks, digest=DIGEST):
    """The container of (payload, count, shape, rung), and where each chunk begins; the last place is that of the end."""
    out = io.BytesIO()
    writer = containers.Writer(out, digest)
    places = []
    for chunk in chunks:
        places.append(out.tell())
        writer.add(*chunk)
    places.append(out.tell())
    writer.close()
    return out.getvalue(), places


def example(count=6, seed=0):
    """Chunks, some of them with notes, of kinds that take turns."""
    generator = np.random.default_rng(seed)
    kinds = [("stream", b""), ("stream", b"names"), ("tiles", b""), ("file", generator.bytes(30))]
    return [
        (
            generator.bytes(int(generator.integers(0, 90))),
            int(generator.integers(1, 300)),
            (1, 8, 8 + i),
            i + 1,
            *kinds[(i + seed) % 4],
        )
        for i in range(count)
    ]


def chunks_of(parts):
    first, found = 0, []
    for payload, count, shape, rung, *more in parts:
        found.append(Chunk(first, count, shape, rung, payload, *more))
        first += count
    return found


CHUNKS = st.lists(
    st.tuples(
        st.binary(max_size=60),
        st.integers(1, 1 << 20),
        st.tuples(st.integers(1, 4), st.integers(1, 1 << 14), st.integers(1, 1 << 14)),
        st.integers(0, 200),
        st.sampled_from(containers.KINDS),
        st.binary(max_size=40),
    ),
    min_size=1,
    max_size=6,
)


@given(CHUNKS)
def test_what_was_written_comes_back(parts):
    data, _ = written(parts)
    assert list(containers.parse(data, DIGEST)) == chunks_of(parts)


def test_a_container_without_images_is_one_too():
    data, _ = written([])
    assert list(containers.parse(data, DIGEST)) == []
    assert containers.written_by(data) == DIGEST[: containers.DIGEST]


def test_the_layout_is_as_documented():
    data, _ = written([(b"abc", 300, (3, 8, 5), 2)])
    header = b"\x897F\r\n\x1a\n\x02" + DIGEST[:8]
    header += zlib.crc32(header).to_bytes(4, "little")
    head = bytes([0xF7, 0x43, 0, 0xAC, 2, 3, 8, 5, 2, 3]) + zlib.crc32(b"abc").to_bytes(4, "little")
    end = bytes([0xF7, 0x45, 0xAC, 2])
    checks = [zlib.crc32(part).to_bytes(4, "little") for part in (head, end)]
    # Whoever changes it raises VERSION, and keeps reading the old one.
    assert data == header + head + checks[0] + b"abc" + end + checks[1]
    assert len(header) == HEADER


def test_the_layout_of_a_chunk_with_notes_is_as_documented():
    data, places = written([(b"abc", 1, (3, 8, 5), 2, "file", b"name")])
    head = bytes([0xF7, 0x41, 0, 1, 3, 8, 5, 2, 3, 2, 4]) + zlib.crc32(b"nameabc").to_bytes(4, "little")
    assert data[HEADER : places[1]] == head + zlib.crc32(head).to_bytes(4, "little") + b"nameabc"


def test_a_container_of_version_1_is_read():
    data, _ = written([(b"abc", 300, (3, 8, 5), 2)])
    header = data[:7] + b"\x01" + data[8:16]
    old = header + zlib.crc32(header).to_bytes(4, "little") + data[HEADER:]
    assert list(containers.parse(old, DIGEST)) == [Chunk(0, 300, (3, 8, 5), 2, b"abc")]


@given(CHUNKS)
def test_a_chunk_knows_how_many_bytes_it_takes(parts):
    _, places = written(parts)
    assert [chunk.size for chunk in chunks_of(parts)] == np.diff(places).tolist()


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_parts_of_a_payload_come_apart_again(parts):
    assert containers.parted(containers.joined(parts)) == parts


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.integers(0, 10**9))
def test_a_payload_that_does_not_come_apart_is_refused(parts, size):
    whole = containers.joined(parts)
    with pytest.raises(containers.ContainerError, match="does not fall into"):
        containers.parted(whole[: size % len(whole)] if size % len(whole) else whole + b"x")


def test_many_small_images_share_a_few_bytes():
    data, _ = written([(bytes(4000), 1024, (1, 8, 8), 3)])
    assert (len(data) - 4000) / 1024 < 0.06


def test_a_file_is_read_as_its_bytes_are(tmp_path):
    data, _ = written(example())
    path = tmp_path / "images.7f"
    path.write_bytes(data)
    assert list(containers.read(path, DIGEST)) == chunks_of(example())


def hit(places, low, high):
    """Which chunks the bytes from low up to high touch."""
    return {i for i in range(len(places) - 1) if low < places[i + 1] and high > places[i]}


def survivors(data, digest=DIGEST):
    """The chunks that were read, and the images that were named as lost: first, last or None."""
    found = list(containers.parse(data, digest))
    return [f for f in found if isinstance(f, Chunk)], [(f.first, f.last) for f in found if isinstance(f, Damage)]


@settings(max_examples=300)
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=70), st.integers(0, 5))
def test_damaged_bytes_lose_their_own_chunks_and_name_them(at, noise, seed):
    parts = example(seed=seed)
    data, places = written(parts)
    at = HEADER + at % (len(data) - HEADER)
    damaged = bytearray(data)
    noise = noise[: len(data) - at]
    damaged[at : at + len(noise)] = noise
    changed = [at + i for i, byte in enumerate(noise) if byte != data[at + i]]
    touched = set().union(*(hit(places, i, i + 1) for i in changed)) if changed else set()
    chunks, lost = survivors(bytes(damaged))
    expected = chunks_of(parts)
    assert chunks == [chunk for i, chunk in enumerate(expected) if i not in touched]
    named = {n for first, last in lost if last is not None for n in range(first, last + 1)}
    missing = {n for i in touched for n in range(expected[i].first, expected[i].first + expected[i].count)}
    if (open_ := [first for first, last in lost if last is None]) or any(i >= places[-1] for i in changed):
        # Without its end nobody knows where a container ended.
        missing = {n for n in missing if n < min(open_)}
        named = {n for n in named if n < min(open_)}
        assert max((chunk.first + chunk.count for chunk in chunks), default=0) <= min(open_)
    assert named == missing


@given(st.integers(0, 10**9))
def test_a_cut_file_gives_its_whole_chunks_and_says_from_where_on_images_are_missing(size):
    parts = example()
    data, places = written(parts)
    size = HEADER + size % (len(data) - HEADER)
    chunks, lost = survivors(data[:size])
    whole = [chunk for i, chunk in enumerate(chunks_of(parts)) if places[i + 1] <= size]
    assert chunks == whole
    assert lost == [(sum(chunk.count for chunk in whole), None)]


@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=50))
def test_inserted_bytes_lose_one_chunk_at_most(at, more):
    parts = example()
    data, places = written(parts)
    at = HEADER + at % (len(data) - HEADER)
    chunks, lost = survivors(data[:at] + more + data[at:])
    touched = hit(places, at, at + 1) if at not in places else set()
    kept = [chunk for i, chunk in enumerate(chunks_of(parts)) if i not in touched]
    assert set(chunks) >= set(kept)
    assert len(lost) <= 1


def test_a_missing_chunk_is_named():
    parts = example()
    data, places = written(parts)
    expected = chunks_of(parts)
    chunks, lost = survivors(data[: places[2]] + data[places[3] :])
    assert chunks == expected[:2] + expected[3:]
    assert lost == [(expected[2].first, expected[3].first - 1)]


def test_a_chunk_that_is_there_twice_counts_once():
    parts = example()
    data, places = written(parts)
    assert survivors(data[: places[3]] + data[places[2] :]) == (chunks_of(parts), [])


def test_what_follows_the_end_is_told():
    data, _ = written(example())
    (damage,) = [f for f in containers.parse(data + b"more", DIGEST) if isinstance(f, Damage)]
    assert "4 bytes behind the end; expected none" in str(damage)


def test_damage_says_which_images_and_why():
    parts = example()
    data, places = written(parts)
    first = chunks_of(parts)[1].first
    broken = bytearray(data)
    broken[places[2] - 1] ^= 1
    (damage,) = [f for f in containers.parse(bytes(broken), DIGEST) if isinstance(f, Damage)]
    assert str(damage) == (
        f"images {first} to {first + parts[1][1] - 1}: their chunk fails its checksum; take the file from its source again"
    )
    assert str(Damage(4, 4, "gone")) == "image 4: gone"
    assert str(Damage(4, None, "cut off")) == "images from 4 on: cut off"


WRONG = {
    "magic": (
        lambda d: b"\x89PNG" + d[4:],
        r"starts with b'\\x89PNG.*; expected .* as a .7f container does; name another",
    ),
    "version": (lambda d: d[:7] + b"\x03" + d[8:], "has version 3; this program reads up to 2; use a newer sevenfold"),
    "zero": (lambda d: d[:7] + b"\x00" + d[8:], "has a damaged header; take it from its source again"),
    "digest": (lambda d: d[:9] + b"\xff" + d[10:], "has a damaged header; take it from its source again"),
    "short": (lambda d: d[:15], "has 15 bytes; a header alone has 20; take it from its source again"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_container_is_refused_with_file_reason_and_remedy(what, tmp_path):
    change, message = WRONG[what]
    path = tmp_path / "images.7f"
    path.write_bytes(change(written(example())[0]))
    with pytest.raises(containers.ContainerError, match=f"{re.escape(str(path))} {message}"):
        list(containers.read(path))


def test_an_empty_file_and_none_are_refused(tmp_path):
    path = tmp_path / "images.7f"
    with pytest.raises(FileNotFoundError):
        list(containers.read(path))
    path.touch()
    with pytest.raises(containers.ContainerError, match=r"images.7f is empty; expected a .7f container"):
        list(containers.read(path))


def test_another_models_container_is_refused_by_both_digests():
    data, _ = written(example())
    other = bytes(32)
    message = "was written by model 0001020304050607; this is model 0000000000000000; use the one that wrote it"
    with pytest.raises(containers.ContainerError, match=message):
        list(containers.parse(data, other))
    assert survivors(data, None)[0] == chunks_of(example())


@pytest.mark.parametrize("count", [-1, 1 << 48])
def test_impossible_numbers_are_not_written(count):
    with pytest.raises(ValueError, match=rf"{count} in a container's head; expected 0 or more, and less than 2\^48"):
        written([(b"", count, (1, 8, 8), 1)])


def test_a_digest_that_tells_nothing_apart_is_refused():
    with pytest.raises(ValueError, match="a digest of 3 bytes; expected 8 or more"):
        containers.Writer(io.BytesIO(), b"abc")
