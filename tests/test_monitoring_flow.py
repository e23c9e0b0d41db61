"""The monitoring flow: a verdict in the registry, a webhook that is told, and a retraining that is asked for once."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from flows import monitoring, server
from sevenfold.registry import checks, promotion, tracking
from tests import tiny

ROOT = Path(__file__).parents[1]
NAME = "table-anomaly"

STORY = """
import json, sys
from prefect import flow
from prefect.automations import Automation, EventTrigger, RunDeployment
from prefect.client.orchestration import get_client
from flows import monitoring
from sevenfold import formats, jobs, workspace
from tests import tiny

@flow(name="training")
def training(revision: str | None = None, data_rev: str | None = None) -> None:
    pass

@flow(name="notice")
def notice(verdict: str) -> None:
    pass

with get_client(sync_client=True) as client:
    client.create_deployment(client.create_flow(training), "training")
    deployment = client.create_deployment(client.create_flow(notice), "notice")

told = {"verdict": {"__prefect_kind": "jinja", "template": "{{ event.payload.verdict }}"}}
Automation(
    name="tell of drift",
    trigger=EventTrigger(expect={"sevenfold.drift"}, posture="Reactive", threshold=1),
    actions=[RunDeployment(deployment_id=deployment, parameters=told)],
).create()

place = workspace.find()

def job(name, shift):
    rows = tiny.table(400, seed=9).frame
    rows["age"] += shift
    rows.loc[:9, "city"] = "Paris"
    formats.write(place.root / f"{name}.csv", rows)
    with place.settled():
        jobs.run(place, operation="score", model="table-anomaly", source=place.root / f"{name}.csv",
                 destination=place.root / f"{name}.parquet", settings=jobs.Settings(on_bad_rows="quarantine"))

def check(models=None, **settings):
    try:
        return monitoring.monitoring(models, **settings)
    except monitoring.MonitoringError as error:
        return str(error)

retrain = {"act": "retrain", "cooldown": 0, "revision": "HEAD", "data_rev": "day-2"}
job("first", 40)
told = [check(**retrain, webhook="HOOK")]
told += [check(**retrain, webhook="gone.txt")]  # the same job again
job("second", 42)
told += [check(cooldown=0)]
told += [check(["nobody", "table-anomaly"], **retrain | {"retrain": "training/none"})]
told += [check(**retrain)]
told += [check(**retrain | {"cooldown": 7})]
told += [check(**retrain)]
print(json.dumps(told))
"""


class Hook(http.server.BaseHTTPRequestHandler):
    """Is away at first, and never there at /gone."""

    got: list = []  # noqa: RUF012, it is for the whole server

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.got.append((self.path, body))
        gone = "gone" in self.path
        self.send_response(404 if gone else 500 if len(self.got) == 1 else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *given):
        pass


@pytest.fixture(scope="module")
def hook():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
        thread.join()


def asked(url, what, **body):
    request = urllib.request.Request(
        f"{url}/{what}/filter", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def story(tmp_path_factory, hook):
    """What the flow returned each time, what its processes printed, the workspace, and what the server knows."""
    root = tmp_path_factory.mktemp("monitoring")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "SEVENFOLD_WORKSPACE"):
            patch.delenv(name, raising=False)
        for name in ("params.yaml", "dvc.yaml"):
            (root / name).write_text("")
        (root / "gone.txt").write_text(f"{hook}/gone/secret-token\n")
        with tiny.workspace(root) as place:
            version = tiny.published(place, tiny.saved(root / "bundle", "table", "anomaly"))
            promotion.promote(place, version, reasons=["it is the first"], against=None)
            with server.standing(place) as url:
                environment = os.environ | {
                    "PREFECT_API_URL": url,
                    "SEVENFOLD_WORKSPACE": str(root),
                    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), str(ROOT / "tests")]),
                    "HOOK": f"{hook}/secret-token",
                }
                done = subprocess.run(
                    [sys.executable, "-c", STORY],
                    cwd=root,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, done.stdout + done.stderr
                end = time.monotonic() + 60
                events, notices = [], []
                while not events or not notices:
                    assert time.monotonic() < end, f"{len(events)} events came, and {len(notices)} notices"
                    time.sleep(0.5)
                    events = asked(url, "events", filter={"event": {"name": ["sevenfold.drift"]}})["events"]
                    runs = [r for r in asked(url, "flow_runs") if r["deployment_id"] is not None]
                    notices = [r for r in runs if "verdict" in r["parameters"]]
                known = {
                    "events": events,
                    "artifacts": asked(url, "artifacts"),
                    "notices": notices,
                    "runs": [r for r in runs if r not in notices],
                }
            yield json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr, place, known


@pytest.mark.slow
def test_the_second_check_in_a_row_asks_for_a_retraining_and_none_does_so_again(story):
    told, _, place, known = story
    assert told[3].startswith("2 models failed: nobody: no model 'nobody'")
    assert "; table-anomaly: a retraining is due, and training/none cannot be run: " in told[3], (
        "of several, each is done"
    )
    assert [t if isinstance(t, str) else t[NAME] for t in told] == [
        "tell", "tell", "retrain", told[3], "retrain", "tell", "retrain"
    ]  # fmt: skip
    (run,) = known["runs"]
    assert run["state_type"] == "SCHEDULED"
    assert run["parameters"] == {"revision": "HEAD", "data_rev": "day-2"}
    assert {"drift", NAME} <= set(run["tags"])
    past = checks.past(place, NAME)
    assert [p.verdict for p in past] == ["retrain", "tell", "retrain", "retrain", "retrain", "tell", "tell"]
    assert [p.asked is not None for p in past] == [True, False, True, False, False, False, False]
    client = tracking.client(place)
    (experiment,) = client.search_experiments(filter_string="name = 'monitoring'")
    runs = client.search_runs([experiment.experiment_id])
    assert run["name"] in next(r for r in runs if "asked" in r.data.tags).data.tags["retraining"]
    held_back = next(r for r in runs if "a retraining was asked for on" in r.data.tags["mlflow.note.content"])
    assert held_back.data.tags["verdict"] == "tell"
    assert {f.path for f in client.list_artifacts(runs[0].info.run_id)} == {"check.json", "monitoring.html"}


@pytest.mark.slow
def test_a_webhook_is_told_names_and_numbers_and_no_log_shows_its_url(story, hook):
    _, printed, place, known = story
    paths = [path for path, _ in Hook.got]
    assert paths == ["/secret-token", "/secret-token", "/gone/secret-token"], "again after 500, not after 404"
    assert Hook.got[0] == Hook.got[1]
    body = Hook.got[1][1]
    assert (body["model"], body["version"], body["verdict"], body["retraining"]) == (
        NAME,
        "table-anomaly/1",
        "tell",
        None,
    )
    assert {"age", "city"} <= {finding["what"] for finding in body["findings"]}
    assert "Paris" not in json.dumps(body)
    assert "the webhook was not told after 1 attempts: it answered 404" in printed
    assert "secret-token" not in printed + json.dumps(known)
    assert len(checks.past(place, NAME)) == 7, "whatever a webhook says, the check is there"


@pytest.mark.slow
def test_findings_are_events_and_artifacts_on_the_pages(story):
    _, _, place, known = story
    event = known["events"][0]
    assert event["resource"]["prefect.resource.id"] == f"sevenfold.model.{NAME}"
    assert event["payload"]["verdict"] in ("tell", "retrain")
    assert known["notices"][0]["parameters"]["verdict"] in ("tell", "retrain"), "an automation has begun with it"
    found = {artifact["key"]: artifact["data"] for artifact in known["artifacts"] if artifact["key"]}
    assert set(found) == {"drift-table-anomaly", "drift-page-table-anomaly"}
    assert place.check(NAME).as_uri() in found["drift-page-table-anomaly"]
    table = next(a["data"] for a in known["artifacts"] if a["key"] == "drift-table-anomaly")
    assert "| age |" in table


def test_a_webhook_is_named_and_never_given(monkeypatch, tmp_path):
    monkeypatch.setenv("HOOK", "https://example.org/abc\n")
    assert monitoring._secret("HOOK") == "https://example.org/abc"
    (tmp_path / "hook").write_text("http://example.org/x")
    assert monitoring._secret(str(tmp_path / "hook")) == "http://example.org/x"
    with pytest.raises(ValueError, match=r"the webhook is a URL.*expected the name") as raised:
        monitoring._secret("https://example.org/abc")
    assert "example.org" not in str(raised.value)
    with pytest.raises(ValueError, match=r"names nothing; expected the name") as raised:
        monitoring._secret("s3cret-by-mistake")
    assert "s3cret" not in str(raised.value)
    monkeypatch.setenv("HOOK", "example.org/abc")
    with pytest.raises(ValueError, match=r"leads to is no URL") as raised:
        monitoring._secret("HOOK")
    assert "example" not in str(raised.value)
