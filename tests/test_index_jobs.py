"""Index folders by models: what goes in as rows or images is found by rows, images and vectors."""

import datetime
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sevenfold import cli, formats, index_folders, index_jobs, jobs, operations
from sevenfold.registry import tracking
from tests import tiny

ROWS = 120


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A workspace with two search bundles, a table and a folder of pictures; the current folder is in it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SEVENFOLD_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with tiny.workspace(tmp_path) as place:
        for name in ("params.yaml", "dvc.yaml"):
            (tmp_path / name).touch()
        for kind in ("table", "images"):
            tiny.saved(tmp_path / kind, kind, "search")
        tiny.table(ROWS).frame.to_parquet(tmp_path / "rows.parquet", row_group_size=50)
        shown = tiny.images(40, seed=5)
        for i, (pixels, label) in enumerate(zip(shown.images, shown.frame["label"], strict=True)):
            path = tmp_path / "pictures" / label.replace(" ", "_") / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        yield place


@pytest.fixture
def call(capsys):
    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        return ended.value.code or 0, *capsys.readouterr()

    return run


def build(place, kind="table", source="rows.parquet", **options):
    settings = jobs.Settings(partition_rows=50, options={"id": "customer"} | options if kind == "table" else options)
    return jobs.run(place, operation="index", model=kind, source=source, destination=Path("found"), settings=settings)


def vectors(kind, rows):
    bundle = tiny.bundle(kind, "search")
    return operations.index(bundle, rows).frame.to_numpy(np.float32)


def test_rows_find_what_is_nearest_by_brute_force(place):
    receipt = build(place)
    assert (receipt.operation, receipt.rows) == ("index", ROWS)
    (answer,) = index_jobs.search(place, Path("found"), "rows.parquet", k=4)
    held = vectors("table", formats.Rows(tiny.table(ROWS).frame))
    distances = np.linalg.norm(held[:, None] - held[None], axis=2)
    np.testing.assert_allclose(answer.found.distances, np.sort(distances, axis=1)[:, :4], atol=1e-4)
    assert (answer.found.ids[:, 0] == tiny.table(ROWS).frame["customer"]).mean() > 0.95  # but for equal rows
    assert list(answer.table) == ["query", "rank", "id", "distance", "kind"]


def test_conditions_hold_for_every_neighbour(place):
    build(place)
    (answer,) = index_jobs.search(place, Path("found"), "rows.parquet", k=3, where=["kind = odd"])
    assert set(answer.found.carried["kind"]) == {"odd"}


def test_vectors_find_what_their_rows_find(place):
    build(place)
    np.save("vectors.npy", vectors("table", formats.Rows(tiny.table(ROWS).frame)))
    (by_rows,) = index_jobs.search(place, Path("found"), "rows.parquet", k=3)
    (by_vectors,) = index_jobs.search(place, Path("found"), "vectors.npy", k=3, vectors=True)
    assert by_vectors.found.ids.tolist() == by_rows.found.ids.tolist()


def test_what_is_added_is_found_and_what_is_removed_is_not(place):
    build(place)
    tiny.table(30, seed=9).frame.assign(customer=[f"new-{i}" for i in range(30)]).to_parquet("more.parquet")
    manifest = index_jobs.add(place, Path("found"), "more.parquet").manifest
    assert manifest.count == ROWS + 30
    (answer,) = index_jobs.search(
        place, Path("found"), "more.parquet", k=5
    )  # vectors of two numbers lie close together
    assert all(f"new-{i}" in ids for i, ids in enumerate(answer.found.ids))
    with pytest.raises(ValueError, match=r"30 ids|new-0"):
        index_jobs.add(place, Path("found"), "more.parquet")
    index_folders.remove(Path("found"), ["new-3"])
    (answer,) = index_jobs.search(place, Path("found"), "more.parquet", k=5)
    assert "new-3" not in answer.found.ids
    # Nothing is left of the job that made the vectors.
    assert sorted(p.name for p in Path().glob("*found*")) == ["found", "found.manifest.json", "found.receipt.json"]


def test_rows_that_do_not_fit_are_kept_when_others_are_added(place, call):
    build(place)
    more = tiny.table(30, seed=9).frame.assign(customer=[f"new-{i}" for i in range(30)])
    more.loc[4, "city"] = "Atlantis"
    more.to_parquet("more.parquet")
    code, out, err = call("index", "add", "found", "more.parquet", "--on-bad-rows", "quarantine")
    assert (code, out.splitlines()[0]) == (0, f"found: {ROWS + 29} rows, generation 2")
    assert "found.add-000002.quarantine.parquet: 1 rows that do not fit the model" in err
    assert "drift of 29 rows against" in out + err
    more.assign(customer=[f"newer-{i}" for i in range(30)]).to_parquet("more.parquet")
    assert call("index", "add", "found", "more.parquet", "--on-bad-rows", "quarantine")[0] == 0
    aside = {p.name: formats.read(p).frame["customer"].tolist() for p in sorted(Path().glob("*.quarantine.parquet"))}
    assert aside == {
        "found.add-000002.quarantine.parquet": ["new-4"],
        "found.add-000003.quarantine.parquet": ["newer-4"],
    }


def test_what_was_added_is_recorded_with_the_version_of_the_folder(place):
    build(place)
    tiny.table(5, seed=9).frame.assign(customer=list("abcde")).to_parquet("more.parquet")
    added = index_jobs.add(place, Path("found"), "more.parquet")
    run = tracking.client(place).get_run(added.receipt.run_id)
    assert (run.data.metrics["rows"], added.receipt.output) == (5, str(Path("found").absolute()))
    assert added.receipt.output_digest == added.manifest.digest


def test_an_add_that_was_refused_is_done_when_it_comes_again_whatever_else_came_between(place):
    build(place)
    tiny.table(30, seed=9).frame.assign(customer=[f"new-{i}" for i in range(30)]).to_parquet("more.parquet")
    with (
        index_folders.locked(Path("found/lock"), Path("found")),
        pytest.raises(RuntimeError, match="wait for it, and run this again"),
    ):
        index_jobs.add(place, Path("found"), "more.parquet")
    index_folders.remove(Path("found"), ["00003"])
    assert index_jobs.add(place, Path("found"), "more.parquet").manifest.count == ROWS - 1 + 30
    # Nor is it taken for done when the same rows come once more, after they were removed.
    index_folders.remove(Path("found"), [f"new-{i}" for i in range(30)])
    assert index_jobs.add(place, Path("found"), "more.parquet").manifest.count == ROWS - 1 + 30


def add_and_be_killed(place, monkeypatch):
    """Build a folder and add 30 rows, new-0 and on; a kill comes when they are in it, and what it took is not cleared away."""
    build(place)
    tiny.table(30, seed=9).frame.assign(customer=[f"new-{i}" for i in range(30)]).to_parquet("more.parquet")

    def killed(output):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            index_jobs.add(place, Path("found"), "more.parquet")


def test_what_was_added_before_a_kill_is_not_added_again(place, monkeypatch):
    add_and_be_killed(place, monkeypatch)
    assert index_jobs.add(place, Path("found"), "more.parquet").manifest.count == ROWS + 30
    assert list(Path().glob(".adding*")) == []


def test_rows_that_were_removed_after_a_kill_are_added_when_they_come_again(place, monkeypatch):
    add_and_be_killed(place, monkeypatch)
    index_folders.remove(Path("found"), [f"new-{i}" for i in range(30)])
    assert index_jobs.add(place, Path("found"), "more.parquet").manifest.count == ROWS + 30


def test_a_second_add_is_refused_at_its_start_and_the_first_one_adds_its_own_rows(place):
    build(place)
    for name, count in (("first", 30), ("second", 40)):
        frame = tiny.table(count, seed=count).frame
        frame.assign(customer=[f"{name}-{i}" for i in range(count)]).to_parquet(f"{name}.parquet")

    def second(progress):
        with pytest.raises(
            RuntimeError, match=r"another process is writing to .*found; wait for it, and run this again"
        ):
            index_jobs.add(place, Path("found"), "second.parquet")

    added = index_jobs.add(place, Path("found"), "first.parquet", on_progress=second)
    assert (added.receipt.rows, added.manifest.count) == (30, ROWS + 30)
    (answer,) = index_jobs.search(place, Path("found"), "first.parquet", k=5)
    assert all(f"first-{i}" in ids for i, ids in enumerate(answer.found.ids))
    assert list(Path().glob(".adding*")) == []


def test_a_carried_column_whose_name_begins_as_a_vectors_stays_a_column(place):
    frame = tiny.table(ROWS).frame.assign(vector_id=range(ROWS), vector_name=[f"n{i}" for i in range(ROWS)])
    frame.to_parquet("rows.parquet", row_group_size=50)
    build(place)
    (answer,) = index_jobs.search(place, Path("found"), "rows.parquet", k=1)
    assert list(answer.table) == ["query", "rank", "id", "distance", "kind", "vector_id", "vector_name"]
    more = frame[:5].assign(customer=list("abcde"))
    more.to_parquet("more.parquet")
    assert index_jobs.add(place, Path("found"), "more.parquet").manifest.count == ROWS + 5


def test_a_gap_among_ids_of_numbers_is_told_as_one(place):
    frame = tiny.table(ROWS).frame.assign(account=pd.array([None, *range(1, ROWS)], dtype="Int64"))
    frame.to_parquet("rows.parquet", row_group_size=50)
    with pytest.raises(ValueError, match=r"1 ids are missing \(first: row 0\); expected one each; fill them"):
        build(place, id="account")


def test_another_model_is_refused(place):
    build(place)
    tiny.saved(Path("other"), "table", "search", seed=1)
    with pytest.raises(
        ValueError, match=r"other has digest .*; the folder was made by table, .*; name that one by `--model`"
    ):
        index_jobs.add(place, Path("found"), "rows.parquet", model="other")
    with pytest.raises(ValueError, match="the folder was made by table"):
        next(index_jobs.search(place, Path("found"), "rows.parquet", k=1, model="other"))
    # The model may lie elsewhere by now.
    shutil.move("table", "moved")
    tiny.table(5, seed=9).frame.assign(customer=list("abcde")).to_parquet("more.parquet")
    assert index_jobs.add(place, Path("found"), "more.parquet", model="moved").manifest.count == ROWS + 5


def test_an_index_is_not_written_over(place):
    build(place)
    with pytest.raises(
        FileExistsError, match="is an index already; expected a new name; add to it with `sevenfold index add`"
    ):
        build(place)


def test_a_column_of_ids_that_is_not_there_is_named(place):
    with pytest.raises(ValueError, match=r"id is 'sku'; expected a column that goes along, one of 'customer', 'kind'"):
        build(place, id="sku")
    build(place)
    with pytest.raises(ValueError, match=r"id is 'city'; expected a column that goes along, one of 'customer', 'kind'"):
        index_jobs.add(place, Path("found"), "rows.parquet", settings=jobs.Settings(options={"id": "city"}))


def test_images_are_found_by_images_and_shown_on_a_page(place, call):
    assert call("index", "images", "pictures", "found")[0] == 0
    code, out, err = call("search", "found", "pictures", "-k", 3, "--json", "--limit", 2)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [one["id"] for one in found if one["rank"] == 1] == [one["path"] for one in found if one["rank"] == 1]
    assert len(found) == 6
    first = found[0]["id"]
    assert call("index", "remove", "found", first)[0] == 0
    code, out, _ = call("search", "found", f"pictures/{first}", "-k", 2)
    assert first not in out.splitlines()[1]
    copy = Path("again") / first
    copy.parent.mkdir(parents=True)
    shutil.copy(Path("pictures") / first, copy)
    code, out, err = call("index", "add", "found", "again")
    assert (code, out.splitlines()[0]) == (0, "found: 40 rows, generation 3")
    assert call("index", "compact", "found")[1].strip() == "found: 40 rows, generation 4"
    code, out, _ = call("search", "found", "pictures", "-k", 4, "--html", "page.html", "--label", "label", "--limit", 3)
    assert (code, out.strip()) == (0, "page.html")
    page = Path("page.html").read_text()
    assert page.count("<img") == 3 + 3 * 4
    assert "http://" not in page
    assert "https://" not in page
    code, out, _ = call("inspect", "found")
    assert (code, out.splitlines()[1].split()[:2]) == (0, ["rows", "40"])
    assert out.splitlines()[-1] == "every checksum is right"
    assert json.loads(call("inspect", "found", "--json")[1])["count"] == 40
    (ids,) = Path("found").rglob("ids*")
    ids.write_bytes(ids.read_bytes()[:-1] + b"?")
    code, out, _ = call("inspect", "found")
    assert code == 1
    assert out.splitlines()[-2:] == ["damaged:", f"  {ids.parent.name}/{ids.name} is damaged: its SHA-256 is another"]


def test_many_queries_go_to_a_file(place, call, monkeypatch):
    build(place)
    monkeypatch.setattr(index_jobs, "AT_A_TIME", 50)
    assert len(json.loads(call("search", "found", "rows.parquet", "-k", 2, "--json")[1])) == 2 * ROWS
    code, out, _ = call("search", "found", "rows.parquet", "-k", 2, "--output", "neighbours.csv")
    assert (code, out.strip()) == (0, f"neighbours.csv: neighbours of {ROWS} queries")
    made = pd.read_csv("neighbours.csv")
    assert len(made) == 2 * ROWS
    assert made["query"].tolist() == np.repeat(np.arange(ROWS), 2).tolist()


def test_rows_that_are_counted_are_removed_by_their_numbers(place, call):
    build(place, id=None)
    assert call("index", "remove", "found", "17", "3")[:2] == (0, f"found: {ROWS - 2} rows, generation 2\n")
    code, _, err = call("index", "remove", "found", "seventeen")
    assert (code, "ids are seventeen; expected whole numbers" in err) == (1, True)


def test_a_large_whole_number_beside_a_gap_comes_back_as_it_was(place):
    number = 2**60 + 1
    frame = tiny.table(ROWS).frame.assign(account=pd.array([number, None] * (ROWS // 2), dtype="Int64"))
    frame.to_parquet("rows.parquet", row_group_size=50)
    build(place)
    (answer,) = index_jobs.search(place, Path("found"), "rows.parquet", k=4)
    found = answer.table["account"]
    assert found.isna().any()
    assert set(found.dropna()) == {number}


def test_vectors_in_a_csv_file_find_what_they_find_in_an_array(place):
    build(place)
    held = vectors("table", formats.Rows(tiny.table(ROWS).frame))
    np.save("vectors.npy", held)
    frame = pd.DataFrame({f"vector_{i}": column for i, column in enumerate(held.T)})
    frame.assign(name="a", number=7).to_csv("vectors.csv", index=False)
    (by_array,) = index_jobs.search(place, Path("found"), "vectors.npy", k=3, vectors=True)
    (by_text,) = index_jobs.search(place, Path("found"), "vectors.csv", k=3, vectors=True)
    assert by_text.found.ids.tolist() == by_array.found.ids.tolist()


def test_a_page_shows_queries_of_every_batch(place, call, monkeypatch):
    monkeypatch.setattr(index_jobs, "AT_A_TIME", 8)
    assert call("index", "images", "pictures", "found")[0] == 0
    code, _, err = call("search", "found", "pictures", "-k", 2, "--html", "page.html", "--limit", 20)
    assert (code, err) == (0, "")
    assert Path("page.html").read_text().count("<img") == 20 + 20 * 2


def test_a_page_shows_images_of_a_pattern_and_those_that_were_added_from_elsewhere(place, call):
    shutil.move("pictures", "shop/pictures")
    assert call("index", "images", "shop/*/*/*.png", "found")[0] == 0
    more = Path("more/column_0/own.png")
    more.parent.mkdir(parents=True)
    shutil.copy(next(Path("shop").rglob("*.png")), more)
    code, _, err = call("index", "add", "found", "more")
    assert code == 0, err
    assert call("search", "found", more, "-k", 8, "--html", "page.html")[0] == 0
    page = Path("page.html").read_text()
    assert page.count("<img") == 1 + 8
    assert "own.png" in page


def test_neighbours_that_lack_what_later_ones_have_go_to_a_file(place, monkeypatch):
    when = pd.Series([None] * 60 + [datetime.date(2026, 1, 2)] * 60)
    tiny.table(ROWS).frame.assign(when=when).to_parquet("rows.parquet", row_group_size=50)
    build(place)
    monkeypatch.setattr(index_jobs, "AT_A_TIME", 30)
    answers = index_jobs.search(place, Path("found"), "rows.parquet", k=1)
    assert index_jobs.written(answers, Path("neighbours.parquet")) == ROWS
    made = pd.read_parquet("neighbours.parquet")
    assert made["when"].isna().any()
    assert set(made["when"].dropna()) == {datetime.date(2026, 1, 2)}


def test_queries_with_another_separator_find_what_they_find_with_commas(place, call):
    build(place)
    frame = tiny.table(5).frame
    frame.to_csv("plain.csv", index=False)
    frame.to_csv("odd.csv", index=False, sep="~")
    plain, odd = (call("search", "found", *q, "--json")[1] for q in (["plain.csv"], ["odd.csv", "--separator", "~"]))
    assert json.loads(plain) == json.loads(odd)
    assert len(json.loads(plain)) == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rows.parquet", "--limit", 0], "limit is 0; expected 1 or more"),
        (["packed.7f"], "packed.7f holds compressed images; expected images, rows or vectors"),
        (["rows.parquet", "--output", "s3://bucket/found.csv"], "expected a file on this machine"),
    ],
)
def test_what_cannot_be_asked_is_told(place, call, arguments, message):
    build(place)
    Path("packed.7f").touch()
    code, _, err = call("search", "found", *arguments)
    assert code == 1
    assert message in err


def test_tables_have_no_page(place, call):
    build(place)
    code, _, err = call("search", "found", "rows.parquet", "--html", "page.html")
    assert code == 1
    assert "the queries are no images; expected images in files on both sides; use `--output` for a table" in err
