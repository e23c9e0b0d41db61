"""Backfill: run a deployment once for each of many partitions, days or whatever the files are cut by, some at a time.

Each partition has a key, made of the deployment, the partition and the parameters. What has a run of its key that completed is
done, and is not done again; what runs is waited for; what failed is tried again. So the same call goes on where an
earlier one ended, and two at once do nothing twice.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
from rich.table import Table

from flows import console, errors, server
from sevenfold import periods, workspace

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

MARK = "{partition}"
"""What stands in parameters for the partition."""

PAUSE = 2.0
"""Seconds between two looks at the runs."""


class BackfillError(RuntimeError):
    """A backfill cannot be, or not go on; the message says why, and what to do."""


@dataclass
class Piece:
    """One partition, the run that does it, and what is to be said of it.

    attempt: how many runs of the key there were, this one counted.
    before: whether the run had completed before this backfill.
    """

    partition: str
    parameters: Mapping[str, Any]
    key: str
    attempt: int = 0
    run: "FlowRun | None" = None
    before: bool = False

    @property
    def state(self) -> str:
        if self.run is None or self.run.state is None:
            return "not begun"
        return "was done before" if self.before else str(self.run.state.name).lower()

    @property
    def is_over(self) -> bool:
        return self.run is not None and self.run.state is not None and self.run.state.is_final()

    @property
    def succeeded(self) -> bool:
        return self.is_over and self.run is not None and self.run.state is not None and self.run.state.is_completed()


def backfill(
    deployment: str,
    partitions: Sequence[str],
    parameters: Mapping[str, Any],
    *,
    concurrency: int,
    again: bool = False,
) -> list[Piece]:
    """Have a deployment's worker do each partition, and wait for all; Ctrl-C stops the waiting, and what runs goes on.

    Args:
        deployment: FLOW/NAME, or NAME where both are the same.
        parameters: of the flow; `{partition}` in any text of them stands for the partition.
        concurrency: runs at a time, at most.
        again: whether to do partitions that are done, too.

    Raises:
        BackfillError: there is no such deployment, server or worker, a parameter is unknown or not what the flow takes,
            or no parameter depends on the partition.
    """
    name = deployment if "/" in deployment else f"{deployment}/{deployment}"
    with _client() as client:
        found = _deployment(client, name)
        _check(client, found, partitions, parameters, concurrency)
        pieces = [_piece(name, partition, parameters) for partition in partitions]
        for piece in pieces:
            _look(client, piece, again=again)
        waiting = [piece for piece in pieces if not piece.succeeded]
        told: dict[str, str] = {}
        print(f"{len(pieces)} partitions, of which {len(pieces) - len(waiting)} were done before", flush=True)
        # What runs already, for this call or another, takes a place; what failed before is tried again.
        active = [piece for piece in waiting if piece.run is not None and not piece.is_over]
        waiting = [piece for piece in waiting if piece not in active]
        while waiting or active:
            while waiting and len(active) < concurrency:
                active.append(_begin(client, found, waiting.pop(0)))
            for piece in active:
                assert piece.run is not None
                with suppress(httpx.TransportError):  # a server that is away for a while has not forgotten the run
                    piece.run = client.read_flow_run(piece.run.id)
                # On the way there a run has several states that tell a reader nothing.
                if told.get(piece.partition) != piece.state and (piece.state == "running" or piece.is_over):
                    told[piece.partition] = piece.state
                    print(f"{piece.partition}: {piece.state}", flush=True)
            active = [piece for piece in active if not piece.is_over]
            if active:
                time.sleep(PAUSE)
    return pieces


@contextmanager
def _client() -> "Iterator[SyncPrefectClient]":
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    place = workspace.find()
    url = os.environ.get("PREFECT_API_URL") or server.standing_url(place)
    if url is None:
        raise BackfillError(
            "no Prefect server stands here; `make up` starts one with a worker, or set PREFECT_API_URL to yours"
        )
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        yield client


def _deployment(client: "SyncPrefectClient", name: str) -> "DeploymentResponse":
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        there = sorted(f"{client.read_flow(d.flow_id).name}/{d.name}" for d in client.read_deployments())
        raise BackfillError(f"there is no deployment {name}; there are: {', '.join(there) or 'none'}") from None


def _check(
    client: "SyncPrefectClient",
    deployment: "DeploymentResponse",
    partitions: Sequence[str],
    parameters: Mapping[str, Any],
    concurrency: int,
) -> None:
    """Raise a BackfillError that tells all that is wrong."""
    from prefect.client.schemas.objects import WorkerStatus

    problems = []
    if concurrency < 1:
        problems.append(f"concurrency is {concurrency}; expected 1 or more")
    if not partitions:
        problems.append("there are no partitions; expected one or more")
    if twice := sorted(p for p, count in Counter(partitions).items() if count > 1):
        problems.append(f"partition{'s' * (len(twice) > 1)} {', '.join(twice[:5])} given twice; expected each once")
    if _filled(dict(parameters), "a") == _filled(dict(parameters), "b"):
        problems.append(f"no parameter has {MARK} in it, so all partitions would be the same run; name where it goes")
    schema = deployment.parameter_openapi_schema or {}
    known = schema.get("properties", {})
    if strange := sorted(set(parameters) - set(known)):
        problems.append(f"the flow has no parameter {', '.join(strange)}; it has: {', '.join(known)}")
    given = {**deployment.parameters, **parameters}
    if lacking := [name for name in schema.get("required") or [] if name not in given]:
        problems.append(f"the flow needs the parameter{'s' * (len(lacking) > 1)} {', '.join(lacking)}; add by `--set`")
    if pool := deployment.work_pool_name:
        workers = client.read_workers_for_work_pool(pool)
        if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
            problems.append(f"no worker of the pool {pool} is there to do it; start one (`make up`)")
    if problems:
        raise BackfillError("; ".join(problems))


def _filled(value: Any, partition: str) -> Any:
    """Return a value of JSON in whose texts the partition stands where the mark was."""
    if isinstance(value, str):
        return value.replace(MARK, partition)
    if isinstance(value, dict):
        return {name: _filled(one, partition) for name, one in value.items()}
    return [_filled(one, partition) for one in value] if isinstance(value, list) else value


def _piece(deployment: str, partition: str, parameters: Mapping[str, Any]) -> Piece:
    filled = _filled(dict(parameters), partition)
    whole = json.dumps([deployment, partition, filled], sort_keys=True)
    return Piece(partition, filled, f"backfill {hashlib.sha256(whole.encode()).hexdigest()[:24]}")


def _look(client: "SyncPrefectClient", piece: Piece, *, again: bool) -> None:
    """Find the last run of a piece's key, if it counts: one that completed, or one that is still to end."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey

    while True:
        key = FlowRunFilterIdempotencyKey(any_=[f"{piece.key} {piece.attempt + 1}"])
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=key), limit=1)
        if not runs:
            break
        piece.attempt, piece.run = piece.attempt + 1, runs[0]
    if piece.is_over and (again or not piece.succeeded):
        piece.run = None
    piece.before = piece.succeeded


def _begin(client: "SyncPrefectClient", deployment: "DeploymentResponse", piece: Piece) -> Piece:
    """Have a run created; another backfill that has created it meanwhile is joined."""
    from prefect.exceptions import PrefectHTTPStatusError

    piece.attempt += 1
    try:
        piece.run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters=dict(piece.parameters),
            tags=["backfill", piece.partition],
            idempotency_key=f"{piece.key} {piece.attempt}",
        )
    except PrefectHTTPStatusError as error:
        raise BackfillError(f"{piece.partition}: Prefect refuses the run: {error}") from None
    return piece


def table(pieces: Sequence[Piece]) -> Table:
    """Return what came of each partition, for a person."""
    made = Table("partition", "state", "seconds", "attempt", "what it said", title=None)
    for piece in pieces:
        run = piece.run
        seconds = f"{run.total_run_time.total_seconds():.1f}" if run is not None and piece.is_over else ""
        said = str(run.state.message or "") if run is not None and run.state is not None and not piece.succeeded else ""
        said = said.removeprefix("Flow run encountered an exception: ")
        made.add_row(piece.partition, piece.state, seconds, str(piece.attempt or ""), said)
    return made


def main() -> int:
    """Do a backfill; 0 where all partitions are done, 1 where some are not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("given", type=json.loads, metavar="JSON", help="what `sevenfold backfill` was asked for")
    given = parser.parse_args().given
    begun = time.monotonic()
    try:
        between = given.pop("between")
        given["partitions"] = given["partitions"] or periods.between(*between)
        place = workspace.find()
        place.initialise()
        with place.settled():
            pieces = backfill(**given)
    except KeyboardInterrupt:
        print("interrupted; what runs goes on, and the same command goes on from there", file=sys.stderr)
        return 130
    except httpx.HTTPError as error:
        said = f"Prefect's server does not do as it should: {error}; what runs goes on; repeat the command"
        return errors.tell(error, said)
    except Exception as error:
        return errors.tell(error)
    console.console().print(table(pieces))
    done = sum(piece.succeeded for piece in pieces)
    print(f"{done} of {len(pieces)} partitions are done, in {time.monotonic() - begun:.0f} s")
    return int(done < len(pieces))


if __name__ == "__main__":
    sys.exit(main())
