"""What a model costs is measured at what users call: its bundle's files, and its own operation on raw rows."""

import subprocess

import numpy as np
import pandas as pd
import pytest

from sevenfold import bundles, footprint, formats, operations
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    return tiny.saved(tmp_path / "bundle", "table", "reduction")


@pytest.fixture
def calls(monkeypatch):
    """The numbers of rows of all calls of the operation, which is run as ever."""
    found = []
    get = operations.get

    def counting(name, bundle):
        act = get(name, bundle)

        def counted(bundle, rows):
            found.append(len(rows))
            return act(bundle, rows)

        return counted

    monkeypatch.setattr(operations, "get", counting)
    return found


def clock(monkeypatch, calls, milliseconds):
    """Let time stand still but in calls: the last of them took what `milliseconds` says of its number."""
    monkeypatch.setattr(footprint.time, "perf_counter", lambda: sum(milliseconds(i) for i in range(len(calls))) / 1000)


def test_the_size_is_that_of_the_bundles_files(folder):
    counted = subprocess.run(["du", "--apparent-size", "-b", "-a", "-d1", folder], capture_output=True, text=True)
    sizes = [line.split("\t") for line in counted.stdout.splitlines()]
    expected = sum(int(size) for size, name in sizes if name != str(folder))
    cost = footprint.measure(folder, tiny.table(20))
    assert cost.size == expected > 1000
    assert cost.megabytes == expected / 1_000_000


@pytest.mark.parametrize(("kind", "name"), [("table", "anomaly"), ("images", "denoising"), ("table", "imputation")])
def test_raw_rows_of_every_kind_take_a_time_above_nothing(tmp_path, kind, name):
    rows = tiny.table(30) if kind == "table" else tiny.images(12)
    cost = footprint.measure(tiny.saved(tmp_path / "bundle", kind, name), rows)
    assert 0 < cost.milliseconds < 3_600_000


@pytest.mark.parametrize(("given", "used"), [(1, 1), (40, 40), (1000, 1000), (1001, 1000), (2500, 1000)])
def test_at_most_a_thousand_rows_are_used_three_times_and_two_to_warm_up(folder, calls, given, used):
    rows = formats.Rows(pd.concat([tiny.table(100).frame] * 25, ignore_index=True)).take(np.arange(given))
    footprint.measure(folder, rows)
    assert calls == [min(given, 2), used, used, used]


@pytest.mark.parametrize("each", [1, 5, 250])
def test_the_time_grows_with_what_a_call_takes_and_is_for_a_thousand_rows(folder, calls, monkeypatch, each):
    clock(monkeypatch, calls, lambda call: each)
    assert footprint.measure(folder, tiny.table(50)).milliseconds == pytest.approx(each * 1000 / 50)


def test_of_more_rows_the_time_is_for_those_that_were_used(folder, calls, monkeypatch):
    clock(monkeypatch, calls, lambda call: 40)
    rows = formats.Rows(pd.concat([tiny.table(100).frame] * 25, ignore_index=True))
    assert footprint.measure(folder, rows).milliseconds == pytest.approx(40)


def test_neither_the_first_call_nor_a_single_slow_one_counts(folder, calls, monkeypatch):
    clock(monkeypatch, calls, lambda call: [9999, 20, 9999, 30][call])
    assert footprint.measure(folder, tiny.table(100)).milliseconds == pytest.approx(300)


def test_a_broken_bundle_is_not_measured(folder):
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(bundles.BundleError, match=weights.name):
        footprint.measure(folder, tiny.table(20))
