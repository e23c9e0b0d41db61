"""What every application promises, on tables, on tables with gaps, and on images."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import samples
from sevenfold import evaluation, modules, operations
from sevenfold.applications.base import Application, Rival
from sevenfold.models.base import Autoencoder, ModelSpec

APPLICATIONS = modules.names("applications")
TAUGHT = {"features", "search"}
"""Applications that judge a code by what labels of training rows say of other rows, through a model or as neighbours. What
they judge, and what a job writes, never learns from these."""
SPLITS = ("train", "validation", "test")


class Useless(Autoencoder):
    """Says the same of every sample."""

    def prepare(self, x, observed):
        pass

    def encode(self, x, observed=None):
        return x.new_zeros(len(x), self.code)

    def decode(self, z):
        return z.new_zeros(len(z), *self.shape)

    def losses(self, x, observed):
        return {}


@pytest.fixture(params=APPLICATIONS)
def name(request):
    return request.param


@pytest.fixture(params=samples.DATASETS)
def kind(request):
    return request.param


@pytest.fixture
def application(name, kind):
    application = samples.application(name)
    if reason := samples.unsuited(name, kind):
        pytest.skip(f"{name}: {reason}")
    return application


@pytest.fixture
def data(application, kind):
    return samples.dataset(kind)


@pytest.fixture
def model(application, kind):
    """The samples vary in so many directions as its code has values, so it is as good as a model can be."""
    return samples.trained("pca", kind, application.learns_from)


def same_state(one, two):
    assert one.state.keys() == two.state.keys()
    assert all(np.array_equal(value, two.state[name]) for name, value in one.state.items())


def same_scores(one, two):
    assert dict(one.metrics) == dict(two.metrics)
    assert all(np.array_equal(value, two.values[name]) for name, value in one.values.items())


def test_there_are_applications_and_params_yaml_holds_each():
    assert APPLICATIONS
    assert all(samples.application(name) for name in APPLICATIONS)


def test_a_perfect_model_beats_a_useless_one(name, kind, application, model, data):
    _, perfect = samples.judged(name, kind)
    if application.options.get("aids"):  # with which a useless model does no harm
        application = type(application)(**application.options | {"aids": []})
        _, perfect = evaluation.judge(application, model, data)
    _, useless = evaluation.judge(application, Useless(data.schema.layout, model.code).eval(), data)
    assert perfect.test.metrics[application.primary] > 0.2 + useless.test.metrics[application.primary]


def test_the_primary_metric_is_the_statistic_of_the_values(name, kind, application, data):
    _, judgement = samples.judged(name, kind)
    for part, split in ((judgement.validation, data.validation), (judgement.test, data.test)):
        assert application.statistic(part.values) == part.metrics[application.primary]
        assert {len(values) for values in part.values.values()} == {len(split)}
    judgement.require_finite()


def test_calibration_returns_a_copy(name, kind, application, model, data):
    calibrated, _ = samples.judged(name, kind)
    before = copy.deepcopy(calibrated.state)
    again, _ = evaluation.judge(calibrated, model, replace(data, validation=data.test))
    assert again is not calibrated
    assert again.options == calibrated.options == application.options
    assert application.state == {}
    assert all(np.array_equal(value, calibrated.state[key]) for key, value in before.items())


@pytest.mark.parametrize("kind", ["gaps"], indirect=True)
def test_calibration_and_tuning_never_see_a_test_row(name, kind, application, model, data):
    test = replace(data.test, x=np.random.default_rng(0).permutation(data.test.x))
    calibrated, judgement = samples.judged(name, kind)
    again, other = evaluation.judge(application, model, replace(data, test=test))
    same_state(calibrated, again)
    same_scores(judgement.validation, other.validation)
    rivals, _ = samples.rivals(name, kind)
    for rival, found in evaluation.judge_rivals(application, replace(data, test=test))[0].items():
        same_scores(found.validation, rivals[rival].validation)


@pytest.mark.parametrize("kind", ["gaps"], indirect=True)
def test_labels_never_reach_training(name, kind, application, model, data):
    """Of the training rows only the normal class counts: which label a row has changes no calibration and no score."""
    other = replace(data, train=replace(data.train, y=np.random.default_rng(0).permutation(data.train.y)))
    calibrated, judgement = samples.judged(name, kind)
    again, rejudged = evaluation.judge(application, model, other)
    written = [one.predict(model, data.test.x, data.test.observed, data.schema) for one in (calibrated, again)]
    assert all(np.array_equal(values, written[1][column]) for column, values in written[0].items())
    if name in TAUGHT:
        return
    same_state(calibrated, again)
    pairs = [(judgement, rejudged)]
    rivals, found = samples.rivals(name, kind)[0], evaluation.judge_rivals(application, other)[0]
    pairs += [(rivals[rival], found[rival]) for rival in rivals]
    assert all(application.statistic(one.test.values) == application.statistic(two.test.values) for one, two in pairs)


@pytest.mark.parametrize("kind", ["gaps"], indirect=True)
def test_anomalies_among_the_training_rows_teach_nothing_where_only_normal_rows_may(name, kind, application, data):
    learned = evaluation.learned_from(application, data)
    if application.learns_from == "all":
        assert np.array_equal(learned.ids, data.train.ids)
        return
    assert np.array_equal(learned.ids, data.train.ids[data.train.normal])
    x = data.train.x.copy()
    x[~data.train.normal] = 9
    rivals, _ = samples.rivals(name, kind)
    for rival, found in evaluation.judge_rivals(application, replace(data, train=replace(data.train, x=x)))[0].items():
        same_scores(found.test, rivals[rival].test)


def test_every_rival_has_a_result_and_its_statistic_is_its_primary_metric(name, kind, application):
    rivals, failed = samples.rivals(name, kind)
    assert failed == {}
    assert rivals.keys() == application.rivals().keys()
    assert len(rivals) >= 3
    _, ours = samples.judged(name, kind)
    for rival in rivals.values():
        assert rival.test.metrics.keys() == ours.test.metrics.keys()
        assert rival.test.values.keys() == ours.test.values.keys()
        assert application.statistic(rival.test.values) == rival.test.metrics[application.primary]


@pytest.mark.parametrize("kind", ["table"], indirect=True)
def test_rivals_are_fitted_on_the_rows_that_candidates_learn_from_and_one_that_fails_says_why(name, data):
    given = []

    class Recorder(Rival):
        def fit(self, train, validation):
            given.extend([train, validation])

        def evaluate(self, split, train):
            given.extend([split, train])
            raise RuntimeError("broken on purpose")

    class Watched(type(samples.application(name))):
        def rivals(self):
            return {"recorder": Recorder(), **dict(list(super().rivals().items())[1:2])}

    application = Watched(**samples.application(name).options)
    judged, failed = evaluation.judge_rivals(application, data)
    assert failed == {"recorder": "RuntimeError: broken on purpose"}
    assert len(judged) == 1  # the other one has its result
    learned = evaluation.learned_from(application, data)
    fitted, tuned, first, reference = given
    assert np.array_equal(fitted.ids, learned.ids)
    assert np.array_equal(reference.ids, learned.ids)
    assert tuned is first is data.validation


def test_what_a_job_writes_has_one_entry_per_row_in_the_order_of_the_rows(name, kind, application, model, data):
    calibrated, _ = samples.judged(name, kind)
    assert application.operation in operations.OPERATIONS
    x, seen = data.test.x, data.test.observed

    def predict(rows):
        return calibrated.predict(model, x[rows].copy(), None if seen is None else seen[rows].copy(), data.schema)

    before = x.copy()
    columns = calibrated.predict(model, x, seen, data.schema)
    backwards, one, none = predict(np.s_[::-1]), predict(np.s_[7:8]), predict(np.s_[:0])
    assert np.array_equal(x, before)
    assert columns
    assert columns.keys() == backwards.keys() == one.keys() == none.keys()
    for column, values in columns.items():
        assert len(values) == len(x)
        assert len(none[column]) == 0
        if values.dtype.kind == "f":
            np.testing.assert_allclose(backwards[column][::-1], values, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(one[column], values[7:8], rtol=1e-3, atol=1e-3)
        else:
            assert (backwards[column][::-1] == values).mean() > 0.98  # a near tie may fall either way


def test_judging_twice_gives_the_same_numbers(name, kind, application, model, data):
    one, two = samples.judged(name, kind), evaluation.judge(application, model, data)
    same_state(one[0], two[0])
    same_scores(one[1].test, two[1].test)


@pytest.mark.parametrize("kind", ["table"], indirect=True)
def test_a_constant_feature_does_no_harm(application, data):
    at = (slice(None), *(0,) * len(data.schema.shape))

    def flattened(split):
        x = split.x.copy()
        x[at] = 0.5
        return replace(split, x=x)

    constant = replace(data, **{part: flattened(getattr(data, part)) for part in SPLITS})
    model = ModelSpec.of("pca", data.schema.layout, {"code": samples.CODE}).build().eval()
    seen = data.train.observed
    model.prepare(torch.from_numpy(constant.train.x), None if seen is None else torch.from_numpy(seen))
    _, judgement = evaluation.judge(application, model, constant)
    judgement.require_finite()
    judged_rivals, failed = evaluation.judge_rivals(application, constant)
    assert failed == {}
    assert judged_rivals


def test_every_wrong_option_is_named_at_once(name):
    kind, application = modules.member("applications", name, Application), samples.application(name)
    right = next(iter(application.options))
    options = {**application.options, f"{right}s": 3}
    del options[right]
    problems = modules.option_problems(kind, options, of=f"applications.digits.{name}")
    assert problems[0].startswith(f"applications.digits.{name}: unknown option '{right}s', did you mean '{right}'?")
    assert problems[1] == f"applications.digits.{name}: option missing: {right}"


def test_a_number_out_of_range_is_named(name):
    kind, application = modules.member("applications", name, Application), samples.application(name)
    for option, given in application.options.items():
        for value in (-1, 0) if isinstance(given, int | float) and not isinstance(given, bool) else ():
            with pytest.raises(ValueError, match=rf"{option} is {value}; expected "):
                kind(**application.options | {option: value})


def test_pictures_say_what_they_show_and_are_the_same_twice(name, kind, application, model, data):
    calibrated, judgement = samples.judged(name, kind)
    train = evaluation.learned_from(calibrated, data)
    made = calibrated.pictures(model, data.test, train, data.schema)
    everyone = {"ours": judgement.test} | {n: j.test for n, j in samples.rivals(name, kind)[0].items()}
    made += calibrated.comparison(everyone, "ours")
    assert made
    assert len({picture.name for picture in made}) == len(made)
    again = calibrated.pictures(model, data.test, train, data.schema) + calibrated.comparison(everyone, "ours")
    for one, other in zip(made, again, strict=True):
        assert one == other
        assert len(one.title) > 10
        assert len(one.description) > 20
        assert one.content.startswith(b"<svg" if one.kind == "svg" else b"\x89PNG")
