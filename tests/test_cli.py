"""The command line: every command shows an example, every error is a sentence, and the exit code says how it went."""

import argparse
import os
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from sevenfold import cli, formats, jobs
from sevenfold.registry import promotion, versions
from tests import tiny

CURVES = pd.DataFrame({"epoch": [1], "train_loss": [1.0]})


@pytest.fixture
def call(capsys):
    """Run a command as a terminal does; returns (exit code, standard output, standard error)."""

    def run(*arguments):
        capsys.readouterr()  # what a fixture's libraries have said is not the command's
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def outside(tmp_path, monkeypatch):
    for name in ("SEVENFOLD_WORKSPACE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def place(outside, monkeypatch):
    """A workspace with a table's rows in rows.csv and a bundle in bundle/; the current folder is in it."""
    with tiny.workspace(outside / "place") as place:
        for name in ("params.yaml", "dvc.yaml"):
            (place.root / name).touch()
        monkeypatch.chdir(place.root)
        formats.write(place.root / "rows.csv", tiny.table(30).frame)
        tiny.saved(place.root / "bundle", "table", "anomaly")
        yield place


@pytest.fixture
def published(place):
    verdict = "table-deep beats the best rival, pca: average precision 0.9000 against 0.8000, by 0.0500 to 0.1500"
    return versions.publish(
        place,
        "table-anomaly",
        place.root / "bundle",
        params={},
        metrics={},
        curves=CURVES,
        artifacts=[],
        tags={"candidate": "table-deep", "verdict": verdict},
        description="",
    )[0]


def commands(parser, path=()):
    """Yield (words, parser) of every command, found in the parser itself."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from commands(sub, (*path, name))


COMMANDS = dict(commands(cli._parser()))


def test_the_commands_are_there():
    assert {" ".join(words) for words in COMMANDS} >= {
        *("", "run", "stage", "report", "encode", "score", "models", "doctor", "dataset", "dataset add")
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_shows_an_example_that_works(call, words):
    code, out, err = call(*words, "--help")
    assert (code, err) == (0, "")
    (example,) = [line.removeprefix("example: ") for line in out.splitlines() if line.startswith("example: ")]
    program, *arguments = shlex.split(example)
    assert program == "sevenfold"
    assert arguments[: len(words)] == list(words)
    assert callable(cli._parser().parse_args(cli._spelled_out(arguments)).command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["sing"], "invalid choice: 'sing'"),
        (["encode", "model", "rows.csv"], "required: OUTPUT"),
        (["score", "model", "a", "b", "c"], "unrecognized arguments: c"),
        (["models", "--all"], "unrecognized arguments: --all"),
        (["dataset"], "required: COMMAND"),
        (["dataset", "add", "name", "path", "--range", "low", "1"], "invalid float value: 'low'"),
    ],
)
def test_a_wrong_call_exits_with_2_and_shows_the_usage(call, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: sevenfold")
    assert message in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["stage", "train", "digits-deep"],
        ["encode", "model", "in.csv", "out.csv"],
        ["score", "model", "in.csv", "out.csv"],
        ["report"],
        ["models"],
        ["doctor"],
        ["dataset", "add", "sales", "sales.csv"],
    ],
    ids=" ".join,
)
def test_outside_of_a_workspace_every_command_says_so_and_makes_nothing(call, outside, arguments):
    assert call(*arguments) == (
        1,
        "",
        f"error: no workspace at {outside} or above it: expected a folder with params.yaml and dvc.yaml; change to the "
        "project's folder or set SEVENFOLD_WORKSPACE\n",
    )
    assert list(outside.iterdir()) == []


def test_debug_shows_where_an_error_came_from(outside):
    with pytest.raises(LookupError, match="no workspace"):
        cli.main(["models", "--debug"])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("got 3; expected 2"), "got 3; expected 2"),
        (KeyError("name"), "KeyError: 'name'"),
        (TypeError("no"), "TypeError: no (--debug shows where)"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_is_a_sentence_and_one_that_nobody_foresaw_has_its_kind(call, place, monkeypatch, error, sentence):
    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(jobs, "run", fail)
    assert call("score", "bundle", "rows.csv", "out.csv") == (1, "", f"error: {sentence}\n")


def test_an_interrupt_is_no_error_with_a_traceback(call, place, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "run", interrupt)
    assert call("score", "bundle", "rows.csv", "out.csv") == (130, "", "interrupted\n")


@pytest.mark.parametrize("operation", ["encode", "score"])
def test_a_batch_of_the_champion_says_what_was_written_and_by_which_version(call, place, published, operation):
    promotion.promote(place, published, reasons=["it is the only one"])
    code, out, err = call(operation, "table-anomaly", "rows.csv", "out.parquet")
    assert (code, err) == (0, "")
    assert out.startswith("out.parquet: 30 rows by table-anomaly/1 in ")
    assert out.endswith("receipt: out.parquet.receipt.json\n")
    assert len(formats.read(place.root / "out.parquet").frame) == 30
    column = "score" if operation == "score" else "code_0"
    assert column in formats.read(place.root / "out.parquet").frame


def no_champion(place):
    return "table-anomaly", "rows.csv"


def no_such_version(place):
    return "table-anomaly/2", "rows.csv"


def no_such_file(place):
    return "bundle", "rows.parquet"


def corrupted_bundle(place):
    weights = place.root / "bundle" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    return "bundle", "rows.csv"


def wrong_columns(place):
    formats.write(place.root / "rows.csv", tiny.table(5).frame.drop(columns=["city", "age"]).assign(income="much"))
    return "bundle", "rows.csv"


def infinity(place):
    formats.write(place.root / "rows.csv", tiny.table(5).frame.assign(age=[1, 2, np.inf, 4, np.nan]))
    return "bundle", "rows.csv"


def another_size(place):
    np.savez(place.root / "rows.npz", images=tiny.images(4).images[:, 1:])
    tiny.saved(place.root / "pictures", "images", "reduction")
    return "pictures", "rows.npz"


def another_mode(place):
    from PIL import Image

    (place.root / "rows").mkdir()
    for i, pixels in enumerate(tiny.images(2).images):
        Image.fromarray(pixels).convert("RGB").save(place.root / "rows" / f"{i}.png")
    tiny.saved(place.root / "pictures", "images", "reduction")
    return "pictures", "rows"


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (no_champion, ["table-anomaly has no champion yet", "table-anomaly/1", "`sevenfold run`"]),
        (no_such_version, ["table-anomaly has no version 2", "there are: table-anomaly/1"]),
        (no_such_file, ["rows.parquet does not exist", "check the path"]),
        (corrupted_bundle, ["bundle is no sound bundle", "model.safetensors", "take it from the registry again"]),
        (wrong_columns, ["rows.csv: ", "'city', 'age'", "missing", "'income'", "no numbers (first: 'much'"]),
        (infinity, ["rows.csv: column 'age' has 1 gap", "not finite (first: row 2)"]),
        (another_size, ["rows.npz: got images 6x7 with 1 channel", "expected images 6x8", "resize or convert"]),
        (
            another_mode,
            ["rows: 0.png: got images 6x8 with 3 channels", "expected images 6x8 with 1 channel", "convert them"],
        ),
    ],
)
def test_bad_input_gets_one_error_with_all_that_is_wrong_and_leaves_nothing(call, place, published, make, parts):
    model, source = make(place)
    before = sorted(place.root.rglob("[!.]*"))
    code, out, err = call("encode", model, source, "new/out.parquet")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert "Traceback" not in err
    assert sorted(place.root.rglob("[!.]*")) == before


EMPTY = """
seed: 0
datasets: {}
rivals: {seconds: 600}
training:
  {epochs: 1, patience: 1, batch_size: 64, learning_rate: 0.001, warmup: 0.1, weight_decay: 0.0, gradient_clip: 1.0, threads: 1}
gate: {must_beat_rivals: true, floor: null}
"""


def test_the_report_is_written_and_its_place_is_printed(call, place):
    place.params.write_text(EMPTY)
    assert call("report") == (0, f"{place.report}\n", "")
    assert call("report", "--output", "page.html") == (0, "page.html\n", "")
    assert (place.root / "page.html").read_bytes() == place.report.read_bytes()
    assert "No contest was held" in place.report.read_text()
    code, out, err = call("report", "--output", ".")
    assert (code, out) == (1, "")
    assert err == "error: . is a folder; name a file in it, such as report.html\n"


def test_models_are_listed_by_the_name_that_other_commands_take(call, place, published, monkeypatch):
    promotion.promote(place, published, reasons=["good"])
    for arguments in ([], ["table-anomaly"]):
        code, out, err = call("models", *arguments)
        assert (code, err) == (0, "")
        heading, line, verdict = out.splitlines()
        assert heading.split() == ["model", "alias", "candidate", "digest"]
        assert line.split() == ["table-anomaly/1", "champion", "table-deep", published.digest[:12]]
        assert verdict == f"    {published.tags['verdict']}"
        assert [heading.index(w) for w in heading.split()] == [line.index(w) for w in line.split()]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = call("models")[1].splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(line.strip() for line in lines[2:]) == published.tags["verdict"]


def test_models_that_are_not_there_are_an_error(call, place):
    code, _, err = call("models")
    assert (code, err) == (
        1,
        "error: no model is registered yet; `sevenfold models` lists all, `sevenfold run` makes them\n",
    )
    code, _, err = call("models", "x'y")
    assert code == 1
    assert err.startswith('error: no version of "x\'y" is registered; `sevenfold models` lists all')


def test_doctor_exits_with_1_where_something_is_in_the_way(call, place):
    for name in (".git", ".dvc"):
        (place.root / name).mkdir()
    code, out, err = call("doctor")
    if "error   disk" not in out:
        assert code == 0
    assert err == ""
    assert out.splitlines()[0].startswith("ok      python: Python 3")
    (place.private / "mlflow" / "mlflow.db").write_bytes(b"no database" * 100)
    code, out, _ = call("doctor")
    assert code == 1
    (line,) = [line for line in out.splitlines() if line.startswith("error   mlflow: ")]
    assert line.endswith("restore it from a backup, or move it away and run `sevenfold run`")


def test_it_runs_as_a_module_and_a_reader_that_leaves_early_is_no_error(place):
    command = [sys.executable, "-m", "sevenfold"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sevenfold ")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        # Python tells of the pipe when it writes out what it has gathered, which it does not do unbuffered.
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            [*command, "doctor"], stdout=pipe, stderr=subprocess.PIPE, text=True, env=buffered, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
