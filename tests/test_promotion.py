"""The alias `champion` moves whole or not at all, by one at a time, and leaves a story that is true."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevenfold import bundles, cli
from sevenfold.bundles import BundleError
from sevenfold.registry import promotion, tracking, verification, versions
from tests import test_registry, tiny

NAME = "table-anomaly"
DECIDED = "2099-01-01T00:00:00+00:00"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("SEVENFOLD_LOCK_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with tiny.workspace(tmp_path) as place:
        yield place


def publish(place, count):
    """Publish so many versions that differ in their seed."""
    folders = [tiny.saved(place.root / f"bundle-{s}", "table", "anomaly", s) for s in range(count)]
    return [test_registry.publish(place, folder) for folder in folders]


@pytest.fixture
def contest(place):
    return publish(place, 2)


def artifacts(place, version):
    return versions.bundle_folder(place, version).parents[1]


def damage(place, version):
    (versions.bundle_folder(place, version) / "model.safetensors").write_bytes(b"\0" * 16)


def champion(place):
    found = versions.champion(place, NAME)
    return found and found.number


def state(place):
    """Return everything that a promotion may change."""
    model = versions.registered(place, NAME)
    return dict(model.tags), dict(model.aliases), {v.number: v for v in versions.every(place, NAME)}


def assert_sound(place):
    """The champion loads, and its digest is that of its tag."""
    found = versions.resolve(place, NAME)
    bundles.load(found.folder, expected=found.version.tags["digest"])


def test_promotion_sets_the_alias_and_tells_who_when_why_over_whom_and_by_what_numbers(place, contest):
    first, second = contest
    assert champion(place) is None
    promotion.challenge(place, second)
    promotion.promote(place, first, reasons=["it is the first"], against=None)
    promoted = promotion.promote(place, second, reasons=["it is better", "by far"], numbers={"auroc": 0.9}, against=1)
    assert promoted == versions.champion(place, NAME)
    assert promoted.aliases == ("champion",), "no longer challenger"
    tags = promoted.tags
    assert (tags["promoted_over"], tags["promoted_because"]) == (first.label, "it is better; by far")
    assert (tags["promoted_how"], json.loads(tags["promoted_numbers"])) == ("by a run", {"auroc": 0.9})
    assert tags["promoted_by"].count("@") == 1
    assert tags["promoted_at"].startswith("20")
    assert {v.number: v.aliases for v in versions.every(place)} == {1: (), 2: ("champion",)}
    replaced = versions.numbered(place, NAME, 1).tags
    assert (replaced["replaced_by"], replaced["replaced_because"]) == (second.label, "it is better; by far")
    moves = promotion.history(place, NAME)
    assert [(m.number, m.before, m.to, m.state, m.effect, m.how) for m in moves] == [
        (1, None, 1, "done", True, "run"),
        (2, 1, 2, "done", True, "run"),
    ]
    assert moves[1].numbers == {"auroc": 0.9}


def test_the_champion_loads_and_its_weights_hash_to_its_tag(place, contest):
    for version in contest:
        promotion.promote(place, version, reasons=["in turn"])
        found = versions.resolve(place, version.name)
        assert bundles.digest(found.folder) == found.digest == versions.champion(place, version.name).tags["digest"]
        assert bundles.load(found.folder).origin["seed"] == version.number - 1


@pytest.mark.parametrize("how", ["damaged", "exchanged", "gone"])
def test_a_bundle_that_is_not_what_was_published_is_never_promoted(place, contest, how):
    first, second = contest
    promotion.promote(place, first, reasons=["sound"])
    folder = versions.bundle_folder(place, second)
    if how == "damaged":
        damage(place, second)
    elif how == "exchanged":  # a sound bundle, but not this one
        for name in bundles.FILES:
            (folder / name).write_bytes((place.root / "bundle-0" / name).read_bytes())
    else:
        artifacts(place, second).rename(place.root / "elsewhere")
    before = state(place)
    with pytest.raises(BundleError, match=r"no sound bundle|has digest|cannot be fetched.*publish it again"):
        promotion.promote(place, second, reasons=["it looks good"])
    assert state(place) == before


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def plant_cache(folder):
    """Leave a compiled file that Python would run in place of the source beside it."""
    import importlib.util
    import marshal

    source = folder / "code" / "sevenfold" / "files.py"
    cache = Path(importlib.util.cache_from_source(str(source)))
    cache.parent.mkdir(exist_ok=True)
    code = compile(f"open({str(folder.parent / 'ran')!r}, 'w')", str(source), "exec")
    head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + b"\0" * 8  # by hash, and unchecked
    cache.write_bytes(head + marshal.dumps(code))


def test_a_compiled_file_that_was_planted_is_gone_before_anything_runs(place, contest):
    folder = artifacts(place, contest[1])
    plant_cache(folder)
    promotion.promote(place, contest[1], reasons=["its sources are sound"])
    assert not (folder.parent / "ran").exists()
    assert list(folder.rglob("__pycache__")) == []


PLANTED = {
    "a file more": (lambda f: (f / "model.pkl").write_bytes(b"\x80\x04."), r"model\.pkl does not belong there"),
    "a pickle for text": (lambda f: (f / "conda.yaml").write_bytes(b"\x80\x04."), r"conda\.yaml is a pickle"),
    "a link": (lambda f: (f / "requirements.txt.lnk").symlink_to("/etc/passwd"), "is a link; expected a plain file"),
    "a file beside the code": (lambda f: (f / "code" / "evil.py").write_text(""), r"code/evil\.py does not belong"),
    "an unpickling loader": (
        lambda f: edit(f / "MLmodel", verification.LOADER, "mlflow.pyfunc.model"),
        r"MLmodel loads by mlflow\.pyfunc\.model, which may unpickle",
    ),
    "a pickled model": (
        lambda f: edit(f / "MLmodel", "code: code\n", "code: code\n    python_model: python_model.pkl\n"),
        "MLmodel names python_model, which may be a pickle",
    ),
    "a path out of the folder": (
        lambda f: edit(f / "MLmodel", "path: artifacts/bundle", "path: ../../elsewhere"),
        r"MLmodel has artifact bundle at '\.\./\.\./elsewhere'; expected 'artifacts/bundle'",
    ),
    "an example elsewhere": (
        lambda f: edit(f / "MLmodel", "artifact_path: input_example.json", "artifact_path: ../../example.json"),
        r"MLmodel has its example at '\.\./\.\./example\.json'; expected 'input_example\.json'",
    ),
    "another flavor": (
        lambda f: edit(f / "MLmodel", "flavors:\n", "flavors:\n  sklearn:\n    pickled_model: model.pkl\n"),
        "MLmodel has the flavor sklearn",
    ),
    "no description": (lambda f: (f / "MLmodel").unlink(), "MLmodel is missing"),
    "no yaml": (lambda f: (f / "MLmodel").write_text("{"), "MLmodel cannot be read"),
    "a huge description": (lambda f: (f / "MLmodel").write_text("#" * (2 << 20)), r"MLmodel has 2,097,152 bytes"),
    "no example": (lambda f: (f / "input_example.json").write_text("{}"), "does not answer its example|no example"),
    "other code to run": (lambda f: (f / "served_model.py").write_text("import os\n"), r"served_model\.py was changed"),
    "changed code": (
        lambda f: (f / "code" / "sevenfold" / "files.py").write_text("import os\n"),
        "its code was changed since it was published",
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_does_not_belong_to_a_version_is_named_and_keeps_it_from_becoming_champion(place, contest, what):
    promotion.promote(place, contest[0], reasons=["sound"])
    plant, message = PLANTED[what]
    plant(artifacts(place, contest[1]))
    before = state(place)
    with pytest.raises(BundleError, match=rf"table-anomaly/2 is not sound: .*{message}.*; publish it again"):
        promotion.promote(place, contest[1], reasons=["it looks good"])
    assert state(place) == before
    verification.verify(place, contest[0])


def test_an_answer_that_is_not_finite_is_found(place, monkeypatch):
    bundle = tiny.bundle("images", "reduction")
    for parameter in bundle.model.parameters():
        monkeypatch.setattr(parameter, "data", parameter.data * float("nan"))
    bundles.save(place.root / "nan", bundle)
    version = test_registry.publish(place, place.root / "nan", name="images-reduction")
    with pytest.raises(BundleError, match="its answer to its example is not finite in code_0; its answer"):
        promotion.promote(place, version, reasons=["its digest is right"])


def test_verification_leaves_the_process_as_it_was(place, contest):
    before = list(sys.path), os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]
    verification.verify(place, contest[0])
    assert (list(sys.path), os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]) == before


@pytest.mark.parametrize("before", [None, 0])
def test_a_promotion_that_fails_at_the_last_step_changes_nothing_but_the_journal(place, contest, before, monkeypatch):
    version = contest[1]
    if before is not None:
        promotion.promote(place, version, reasons=["once before"])
        promotion.promote(place, contest[before], reasons=["sound"])
    tags, aliases, untouched = state(place)
    client = type(tracking.client(place))
    set_alias = client.set_registered_model_alias

    def damaging(self, *arguments):
        set_alias(self, *arguments)
        damage(place, version)

    with monkeypatch.context() as patch:
        patch.setattr(client, "set_registered_model_alias", damaging)
        with pytest.raises(BundleError, match=r"model\.safetensors"):
            promotion.promote(place, version, reasons=["it was sound a moment ago"])
    after = state(place)
    assert after[1:] == (aliases, untouched)
    assert {k: v for k, v in after[0].items() if k in tags} == tags
    last = promotion.history(place, NAME)[-1]
    assert (last.state, last.effect, last.to) == ("failed", False, version.number)


KILL = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from sevenfold.registry import promotion, verification, versions
from sevenfold.workspace import Workspace

def die(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

def after(owner, name):
    call = getattr(owner, name)
    def then_die(*arguments, **keywords):
        call(*arguments, **keywords)
        die()
    setattr(owner, name, then_die)

place = Workspace(Path(sys.argv[1]))
with place.settled():
    first, second = versions.every(place, "table-anomaly")
    verify = verification.verify
    if sys.argv[2] == "before tags":
        versions.annotate = die
    elif sys.argv[2] == "after tags":
        after(versions, "annotate")
    elif sys.argv[2] == "after alias":
        after(MlflowClient, "set_registered_model_alias")
    elif sys.argv[2] == "during verification":
        verification.verify = lambda *a, alias=None: die() if alias else verify(*a)
    promotion.promote(place, second, reasons=["killed"])
    print("not killed")
"""


def killed(place, moment):
    """Have another process promote the second version and be killed at this moment."""
    command = [sys.executable, "-W", "ignore", "-c", KILL, str(place.root), moment]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow  # a process for each
@pytest.mark.parametrize("moment", ["before tags", "after tags", "after alias", "during verification"])
def test_a_killed_promotion_leaves_a_champion_that_loads_and_a_story_that_is_true(place, contest, moment, capsys):
    promotion.promote(place, contest[0], reasons=["sound"])
    killed(place, moment)
    assert_sound(place)
    moved = moment in {"after alias", "during verification"}
    assert champion(place) == (2 if moved else 1)
    last = promotion.history(place, NAME)[-1]
    assert (last.state, last.effect, last.to) == ("begun", moved, 2)
    (place.root / "params.yaml").touch()
    (place.root / "dvc.yaml").touch()
    with pytest.raises(SystemExit, match="0"):
        cli.main(["history", NAME])
    told = "its alias has moved" if moved else "its alias has not moved"
    assert told in capsys.readouterr().out
    # The next move closes the entry, and works.
    target = contest[0] if moved else contest[1]
    promotion.promote(place, target, reasons=["again"])
    assert champion(place) == target.number
    assert [(m.state, m.effect) for m in promotion.history(place, NAME)][1:] == [("interrupted", moved), ("done", True)]
    assert_sound(place)


@pytest.mark.parametrize("moment", ["after tags", "after alias"])
def test_the_next_move_mends_what_a_killed_one_left_half_told_on_the_pages(place, contest, moment):
    first, second = contest
    for version, why in ((second, "once"), (first, "better")):
        promotion.promote(place, version, reasons=[why])
    promotion.challenge(place, second)
    before = state(place)[2]
    killed(place, moment)
    assert versions.numbered(place, NAME, 2).tags["promoted_because"] == "killed"
    promotion.promote(place, versions.champion(place, NAME), reasons=["champion already"])
    after = state(place)[2]
    if moment == "after tags":
        assert after == before, "of a promotion that did not happen no page tells"
    else:
        assert after[1].tags["replaced_because"] == after[2].tags["promoted_because"] == "killed"
        assert "replaced_by" not in after[2].tags
        assert after[2].aliases == ("champion",), "no longer challenger"


def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(place):
    publish(place, 3)
    promotion.promote(place, versions.numbered(place, NAME, 3), reasons=["first of all"])
    code = f"""
import sys
from pathlib import Path
from sevenfold.registry import promotion, versions
from sevenfold.workspace import Workspace
place = Workspace(Path({str(place.root)!r}))
with place.settled():
    version = versions.numbered(place, {NAME!r}, int(sys.argv[1]))
    before = versions.champion(place, {NAME!r})
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        promotion.promote(place, version, reasons=["at once"], against=before.number)
    except promotion.ConflictError as error:
        print(error)
        sys.exit(3)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    started = [
        subprocess.Popen([*command, str(i)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in (1, 2)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    said = [process.communicate("go\n", timeout=120)[0] for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 3]
    winner = codes.index(0) + 1
    assert champion(place) == winner
    loser = said[codes.index(3)]
    assert f"it was decided against version 3, and champion is {NAME}/{winner} meanwhile" in loser
    assert "promotion by " in loser
    assert_sound(place)


def test_rollback_goes_back_one_champion_at_a_time_and_never_to_and_fro(place):
    for version in publish(place, 3):
        promotion.promote(place, version, reasons=["in turn"])
    assert promotion.previous(place, NAME).number == 2
    assert promotion.rollback(place, NAME, reason="bad flags").number == 2
    assert promotion.rollback(place, NAME, reason="still bad").number == 1
    with pytest.raises(
        LookupError, match=r"no champion before the present one; .*takes any of: table-anomaly/1 \(champion\)"
    ):
        promotion.rollback(place, NAME, reason="again")
    moves = promotion.history(place, NAME)
    assert [(m.what, m.before, m.to, m.how) for m in moves[3:]] == [
        ("rollback", 3, 2, "hand"),
        ("rollback", 2, 1, "hand"),
    ]
    assert versions.numbered(place, NAME, 1).tags["promoted_how"] == "by hand, rolled back"
    assert "replaced_by" not in versions.numbered(place, NAME, 1).tags
    assert versions.numbered(place, NAME, 3).tags["replaced_because"] == "bad flags"


@given(st.lists(st.one_of(st.integers(1, 4), st.none()), max_size=16))
def test_rollbacks_in_a_row_lead_to_former_champions_only_and_never_to_one_twice(steps):
    """A number promotes that version, None rolls back where there is a way."""
    moves, champions, left = [], [], set()  # left: what was rolled back from, and not promoted since

    def move(what, to):
        before = champions[-1] if champions else None
        moves.append(promotion.Move(len(moves) + 1, None, "", "hand", what, before, to, "", {}, "done", True))
        champions.append(to)

    for step in steps:
        line = promotion._line(moves)
        assert line[-1:] == champions[-1:]
        assert not left & set(line)
        assert len(line) == 1 or all(a != b for a, b in itertools.pairwise(line))
        if step is not None and champions[-1:] != [step]:
            move("promotion", step)
            left.discard(step)
        elif step is None and len(line) > 1:
            left.add(line[-1])
            move("rollback", line[-2])
            assert champions[-1] in champions[:-1]


def test_rollback_does_not_return_to_what_was_rolled_back_from(place):
    first, second, third = publish(place, 3)
    for version in (first, second, first, second, third):
        promotion.promote(place, version, reasons=["to and fro"])
    assert promotion.rollback(place, NAME, reason="bad").number == 2
    assert promotion.rollback(place, NAME, reason="bad too").number == 1
    assert promotion.previous(place, NAME) is None


def test_rollback_works_when_the_present_champion_is_broken_and_not_to_a_broken_one(place):
    first, second, third = publish(place, 3)
    for version in (first, second, third):
        promotion.promote(place, version, reasons=["in turn"])
    damage(place, third)
    assert promotion.rollback(place, NAME, reason="it does not load").number == 2
    damage(place, first)
    with pytest.raises(BundleError, match=r"model\.safetensors.*promote table-anomaly VERSION .* takes another one: 3"):
        promotion.rollback(place, NAME, reason="back again")
    assert champion(place) == 2
    assert_sound(place)


def test_a_version_that_a_person_replaced_is_known_until_a_person_promotes_it_again(place, contest):
    first, second = contest
    promotion.promote(place, first, reasons=["by the gate"])
    promotion.promote(place, second, reasons=["by the gate"])
    assert promotion.displaced_by_hand(place, first) is None
    promotion.rollback(place, NAME, reason="bad flags")
    found = promotion.displaced_by_hand(place, second)
    assert (found.why, found.to, found.what) == ("bad flags", 1, "rollback")
    promotion.promote(place, second, reasons=["the gate again"])
    assert promotion.displaced_by_hand(place, second) is not None
    promotion.rollback(place, NAME, reason="once more")
    promotion.promote(place, second, reasons=["mended the data"], by_hand=True)
    assert promotion.displaced_by_hand(place, second) is None


@pytest.mark.parametrize("why", ["x" * 9000, "é" * 9000, '"' * 9000, "reason " * 2000])
def test_reasons_of_any_length_leave_a_story_that_can_be_read(place, contest, why):
    promotion.promote(place, contest[0], reasons=[why])
    (move,) = promotion.history(place, NAME)
    assert move.why.endswith(" ...")
    assert move.why[:100] == why[:100]


def command(place, capsys, *arguments, code=0):
    """Run a command in the workspace and return what it printed."""
    for name in ("params.yaml", "dvc.yaml"):
        (place.root / name).touch()
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == code, out + err
    return out + err


def test_the_commands_promote_roll_back_and_tell_the_story(place, contest, capsys):
    versions.annotate(
        place,
        contest[1],
        {"decision": "challenger", "decided_because": "it is worse\nmuch worse"}
        | {
            f"decided.{number:04d}": json.dumps({"decision": what, "decided_because": why, "decided_at": at})
            for number, what, why, at in (
                (1, "champion", "it is better", "2000-01-01T00:00:00+00:00"),
                (2, "challenger", "it is worse\nmuch worse", DECIDED),
            )
        },
    )
    promotion.promote(place, contest[0], reasons=["by the gate"])
    out = command(place, capsys, "promote", NAME, "2", "--reason", "asked for by the fraud team")
    assert "the gate made it challenger: it is worse; much worse" in out
    assert f"{NAME}/2 is champion now, over {NAME}/1" in out
    assert "champion already" in command(place, capsys, "promote", NAME, "2", "--reason", "again")
    out = command(place, capsys, "rollback", NAME)
    assert f"{NAME}/1 is champion now, over {NAME}/2" in out
    assert f"does not promote {NAME}/2 again" in out
    story = command(place, capsys, "history", NAME)
    order = [
        "2000-01-01 00:00:00  gate on version 2: champion: it is better",
        "version 1 published",
        "version 1 became champion as the first, by a run",
        "version 2 became champion over version 1, by hand",
        "asked for by the fraud team",
        "rolled back to version 1, by hand",
        "2099-01-01 00:00:00  gate on version 2: challenger: it is worse; much worse",
        f"champion: {NAME}/1; `sevenfold rollback` goes to: none",
    ]
    places = [story.index(line) for line in order]
    assert places == sorted(places)
    facts = json.loads(command(place, capsys, "history", NAME, "--json"))
    assert (facts["champion"], facts["rollback"], len(facts["versions"])) == (1, None, 2)
    assert [(m["from"], m["to"], m["what"]) for m in facts["moves"]] == [
        (None, 1, "promotion"),
        (1, 2, "promotion"),
        (2, 1, "rollback"),
    ]


def test_a_dry_run_verifies_and_changes_nothing(place, contest, capsys):
    for version in contest:
        promotion.promote(place, version, reasons=["in turn"])
    before = state(place)
    out = command(place, capsys, "rollback", NAME, "--dry-run")
    assert f"{NAME}/1 would become champion over {NAME}/2; it loads, its digest is its tag" in out
    assert "nothing was changed" in out
    command(place, capsys, "promote", NAME, "1", "--reason", "to see", "--dry-run")
    damage(place, contest[0])
    out = command(place, capsys, "promote", NAME, "1", "--reason", "to see", "--dry-run", code=1)
    assert "model.safetensors is truncated or damaged" in out
    assert state(place) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["promote", "table-anomly", "1", "--reason", "x"], r"no model 'table-anomly', did you mean 'table-anomaly'\?"),
        (["promote", NAME, "7", "--reason", "x"], "has no version 7; there are: table-anomaly/1, table-anomaly/2"),
        (["rollback", "nothing"], "no model 'nothing'; registered are: table-anomaly"),
        (["rollback", NAME], "has no champion before the present one"),
        (["history", "nothing"], "no model 'nothing'"),
    ],
)
def test_a_name_or_number_that_is_not_there_is_an_error_that_says_what_is(place, contest, capsys, arguments, message):
    import re

    assert re.search(message, command(place, capsys, *arguments, code=1))


def test_a_champion_that_somebody_set_in_the_pages_can_be_rolled_back_from(place):
    for version in publish(place, 3)[:2]:
        promotion.promote(place, version, reasons=["in turn"])
    tracking.client(place).set_registered_model_alias(NAME, "champion", "3")
    assert promotion.previous(place, NAME).number == 2
    assert promotion.rollback(place, NAME, reason="who was that?").number == 2


def test_files_that_are_gone_are_no_way_back_but_those_before_them_are(place):
    first, second, third = publish(place, 3)
    for version in (first, second, third):
        promotion.promote(place, version, reasons=["in turn"])
    tracking.client(place).delete_model_version(NAME, "2")
    assert promotion.rollback(place, NAME, reason="bad").number == 1


def test_an_entry_of_the_journal_that_somebody_edited_is_named_and_not_overwritten(place, contest):
    promotion.promote(place, contest[0], reasons=["sound"])
    client = tracking.client(place)
    for text in ("{", '{"at": "today"}', "[1]"):
        client.set_registered_model_tag(NAME, "move.0001", text)
        with pytest.raises(
            RuntimeError, match=r"tag 'move\.0001' of table-anomaly is no entry of the journal .*; remove"
        ):
            promotion.promote(place, contest[1], reasons=["next"])
        assert versions.registered(place, NAME).tags["move.0001"] == text
    client.delete_registered_model_tag(NAME, "move.0001")
    promotion.promote(place, contest[1], reasons=["next"])
    assert champion(place) == 2


def test_a_move_by_hand_needs_a_reason(place, contest, capsys):
    out = command(place, capsys, "promote", NAME, "1", "--reason", "  ", code=1)
    assert "a promotion by hand needs a reason" in out
    assert champion(place) is None


@pytest.mark.parametrize(
    ("kind", "name"), [("table", "anomaly"), ("table", "imputation"), ("images", "reduction"), ("images", "denoising")]
)
def test_an_answer_of_another_type_than_the_signature_says_is_found(place, kind, name):
    version = test_registry.publish(place, tiny.saved(place.root / "bundle", kind, name), name=f"{kind}-{name}")
    verification.verify(place, version)
    path = artifacts(place, version) / "MLmodel"
    text = path.read_text()
    for old, new in (("double", "long"), ('\\"float\\"', '\\"long\\"'), ('"float"', '"long"'), ("uint8", "float32")):
        head, outputs, tail = text.partition("outputs:")
        changed = head + outputs + tail.replace(old, new)
        if changed != text:
            break
    path.write_text(changed)
    with pytest.raises(BundleError, match=r"is not sound: its answer .*; its signature has"):
        verification.verify(place, version)


def test_a_version_is_published_before_it_is_promoted_within_the_same_second_too(place, capsys, monkeypatch):
    (version,) = publish(place, 1)

    class Clock(promotion.datetime):
        @classmethod
        def now(cls, zone=None):
            return version.published

    monkeypatch.setattr(promotion, "datetime", Clock)
    promotion.promote(place, version, reasons=["at once"])
    story = command(place, capsys, "history", NAME)
    assert story.index("version 1 published") < story.index("version 1 became champion")
