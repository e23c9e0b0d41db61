"""Deployments: what `prefect.yaml` tells, put on a Prefect server, with its work pool and the watch over silent runs."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

if TYPE_CHECKING:
    from prefect.automations import Automation
    from prefect.client.orchestration import SyncPrefectClient

POOL = "sevenfold"
"""The work pool that `prefect.yaml` names; its runs are processes of this machine."""

SILENCE = timedelta(minutes=5)
"""A run that gives no sign of life for so long has crashed, together with all who could have said so. Ours give one every
30 seconds, those of whoever runs a flow with Prefect's own settings every 3 minutes."""


class DeploymentError(RuntimeError):
    """Prefect refuses `prefect.yaml`, or no Prefect is there; the message says why."""


def put(root: Path, environment: Mapping[str, str]) -> None:
    """Make the work pool, put the deployments of `prefect.yaml` on the server, and have it look after silent runs.

    Args:
        root: of the project, where `prefect.yaml` is.
        environment: variables for Prefect, among them PREFECT_API_URL, and PREFECT_API_AUTH_STRING where it asks for one.

    Raises:
        DeploymentError: Prefect refuses a deployment, or what answers there is no Prefect server.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    template = json.loads((root / "docker/work-pools/process.json").read_text(encoding="utf-8"))
    with _refused(environment), client_of(environment) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=root, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise DeploymentError(f"prefect.yaml was refused; mend it, and repeat; what Prefect said:\n{tail}")
    with _refused(environment), _speaking_to(environment):
        put_automation(crash_of_silent_runs())


def strangers(root: Path, environment: Mapping[str, str]) -> list[str]:
    """Return the deployments of this work pool that `prefect.yaml` does not have, or has no more, as FLOW/DEPLOYMENT.

    They stay, with their schedules: on a server of several projects they may be another one's.
    """
    from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName

    told = YAML(typ="safe").load(root / "prefect.yaml")
    ours = {one["name"] for one in told["deployments"]}
    with _refused(environment), client_of(environment) as client:
        pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
        found = [d for d in client.read_deployments(work_pool_filter=pool) if d.name not in ours]
        return sorted(f"{client.read_flow(d.flow_id).name}/{d.name}" for d in found)


@contextmanager
def _refused(environment: Mapping[str, str]) -> Iterator[None]:
    """Say in a sentence that a server does not answer, does not let in, or is not Prefect's."""
    import httpx
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    url = environment["PREFECT_API_URL"]
    wanted = "expected a Prefect server, whose address ends in /api, such as http://HOST:4200/api; set PREFECT_API_URL to that"
    try:
        yield
    except ObjectNotFound:
        raise DeploymentError(f"what stands at {url} answers with status 404; {wanted}") from None
    except PrefectHTTPStatusError as error:
        if (status := error.response.status_code) not in (401, 403):
            raise DeploymentError(f"what stands at {url} answers with status {status}; {wanted}") from None
        raise DeploymentError(
            f"the Prefect server at {url} does not let in who comes with PREFECT_API_AUTH_STRING; expected USER:PASSWORD, as the "
            "server has it in PREFECT_SERVER_API_AUTH_STRING; set it to that"
        ) from None
    except httpx.HTTPError as error:
        raise DeploymentError(f"no Prefect server answers at {url} ({type(error).__name__}); start it") from None
    except ValueError:  # no JSON, or another one than Prefect's
        raise DeploymentError(f"what stands at {url} answers, and not as Prefect does; {wanted}") from None


def crash_of_silent_runs(silence: timedelta = SILENCE) -> "Automation":
    """Return the automation that marks a run as crashed when it gives no sign of life any more."""
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    sign = "prefect.flow-run.heartbeat"
    ends = {
        f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Missed", "Skipped")
    }
    return Automation(
        name="a silent run has crashed",
        description=f"A run without a sign of life for {silence.total_seconds():.0f} s is marked as crashed.",
        trigger=EventTrigger(
            after={sign},
            expect={sign, *ends},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                force=False,
                message=f"no sign of life for {silence.total_seconds():.0f} s: its process, its worker or its machine is gone",
            )
        ],
    )


def put_automation(automation: "Automation") -> None:
    """Have an automation on the server, in the place of one of the same name."""
    from prefect.automations import Automation

    try:
        there: Automation = Automation.read(name=automation.name)  # type: ignore[assignment]
    except ValueError:
        automation.create()
        return
    changed = [
        name for name in ("description", "trigger", "actions") if getattr(there, name) != getattr(automation, name)
    ]
    if changed:  # else left alone: a new one would forget which runs it is waiting for
        automation.id = there.id
        automation.update()


@contextmanager
def client_of(environment: Mapping[str, str]) -> "Iterator[SyncPrefectClient]":
    """Give Prefect's client for the server that PREFECT_API_URL of these variables names."""
    from prefect.client.orchestration import get_client

    with _speaking_to(environment), get_client(sync_client=True) as client:
        yield client


@contextmanager
def _speaking_to(environment: Mapping[str, str]) -> Iterator[None]:
    """Have Prefect's own calls go to that server."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    wanted = {PREFECT_API_URL: environment["PREFECT_API_URL"]}
    if secret := environment.get("PREFECT_API_AUTH_STRING"):
        wanted[PREFECT_API_AUTH_STRING] = secret
    with temporary_settings(wanted):
        yield
