"""The documentation says what the program does: commands, options, targets, links and numbers."""

import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest

from sevenfold import cli, modules, params
from sevenfold.models.base import Autoencoder

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "mlflow" / "README.md"])
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}


def commands():
    """Return every command line shown in a console block, without its prompt and comment."""
    blocks = [
        (page, block) for page, text in TEXTS.items() for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    ]
    lines = [(page, line) for page, block in blocks for line in block.splitlines() if line.startswith("$ ")]
    inline = [
        (page, found)
        for page, text in TEXTS.items()
        for found in re.findall(r"`((?:sevenfold|make) [a-z][^`]*)`", text)
    ]
    return sorted({(page, re.sub(r"\s+#.*", "", line.removeprefix("$ "))) for page, line in [*lines, *inline]})


def test_the_pages_show_commands():
    shown = {line for _, line in commands()}
    assert {"make run", "make test", "make ui"} <= shown
    assert sum(line.startswith("sevenfold ") for line in shown) >= 8


@pytest.mark.parametrize(("page", "line"), [(p, c) for p, c in commands() if c.startswith("make ")])
def test_every_make_target_shown_is_there(page, line):
    target = shlex.split(line)[1]
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), page


@pytest.mark.parametrize(("page", "line"), [(p, c) for p, c in commands() if c.startswith("sevenfold ")])
def test_every_command_shown_is_understood(page, line, capsys):
    arguments = cli._spelled_out(shlex.split(line)[1:])
    # A command that is only named, as in "`sevenfold encode MODEL INPUT OUTPUT`" or "`sevenfold score`", needs its arguments.
    parser = cli._parser()
    try:
        parser.parse_args(arguments)
    except SystemExit:
        error = capsys.readouterr().err
        assert "the following arguments are required" in error, f"{page}: {line}: {error}"


def test_every_command_there_is_stands_in_the_readme(capsys):
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["--help"])
    listed = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert len(listed) >= 7
    readme = TEXTS["README.md"] + TEXTS["docs/own-data.md"]
    assert [name for name in listed if name != "stage" and f"sevenfold {name}" not in readme] == []


def test_every_link_leads_somewhere():
    broken = []
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            if not target.startswith(("http://", "https://")) and not (ROOT / page).parent.joinpath(target).exists():
                broken.append(f"{page}: {target}")
    assert broken == []


def test_every_file_named_is_there():
    named = re.compile(r"`((?:src|tests|flows|docs|benchmarks|data/expectations)/[\w./-]+\.\w+)`")
    missing = [
        f"{page}: {name}" for page, text in TEXTS.items() for name in named.findall(text) if not (ROOT / name).exists()
    ]
    assert [m for m in missing if "NAME" not in m and "sales" not in m] == []
    tests = [f"{page}: {name}" for page, text in TEXTS.items() for name in re.findall(r"`(test_\w+\.py)`", text)
             if not (ROOT / "tests" / name).exists()]  # fmt: skip
    assert tests == []


def test_the_tables_of_numbers_are_those_of_the_metrics_files(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readme

    assert readme.filled(TEXTS["README.md"]) == TEXTS["README.md"], "run `python benchmarks/readme.py`"


def test_options_of_adding_a_data_set_are_all_explained():
    parser = cli._parser()
    text = TEXTS["docs/own-data.md"]
    add = parser._subparsers._group_actions[0].choices["dataset"]._subparsers._group_actions[0].choices["add"]
    options = [o for action in add._actions for o in action.option_strings if o.startswith("--")]
    assert [o for o in options if o not in {"--help", "--debug"} and f"`{o}" not in text] == []


def test_yaml_examples_of_own_data_are_taken_by_params(tmp_path):
    """Every key that the page shows is one that params.yaml may hold."""
    entry = re.search(r"```yaml\ndatasets:\n(.*?)```", TEXTS["docs/own-data.md"], re.DOTALL)[1]
    candidate = re.search(r"```yaml\ncandidates:\n(.*?)```", TEXTS["docs/own-data.md"], re.DOTALL)[1]
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("\ndatasets:\n", f"\ndatasets:\n{entry}").replace(
        "\ncandidates:\n", f"\ncandidates:\n{candidate}"
    )
    anomaly = (
        "  sales:\n    anomaly: {policy: false-positive-rate, value: 0.05, share: null, neighbours: 5, "
        "references: 4096, reasons: 3}\n"
    )
    text = text.replace("\napplications:\n", f"\napplications:\n{anomaly}")
    (tmp_path / "params.yaml").write_text(text)
    settings = params.load(tmp_path / "params.yaml")
    assert settings.datasets["sales"].categorical == ("region_code",)
    assert settings.settings("sales-anomaly-deep").epochs == 500


def test_the_changelog_names_every_variant_application_and_built_in_set():
    for package in ("models", "applications", "datasets"):
        assert [name for name in modules.names(package) if f"`{name}`" not in TEXTS["CHANGELOG.md"]] == []


def test_every_variant_is_explained_with_its_own_options():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", TEXTS["docs/variants.md"], re.MULTILINE))
    assert sorted(rows) == modules.names("models")
    shared = {"numbers", "categories"}
    for name, cell in rows.items():
        variant = modules.member("models", name, Autoencoder)
        keywords = [p.name for p in inspect.signature(variant).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert re.findall(r"`(\w+)`", cell) == [k for k in keywords if k not in shared]


def test_the_oldest_python_named_is_the_one_that_is_required():
    required = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert f"Python {required} or newer" in TEXTS["README.md"]
    assert sys.version_info >= tuple(map(int, required.split(".")))
