"""What nobody uses may go, and nothing else does."""

import os
import shutil
import time
from datetime import UTC, datetime, timedelta

import pytest

from sevenfold import bundles, cli, formats, jobs
from sevenfold.registry import promotion, pruning, tracking, versions
from tests import test_registry, tiny

NAME = "table-anomaly"


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "SEVENFOLD_LOCK_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    with tiny.workspace(tmp_path) as place:
        yield place


@pytest.fixture
def published(place):
    """Six versions: 1 and 2 were champion in turn before 3; 4 is challenger; a job has used 5; nobody cares for 6."""
    made = [
        test_registry.publish(place, tiny.saved(place.root / f"bundle-{s}", "table", "anomaly", s)) for s in range(6)
    ]
    for version in made[:3]:
        promotion.promote(place, version, reasons=["in turn"])
    promotion.challenge(place, made[3])
    formats.write(place.root / "rows.parquet", tiny.table(20).frame)
    jobs.run(
        place,
        operation="score",
        model=f"{NAME}/5",
        source=place.root / "rows.parquet",
        destination=place.root / "scores.parquet",
    )
    return made


def later(days):
    return datetime.now(UTC) + timedelta(days=days, minutes=5)


def doomed(place, days, after):
    return [entry.version.number for entry in pruning.plan(place, days=days, now=later(after)).doomed]


def test_champion_its_previous_one_challenger_and_what_a_job_used_lately_stay(place, published):
    assert doomed(place, days=30, after=0) == [], "all is young"
    assert doomed(place, days=30, after=29) == []
    assert doomed(place, days=30, after=31) == [1, 5, 6]
    kept = {e.version.number: e.kept for e in pruning.plan(place, days=30, now=later(31)).entries}
    assert kept[3] == "it is champion"
    assert kept[2] == "it was champion before, and `sevenfold rollback` goes back to it"
    assert kept[4] == "it is challenger"
    kept = {e.version.number: e.kept for e in pruning.plan(place, days=30, now=later(29)).entries}
    assert kept[5].startswith("a job used it on 20")
    assert kept[6].startswith("it was published on 20")


def test_what_goes_is_gone_with_its_files_and_the_rest_works(place, published):
    folders = {v.number: versions.bundle_folder(place, v).parents[2] for v in published}
    planned = pruning.plan(place, days=0, now=later(0))
    assert [e.version.number for e in planned.doomed] == [1, 5, 6]
    # With what Python left beside code that it has loaded, which goes too.
    assert planned.size == sum(p.stat().st_size for n in (1, 5, 6) for p in folders[n].rglob("*") if p.is_file())
    gone = pruning.carry_out(place, planned, now=later(0))
    assert [e.version.number for e in gone.doomed] == [1, 5, 6]
    assert [v.number for v in versions.every(place, NAME)] == [2, 3, 4]
    assert {n: f.exists() for n, f in folders.items()} == {1: False, 2: True, 3: True, 4: True, 5: False, 6: False}
    assert pruning.plan(place, days=0, now=later(3)).doomed == ()
    assert pruning.plan(place, days=0, now=later(3)).orphans == ()
    word = versions.registered(place, NAME).tags["pruned.6"]
    assert published[5].digest in word
    assert published[5].run_id in word
    # Runs stay, with what they say; a number is never given twice, and what was removed can be published again.
    assert tracking.client(place).get_run(published[5].run_id).info.status == "FINISHED"
    assert promotion.rollback(place, NAME, reason="it still can").number == 2
    again = test_registry.publish(place, place.root / "bundle-5")
    assert again.number == 7
    bundles.load(versions.bundle_folder(place, again), expected=again.digest)


def test_a_version_that_became_champion_meanwhile_stays(place, published):
    planned = pruning.plan(place, days=0, now=later(0))
    promotion.promote(place, published[5], reasons=["after the plan was made"])
    gone = pruning.carry_out(place, planned, now=later(0))
    assert [e.version.number for e in gone.doomed] == [1, 5]
    assert versions.champion(place, NAME).number == 6
    assert promotion.previous(place, NAME).number == 3


def test_files_that_nothing_leads_to_are_named_and_young_ones_left_alone(place, published):
    client = tracking.client(place)
    lost = versions.bundle_folder(place, published[5]).parents[2]
    client.delete_model_version(NAME, "6")  # as in a publication that was killed before its last step
    stray = place.model_artifacts / "models" / "m-of-nobody"
    (stray / "artifacts").mkdir(parents=True)
    (stray / "artifacts" / "file").write_bytes(b"12345")
    link = place.model_artifacts / "elsewhere"
    link.symlink_to(place.root)
    assert pruning.plan(place, days=30, now=later(0.5)).orphans == ()
    old = time.time() - 3 * 86400
    os.utime(stray, (old, old))
    found = {o.place: o for o in pruning.plan(place, days=30, now=later(3)).orphans}
    assert set(found) == {str(lost / "artifacts"), str(stray)}
    assert "never became a version" in found[str(lost / "artifacts")].reason
    assert (found[str(stray)].size, "no run or model leads there" in found[str(stray)].reason) == (5, True)
    pruning.carry_out(place, pruning.plan(place, days=30, now=later(3)), now=later(3))
    assert not lost.exists()
    assert not stray.exists()
    assert (place.root / "params.yaml").exists()
    assert pruning.plan(place, days=30, now=later(3)).orphans == ()


def test_what_others_keep_in_the_same_store_is_none_of_ours(place, published, monkeypatch):
    client = tracking.client(place)
    theirs = client.create_experiment("fraud-team")
    model = client.create_logged_model(theirs, name="unregistered")
    client.create_registered_model("fraud-model")
    client.create_model_version("fraud-model", "s3://bucket/model")
    served = place.model_artifacts / theirs / "run" / "artifacts"  # where a server puts it
    served.mkdir(parents=True)
    old = time.time() - 3 * 86400
    os.utime(place.model_artifacts / theirs, (old, old))
    planned = pruning.plan(place, days=0, now=later(3))
    assert {entry.version.name for entry in planned.entries} == {NAME}
    assert planned.orphans == ()
    assert client.get_logged_model(model.model_id).model_id == model.model_id
    # Of another database the workspace's own folders are none of its business.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.root / 'other.db'}")
    tracking.initialise(place)
    old_folders = [p for p in place.model_artifacts.rglob("*") if p.is_dir()]
    for folder in old_folders:
        os.utime(folder, (old, old))
    assert pruning.plan(place, days=0, now=later(3)) == pruning.Plan(0, (), ())


def test_what_a_person_replaced_and_what_a_kept_version_was_made_from_stay(place):
    first, second = (
        test_registry.publish(place, tiny.saved(place.root / f"bundle-{s}", "table", "anomaly", s)) for s in (0, 1)
    )
    moved = test_registry.publish(
        place, tiny.saved(place.root / "moved", "table", "anomaly", 2), tags={"moved_from": second.label}
    )
    promotion.promote(place, first, reasons=["first"])
    promotion.promote(place, moved, reasons=["by hand"], by_hand=True)
    tracking.client(place).delete_registered_model_alias(NAME, "champion")
    assert promotion.previous(place, NAME).number == moved.number, "the way back, where somebody took the alias away"
    kept = {e.version.number: e.kept for e in pruning.plan(place, days=0, now=later(0)).entries}
    assert kept[1].startswith("a person replaced it")
    assert kept[2] == f"{moved.label} was made from it"
    assert "rollback" in kept[3]


def command(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as ended:
        cli.main(["prune", *arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == code, out + err
    return out + err


def test_the_command_changes_nothing_unless_told_to(place, published, capsys):
    before = versions.every(place)
    out = command(capsys, "--days", "0")
    assert "3 versions, " in out
    assert "would go; nothing was removed: `--yes` does it" in out
    assert versions.every(place) == before
    assert out.count("may go") == 3
    assert "it is champion" in out
    assert "removed 3 versions" in command(capsys, NAME, "--days", "0", "--yes")
    assert "nothing would go" in command(capsys, "--days", "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--days", "-1"], "days is -1; expected 0 or more"),
        (["nothing"], "no model 'nothing'; `sevenfold models` lists"),
    ],
)
def test_a_wrong_call_is_told(place, capsys, arguments, message):
    assert message in command(capsys, *arguments, code=1)


def test_a_version_whose_files_are_lost_can_be_pruned(place, published):
    shutil.rmtree(versions.bundle_folder(place, published[5]).parents[2])
    planned = pruning.plan(place, days=0, now=later(0))
    assert {e.version.number: e.size for e in planned.doomed}[6] in {0, None}
    pruning.carry_out(place, planned, now=later(0))
    assert [v.number for v in versions.every(place, NAME)] == [2, 3, 4]
