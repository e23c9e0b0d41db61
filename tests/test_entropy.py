"""Numbers come back from streams, streams are as short as the tables allow, and damage is found."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sevenfold import entropy


def tables(weights, means, scales):
    return entropy.logistic_tables(*(np.array(values, np.float64) for values in (weights, means, scales)))


TABLES = tables([[0.5, 0.3, 0.2]] * 3, [[0, 5, -9], [0.2, 0.1, 40], [0, 0, 0]], [[1, 2, 0.3], [8, 1, 30], [0.01] * 3])
CODER = entropy.Coder(TABLES)


def roundtrip(values, which, coder=CODER):
    writer = entropy.Writer()
    writer.write(values, which, coder)
    stream = writer.stream()
    reader = entropy.Reader(stream)
    found = reader.read(which, coder)
    reader.close()
    return stream, found


def information(values, which):
    """The information in numbers that stand in their tables, in bits."""
    shares = [
        TABLES[t].weights[v - TABLES[t].lowest] / TABLES[t].weights.sum() for v, t in zip(values, which, strict=True)
    ]
    return -np.log2(shares).sum()


def typical(count, seed=0):
    """Numbers as the tables expect them, and their tables."""
    generator = np.random.default_rng(seed)
    which = generator.integers(0, len(TABLES), count)
    values = np.zeros(count, np.int64)
    for index, table in enumerate(TABLES):
        inside = table.weights[:-1] / table.weights[:-1].sum()
        drawn = generator.choice(len(inside), size=count, p=inside) + table.lowest
        values[which == index] = drawn[which == index]
    return values, which


EDGE = entropy.LIMIT - 1
NUMBERS = st.integers(-EDGE, EDGE) | st.integers(-60, 60) | st.sampled_from([0, EDGE, -EDGE, 255, 256, -256, 1 << 24])


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.integers(0, len(TABLES) - 1)), max_size=40))
def test_any_numbers_come_back(pairs):
    values, which = np.array(pairs, np.int64).reshape(-1, 2).T
    _, found = roundtrip(values, which)
    np.testing.assert_array_equal(found, values)


def test_parts_of_different_tables_come_back_in_their_order():
    other = entropy.Coder(tables([[1]], [[100]], [[3]]))
    first, which = typical(500)
    second = np.random.default_rng(1).integers(80, 120, 70)
    writer = entropy.Writer()
    writer.write(first, which, CODER)
    writer.write(second, np.zeros(70, np.int64), other)
    reader = entropy.Reader(writer.stream())
    np.testing.assert_array_equal(reader.read(which, CODER), first)
    np.testing.assert_array_equal(reader.read(np.zeros(70, np.int64), other), second)
    reader.close()


def test_a_table_holds_the_mass_of_its_mixture():
    weights, means, scales = [0.5, 0.3, 0.2], [0.3, 5.1, -9], [1, 2.5, 0.3]
    (table,) = tables([weights], [means], [scales])
    k = table.lowest + np.arange(len(table.weights) - 1)
    mixture = [
        w * np.diff(scipy.stats.logistic(m, s).cdf(np.append(k, k[-1] + 1) - 0.5))
        for w, m, s in zip(weights, means, scales, strict=True)
    ]
    expected = np.sum(mixture, axis=0)
    np.testing.assert_allclose(table.weights[:-1] / entropy.UNIT, expected, atol=1.01 / entropy.UNIT)
    assert table.weights.min() >= 1
    assert table.weights[-1] / entropy.UNIT < 2e-5  # what is left for the tails
    values = np.array([0, -9, 5, 30])
    np.testing.assert_array_equal(table.symbols(values), values - table.lowest)
    assert set(table.symbols(np.array([table.lowest - 1, k[-1] + 1, entropy.LIMIT]))) == {len(k)}


def test_a_stream_is_as_long_as_the_information_in_its_numbers():
    values, which = typical(50_000)
    stream, _ = roundtrip(values, which)
    assert 8 * len(stream) == pytest.approx(information(values, which) + entropy.OVERHEAD, rel=1e-4, abs=8)


def test_a_stream_is_as_long_as_the_empirical_entropy_of_numbers_that_the_table_fits():
    values = np.rint(scipy.stats.logistic(0, 4).rvs(50_000, random_state=0)).astype(np.int64)
    stream, _ = roundtrip(values, np.zeros(len(values), np.int64), entropy.Coder(tables([[1]], [[0]], [[4]])))
    _, counts = np.unique(values, return_counts=True)
    bits = len(values) * scipy.stats.entropy(counts, base=2)
    assert bits < 8 * len(stream) < 1.005 * bits


def test_many_small_streams_cost_their_information_and_the_overhead_each():
    pieces = [typical(12, seed) for seed in range(400)]
    sizes = [8 * len(roundtrip(*piece)[0]) for piece in pieces]
    extra = np.subtract(sizes, [information(*piece) for piece in pieces])
    assert np.abs(extra - entropy.OVERHEAD).max() < 16
    assert extra.mean() == pytest.approx(entropy.OVERHEAD + 4, abs=1)  # half a byte of padding on average


def test_numbers_far_outside_their_table_cost_little_more_than_their_bytes():
    values = np.array([1 << 20, -(1 << 20), 3000, -70_000])
    stream, found = roundtrip(values, np.full(4, 2))
    np.testing.assert_array_equal(found, values)
    assert len(stream) <= 4 * (3 + 1 + 3) + 4  # the escape at 24 bits, the number of bytes, the bytes; and the overhead


def test_flat_and_narrow_tables_are_sound():
    extremes = tables([[1]] * 4, [[0], [1e7], [-1e7], [0.5]], [[1e6], [1], [1], [1e-6]])
    coder = entropy.Coder(extremes)
    assert all(len(t.weights) <= 2 * entropy.WIDEST + 2 for t in extremes)
    assert all((t.weights >= 1).all() for t in extremes)
    which = np.repeat(np.arange(4), 5)
    values = np.tile([0, 1, -1, 10_000_000, -10_000_000], 4)
    np.testing.assert_array_equal(roundtrip(values, which, coder)[1], values)


def test_nothing_is_a_stream_too():
    stream, found = roundtrip(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert found.shape == (0,)
    assert len(stream) == 4


def test_every_flipped_bit_and_every_missing_or_added_byte_is_found():
    values, which = typical(60)
    stream, _ = roundtrip(values, which)
    damaged = [stream[:n] for n in range(len(stream))] + [stream + b"\0", stream + b"\x01", b"\x01" + stream]
    for bit in range(8 * len(stream)):
        flipped = bytearray(stream)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for one in damaged:
        with pytest.raises(entropy.DamagedStreamError, match=rf"a stream of {len(one)} bytes.*; expected one"):  # noqa: PT012
            reader = entropy.Reader(one)
            reader.read(which, CODER)
            reader.close()


def test_another_table_or_another_count_is_found():
    values, which = typical(60)
    stream, _ = roundtrip(values, which)
    other = entropy.Coder(tables([[1]] * 3, [[0], [1], [0]], [[1], [8], [0.02]]))
    for there, coder in [(which, other), (which[:-1], CODER), (np.append(which, 0), CODER), ((which + 1) % 3, CODER)]:
        reader = entropy.Reader(stream)
        reader.read(there, coder)
        with pytest.raises(entropy.DamagedStreamError, match="fails its checksum; expected one of this very model"):
            reader.close()


@pytest.mark.parametrize("stream", [b"", b"\0", bytes(100), b"\xff" * 100, b"\x01"])
def test_what_never_was_a_stream_is_refused(stream):
    with pytest.raises(entropy.DamagedStreamError, match=f"a stream of {len(stream)} bytes"):  # noqa: PT012
        reader = entropy.Reader(stream)
        reader.read(np.zeros(1000, np.int64), CODER)
        reader.close()


@pytest.mark.parametrize("number", [entropy.LIMIT, -entropy.LIMIT])
def test_a_number_that_is_too_large_is_refused(number):
    with pytest.raises(ValueError, match=rf"numbers from .* to .*; expected them between -{entropy.LIMIT} and"):
        entropy.Writer().write(np.array([0, number]), np.zeros(2, np.int64), CODER)


@pytest.mark.parametrize("count", [30, 3000])
def test_learned_tables_come_near_the_distribution_of_numbers_that_they_have_not_seen(count):
    generator = np.random.default_rng(0)

    def drawn(n):
        two = np.where(generator.random(n) < 0.4, generator.normal(-6, 1, n), generator.normal(5, 3, n))
        return np.rint(np.stack([two, generator.laplace(0, 0.3, n), np.full(n, 7.0)], axis=1)).astype(np.int64)

    learned = entropy.learned_tables(drawn(count))
    fresh = drawn(20_000)
    bits = entropy.information(fresh, learned).mean(axis=0)
    ideal = [scipy.stats.entropy(np.unique(column, return_counts=True)[1], base=2) for column in fresh.T]
    assert (bits - ideal).max() < (0.5 if count < 100 else 0.02)
    assert bits[2] < 0.02


def test_nothing_is_impossible_by_a_learned_table_and_its_information_is_what_it_costs():
    learned = entropy.learned_tables(np.random.default_rng(0).integers(-3, 4, (50, 2)))
    coder = entropy.Coder(learned)
    values = np.array([[0, 1], [70, -2], [-5000, 3], [1 << 20, -(1 << 30)]])
    stream, found = roundtrip(values.reshape(-1), np.tile([0, 1], 4), coder)
    np.testing.assert_array_equal(found, values.reshape(-1))
    assert 8 * len(stream) == pytest.approx(entropy.information(values, learned).sum() + entropy.OVERHEAD, abs=8.5)


def test_learned_tables_are_bounded_whatever_they_see():
    learned = entropy.learned_tables(np.array([[1 << 40, 0], [-(1 << 40), 0], [3, 0]]))
    assert [len(table.weights) for table in learned] == [2 * entropy.WIDEST + 2, 4]
    assert all(table.weights.min() >= 1 for table in learned)


def test_the_exponential_is_the_true_one():
    x = np.concatenate([np.linspace(-690, 690, 9001), np.linspace(-1, 1, 9001), [0.0]])
    np.testing.assert_allclose(entropy.exp(x), np.exp(x), rtol=4e-16)
    assert entropy.exp(np.array([-1e300, -np.inf])).max() < 1e-299
    assert np.isfinite(entropy.exp(np.array([1e300, np.inf]))).all()


def test_tables_do_not_depend_on_how_many_are_made_at_once():
    # SIMD instructions treat the ends of long arrays otherwise than their middle.
    generator = np.random.default_rng(0)
    weights, means, scales = generator.dirichlet([1, 1, 1], 9), generator.normal(size=(9, 3)), generator.random((9, 3))
    together = entropy.logistic_tables(weights, means, scales + 0.05)
    for index, table in enumerate(together):
        (alone,) = entropy.logistic_tables(*(v[index : index + 1] for v in (weights, means, scales + 0.05)))
        assert alone.lowest == table.lowest
        np.testing.assert_array_equal(alone.weights, table.weights)


def test_streams_of_this_format_stay_readable():
    values = np.array([0, 37, 5, -9, 1 << 20, 40, -1, 7, -3000, 12])
    stream, _ = roundtrip(values, np.arange(10) % 3)
    # Whoever changes it raises FORMAT, and knows that streams on disk are lost.
    assert stream.hex() == "c6520a506f178010feffff00feffffff14c0e34278a26c00eab3"


def test_a_fresh_process_writes_the_same_bytes():
    values, which = typical(300)
    program = "import sys, test_entropy as t; sys.stdout.buffer.write(t.roundtrip(*t.typical(300))[0])"
    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, cwd=Path(__file__).parent
    ).stdout
    assert there == roundtrip(values, which)[0]
