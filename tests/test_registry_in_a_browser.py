"""The registry in MLflow's own pages, in a real browser: models, a champion and its run can be found and read."""

import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sevenfold import election
from sevenfold.registry import tracking, versions
from sevenfold.workspace import Workspace
from tests import test_election, tiny

ARTIFACTS = Path(__file__).parents[1] / "test-artifacts"

TIDY = """(() => {
    const found = [...document.querySelectorAll('button[aria-label="Close"]')].filter(b => b.getClientRects().length);
    found.forEach(button => button.click());
    return found.length === 0;
})()"""
"""MLflow greets who comes for the first time with a dialog and a panel, over and beside the page that is looked at."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    from sevenfold import formats

    root = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        (root / "data" / "raw").mkdir(parents=True)
        (root / "dvc.yaml").touch()
        formats.write(root / "data" / "raw" / "table.parquet", tiny.table(200).frame)
        test_election.build(Workspace(root))
        with tiny.workspace(root) as place:
            election.hold(place, test_election.NAME, pipeline_run="run 2026-11-25 07:10")
            yield place


@pytest.fixture(scope="module")
def address(place, tmp_path_factory):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = tracking.server_command(place, host="127.0.0.1", port=port)
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, env=place.environment() | {"MLFLOW_WORKERS": "1"}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        else:
            pytest.fail(f"no server after a minute: {log.read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def show(browser, address):
    """Show a page of the server, wait for these texts and what a selector finds, keep a screenshot, and return all that it shows."""

    def show(path, name, *texts, drawn=None):
        browser.call("Emulation.setDeviceMetricsOverride", width=1440, height=1400, deviceScaleFactor=1, mobile=False)
        browser.call("Page.navigate", url="about:blank")  # else only the part behind # changes, and nothing loads
        browser.visit(f"{address}/#{path}")
        shown = browser.wait_for(*texts)
        if drawn is not None:
            browser.wait_until(f"document.querySelector('{drawn}') !== null")
        browser.wait_until(TIDY)
        ARTIFACTS.mkdir(exist_ok=True)
        browser.screenshot(ARTIFACTS / f"registry-{name}.png")
        print(f"screenshot: {ARTIFACTS / f'registry-{name}.png'}")
        asked = [urlsplit(r["request"]["url"]) for r in browser.seen("Network.requestWillBeSent")]
        assert asked
        assert {u.hostname for u in asked if u.scheme not in {"data", "blob"}} == {"127.0.0.1"}
        return shown

    return show


def test_registered_models_are_listed(show):
    show("/models", "models", test_election.NAME, "champion")


def test_a_champions_page_shows_its_card_tags_alias_and_run(show, place):
    version = versions.champion(place, test_election.NAME)
    show(
        f"/models/{version.name}/versions/{version.number}",
        "champion",
        "champion",
        "Against its rivals",
        "Slices",
        "city=Bern",
        "Cost",
        "digest",
        version.digest[:12],
        drawn=f'a[href*="{version.run_id}"]',
    )


def test_a_candidates_run_shows_its_numbers(show, place):
    version = versions.champion(place, test_election.NAME)
    experiment = tracking.client(place).get_experiment_by_name(version.name).experiment_id
    show(f"/experiments/{experiment}/runs/{version.run_id}", "run", "good", "test.", "validation.")


def test_a_candidate_and_its_rival_can_be_compared(show, place):
    client = tracking.client(place)
    experiment = client.get_experiment_by_name(test_election.NAME).experiment_id
    runs = {r.info.run_name: r for r in client.search_runs([experiment])}
    (rival, *_) = [name for name, r in runs.items() if r.data.tags.get("kind") == "rival"]
    asked = f'["{runs["good"].info.run_id}","{runs[rival].info.run_id}"]'
    query = f"/compare-runs?runs={asked}&experiments=[%22{experiment}%22]".replace('"', "%22")
    show(query, "comparison", "good", rival, "test.", drawn="svg.main-svg")
