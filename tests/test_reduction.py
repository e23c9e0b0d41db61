"""Reduction's numbers are those of scikit-learn's own pipelines."""

import importlib.machinery
import sys
import types

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
    assert METHODS.keys() | {"kernel_pca"} == samples.application("reduction").rivals().keys()


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


def test_the_kernel_rival_is_what_numpy_makes_of_its_formulas():
    validation = DATA.validation.x.reshape(len(DATA.validation), -1).astype(float)
    rival = reduction._KernelComponents

    def kernel(one, other, width, of):
        exponent = width / (2 * of.var(axis=0).sum())
        return np.exp(-exponent * ((one[:, None] - other[None]) ** 2).sum(axis=2))

    found = []
    for width in rival.ENCODER:
        gram = kernel(TRAIN, TRAIN, width, TRAIN)
        centre = np.eye(len(TRAIN)) - 1 / len(TRAIN)
        values, vectors = np.linalg.eigh(centre @ gram @ centre)
        to_code = vectors[:, -samples.CODE :] / np.sqrt(values[-samples.CODE :])

        def code(x, width=width, gram=gram, centre=centre, to_code=to_code):
            return (kernel(x, TRAIN, width, TRAIN) - gram.mean(axis=0)) @ centre @ to_code

        z = code(TRAIN)
        for back in rival.DECODER:
            for penalty in rival.PENALTIES:
                weight = np.linalg.solve(kernel(z, z, back, z) + penalty * np.eye(len(z)), TRAIN - TRAIN.mean(axis=0))
                errors = [
                    ((kernel(code(x), z, back, z) @ weight + TRAIN.mean(axis=0) - x) ** 2).mean()
                    for x in (validation, TEST)
                ]
                found.append(errors)
    got = samples.rivals("reduction", "images")[0]["kernel_pca"].test.metrics["mse"]
    assert got == pytest.approx(min(found)[1], rel=1e-6)


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


def test_the_error_of_components_is_that_of_scikit_learns_pca_of_each_size():
    errors = reduction._component_errors(TRAIN, TEST, np.ones_like(TEST), 6)
    for count, error in enumerate(errors, start=1):
        pca = decomposition.PCA(count, svd_solver="full").fit(TRAIN)
        assert error == pytest.approx(metrics.mean_squared_error(TEST, pca.inverse_transform(pca.transform(TEST))))


def test_gaps_do_not_count_in_the_error_of_components():
    seen = np.random.default_rng(0).random(TEST.shape) > 0.3
    (*_, error) = reduction._component_errors(TRAIN, TEST, seen, 3)
    pca = decomposition.PCA(3, svd_solver="full").fit(TRAIN)
    output = pca.inverse_transform(pca.transform(TEST))
    assert error == pytest.approx(metrics.mean_squared_error(TEST[seen], output[seen]))


def _by_size(model, application=None):
    application = application or samples.application("reduction")
    return {p.name: p for p in application.pictures(model, DATA.test, DATA.train, DATA.schema)}["error_by_size"]


def test_as_many_components_as_the_code_has_values_have_the_error_of_our_own():
    picture = _by_size(samples.trained("pca", "images"))
    # Ours rounds as float32 does, and may fall to either side.
    assert picture.title in [f"A code of 4 with the error of {count} principal components" for count in (4, 5)]
    error = samples.judged("reduction", "images")[1].test.metrics["mse"]
    assert f"the code of 4 has {error:.4g}" in picture.description


def test_a_code_that_is_better_than_all_components_drawn_says_so():
    class Perfect(type(samples.trained("pca", "images"))):
        def forward(self, x, observed=None):
            return x

    model = Perfect(DATA.schema.layout, code=2).eval()
    picture = _by_size(model, reduction.Reduction(code=2, neighbours=12))
    assert picture.title == "A code of 2 with the error of more than 16 principal components"


@pytest.mark.parametrize("code", [1, 2, 3])
def test_codes_of_any_size_have_a_map_of_every_row(code):
    application = reduction.Reduction(code=code, neighbours=12)
    model = samples.fit(samples.ModelSpec.of("pca", DATA.schema.layout, {"code": code}), DATA.train, DATA.validation)[0]
    picture = application.pictures(model, DATA.test, DATA.train, DATA.schema)[0]
    assert picture.description.startswith(f"{len(TEST)} test rows as points in two dimensions: the code")
    assert picture.title.endswith(", coloured by label")
    points = picture.content.count(b"<use ")
    assert points >= len(TEST)


def test_a_code_of_two_values_is_drawn_as_it_is_and_a_longer_one_by_its_principal_components():
    z = np.random.default_rng(0).normal(size=(30, 3)) * [1, 3, 2]
    assert np.array_equal(reduction._in_two(z[:, :2]), z[:, :2])
    expected = decomposition.PCA(2, svd_solver="full").fit_transform(z)
    np.testing.assert_allclose(reduction._in_two(z), expected)


def test_the_map_gives_no_colours_to_labels_of_which_ten_are_few():
    y = np.array([f"{i}" for i in range(40)], object)
    split = samples.split(np.zeros((40, 2)), y=y)
    picture = reduction._map({"the code": np.zeros((40, 2))}, split)
    assert picture.title == "Test rows as the code arranges them"


def test_umap_is_drawn_beside_the_code_where_it_is_installed(monkeypatch):
    asked = {}

    class Umap:
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, x):
            return x[:, :2]

    module = types.ModuleType("umap")
    module.UMAP, module.__spec__ = Umap, importlib.machinery.ModuleSpec("umap", None)
    monkeypatch.setitem(sys.modules, "umap", module)
    picture = samples.application("reduction").pictures(
        samples.trained("pca", "images"), DATA.test, DATA.train, DATA.schema
    )[0]
    assert picture.description.endswith("by its two principal components and raw values, by UMAP.")
    assert asked == {"n_neighbors": 12, "random_state": 0, "n_jobs": 1}


def test_the_comparison_has_every_name_and_its_number():
    everyone = {"ours": samples.judged("reduction", "images")[1].test}
    everyone |= {name: one.test for name, one in samples.rivals("reduction", "images")[0].items()}
    (picture,) = samples.application("reduction").comparison(everyone, "ours")
    for name, scores in everyone.items():
        assert f"{name} {scores.metrics['explained_variance']:.3f}" in picture.description
