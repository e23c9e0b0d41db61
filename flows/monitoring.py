"""Monitoring: compare the rows that jobs meet with what champions learned from, tell, and ask for a retraining."""

import argparse
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.events import emit_event

from flows import errors, lateness, retries, server
from sevenfold import checkup, workspace
from sevenfold.checkup import Outcome
from sevenfold.monitoring import ROWS
from sevenfold.registry import checks
from sevenfold.retraining import Rule
from sevenfold.workspace import Workspace

EVENT = "sevenfold.drift"
"""What is emitted for each model of which something was found, for automations to begin with."""

PATIENCE = 10.0
"""Seconds that a webhook has to answer in."""

ATTEMPTS = 3


class MonitoringError(RuntimeError):
    """A model could not be checked, or a retraining not asked for. All others were."""


@flow(name="monitoring", flow_run_name="monitoring")
def monitoring(
    models: list[str] | None = None,
    days: float = 7.0,
    rows: int = ROWS,
    max_drift: float = Rule.psi,
    consecutive: int = Rule.checks,
    min_rows: int = Rule.rows,
    cooldown: float = Rule.cooldown,
    act: Literal["tell", "retrain"] = "tell",
    retrain: str = "training/training",
    revision: str | None = None,
    data_rev: str | None = None,
    webhook: str | None = None,
    folder: str | None = None,
) -> "dict[str, str] | State[None]":
    """Check champions against the rows of their recent jobs, and return each one's verdict: ok, tell or retrain.

    Args:
        models: registered models; null for all that have a champion.
        days: how far back jobs count.
        rows: to compare, at most, of all jobs of a model together.
        max_drift: the largest population stability index that is tolerated.
        consecutive: so many checks in a row have to find more before a retraining is asked for.
        min_rows: fewer are no reason to train again.
        cooldown: days since the champion was made, and since a retraining was asked for, in which none is asked for.
        act: "tell" only says that a retraining is due, "retrain" asks for it.
        retrain: the deployment that trains, FLOW/DEPLOYMENT.
        revision: of the code to train from; null for what the deployment says.
        data_rev: version of the data to train on; null for what the deployment says.
        webhook: the NAME of an environment variable, or of a file, that holds the URL to which findings are posted as JSON.
            Never the URL itself: parameters are shown on Prefect's pages, and who knows such a URL can post to it.
        folder: the workspace (default: the one around the current folder).

    Raises:
        MonitoringError: a model could not be checked, or a retraining could not be asked for; the others were.
        ValueError: a setting is out of range, or the webhook is a URL, or names nothing.
    """
    if missed := lateness.missed():
        return missed
    rule = Rule(max_drift, consecutive, min_rows, cooldown)
    target = None if webhook is None else _secret(webhook)
    place = workspace.find(Path(folder) if folder else None)
    place.initialise()
    verdicts: dict[str, str] = {}
    failures: dict[str, str] = {}
    with place.settled():
        for name in models or checkup.champions(place):
            state = look.with_options(task_run_name=name)(place, name, days, rule, rows, return_state=True)
            outcome = state.result(raise_on_failure=False)
            if not isinstance(outcome, Outcome):
                failures[name] = str(outcome)
                continue
            verdict = verdicts[name] = outcome.decision.verdict
            asked = None
            found: list[str] = []
            if verdict == "retrain" and act == "retrain":
                parameters = {"revision": revision, "data_rev": data_rev}
                try:
                    asked = _ask(outcome, retrain, {k: v for k, v in parameters.items() if v is not None})
                except Exception as error:  # whatever the server says of it: what was found is to be told all the same
                    found.append(f"a retraining is due, and {retrain} cannot be run: {error}")
            if verdict != "ok" and target is not None:
                _post(target, _told(outcome, asked))
            try:
                if asked is not None:
                    checks.mark_asked(place, outcome.run_id, outcome.check.when, f"{retrain}, run {asked}")
                _show(outcome, asked)
            except Exception as error:  # whatever a server says: the others are to be checked all the same
                more = f", and {retrain}, run {asked}, was asked for" if asked else ""
                found.append(f"it was checked{more}, and that could not be written down: {error}")
            if found:
                failures[name] = "; ".join(found)
    if failures:
        count = f"{len(failures)} model{'s' * (len(failures) > 1)}"
        raise MonitoringError(f"{count} failed: " + "; ".join(f"{name}: {reason}" for name, reason in failures.items()))
    return verdicts


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    **retries.AGAIN,
)
def look(place: Workspace, name: str, days: float, rule: Rule, rows: int) -> Outcome:
    """Check one champion."""
    outcome = checkup.look(place, name, days=days, rule=rule, rows=rows)
    log = get_run_logger()
    log.info("%s: %s", outcome.decision.verdict, outcome.check.sentence())
    for reason in outcome.decision.reasons:
        log.info(reason)
    return outcome


def _ask(outcome: Outcome, deployment: str, parameters: dict[str, str]) -> str:
    """Run the deployment that trains, once a day for the same parameters, and return the name of its run."""
    day = f"{outcome.check.when:%Y-%m-%d}"
    run: Any = run_deployment(
        deployment,
        parameters=parameters,
        timeout=0,  # whoever serves it does it
        # One for all models that ask for the same on one day.
        idempotency_key=f"sevenfold drift {json.dumps([deployment, parameters], sort_keys=True)} on {day}",
        tags=["drift", outcome.version.name],
    )
    get_run_logger().info("asked for a retraining: %s, run %s", deployment, run.name)
    return str(run.name)


def _told(outcome: Outcome, asked: str | None) -> dict[str, Any]:
    """Return what others get to know: names of columns and numbers. No value of a row is in it, as readings may have."""
    found = {str(f) for f in outcome.check.findings}
    worst = outcome.check.worst
    return {
        "model": outcome.version.name,
        "version": outcome.version.label,
        "verdict": outcome.decision.verdict,
        "findings": [
            {"kind": f.kind, "what": f.what, "number": round(f.number, 6), "expected": f.expectation, "large": f.large}
            for f in outcome.check.findings
        ],
        "reasons": [reason for reason in outcome.decision.reasons if reason not in found],
        "sentence": outcome.check.sentence(),
        "worst": None if worst is None else {"name": worst[0], "psi": round(worst[1], 6)},
        "rows": outcome.check.rows,
        "when": outcome.check.when.isoformat(timespec="seconds"),
        "mlflow_run": outcome.run_id,
        "retraining": asked,
    }


def _show(outcome: Outcome, asked: str | None) -> None:
    """Leave a page on the server, and an event where something was found."""
    name = outcome.version.name
    if outcome.decision.verdict != "ok":
        resource = {"prefect.resource.id": f"sevenfold.model.{name}", "prefect.resource.name": name}
        emit_event(EVENT, resource, payload=_told(outcome, asked))
    key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    create_markdown_artifact(_markdown(outcome, asked), key=f"drift-{key}", description=outcome.check.sentence())
    create_link_artifact(
        outcome.page.as_uri(), key=f"drift-page-{key}", link_text=f"drift of {name}", description=str(outcome.page)
    )


def _markdown(outcome: Outcome, asked: str | None) -> str:
    check = outcome.check
    lines = [f"# {check.model}: {outcome.decision.verdict}", "", check.sentence(), ""]
    lines += [f"- {reason}" for reason in outcome.decision.reasons]
    lines += [f"- asked for a retraining: run {asked}"] if asked else []
    if check.findings:
        lines += ["", "| what | number | expected | how to read it |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {_cell(f.what)} | {f.number:.3g} | {f.expectation} | {_cell(f.reading)} |" for f in check.findings
        ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _secret(webhook: str) -> str:
    """Return the URL that a variable or a file holds. No message shows it, nor what was given for its name."""
    if "://" in webhook:
        raise ValueError(
            "the webhook is a URL, and parameters are shown on Prefect's pages; expected the name of an environment variable "
            "or of a file that holds it; take a new URL, since this one is known now"
        )
    held = os.environ.get(webhook)
    if held is None:
        if not (path := Path(webhook)).is_file():
            raise ValueError(
                "what is given as the webhook names nothing; expected the name of an environment variable or of a file that holds "
                "the URL; set it"
            )
        held = path.read_text(encoding="utf-8")
    url = held.strip()
    if not url.startswith(("https://", "http://")) or any(c.isspace() for c in url):
        raise ValueError(
            "what the webhook's name leads to is no URL; expected one that begins with https:// or http://; mend it"
        )
    return url


class _NoWay(urllib.request.HTTPRedirectHandler):
    """Does not follow: what is told goes where the user said, and nowhere else."""

    def redirect_request(self, *given: Any, **more: Any) -> None:
        return None


def _post(url: str, told: dict[str, Any]) -> None:
    """Post JSON. A failure is a line of the log, without the URL, and no failure of the check."""
    log = get_run_logger()
    body = json.dumps(told).encode()
    why = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2**attempt)
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
            with urllib.request.build_opener(_NoWay).open(request, timeout=PATIENCE):
                log.info("the webhook was told")
                return
        except urllib.error.HTTPError as error:
            why = f"it answered {error.code}"
            error.close()
            if error.code < 500 and error.code != 429:
                break
        except Exception as error:  # of many kinds, whose texts may hold the URL
            why = type(error).__name__
    log.warning("the webhook was not told after %s attempts: %s", attempt + 1, why)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow once; 0 after success, also where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="registered models (default: all with a champion)")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="more parameters of the flow")
    given = parser.parse_args(arguments)
    try:
        server.join("flows.monitoring")
        verdicts: Any = monitoring(given.models or None, **given.settings)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return errors.tell(error)
    for name, verdict in verdicts.items():
        print(f"{name}: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
