"""Bundles that older versions wrote compute what they computed then, or are refused with the reason.

The folders in tests/old_bundles were written by the code of their time: a bundle, some rows, and what it encoded them as.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sevenfold import bundles, files, formats, operations, upgrades
from sevenfold.bundles import BundleError

OLD = {path.name: path for path in sorted((Path(__file__).parent / "old_bundles").iterdir())}
REFUSED = {
    "1-gaps-deep-anomaly": "of bundle format 1, whose anomaly scored rows by terms that are no more",
    "1-gaps-deep-reduction": "of bundle format 1, whose deep took gaps and categories for numbers",
    "2-gaps-deep-anomaly": "of bundle format 2, whose anomaly scored rows by terms that are no more",
    "2-gaps-deep-reduction": "of bundle format 2, whose deep took gaps and categories for numbers",
}


def rows(folder):
    given = json.loads((folder / "expected.json").read_text())["rows"]
    if isinstance(given, list):
        return formats.Rows(pd.DataFrame(index=range(len(given))), np.array(given, np.uint8))
    return formats.Rows(pd.DataFrame(given).reset_index(drop=True))


def test_every_older_format_is_there():
    assert {int(name[0]) for name in OLD} == set(range(1, bundles.FORMAT))
    assert len(OLD) - len(REFUSED) >= 12


@pytest.mark.parametrize("name", sorted(OLD.keys() - REFUSED.keys()))
def test_an_old_bundle_encodes_as_it_did(name):
    folder = OLD[name] / "bundle"
    before = bundles.digest(folder)
    loaded = bundles.load(folder, expected=before)
    wanted = json.loads((OLD[name] / "expected.json").read_text())["codes"]
    got = operations.encode(loaded, rows(OLD[name])).frame.to_numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert bundles.digest(folder) == before, "an upgrade is in memory: the version's digest stays"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_old_bundle_that_would_compute_something_else_is_refused_with_the_reason(name):
    with pytest.raises(BundleError, match=f"{re.escape(REFUSED[name])}; train and publish it again"):
        bundles.load(OLD[name] / "bundle")


@pytest.mark.parametrize(
    "name", ["1-images-deep-reduction", "2-numbers-deep-reduction", "3-images-convolutional-reduction"]
)
def test_an_old_bundle_that_is_saved_again_is_one_of_today_and_computes_the_same(name, tmp_path):
    bundles.save(tmp_path / "new", bundles.load(OLD[name] / "bundle"))
    assert files.read_json(tmp_path / "new" / "bundle.json")["format"] == bundles.FORMAT
    old, new = (
        operations.encode(bundles.load(f), rows(OLD[name])).frame for f in (OLD[name] / "bundle", tmp_path / "new")
    )
    pd.testing.assert_frame_equal(old, new, check_exact=True)


@pytest.mark.parametrize("name", sorted(OLD.keys() - REFUSED.keys()))
def test_nobody_knows_the_training_rows_of_an_old_bundle(name, tmp_path):
    assert bundles.load(OLD[name] / "bundle").reference is None
    shutil.copytree(OLD[name] / "bundle", tmp_path / "bundle")
    shutil.copy(
        OLD["1-images-pca-reduction"] / "bundle/application.safetensors", tmp_path / "bundle/reference.safetensors"
    )
    with pytest.raises(BundleError, match=r"reference\.safetensors does not belong there"):
        bundles.load(tmp_path / "bundle")


def test_an_old_detector_scores_as_it_did():
    folder = OLD["3-gaps-deep-anomaly"]
    wanted = json.loads((folder / "expected.json").read_text())["scores"]
    got = operations.score(bundles.load(folder / "bundle"), rows(folder)).frame["score"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_a_changed_byte_of_an_old_bundle_is_found(tmp_path):
    for number, expected in ((1, True), (2, False)):
        folder = tmp_path / str(number)
        shutil.copytree(OLD[f"{number}-images-deep-reduction"] / "bundle", folder)
        digest = bundles.digest(folder)
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        # Format 1 has no sums of its own: there it is the registry's digest that tells.
        with pytest.raises(BundleError, match=r"its digest is|model\.safetensors is truncated or damaged"):
            bundles.load(folder, expected=digest if expected else None)


def test_an_option_that_a_bundle_lacks_is_what_was_fixed_in_its_time():
    for given, wanted in (({"neighbours": 3}, 4096), ({"neighbours": 3, "references": 100}, 100)):
        description = {"format": 3, "application": {"name": "anomaly", "options": given}}
        found, _ = upgrades.upgraded(description, {}, to=bundles.FORMAT)
        assert found["application"]["options"] == {"neighbours": 3, "references": wanted}
        assert description["application"]["options"] is given
