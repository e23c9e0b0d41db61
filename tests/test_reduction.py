"""Reduction's numbers are those of scikit-learn's own pipelines."""

import numpy as np
import pytest
from sklearn import decomposition, manifold, metrics, neighbors, random_projection

import samples
from sevenfold import evaluation
from sevenfold.applications import reduction

DATA = samples.dataset("images")
TRAIN, TEST = (split.x.reshape(len(split), -1).astype(float) for split in (DATA.train, DATA.test))
METHODS = {
    "pca": decomposition.PCA(samples.CODE, svd_solver="full"),
    "truncated_svd": decomposition.TruncatedSVD(samples.CODE, random_state=0),
    "random_projection": random_projection.GaussianRandomProjection(
        samples.CODE, compute_inverse_components=True, random_state=0
    ),
}


def test_every_rival_is_tested_here():
    assert METHODS.keys() == samples.application("reduction").rivals().keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_rivals_numbers_are_those_of_its_own_pipeline(name):
    method = METHODS[name].fit(TRAIN)
    z, reference = method.transform(TEST), method.transform(TRAIN)
    output = method.inverse_transform(z)
    knn = neighbors.KNeighborsClassifier(5).fit(reference, DATA.train.y.astype(str))
    got = samples.rivals("reduction", "images")[0][name].test.metrics
    assert got == pytest.approx(
        {
            "explained_variance": metrics.r2_score(TEST, output, multioutput="variance_weighted"),
            "mse": metrics.mean_squared_error(TEST, output),
            "trustworthiness": manifold.trustworthiness(TEST, z, n_neighbors=12),
            "continuity": manifold.trustworthiness(z, TEST, n_neighbors=12),
            "knn_accuracy": knn.score(z, DATA.test.y.astype(str)),
        },
        rel=1e-6,
    )


def test_what_is_measured_is_what_a_job_writes():
    model = samples.trained("pca", "images")
    application, judgement = samples.judged("reduction", "images")
    columns = application.predict(model, DATA.test.x, None, DATA.schema)
    assert list(columns) == [f"code_{i}" for i in range(samples.CODE)]
    z = np.stack(list(columns.values()), axis=1)
    output = z @ model.components.numpy() + model.mean.numpy()
    assert judgement.test.metrics["mse"] == pytest.approx(metrics.mean_squared_error(TEST, output), rel=1e-4)
    r2 = metrics.r2_score(TEST, output, multioutput="variance_weighted")
    assert judgement.test.metrics["explained_variance"] == pytest.approx(r2, rel=1e-4)


def test_our_principal_components_score_as_scikit_learns():
    _, ours = samples.judged("reduction", "images")
    theirs = samples.rivals("reduction", "images")[0]["pca"]
    assert dict(ours.test.metrics) == pytest.approx(dict(theirs.test.metrics), abs=1e-3)


def test_gaps_are_left_out_of_errors_and_variance():
    generator = np.random.default_rng(0)
    whole = generator.normal(size=(40, 6)) + 5
    seen = generator.random(whole.shape) > 0.3
    output, z = whole + 0.3 * generator.normal(size=whole.shape), whole[:, :2]
    split = samples.split(np.where(seen, whole, 0), observed=seen)
    found = samples.application("reduction").scores(split, z, output, split, z).metrics
    x = np.ma.masked_array(whole, ~seen)
    error, variance = (output - x) ** 2, (x - x.mean(axis=0)) ** 2
    assert found["mse"] == pytest.approx(error.mean(), rel=1e-5)
    assert found["explained_variance"] == pytest.approx(1 - error.sum() / variance.sum(), rel=1e-5)


def test_a_split_without_variance_has_no_explained_variance():
    assert np.isnan(samples.application("reduction").statistic({"error": np.zeros(3), "total": np.zeros(3)}))


def test_few_rows_still_have_the_metrics_that_they_allow():
    application = samples.application("reduction")
    few = samples.split(DATA.test.x[:2]), samples.split(DATA.train.x[:3])
    scores = application.evaluate(samples.trained("pca", "images"), *few)
    assert scores.metrics.keys() == {"explained_variance", "mse"}


def test_large_splits_are_sampled_for_neighbourhoods(monkeypatch):
    monkeypatch.setattr(reduction, "LARGEST_SAMPLE", 50)
    scores = samples.application("reduction").evaluate(samples.trained("pca", "images"), DATA.test, DATA.train)
    rows = np.linspace(0, len(TEST) - 1, 50).astype(int)
    z = METHODS["pca"].fit(TRAIN).transform(TEST)
    assert scores.metrics["trustworthiness"] == pytest.approx(
        manifold.trustworthiness(TEST[rows], z[rows], n_neighbors=12), abs=0.01
    )


def test_a_candidate_of_another_code_is_unsuited_and_told_what_would_suit():
    application = reduction.Reduction(code=8, neighbours=12)
    fine = {"images": True, "labelled": False, "normal": False}
    assert application.unsuited(code=8, **fine) is None
    assert application.unsuited(code=None, **fine) is None  # not known yet
    reason = application.unsuited(code=16, **fine)
    assert reason == "has a code of 16, and is compared at a code of 8; give both the same `code`"


def test_a_rival_with_more_dimensions_than_the_data_says_so():
    application = reduction.Reduction(code=31, neighbours=12)
    judged, failed = evaluation.judge_rivals(application, DATA)
    assert "pca" not in judged
    assert failed["pca"].startswith("ValueError: n_components=31 must be between 0 and ")
