"""What each operation gives in a job, by its options, and what it gives does not depend on how the job is done."""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sevenfold import evaluation, formats, jobs, manifests, modules, operations
from sevenfold.applications.base import Application
from sevenfold.datasets.base import DataError
from sevenfold.drift import DriftError
from sevenfold.formats import FormatError
from sevenfold.jobs import JobError
from sevenfold.registry import promotion
from tests import samples, tiny


def run(source, output, operation="encode", bundle=None, options=None, on_progress=None, **more):
    return jobs.apply(
        bundle or tiny.bundle("table", "anomaly"),
        "model/1",
        "digest",
        operation,
        source,
        output,
        jobs.Settings(**{"batch_size": 7, "partition_rows": 16, "workers": 2, "options": options or {}} | more),
        on_progress=on_progress or (lambda progress: None),
    )


def parquet(path):
    return pyarrow.parquet.read_table(path)


def read(path):
    return formats.read(path).frame


def put(path, frame):
    formats.write(path, frame)
    return path


@pytest.fixture
def rows(tmp_path):
    tiny.table(50).frame.to_parquet(tmp_path / "rows.parquet", row_group_size=10)
    return tmp_path / "rows.parquet"


@pytest.mark.parametrize("output", ["out", "out.parquet"])
def test_a_code_is_one_list_where_that_is_asked_for(tmp_path, rows, output):
    run(rows, tmp_path / "columns.parquet")
    receipt = run(rows, tmp_path / output, options={"list": True})
    made, columns = parquet(tmp_path / output), parquet(tmp_path / "columns.parquet")
    assert receipt.columns == ("customer", "kind", "code")
    assert made.schema.field("code").type == pyarrow.list_(pyarrow.float32(), 2)
    wanted = np.stack([columns["code_0"].to_numpy(), columns["code_1"].to_numpy()], axis=1)
    np.testing.assert_array_equal(np.stack(made["code"].to_pylist()).astype(np.float32), wanted)
    assert made["customer"].equals(columns["customer"])
    assert receipt.details["options"] == {"list": True}


def test_a_list_has_what_a_selection_selected_in_the_order_of_its_columns(tmp_path):
    data = samples.dataset("table")
    model = samples.trained("concrete", "table")
    application = samples.application("features")
    calibrated, _ = evaluation.judge(application, model, data)
    bundle = replace(
        tiny.bundle("table", "anomaly"),
        spec=samples.spec("concrete", "table"),
        model=model,
        schema=data.schema,
        application_name="features",
        application=calibrated,
        reference=None,
    )
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 12)), columns=[f"column_{i}" for i in range(12)])
    source = put(tmp_path / "rows.parquet", frame.assign(city="Oslo"))
    names = run(source, tmp_path / "columns.parquet", bundle=bundle).columns
    assert not any(name.startswith("code") for name in names)
    run(source, tmp_path / "list.parquet", bundle=bundle, options={"list": True})
    wanted = read(tmp_path / "columns.parquet")[[*names]].to_numpy(np.float32)
    np.testing.assert_array_equal(
        np.stack(parquet(tmp_path / "list.parquet")["code"].to_pylist()).astype(np.float32), wanted
    )


@pytest.mark.parametrize("output", ["out.csv", "out.npz"])
def test_a_list_does_not_go_into_csv_or_npz(tmp_path, rows, output):
    with pytest.raises(
        FormatError,
        match=rf"{output} cannot hold lists and bytes, as in 'code' \(list\); .*write \.parquet or a folder, or leave out `--list`",
    ):
        run(rows, tmp_path / output, options={"list": True})
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


def test_columns_that_go_along_do_not_take_the_name_of_a_list(tmp_path):
    frame = tiny.table(20).frame
    source = put(tmp_path / "rows.parquet", frame.assign(code="a"))
    with pytest.raises(DataError, match="columns of the names code, too; rename those of the input"):
        run(source, tmp_path / "out.parquet", options={"list": True})
    source = put(tmp_path / "rows.parquet", frame.assign(code_0="a"))  # which is nothing but a name then
    run(source, tmp_path / "out.parquet", options={"list": True})
    assert parquet(tmp_path / "out.parquet").column_names == ["customer", "kind", "code_0", "code"]


@pytest.mark.parametrize(
    ("operation", "options", "message"),
    [
        ("encode", {"lists": True}, "`encode` has no option lists; it has list; leave it out"),
        ("score", {"list": True}, "`score` has no option list; it has reasons; leave it out"),
        ("score", {"reasons": "some"}, "reasons are asked for 'some'; expected one of all, flagged, none"),
        ("encode", {"reasons": "all"}, "`encode` has no option reasons"),
    ],
)
def test_an_option_that_an_operation_does_not_have_is_refused(tmp_path, rows, operation, options, message):
    with pytest.raises(ValueError, match=message):
        run(rows, tmp_path / "out.parquet", operation, options=options)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


def test_reasons_are_told_of_the_rows_that_are_asked_for(tmp_path, rows):
    for which in ("all", "flagged", "none"):
        run(rows, tmp_path / f"{which}.parquet", "score", options={"reasons": which})
    every, flagged, none = (read(tmp_path / f"{which}.parquet") for which in ("all", "flagged", "none"))
    tops = ["top_1", "top_2"]
    assert 0 < every["flag"].sum() < len(every)
    assert [c for c in none if c not in tops] == [*none]
    assert every[[*none]].equals(none)
    assert flagged[[*none]].equals(none)
    assert every[tops].notna().all().all()
    assert flagged.loc[every["flag"], tops].equals(every.loc[every["flag"], tops])
    assert (flagged.loc[~every["flag"], tops].isna() | flagged.loc[~every["flag"], tops].eq("")).all().all()


@functools.cache
def drawing():
    """Return a bundle that fills gaps and has learned how far its fills are off."""
    plain = tiny.bundle("table", "imputation")
    application = modules.member("applications", "imputation", Application)(**tiny.OPTIONS["imputation"] | {"draws": 1})
    calibrated, _ = evaluation.judge(application, plain.model, tiny.dataset("table"))
    return replace(plain, application=calibrated)


def with_gaps(count=60):
    frame = tiny.table(count, seed=5).frame
    frame["age"] = frame["age"].astype("Int64").mask(frame.index % 6 == 1)
    frame["city"] = frame["city"].mask(frame.index % 9 == 2)
    frame["vip"] = frame["vip"].astype(object).mask(frame.index % 11 == 3)
    return frame


def test_flags_and_draws_are_given_as_asked(tmp_path):
    source = put(tmp_path / "rows.parquet", with_gaps())
    features = ["city", "age", "income", "vip"]
    flags = [f"{name}_imputed" for name in features]
    draws = [f"{name}_draw_{i}" for i in (1, 2, 3) for name in features]
    for options, more in {
        (): draws[:4] + flags,
        (("draws", 3), ("flags", False)): draws,
        (("draws", 0),): flags,
    }.items():
        run(source, tmp_path / "out.parquet", "impute", drawing(), dict(options))
        made = read(tmp_path / "out.parquet")
        assert [*made] == ["customer", *features, "kind", *more]  # the user's own order
        assert made.notna().all().all()
    gaps = with_gaps()[features].isna()
    assert made[flags].to_numpy().tolist() == gaps.to_numpy().tolist()
    run(source, tmp_path / "out.parquet", "impute", drawing(), {"draws": 3})
    made = read(tmp_path / "out.parquet")
    for name in features:
        some = [made[f"{name}_draw_{i}"] for i in (1, 2, 3)]
        for draw in some:  # which leaves what was known as it was
            known = with_gaps()[name][~gaps[name]]
            assert (
                np.allclose(draw[~gaps[name]].astype(float), known.astype(float), rtol=1e-6)
                if name in ("age", "income")
                else (draw[~gaps[name]].astype(str).tolist() == known.astype(str).tolist())
            )
    assert (made["income_draw_1"] != made["income_draw_2"])[gaps["income"]].any()


def test_draws_of_a_model_that_learned_none_are_refused(tmp_path):
    source = put(tmp_path / "rows.parquet", with_gaps())
    with pytest.raises(ValueError, match=r"draws is 2; expected 0, since this model was trained with `draws: null`"):
        run(source, tmp_path / "out.parquet", "impute", tiny.bundle("table", "imputation"), {"draws": 2})


def test_known_cells_of_a_csv_file_stay_the_text_that_they_are(tmp_path):
    """Whatever spelling the user has for a number; and fills are written as the column's own numbers."""
    frame = with_gaps().astype(object).astype("str").where(with_gaps().notna(), "")
    frame["age"] = [f"{v}.0" if v and i % 2 else v for i, v in enumerate(frame["age"])]
    frame["income"] = [f"{float(v):.3e}" if v and i % 3 else v for i, v in enumerate(frame["income"])]
    frame.to_csv(tmp_path / "rows.csv", index=False)
    run(tmp_path / "rows.csv", tmp_path / "out.csv", "impute", tiny.bundle("table", "imputation"), {"flags": False})
    made = pd.read_csv(tmp_path / "out.csv", dtype="str", keep_default_na=False)
    assert {*made} == {*frame}
    for name in frame:
        known = frame[name] != ""
        assert made[name][known].tolist() == frame[name][known].tolist()
        assert (made[name] != "").all()
    filled = made["age"][frame["age"] == ""]
    assert filled.str.fullmatch(r"\d+").all()  # years are whole
    assert set(made["city"]) == {"Bern", "Oslo", "Rome"}
    assert set(made["vip"]) == {"True", "False"}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (pyarrow.int32(), pyarrow.int32()),
        (pyarrow.int64(), pyarrow.int64()),
        (pyarrow.float32(), pyarrow.float32()),
        (pyarrow.float64(), pyarrow.float64()),
    ],
    ids=str,
)
@pytest.mark.parametrize("output", ["out", "out.parquet"])
def test_a_filled_column_has_the_type_that_it_had(tmp_path, kind, wanted, output):
    table = pyarrow.Table.from_pandas(with_gaps(), preserve_index=False)
    for name, type_ in (("age", kind), ("city", pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))):
        column = table[name].cast(pyarrow.string()).cast(type_) if name == "city" else table[name].cast(type_)
        table = table.set_column(table.column_names.index(name), name, column)
    table = table.set_column(table.column_names.index("vip"), "vip", table["vip"].cast(pyarrow.bool_()))
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=16)
    run(tmp_path / "rows.parquet", tmp_path / output, "impute", tiny.bundle("table", "imputation"))
    made = parquet(tmp_path / output)
    assert made.schema.field("age").type == wanted
    assert made.schema.field("vip").type == pyarrow.bool_()
    assert made.schema.field("city").type == pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    assert not any(column.null_count for column in made.columns)
    for name in ("age", "city", "vip", "income"):
        known = table[name].is_valid()
        assert made[name].filter(known).to_pylist() == table[name].filter(known).to_pylist()


def test_only_the_columns_that_are_named_go_along(tmp_path, rows):
    for columns, wanted in {("kind",): ["kind"], (): [], ("kind", "customer"): ["customer", "kind"]}.items():
        for output in ("out.parquet", "out.csv", "out.npz"):
            run(rows, tmp_path / output, columns=columns)
            assert [*read(tmp_path / output)] == [*wanted, "code_0", "code_1"]
    with pytest.raises(
        DataError, match=r"column 'nothing' of `columns` not there; expected some of 'customer', 'city'"
    ):
        run(rows, tmp_path / "out.parquet", columns=("nothing",))


def shifted(count=400):
    return tiny.table(count, seed=6).frame.assign(age=lambda f: f["age"] + 25)


def test_rows_far_from_the_training_are_told_of_and_stop_a_job_if_that_is_wanted(tmp_path):
    near = put(tmp_path / "near.parquet", tiny.table(400, seed=6).frame)
    far = put(tmp_path / "far.parquet", shifted())
    told = {}
    for source in (near, far):
        told[source.stem] = run(source, tmp_path / f"{source.stem}.out.parquet").details["drift"]
    assert told["far"]["rows"] == told["near"]["rows"] == 400
    assert told["far"]["worst"]["name"] == "age"
    assert told["far"]["worst"]["psi"] > 1 > told["near"]["worst"]["psi"]
    age = next(column for column in told["far"]["columns"] if column["name"] == "age")
    assert age["ks"] > 0.4
    assert "age" in told["far"]["sentence"]
    assert told["far"]["reconstruction_error"]["psi"] > told["near"]["reconstruction_error"]["psi"]
    run(near, tmp_path / "out.parquet", max_drift=1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(
        DriftError, match=r"the PSI of age is .* in the first 400 rows; expected at most 1; mend the rows"
    ):
        run(far, tmp_path / "out.parquet", max_drift=1)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_drift_is_not_stopped_by_what_nobody_knows(tmp_path, rows):
    unknown = replace(tiny.bundle("table", "anomaly"), reference=None)
    assert run(rows, tmp_path / "out.parquet", bundle=unknown).details["drift"] is None
    with pytest.raises(ValueError, match=r"max_drift is 0\.25, and nobody can tell how far"):
        run(rows, tmp_path / "out.parquet", bundle=unknown, max_drift=0.25)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with tiny.workspace(tmp_path_factory.mktemp("pinned")) as workspace:
            yield workspace


def publish(place, seed):
    return tiny.published(place, tiny.saved(place.root / f"bundle-{seed}", "table", "anomaly", seed))


class StopError(Exception):
    pass


def test_a_promotion_in_the_middle_does_not_mix_two_models_nor_does_one_before_a_job_goes_on(tmp_path, rows, place):
    first, second = publish(place, 0), publish(place, 1)
    promotion.promote(place, first, reasons=["first"])
    how = jobs.Settings(batch_size=16, partition_rows=10, workers=1)
    output = tmp_path / "out.parquet"
    call = {"operation": "encode", "model": "table-anomaly", "source": rows, "destination": output}

    def stop(progress):
        if progress.rows > 10:
            promotion.promote(place, second, reasons=["second"])
            raise StopError

    with pytest.raises(JobError, match="1 partition is done and stays; the same command goes on"):
        jobs.run(place, **call, settings=how, on_progress=stop)
    assert manifests.begun(output)["model"] == first.label
    receipt = jobs.run(place, **call, settings=how)
    assert (receipt.model, receipt.digest, receipt.details["partitions_before"]) == (first.label, first.digest, 1)
    jobs.run(place, **call | {"model": first.label, "destination": tmp_path / "old.parquet"}, settings=how)
    new = jobs.run(place, **call | {"destination": tmp_path / "new.parquet"}, settings=how)
    assert new.model == second.label
    assert output.read_bytes() == (tmp_path / "old.parquet").read_bytes() != (tmp_path / "new.parquet").read_bytes()


def test_who_begins_anew_begins_with_todays_champion(tmp_path, rows, place):
    first, second = publish(place, 0), publish(place, 1)
    promotion.promote(place, first, reasons=["first"])
    how = jobs.Settings(batch_size=16, partition_rows=10, workers=1)
    call = {"operation": "encode", "model": "table-anomaly", "source": rows, "destination": tmp_path / "out.parquet"}

    def stop(progress):
        if progress.rows > 10:
            raise StopError

    with pytest.raises(JobError):
        jobs.run(place, **call, settings=how, on_progress=stop)
    promotion.promote(place, second, reasons=["second"])
    receipt = jobs.run(place, **call, settings=replace(how, begun="restart"))
    assert (receipt.model, receipt.details["partitions_before"]) == (second.label, 0)


WORK = {
    "encode": lambda: (tiny.bundle("table", "anomaly"), {}),
    "encode as a list": lambda: (tiny.bundle("table", "anomaly"), {"list": True}),
    "score": lambda: (tiny.bundle("table", "anomaly"), {"reasons": "flagged"}),
    "impute": lambda: (drawing(), {"draws": 2}),
}


@pytest.mark.parametrize("name", WORK)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 200),
    workers=st.integers(1, 4),
    partition_rows=st.integers(5, 200),
    groups=st.integers(1, 60),
    ending=st.sampled_from(["", ".parquet", ".csv"]),
)
def test_an_output_does_not_depend_on_batches_workers_or_partitions(
    tmp_path, name, batch_size, workers, partition_rows, groups, ending
):
    operation = name.split()[0]
    ending = ".parquet" if "list" in name else ending
    bundle, options = WORK[name]()
    frame = with_gaps(150) if operation == "impute" else tiny.table(150, seed=7).frame
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=groups)
    outputs = {}
    for label, more in {
        "wanted": {"batch_size": 64, "workers": 1},
        "got": {"batch_size": batch_size, "workers": workers},
        "other": {"batch_size": batch_size, "partition_rows": 1000},
    }.items():
        settings_ = {"partition_rows": partition_rows, **more}
        receipt = run(tmp_path / "rows.parquet", tmp_path / f"{label}{ending}", operation, bundle, options, **settings_)
        outputs[label] = receipt.output_digest
    assert outputs["got"] == outputs["wanted"]
    if ending:
        assert outputs["other"] == outputs["wanted"]
    else:
        one, many = (parquet(tmp_path / label) for label in ("other", "wanted"))
        assert one.equals(many)


def test_a_job_gives_what_the_operation_gives(tmp_path, rows):
    run(rows, tmp_path / "out.parquet", "score")
    wanted = operations.score(tiny.bundle("table", "anomaly"), formats.read(rows)).frame
    made = read(tmp_path / "out.parquet")
    np.testing.assert_allclose(made["score"], wanted["score"], rtol=1e-4, atol=1e-5)
    assert made["flag"].tolist() == wanted["flag"].tolist()
