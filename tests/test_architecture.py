"""What may import what, and that each outside tool has one home."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import ruamel.yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sevenfold"
HOMES = {
    "ruamel": {"params"},
    "pydantic": {"params", "modules"},
    "great_expectations": {"validation"},
    "mlflow": {"registry.*", "served_model"},
    "dvc": {"pipeline"},
    "prefect": set(),  # flows/ only
    "faiss": {"indexes", "searchers"},  # what contests depend on, and what folders of vectors are searched by
    "argparse": {"cli", "commands.*"},
    "constriction": {"entropy"},
    "ray": {"clusters", "dispatch"},
    "fsspec": {"places"},
    "umap": {"applications.reduction"},
}


def modules():
    """Return module name -> file of the whole package, without `__init__`."""
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in files}


def imports(path):
    """Return every dotted name that a file imports, wherever in it, `from a import b` as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path):
    """Return the modules of this package that a file imports."""
    known = modules()
    names = {name.removeprefix("sevenfold.") for name in imports(path) if name.startswith("sevenfold.")}
    return {name for name in known for found in names if found == name or found.startswith(f"{name}.")}


def lines():
    """Return module -> its line in docs/architecture.md, where lower lines may be imported by higher ones."""
    table = {}
    for number, cell in re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", cell):
            table[name.replace("/", ".")] = int(number)
    return table


def line(name):
    table = lines()
    folder, _, file = name.rpartition(".")
    return table[name] if name in table else table[f"{folder}.*"] if folder and file else None


def test_every_module_has_its_line_in_the_architecture():
    known = modules()
    assert len(known) > 30
    assert [name for name in known if name != "__main__" and line(name) is None] == []
    assert [name for name in lines() if not name.endswith((".*", ".")) and name not in known] == []


@pytest.mark.parametrize("name", sorted(set(modules()) - {"__main__"}))
def test_imports_go_one_way(name):
    above = {other: line(other) for other in own(modules()[name]) if line(other) > line(name)}
    assert not above, f"{name} is on line {line(name)}"


def test_variants_data_sets_and_applications_know_nothing_of_each_other():
    members = [
        n for n in modules() if n.split(".")[0] in {"models", "datasets", "applications"} and not n.endswith("base")
    ]
    assert len(members) >= 8
    for name in members:
        others = own(modules()[name]) & set(members)
        assert not others, name


@pytest.mark.parametrize("tool", sorted(HOMES))
def test_each_outside_tool_has_one_home(tool):
    users = {
        name
        for name, path in modules().items()
        if any(found == tool or found.startswith(f"{tool}.") for found in imports(path))
    }
    folders = {home.removesuffix("*") for home in HOMES[tool] if home.endswith(".*")}
    assert {name for name in users if not name.startswith(tuple(folders))} <= HOMES[tool]


def test_prefect_is_used_in_flows_and_the_library_never_imports_a_flow():
    flows = list((ROOT / "flows").glob("*.py"))
    assert any("prefect.flow" in imports(path) for path in flows)
    assert [n for n, path in modules().items() if any(found.split(".")[0] == "flows" for found in imports(path))] == []


def test_paths_inside_the_project_are_written_in_one_file():
    literal = re.compile(r"""["'](results|data/prepared|data/raw|\.sevenfold)["'/]""")
    found = [name for name, path in modules().items() if literal.search(path.read_text(encoding="utf-8"))]
    assert set(found) <= {"workspace"}


def test_the_mlflow_folder_holds_configuration_only():
    files = subprocess.run(
        ["git", "ls-files", "mlflow"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert files
    assert [f for f in files if f.endswith((".py", ".pyc"))] == []
    import mlflow

    assert "site-packages" in mlflow.__file__


def test_nothing_unpickles():
    forbidden = re.compile(r"\b(pickle|cloudpickle|joblib|dill)\.load|torch\.load\(|allow_pickle=True|\byaml\.load\(")
    sources = [*modules().values(), *(ROOT / "flows").glob("*.py")]
    found = [path.name for path in sources if forbidden.search(path.read_text(encoding="utf-8"))]
    # params.py loads YAML by ruamel's safe or round-trip loader, neither of which makes objects.
    assert set(found) <= {"params.py"}


# What these do shows in no result: they find, read and write.
CARRIERS = {"checkpoints", "datasets.base", "files", "formats", "modules", "params", "upgrades", "workspace"}


@pytest.mark.parametrize("variant", [n for n in modules() if n.startswith("models.") and n != "models.base"])
def test_a_training_depends_on_all_code_that_makes_its_result(variant):
    """Else an edit would leave old weights standing, as results of code that is no more."""
    known, found = modules(), set()
    open_ = {"training", variant}
    while open_:
        name = open_.pop()
        found.add(name)
        open_ |= own(known[name]) - found - CARRIERS
    stage = ruamel.yaml.YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["train"]["do"]
    named = {
        d.removeprefix("src/sevenfold/").removesuffix(".py").replace("/", ".") for d in stage["deps"] if "src" in d
    }
    named = {name.replace("${item.variant}", variant.removeprefix("models.")) for name in named}
    assert named >= found
    assert len(found) > 8


@pytest.mark.parametrize("stage", ["rivals", "evaluate"])
def test_a_judgement_depends_on_all_code_that_makes_its_result(stage):
    known, found = modules(), set()
    open_ = {"evaluation"} | ({"bundles", "pictures"} if stage == "evaluate" else set())
    while open_:
        name = open_.pop()
        found.add(name)
        open_ |= own(known[name]) - found - CARRIERS
    for name in (n for n in known if n.startswith("applications.")):
        found |= {other for other in own(known[name]) if not other.startswith("applications.")} - CARRIERS
    # A rival knows no model and draws nothing; how a gate chooses is for whoever compares.
    apart = {"gate", *(n for n in found if n.startswith("models.")), "layouts", "applications.base"}
    wanted = found - apart - ({"pictures"} if stage == "rivals" else set())
    steps = ruamel.yaml.YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]["do"]["deps"]
    named = {d.removeprefix("src/sevenfold/").removesuffix(".py").replace("/", ".") for d in steps if "src" in d}
    assert named >= wanted
    assert len(wanted) >= 6
