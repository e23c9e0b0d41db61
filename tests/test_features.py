"""What the features contest measures is what scikit-learn finds by itself, for classes and for quantities."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import decomposition, ensemble, feature_selection, linear_model, metrics, pipeline, preprocessing

import samples
from sevenfold import evaluation
from sevenfold.applications import features
from sevenfold.applications.base import codes
from sevenfold.models.base import Autoencoder, ModelSpec, Selector

DATA = samples.dataset("table")
TRAIN, VALIDATION, TEST = (
    split.x.reshape(len(split), -1).astype(float) for split in (DATA.train, DATA.validation, DATA.test)
)
APPLICATION = features.Features(code=samples.CODE)


def labelled(split, y):
    return replace(split, y=np.array([str(value) for value in y], dtype=object))


def quantities(seed=0, rows=(160, 60, 70)):
    """Splits whose label is a sum of two columns of five, with noise."""
    generator = np.random.default_rng(seed)
    splits = []
    for count in rows:
        x = generator.normal(size=(count, 5)).astype(np.float32)
        y = 3 * x[:, 0] - 2 * x[:, 3] + 0.5 * generator.normal(size=count) + 40
        splits.append(samples.split(x, y=np.array([f"{value:.4f}" for value in y], dtype=object)))
    return splits


class Chosen(Autoencoder, Selector):
    """Copies given values of a sample to the code."""

    def __init__(self, layout, places):
        super().__init__(layout, len(places))
        self.places = places

    @property
    def selected(self):
        import torch

        return torch.tensor(self.places)

    def prepare(self, x, observed):
        pass

    def encode(self, x, observed=None):
        return x.flatten(1)[:, self.places]

    def decode(self, z):
        return z.new_zeros(len(z), *self.shape)

    def losses(self, x, observed):
        return {}


def logistic(strength):
    return pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear_model.LogisticRegression(C=strength, max_iter=5000)
    )


def by_validation(z, held_out, strengths=features.Classes.strengths):
    """The logistic regression of all training rows whose log loss on the validation rows is least."""
    fitted = [logistic(strength).fit(z, DATA.train.y.astype(str)) for strength in strengths]
    losses = [metrics.log_loss(DATA.validation.y.astype(str), one.predict_proba(held_out)) for one in fitted]
    return fitted[int(np.argmin(losses))]


def test_the_probe_is_scikit_learns_logistic_regression_chosen_on_validation_rows():
    model = samples.trained("pca", "table")
    calibrated, judgement = samples.judged("features", "table")
    z, held_out, test = (
        codes(model, split.x, None).astype(float) for split in (DATA.train, DATA.validation, DATA.test)
    )
    probe = by_validation(z, held_out)
    assert calibrated.state["strength"][-1] == probe[-1].C
    assert judgement.test.metrics["probe"] == pytest.approx(probe.score(test, DATA.test.y.astype(str)))
    assert judgement.validation.metrics["probe"] == pytest.approx(
        probe.score(held_out, DATA.validation.y.astype(str))
    )  # fmt: skip
    right = probe.predict(test) == DATA.test.y.astype(str)
    assert np.array_equal(judgement.test.values["error"], ~right)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("raw", lambda x: x),
        ("pca", decomposition.PCA(samples.CODE, svd_solver="full").fit(TRAIN).transform),
        (
            "mutual_information",
            lambda x: x[
                :,
                np.sort(
                    np.argsort(
                        -feature_selection.mutual_info_classif(TRAIN, DATA.train.y.astype(str), random_state=0),
                        kind="stable",
                    )[: samples.CODE]
                ),
            ],
        ),
    ],
)
def test_a_rivals_probe_is_that_of_its_own_pipeline(name, code):
    found = samples.rivals("features", "table")[0][name].test.metrics
    probe = by_validation(code(TRAIN), code(VALIDATION))
    assert found["probe"] == pytest.approx(probe.score(code(TEST), DATA.test.y.astype(str)))


def test_kernel_components_are_those_of_scikit_learn_at_a_width_chosen_on_validation_rows():
    scale = 2 * TRAIN.var(axis=0).sum()
    outcomes = []
    for width in (0.1, 0.3, 1.0, 3.0):
        kernel = decomposition.KernelPCA(samples.CODE, kernel="rbf", gamma=width / scale).fit(TRAIN)
        z, held_out, test = (kernel.transform(x) for x in (TRAIN, VALIDATION, TEST))
        probe = by_validation(z, held_out)
        loss = metrics.log_loss(DATA.validation.y.astype(str), probe.predict_proba(held_out))
        outcomes.append((loss, probe.score(test, DATA.test.y.astype(str))))
    found = samples.rivals("features", "table")[0]["kernel_pca"].test.metrics["probe"]
    assert found == pytest.approx(min(outcomes)[1])


def test_boosting_learns_from_the_code_and_from_code_and_raw_values():
    model = samples.trained("pca", "table")
    z, test = (codes(model, split.x, None) for split in (DATA.train, DATA.test))

    def score(train, judged):
        trees = ensemble.HistGradientBoostingClassifier(
            max_iter=60, learning_rate=0.2, max_leaf_nodes=15, early_stopping=False, random_state=0
        )
        return trees.fit(train, DATA.train.y.astype(str)).score(judged, DATA.test.y.astype(str))

    found = samples.judged("features", "table")[1].test.metrics
    assert found["boosting"] == pytest.approx(score(z, test))
    assert found["boosting_with_raw"] == pytest.approx(score(np.hstack([z, TRAIN]), np.hstack([test, TEST])))
    raw = samples.rivals("features", "table")[0]["raw"].test.metrics
    assert raw["boosting"] == raw["boosting_with_raw"] == pytest.approx(score(TRAIN, TEST))


def test_a_quantity_is_judged_by_r2_of_ridge_regression():
    train, validation, test = quantities()
    assert features.label_of(train).is_quantity
    y = [split.y.astype(float) for split in (train, validation, test)]
    application = features.Features(code=5)
    rivals, failed = evaluation.judge_rivals(application, replace(DATA, train=train, validation=validation, test=test))
    assert failed == {}
    fitted = [
        pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.Ridge(alpha=alpha)).fit(train.x, y[0])
        for alpha in features.Quantity.strengths
    ]
    best = min(fitted, key=lambda one: metrics.mean_squared_error(y[1], one.predict(validation.x)))
    found = rivals["raw"].test
    assert found.metrics["probe"] == pytest.approx(metrics.r2_score(y[2], best.predict(test.x)), rel=1e-6)
    assert found.metrics["probe"] > 0.9
    assert 0.5 < found.metrics["boosting"] < found.metrics["probe"]
    assert found.metrics["probe_10_labels"] < found.metrics["probe_100_labels"] < found.metrics["probe"]
    assert features.Features(code=5).statistic(found.values) == found.metrics["probe"]


def test_the_most_informative_columns_are_those_that_the_quantity_is_made_of():
    train, *_ = quantities()
    method = features._MostInformative(2)
    method.fit(train)
    assert np.array_equal(method.transform(train), train.x[:, [0, 3]])


@pytest.mark.parametrize(
    ("y", "quantity"),
    [
        (range(100), True),
        (np.linspace(0, 1, 100), True),
        ([f"class {i}" for i in range(100)], False),
        ([*range(99), "unknown"], False),
        ([*range(99), "nan"], False),
        ([i % features.MOST_CLASSES for i in range(100)], False),
        ([i % (features.MOST_CLASSES + 1) for i in range(100)], True),
    ],
)
def test_a_label_is_a_quantity_where_it_has_many_numbers_and_nothing_else(y, quantity):
    split = labelled(samples.split(np.zeros((100, 2))), y)
    assert features.label_of(split).is_quantity == quantity


def test_labels_that_are_no_numbers_where_training_rows_have_numbers_are_refused():
    train, _, test = quantities()
    label = features.label_of(train)
    with pytest.raises(
        ValueError, match="some labels are no finite numbers, while those of all training rows are; exp"
    ):
        label.values(labelled(test, ["many"] * len(test)))


def test_a_few_labels_keep_the_proportions_of_the_classes_and_are_the_same_for_everybody():
    y = np.repeat(["a", "b", "c"], [120, 60, 20])
    split = labelled(samples.split(np.zeros((200, 1))), np.random.default_rng(0).permutation(y))
    found = features.draws(split)
    assert list(found) == [10, 100, None]
    for count in (10, 100):
        assert len(found[count]) == features.DRAWS
        for rows in found[count]:
            assert len(np.unique(rows)) == count
            classes, counts = np.unique(split.y[rows].astype(str), return_counts=True)
            assert np.abs(counts - count * np.array([0.6, 0.3, 0.1])).max() <= 1
            assert list(classes) == ["a", "b", "c"]
    assert not np.array_equal(found[10][0], found[10][1])
    again = features.draws(replace(split, x=np.ones((200, 1))))
    assert all(np.array_equal(one, other) for one, other in zip(found[10], again[10], strict=True))


def test_a_few_labels_of_a_single_class_are_no_failure():
    generator = np.random.default_rng(0)
    split = labelled(samples.split(generator.normal(size=(300, 3))), ["rare"] * 2 + ["common"] * 298)
    readers = features.Readers(split.x, split, np.ones(3), with_raw=False)
    assert readers.scores(split.x, split).metrics["probe_10_labels"] > 0.9


def test_a_class_that_no_training_row_has_is_never_found():
    train = labelled(samples.split(np.random.default_rng(0).normal(size=(90, 2))), ["b", "c", "d"] * 30)
    for unknown in ("a", "bb", "z"):
        test = labelled(samples.split(train.x[:6]), [unknown] * 6)
        probe = features.Probe(train.x, train, 1.0)
        assert features.share(probe.errors(test.x, test)) == 0
        assert probe.loss(test.x, test) == pytest.approx(-np.log(1e-6))


def test_large_training_splits_are_sampled(monkeypatch):
    train, *_ = quantities()
    monkeypatch.setitem(features.LARGEST, "probe", 40)
    probe = features.Probe(train.x, train, 1.0)
    rows = np.linspace(0, 159, 40).astype(int)
    x = preprocessing.StandardScaler().fit(train.x[rows])
    ridge = linear_model.Ridge(alpha=1.0).fit(x.transform(train.x[rows]), train.y[rows].astype(float))
    assert probe.predict(train.x) == pytest.approx(ridge.predict(x.transform(train.x)), rel=1e-5)


def test_the_primary_metric_is_undefined_without_a_total():
    assert np.isnan(APPLICATION.statistic({"error": np.zeros(3), "total": np.zeros(3)}))


def test_data_without_a_label_and_candidates_of_another_code_are_unsuited_and_told_what_would_suit():
    fine = {"images": True, "normal": False}
    application = features.Features(code=8)
    assert application.unsuited(code=8, labelled=True, **fine) is None
    assert application.unsuited(code=None, labelled=True, **fine) is None  # not known yet
    assert application.unsuited(code=16, labelled=True, **fine) == (
        "has a code of 16, and is compared at a code of 8; give both the same `code`"
    )
    assert application.unsuited(code=8, labelled=False, **fine) == (
        "needs a label to judge by; name its column in the data set's `label`, or compare codes by `reduction`, which "
        "needs none"
    )


def test_a_rival_with_more_values_than_the_data_says_so():
    judged, failed = evaluation.judge_rivals(features.Features(code=16), DATA)
    assert judged.keys() == {"raw", "kernel_pca"}
    assert failed["mutual_information"] == (
        "ValueError: code is 16; expected 15, the number of values in a sample, or less"
    )
    assert failed["pca"].startswith("ValueError: n_components=16 must be between 0 and ")


def test_a_selection_writes_columns_under_their_own_names_and_pictures_name_them():
    city = 5  # the place of the first of three categories, as samples.table has it
    chosen = Chosen(DATA.schema.layout, [city + 1, 0, 14, 2]).eval()
    calibrated, judgement = evaluation.judge(APPLICATION, chosen, DATA)
    columns = calibrated.predict(chosen, DATA.test.x, None, DATA.schema)
    assert list(columns) == ["city=Lima", "column_0", "column_11", "column_2"]
    assert np.array_equal(columns["column_11"], DATA.test.x[:, 14])
    probe = by_validation(TRAIN[:, chosen.places], VALIDATION[:, chosen.places])
    assert judgement.test.metrics["probe"] == pytest.approx(
        probe.score(TEST[:, chosen.places], DATA.test.y.astype(str))
    )  # fmt: skip
    confusion, selection = calibrated.pictures(chosen, DATA.test, DATA.train, DATA.schema)
    assert confusion.name == "confusion"
    assert "city=Lima, column_0, column_11, column_2" in selection.description
    images = samples.dataset("images")
    assert features.code_names(Chosen(images.schema.layout, [7, 29]), images.schema) == ["pixel_1_2", "pixel_5_4"]
    assert features.code_names(ModelSpec.of("pca", images.schema.layout, {"code": 2}).build(), images.schema) == [
        "code_0",
        "code_1",
    ]


def test_the_confusion_matrix_counts_as_scikit_learn_does():
    calibrated, judgement = samples.judged("features", "table")
    model = samples.trained("pca", "table")
    (picture,) = calibrated.pictures(model, DATA.test, DATA.train, DATA.schema)
    probe = features.Probe(codes(model, DATA.train.x, None), DATA.train, calibrated.state["strength"][-1])
    truth = DATA.test.y.astype(str)
    shares = metrics.confusion_matrix(truth, probe.predict(codes(model, DATA.test.x, None)), normalize="true")
    right = f"{100 * judgement.test.metrics['probe']:.1f} % of them are right"
    np.fill_diagonal(shares, 0)
    names = sorted(set(truth))
    worst = np.unravel_index(shares.argmax(), shares.shape)
    assert right in picture.description
    assert f"{100 * shares.max():.0f} % of {names[worst[0]]} for {names[worst[1]]}" in picture.description


def test_many_classes_are_drawn_by_the_most_frequent_ones():
    truth = np.repeat([f"{i:02}" for i in range(30)], np.arange(1, 31))
    picture = features._confusion(truth, truth)
    assert "the 12 most frequent of 30 classes" in picture.title
    assert b"class" not in picture.content  # axis labels are drawn as shapes or text, never markup of their own


def test_a_quantity_is_drawn_against_the_truth():
    train, validation, test = quantities()
    schema_model = Chosen(replace(DATA.schema, columns=DATA.schema.columns[:5]).layout, [0, 3])
    calibrated = features.Features(code=2).calibrate(schema_model, train, validation)
    picture, selection = calibrated.pictures(
        schema_model, test, train, replace(DATA.schema, columns=DATA.schema.columns[:5])
    )
    score = calibrated.evaluate(schema_model, test, train).metrics["probe"]
    assert picture.name == "prediction"
    assert f"R2 is {score:.3f}" in picture.description
    assert selection.description.startswith("Selected are column_0, column_3;")


def test_the_comparison_has_every_name_and_its_number():
    everyone = {"ours": samples.judged("features", "table")[1].test}
    everyone |= {name: one.test for name, one in samples.rivals("features", "table")[0].items()}
    (picture,) = APPLICATION.comparison(everyone, "ours")
    for name, scores in everyone.items():
        assert f"{name} {scores.metrics['probe']:.3f}" in picture.description
