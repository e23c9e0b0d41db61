"""params.yaml is read into frozen values; whatever is misspelled in it is named, all at once, with what was meant."""

import re
from pathlib import Path

import pydantic
import pytest

from sevenfold import gate, params
from sevenfold.params import ParamsError

PARAMS = Path(__file__).parents[1] / "params.yaml"

SMALL = """\
seed: 3            # of all
fetch:
  digits: {path: data/raw/digits.npz}
datasets:
  digits:
    path: data/raw/digits.npz
    label: label
    normal: [0, 1]
    split: {validation: 0.2, test: 0.2, seed: 0}
applications:
  digits:
    anomaly: {neighbours: 5}
training:
  epochs: 10       # enough
  patience: 2
  batch_size: 8
  learning_rate: 0.01
  warmup: 0.1
  weight_decay: 0
  gradient_clip: 1
  threads: 1
candidates:
  small:
    dataset: digits
    applications: [anomaly]
    variant: deep
    options: {code: 2}
rivals: {seconds: 600}
gate: {must_beat_rivals: true}
"""


@pytest.fixture
def load(tmp_path):
    def write_and_load(text):
        (tmp_path / "params.yaml").write_text(text)
        return params.load(tmp_path / "params.yaml")

    return write_and_load


def changed(*changes, text=SMALL):
    for old, new in changes:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    return text


def test_the_projects_own_params_are_sound():
    settings = params.load(PARAMS)
    assert settings.candidates
    assert set(settings.applications) <= set(settings.datasets)


def test_values_are_typed_and_frozen(load):
    settings = load(SMALL)
    assert settings.seed == 3
    assert settings.datasets["digits"].normal == ("0", "1")
    assert settings.of_dataset("digits") == {"small": settings.candidates["small"]}
    assert settings.of_dataset("wdbc") == {}
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.seed = 4


@pytest.mark.parametrize(
    ("given", "labels"),
    [("[0, 1]", ("0", "1")), ("benign", ("benign",)), ("7", ("7",)), ("[1.0, 2.5]", ("1", "2.5")), ("null", None)],
)
def test_labels_are_text_however_yaml_reads_them(load, given, labels):
    assert load(changed(("[0, 1]", given))).datasets["digits"].normal == labels


def test_a_candidates_own_settings_go_over_the_common_ones(load):
    own = "    options: {code: 2}\n    training: {epochs: 99}\n"
    settings = load(changed(("    options: {code: 2}\n", own)))
    assert settings.settings("small") == settings.training.model_copy(update={"epochs": 99})
    settings = load(SMALL + "gates:\n  digits-anomaly: {floor: 0.9}\n")
    assert (settings.rule("digits-anomaly").floor, settings.rule("digits-reduction").floor) == (0.9, None)
    assert settings.rule("digits-anomaly").must_beat_rivals


def test_a_candidates_resources_go_over_those_of_its_variant(load):
    assert load(SMALL).gpus("small") is None
    variant = load(SMALL).candidates["small"].variant
    assert load(SMALL + f"resources:\n  {variant}: {{gpus: 1}}\n").gpus("small") == 1
    assert load(SMALL + f"resources:\n  {variant}: {{gpus: 1}}\n  small: {{gpus: 0}}\n").gpus("small") == 0


def test_a_contests_rule_goes_over_its_applications_and_that_over_the_common_one(load):
    text = changed(("{must_beat_rivals: true}", "{must_beat_rivals: true, floor: 0.1, margin: 0.1, max_megabytes: 9}"))
    text += """gates:
  anomaly: {floor: 0.2, margin: 0.2, slices: [label]}
  digits-anomaly: {floor: 0.3, floors: {auroc: 0.9}}
"""
    settings = load(text)
    own, other, common = (settings.rule(name) for name in ("digits-anomaly", "my-wdbc-anomaly", "digits-reduction"))
    assert (own.floor, own.margin, own.slices, dict(own.floors)) == (0.3, 0.2, ("label",), {"auroc": 0.9})
    assert (other.floor, other.margin, other.slices, dict(other.floors)) == (0.2, 0.2, ("label",), {})
    assert common == settings.gate
    assert [rule.max_megabytes for rule in (own, other, common)] == [9, 9, 9]
    assert gate.Rule(**own.model_dump()) == gate.Rule(True, 0.3, {"auroc": 0.9}, 0.2, ("label",), 0.0, 9, None)


def test_the_page_about_the_gate_lists_every_key_with_an_example_that_is_read(load):
    page = (PARAMS.parent / "docs" / "gate.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(.+)` \|$", page, re.MULTILINE)
    assert sorted(key for key, _ in rows) == sorted(params.GateRule.model_fields)
    rule = load(changed(("{must_beat_rivals: true}", f"{{{', '.join(f'{k}: {v}' for k, v in rows)}}}"))).gate
    defaults = params.GateRule(must_beat_rivals=False)
    assert all(getattr(rule, key) != getattr(defaults, key) for key, _ in rows)
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1]
    own = PARAMS.read_text().partition("\ngate:")[0]
    settings = load(f"{own}\n{example}")
    found = settings.rule("wdbc-anomaly")
    assert (found.must_beat_rivals, found.floor, found.slices) == (False, 0.9, ("diagnosis",))
    assert dict(found.floors) == dict(settings.rule("digits-anomaly").floors) == {"auroc": 0.9}
    assert settings.rule("digits-denoising").max_megabytes == 20


def test_a_rule_asks_by_default_for_what_the_gate_asks_by_default(load):
    assert gate.Rule(**load(SMALL).gate.model_dump()) == gate.Rule(True)


def test_a_data_sets_reading_options_are_those_that_are_set(load):
    text = changed(("    label: label\n", "    label: label\n    separator: ';'\n    gaps: [NA, -999, '?']\n"))
    assert load(text).datasets["digits"].read_options == {"separator": ";", "gaps": ("NA", "-999", "?")}
    assert load(SMALL).datasets["digits"].read_options == {}


WRONG = {
    "misspelled section": (
        [("candidates:", "candidate:")],
        "candidate: unknown key, did you mean 'candidates'?; there are: applications,",
    ),
    "misspelled key": (
        [("label: label", "lable: label"), ("    normal: [0, 1]\n", "")],
        "datasets.digits.lable: unknown key, did you mean 'label'?; there are: categorical,",
    ),
    "misspelled in a split": (
        [("test: 0.2,", "tset: 0.2, test: 0.2,")],
        "datasets.digits.split.tset: unknown key, did you mean 'test'?; there are: seed, test, validation",
    ),
    "misspelled setting": (
        [("  patience: 2", "  patience: 2\n  epoch: 2")],
        "training.epoch: unknown key, did you mean 'epochs'?; there are: batch_size,",
    ),
    "misspelled in the gate": (
        [("{must", "{flor: 1, must")],
        "gate.flor: unknown key, did you mean 'floor'?; there are: floor, floors, "
        "margin, max_megabytes, max_milliseconds, must_beat_rivals, slice_tolerance, slices",
    ),
    "misspelled in a candidate": (
        [("    variant", "    row: all\n    variant")],
        "candidates.small.row: unknown key, did you mean 'rows'?; there are: applications, dataset,",
    ),
    "misspelled in fetch": (
        [("npz}", "npz, optoins: {}}")],
        "fetch.digits.optoins: unknown key, did you mean 'options'?; there are: options, path",
    ),
    "missing": (
        [("  threads: 1\n", "")],
        "training.threads: missing; add it",
    ),
    "missing variant": (
        [("    variant: deep\n", "")],
        "candidates.small.variant: missing; add it",
    ),
    "out of range": (
        [("test: 0.2", "test: 1.5")],
        "datasets.digits.split.test is 1.5: input should be less than 1",
    ),
    "negative": (
        [("epochs: 10", "epochs: 0")],
        "training.epochs is 0: input should be greater than or equal to 1",
    ),
    "wrong type": (
        [("epochs: 10", "epochs: many")],
        "training.epochs is 'many': input should be a valid integer",
    ),
    "a truth value for a number": (
        [("epochs: 10", "epochs: true")],
        "training.epochs is True: input should be a valid integer",
    ),
    "a text for a number": (
        [("learning_rate: 0.01", "learning_rate: '0.01'")],
        "training.learning_rate is '0.01': input should be a valid number",
    ),
    "infinity": (
        [("learning_rate: 0.01", "learning_rate: .inf")],
        "training.learning_rate is inf: input should be a finite number",
    ),
    "not a number": (
        [("{must_beat_rivals: true}", "{must_beat_rivals: true, floor: .nan}")],
        "gate.floor is nan: input should be a finite number",
    ),
    "a number for a truth value": (
        [("{must_beat_rivals: true}", "{must_beat_rivals: 1}")],
        "gate.must_beat_rivals is 1: input should be a valid boolean",
    ),
    "an infinite range": (
        [("    label: label", "    label: label\n    range: [0, .inf]")],
        "datasets.digits.range.1 is inf: input should be a finite number",
    ),
    "override of a wrong type": (
        [("code: 2}", "code: 2}\n    training: {epochs: true}")],
        "candidates.small.training.epochs is True: input should be a valid integer",
    ),
    "no word": (
        [("    label: label", "    label: label\n    gaps: [NA, null]")],
        "datasets.digits.gaps is ['NA', None]: expected text; put the word null in quotes",
    ),
    "wrong word": (
        [("    label: label", "    label: label\n    duplicates: keep")],
        "datasets.digits.duplicates is 'keep': input should be 'error' or 'drop'",
    ),
    "wrong name": (
        [("  small:", "  Small one:")],
        "candidates.Small one: a name is lower-case letters, digits, _ and -, and begins with a letter",
    ),
    "descending range": (
        [("    label: label", "    label: label\n    range: [16, 0]")],
        "datasets.digits.range is [16, 0]: expected the lower end first, then a higher one",
    ),
    "nothing to train on": (
        [("validation: 0.2", "validation: 0.8")],
        "datasets.digits.split: validation and test leave nothing to train on; expected less than 1 in all",
    ),
    "normal without label": (
        [("    label: label\n", "")],
        "datasets.digits.normal: names labels, but there is no `label` column; name it in `label`",
    ),
    "unknown source": (
        [("  digits: {path", "  digist: {path")],
        "fetch.digist: no such data set, did you mean 'digits'?; there are: digits, photos, wdbc",
    ),
    "unknown data set": (
        [("dataset: digits", "dataset: digist")],
        "candidates.small.dataset: no data set 'digist', did you mean 'digits'?; there are: digits",
    ),
    "unknown variant": (
        [("variant: deep", "variant: depe")],
        "candidates.small.variant: no variant 'depe', did you mean 'deep'?; there are: ",
    ),
    "unknown application": (
        [("    anomaly:", "    anomly:"), ("[anomaly]", "[anomly]")],
        "applications.digits.anomly: no such application, did you mean 'anomaly'?; there are: "
        "anomaly, compression, denoising, features, imputation, reduction, search",
    ),
    "applications of no data set": (
        [("applications:\n", "applications:\n  digit: {}\n")],
        "applications.digit: no such data set, did you mean 'digits'?; there are: digits",
    ),
    "not judged": (
        [("[anomaly]", "[reduction]")],
        "candidates.small.applications: 'reduction' is not judged on digits; applications.digits has: anomaly",
    ),
    "unknown contest": (
        [("gate:", "gates: {digits-anomly: {floor: 1}}\ngate:")],
        "gates.digits-anomly: no such contest or application, did you mean 'digits-anomaly'?; there are: digits-anomaly, anomaly",
    ),
    "unknown application of a gate": (
        [("gate:", "gates: {anomly: {floor: 1}}\ngate:")],
        "gates.anomly: no such contest or application, did you mean 'anomaly'?; there are: digits-anomaly, anomaly",
    ),
    "a negative margin": (
        [("{must_beat_rivals: true}", "{must_beat_rivals: true, margin: -0.1}")],
        "gate.margin is -0.1: input should be greater than or equal to 0",
    ),
    "a negative tolerance": (
        [("gate:", "gates: {anomaly: {slice_tolerance: -1}}\ngate:")],
        "gates.anomaly.slice_tolerance is -1: input should be greater than or equal to 0",
    ),
    "a limit of nothing": (
        [("{must_beat_rivals: true}", "{must_beat_rivals: true, max_megabytes: 0}")],
        "gate.max_megabytes is 0: input should be greater than 0",
    ),
    "a limit that is none": (
        [("gate:", "gates: {digits-anomaly: {max_milliseconds: .inf}}\ngate:")],
        "gates.digits-anomaly.max_milliseconds is inf: input should be a finite number",
    ),
    "a floor that is no number": (
        [("{must_beat_rivals: true}", "{must_beat_rivals: true, floors: {auroc: high}}")],
        "gate.floors.auroc is 'high': input should be a valid number",
    ),
    "one slice for a list": (
        [("{must_beat_rivals: true}", "{must_beat_rivals: true, slices: label}")],
        "gate.slices is 'label': input should be a valid tuple",
    ),
    "resources of nothing": (
        [("gate:", "resources: {depe: {gpus: 1}}\ngate:")],
        "resources.depe: no such candidate or variant, did you mean 'deep'?; there are: ",
    ),
    "more GPUs than one": (
        [("gate:", "resources: {small: {gpus: 2}}\ngate:")],
        "resources.small.gpus is 2: input should be less than or equal to 1",
    ),
    "misspelled resource": (
        [("gate:", "resources: {small: {gpu: 1, gpus: 1}}\ngate:")],
        "resources.small.gpu: unknown key, did you mean 'gpus'?; there are: gpus",
    ),
    "misspelled override": (
        [("code: 2}", "code: 2}\n    training: {epoch: 2}")],
        "candidates.small.training.epoch: unknown key, did you mean 'epochs'?; there are: batch_size,",
    ),
    "override out of range": (
        [("code: 2}", "code: 2}\n    training: {epochs: 0}")],
        "candidates.small.training.epochs is 0: input should be greater than or equal to 1",
    ),
    "misspelled rule": (
        [("gate:", "gates: {digits-anomaly: {flor: 1}}\ngate:")],
        "gates.digits-anomaly.flor: unknown key, did you mean 'floor'?; there are: floor, floors, "
        "margin, max_megabytes, max_milliseconds, must_beat_rivals, slice_tolerance, slices",
    ),
    "no mapping": (
        [(SMALL, "- 1\n")],
        "got list; expected a mapping with datasets, candidates, ...",
    ),
    "no yaml": (
        [("seed: 3 ", "seed: [3 ")],
        "not valid YAML: expected ',' or ']', but got '<scalar>' in line 2; mend it there",
    ),
    "a key twice": (
        [("patience: 2", "patience: 2\n  epochs: 4")],
        'duplicate key "epochs" in line 16; expected each key once; leave one out',
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_with_its_place_and_what_is_meant(load, changes, message):
    with pytest.raises(ParamsError, match=re.escape(message)) as caught:
        load(changed(*changes))
    assert str(caught.value).startswith(f"params.yaml has {len(caught.value.problems)} problem")
    assert any(p.startswith(message) for p in caught.value.problems)


ONE_BY_ONE = [n for n in WRONG if not n.startswith(("no ", "a key", "misspelled section", "missing variant"))]


@pytest.mark.parametrize("name", [n for n in ONE_BY_ONE if n != "unknown application"])
def test_one_mistake_is_one_problem(load, name):
    with pytest.raises(ParamsError) as caught:
        load(changed(*WRONG[name][0]))
    assert len(caught.value.problems) == 1


def test_misspelled_keys_values_and_names_are_all_named_at_once(load):
    mistakes = ["misspelled in a split", "negative", "misspelled setting", "missing", "misspelled in a candidate"]
    mistakes += ["unknown source", "unknown variant", "not judged", "unknown contest"]
    with pytest.raises(ParamsError) as caught:
        load(changed(*(change for name in mistakes for change in WRONG[name][0])))
    for name in mistakes:
        assert any(p.startswith(WRONG[name][1]) for p in caught.value.problems), name
    assert len(caught.value.problems) == len(mistakes)
    assert str(caught.value).count("\n") == len(mistakes)


def test_where_something_is_wrong_the_sound_part_can_still_be_looked_at(tmp_path):
    """Whoever checks the options of variants and applications gets to see each that there is."""
    text = changed(*WRONG["misspelled setting"][0], *WRONG["missing"][0], *WRONG["unknown source"][0])
    text += "gates: {}\n"
    other = "  other: {dataset: digits, applications: [anomaly], variant: depe, options: {}}\n"
    text = changed(("rivals:", f"{other}rivals:"), text=text)
    settings, problems = params.examine(tmp_path / "params.yaml", text)
    assert len(problems) == 4
    assert sorted(settings.candidates) == ["small"]
    assert settings.candidates["small"].options == {"code": 2}
    assert settings.fetch == {}
    assert settings.applications == {"digits": {"anomaly": {"neighbours": 5}}}
    sound, nothing = params.examine(tmp_path / "params.yaml", SMALL)
    assert nothing == []
    assert "digits" in sound.fetch


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "params.yaml").write_bytes("seed: 0  # für alle".encode("latin-1"))
    with pytest.raises(ParamsError, match=r"not text in UTF-8: .*; save it as UTF-8"):
        params.load(tmp_path / "params.yaml")


def test_adding_a_data_set_keeps_every_line_that_was_there(tmp_path):
    for text in (SMALL, PARAMS.read_text()):
        path = tmp_path / "params.yaml"
        path.write_text(text)
        entry = {"path": "data/raw/x.csv", "label": "y", "split": {"validation": 0.2, "test": 0.2, "seed": 0}}
        candidate = {"dataset": "x", "applications": ["reduction"], "variant": "pca", "options": {"code": 1}}
        more = {"applications": {"x": {"reduction": {"code": 1}}}, "candidates": {"x-pca": candidate}}
        new = params.add_dataset(path, "x", entry, more)
        assert path.read_text() == text  # writing is the caller's

        kept = iter(new.splitlines())
        assert all(line in kept for line in text.splitlines())
        # What is new follows the last entry of its section, before the comments of the next one.
        following = new.splitlines()[new.splitlines().index("  x-pca:") + 1 :]
        assert following[:4] == [
            "    dataset: x",
            "    applications: [reduction]",
            "    variant: pca",
            "    options: {code: 1}",
        ]
        path.write_text(new)
        settings = params.load(path)
        assert settings.datasets["x"].label == "y"
        assert settings.candidates["x-pca"].variant == "pca"
        before = params.examine(path, text)[0]
        assert {n: settings.candidates[n] for n in before.candidates} == before.candidates
