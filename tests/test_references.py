"""Distances to the nearest of many codes, against scikit-learn and the definition."""

import numpy as np
import pandas as pd
import pytest
import torch

import samples
import tiny
from sevenfold import bundles, evaluation, preparation, references, training
from sevenfold.applications import anomaly
from sevenfold.formats import Rows
from sevenfold.models.base import ModelSpec


def clusters(count, size=6, seed=0):
    """Codes in clusters of very different density, with many duplicates in one of them."""
    r = np.random.default_rng(seed)
    own = r.choice(9, count, p=[0.4, 0.2, 0.1, 0.1, 0.06, 0.05, 0.04, 0.03, 0.02])
    codes = (
        np.random.default_rng(99).normal(size=(9, size))[own] * 6
        + r.normal(size=(count, size)) * np.geomspace(0.1, 2, 9)[own, None]
    )
    codes[own == 0] = np.round(codes[own == 0], 1)
    return codes.astype(np.float32)


def cells_of(codes):
    return references.reference_of(torch.from_numpy(codes), references.divided(codes, 5))


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("kind", ["alone", "in pairs", "all alike"])
@pytest.mark.parametrize("codes", [3, 64, 1000, 4097])
def test_the_nearest_codes_are_those_of_scikit_learn(codes, kind, count):
    generator = np.random.default_rng(codes)
    reference = generator.normal(size=(codes, 8)).astype(np.float32)
    reference = {"alone": reference, "in pairs": reference[np.arange(codes) // 2], "all alike": 0 * reference + 1}[kind]
    z = np.concatenate([generator.normal(size=(300, 8)), 1e4 * generator.normal(size=(20, 8)), reference[:3]])
    z = z.astype(np.float32)
    got = references.Reference(torch.from_numpy(reference)).distances(torch.from_numpy(z), count)
    _, expected = samples.nearest(reference.astype(float), z.astype(float), min(count, codes))
    # A distance of 0 is taken for 1e-6; what scikit-learn computes in its place is rounded, too.
    np.testing.assert_allclose(np.sort(got, axis=1), expected, rtol=1e-5, atol=2e-6)


def test_few_codes_are_not_divided():
    assert references.divided(clusters(references.EXACT), 5) == {}
    assert type(references.reference_of(torch.zeros(5, 2), {})) is references.Reference


@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_code_is_compared_with_the_list_of_its_cell(count):
    codes, z = clusters(5000), clusters(700, seed=1)
    z[:20] *= 1e4
    cells = references.divided(codes, 5)
    own = samples.nearest(cells["centers"].astype(float), z.astype(float), 1)[0][:, 0]
    got = references.reference_of(torch.from_numpy(codes), cells).distances(torch.from_numpy(z), count).numpy()
    for row, (code, cell) in enumerate(zip(z, own, strict=True)):
        every = np.linalg.norm(codes[cells["members"][cell]].astype(float) - code.astype(float), axis=1)
        np.testing.assert_allclose(np.sort(got[row]), np.sort(every)[:count], rtol=1e-5, atol=2e-6)


def test_a_list_holds_its_cell_and_what_is_around_it_or_spans_a_cell_that_is_larger():
    codes = clusters(6000)
    codes[:700] = codes[0]
    codes[600:700] += np.random.default_rng(1).normal(size=(100, codes.shape[1])) * 1e-3
    cells = references.divided(codes, 5)
    apart = np.linalg.norm(cells["centers"][:, None].astype(float) - codes[None].astype(float), axis=2)
    own = apart.argmin(axis=0)
    large = 0
    for number, (row, members) in enumerate(zip(apart, cells["members"], strict=True)):
        assert len(np.unique(members)) == len(members)
        inside = np.flatnonzero(own == number)
        if len(inside) > len(members):
            large += 1
            assert set(members) <= set(inside)
            assert {row[inside].min(), row[inside].max()} <= set(row[members])
        else:
            assert set(inside) <= set(members)
            assert row[np.setdiff1d(members, inside)].max() <= np.delete(row, members).min()
    assert 0 < large < len(apart)


def test_cells_are_the_same_with_every_number_of_threads():
    before, codes, found = torch.get_num_threads(), clusters(5000), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(references.divided(codes, 5))
    finally:
        torch.set_num_threads(before)
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("size", "found", "longer"), [(2, 0.97, 1.001), (4, 0.9, 1.005), (8, 0.65, 1.04), (16, 0.45, 1.06)]
)
def test_what_is_found_in_cells_is_nearly_as_near_as_the_nearest(size, found, longer):
    """Noise is the worst case: in many dimensions nearly all of it is at the rim of its cell."""
    codes, z = (np.random.default_rng(i).normal(size=(n, size)).astype(np.float32) for i, n in enumerate((8000, 1000)))
    got = np.sort(cells_of(codes).distances(torch.from_numpy(z), 5).numpy(), axis=1)
    _, nearest = samples.nearest(codes.astype(float), z.astype(float), 5)
    assert (got > nearest - 1e-5).all()
    assert (got < nearest[:, -1:] + 1e-5).mean() > found
    assert np.median(got.mean(axis=1) / nearest.mean(axis=1)) < longer


def test_where_equal_codes_are_many_some_of_them_stand_for_all():
    codes, z = clusters(8000), clusters(1000, seed=2)
    got = np.sort(cells_of(codes).distances(torch.from_numpy(z), 5).numpy(), axis=1)
    _, nearest = samples.nearest(codes.astype(float), z.astype(float), 5)
    farther = got.mean(axis=1) / (nearest.mean(axis=1) + 1e-3)
    assert np.median(farther) < 1.001
    assert np.quantile(farther, 0.95) < 1.2


def test_who_asks_for_many_has_all_codes_compared():
    codes, z = clusters(5000), clusters(200, seed=1)
    count = references.MOST_NEIGHBOURS + 236
    whole = references.reference_of(torch.from_numpy(codes), references.divided(codes, count))
    _, nearest = samples.nearest(codes.astype(float), z.astype(float), count)
    got = np.sort(whole.distances(torch.from_numpy(z), count), axis=1)
    np.testing.assert_allclose(got, nearest, rtol=1e-4, atol=1e-4)


def test_a_distance_in_cells_does_not_depend_on_the_codes_beside_it():
    reference, z = cells_of(clusters(5000)), torch.from_numpy(clusters(4096, seed=3))
    whole = reference.distances(z, 5)
    for size in (64, 192, 1024):
        for start in range(0, len(z), size):
            assert torch.equal(reference.distances(z[start : start + size], 5), whole[start : start + size])
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(z)))
    assert torch.equal(reference.distances(z[order], 5), whole[order])


def test_gradients_go_through_the_distances_in_cells():
    reference = cells_of(clusters(5000))
    z = torch.from_numpy(clusters(64, seed=4)).requires_grad_()
    reference.distances(z, 3).sum().backward()
    wanted = []
    with torch.no_grad():
        for step in torch.eye(z.shape[1]) * 1e-2:
            up, down = (reference.distances(z + s * step, 3).double().sum(dim=1) for s in (1, -1))
            wanted.append((up - down) / 2e-2)
    # Where others are the nearest before the step than after it, the two differ; so do they where equal codes are many.
    near = (z.grad - torch.stack(wanted, dim=1)).abs() < 0.05
    assert near[reference.distances(z, 3).detach().amin(dim=1) > 0.2].double().mean() > 0.9


@pytest.fixture(scope="module")
def many():
    """A calibrated score of a data set with more rows than are compared with one by one."""
    table = clusters(12_000)
    rows = Rows(
        pd.DataFrame(table, columns=[f"c{i}" for i in range(table.shape[1])]).drop_duplicates(ignore_index=True)
    )
    data = preparation.prepare(
        "many", rows, label=None, normal=None, identifier=None, group=None, drop=(), categorical=(), value_range=None,
        duplicates="error", validation=0.1, test=0.1, seed=0,
    )  # fmt: skip
    spec = ModelSpec.of("pca", data.schema.layout, {"code": 4})
    application = anomaly.Anomaly(**tiny.ANOMALY | {"references": 16_384, "neighbours": 5})
    learn = evaluation.learned_from(application, data)
    model, _ = training.fit(
        spec, learn, data.validation, tiny.SETTINGS, seed=0, device="cpu", on_epoch=lambda epoch: None
    )
    calibrated = application.calibrate(model, learn, data.validation)
    return data, bundles.Bundle(spec, model, data.schema, "anomaly", calibrated, {"candidate": "many-pca"})


def test_a_score_by_cells_is_the_same_whatever_rows_are_beside_it_and_after_a_bundle_was_saved(many, tmp_path):
    data, bundle = many
    assert bundle.application.state["reference_members"].dtype == np.int32
    whole = bundle.application.score(bundle.model, data.test.x, None)
    bundles.save(tmp_path / "bundle", bundle)
    again = bundles.load(tmp_path / "bundle")
    for size in (64, 70, 1000):
        for start in range(0, 1000, size):
            got = again.application.score(again.model, data.test.x[start : start + size], None)
            assert np.array_equal(got, whole[start : start + size])


def test_a_copy_with_another_state_scores_by_that(many):
    data, bundle = many
    application, x = bundle.application, data.test.x[:200]
    before = application.score(bundle.model, x, None)
    plain = {
        name: value
        for name, value in application.state.items()
        if name not in ("reference_centers", "reference_members")
    }
    assert not np.array_equal(application.with_state(plain).score(bundle.model, x, None), before)
    assert np.array_equal(application.with_state(application.state).score(bundle.model, x, None), before)


def test_reasons_of_a_score_by_cells_add_up_to_it(many):
    data, bundle = many
    application, x = (
        bundle.application,
        data.test.x[np.argsort(-bundle.application.score(bundle.model, data.test.x, None))[:100]],
    )
    with torch.no_grad():
        typical = bundle.model.decode(torch.from_numpy(application.state["code_center"][None])).numpy()
    gained = application.score(bundle.model, x, None) - application.score(bundle.model, typical, None)
    total = application._by_feature(bundle.model, x, None, data.schema).sum(axis=1)
    assert np.quantile(np.abs(total - gained) / gained, 0.9) < 0.1


def test_cells_of_more_codes_find_more_than_few_codes_do(many):
    data, bundle = many
    few = anomaly.Anomaly(**tiny.ANOMALY | {"references": 1000, "neighbours": 5})
    learn = evaluation.learned_from(few, data)
    judging = few.judged(data).test
    found = [
        one.evaluate(bundle.model, judging, learn).metrics["average_precision"]
        for one in (few.calibrate(bundle.model, learn, data.validation), bundle.application)
    ]
    assert found[1] > found[0]
