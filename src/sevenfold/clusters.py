"""Partitions of a job on a Ray cluster, by Ray Data: that of RAY_ADDRESS, or one of this machine for the time of the job.

Workers get the bundle as its files, and a partition as plain values. They write it where a thread would have written it, so
all machines have to share that folder. What came of it goes back to the process that holds the journal.
"""

import importlib.util
import itertools
import json
import logging
import os
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sevenfold import __version__, bundles, jobs, operations, places, variables
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import DataError
from sevenfold.jobs import Result, Task
from sevenfold.manifests import Entry
from sevenfold.sources import Partition

WAVE = 16
"""Partitions for each worker that are handed over at a time: between two waves workers wait for the slowest one."""

WAVE_HELD = 2
"""The same where the rows themselves are handed over, and are in memory so far."""

PATIENCE = 10.0
"""Seconds in which a cluster has to answer."""

_joined: str | None = None
"""The address of the cluster that this process was on last; "" for one of its own."""

Content = Mapping[str, bytes]
"""The files of a bundle, by their names."""

_loaded: tuple[tuple[Any, ...], Bundle] | None = None
"""The bundle that this worker used last, which is the one that it will need next."""


def require() -> None:
    """Say how to install Ray where it is not there.

    Raises:
        RuntimeError: it is not there.
    """
    if not importlib.util.find_spec("ray"):
        raise RuntimeError("engine is 'ray', and Ray is not installed; run `pip install 'sevenfold[ray]'`")


def in_cluster(
    bundle: Bundle,
    task: Task,
    todo: Iterator[Partition],
    workers: int,
    tell: Callable[[int], None],
    problems: Mapping[str, None],
) -> Iterator[tuple[Partition, Result]]:
    """Work on partitions in the processes of a cluster, of which one that dies is replaced and its partition done again.

    Args:
        workers: partitions at a time; as many processors a cluster of this machine gets.
        tell: called with the rows of each partition that is done.
        problems: once it holds any, rows are only looked at.

    Raises:
        RuntimeError: no cluster answers at RAY_ADDRESS.
    """
    content = _content(bundle)
    # Its processes work elsewhere, where a path from here would mean something else.
    task = replace(task, parts=task.parts.absolute())
    todo = map(_absolute, todo)
    with connected(workers), _quiet():
        while wave := _wave(todo, workers):
            for part, result in _worked(content, task, wave, workers, only_look=bool(problems)):
                try:
                    tell(0 if isinstance(result, Exception) and not isinstance(result, DataError) else part.rows)
                except Exception as error:  # as it would be one of the partition in a thread
                    yield part, error
                else:
                    yield part, result


def _absolute(part: Partition) -> Partition:
    found = (file if file.place is not None else replace(file, path=file.path.absolute()) for file in part.files)
    return replace(part, files=tuple(found))


def _wave(todo: Iterator[Partition], workers: int) -> list[Partition]:
    first = next(todo, None)
    if first is None:
        return []
    count = workers * (WAVE if first.held is None else WAVE_HELD)
    return [first, *itertools.islice(todo, count - 1)]


def _worked(
    content: Content, task: Task, wave: Sequence[Partition], workers: int, *, only_look: bool
) -> Iterator[tuple[Partition, Result]]:
    import ray

    left = {part.number: part for part in wave}
    work: Any = _attempt  # with more arguments than Ray Data's types have room for
    given: dict[str, Any] = {"content": content, "task": task, "only_look": only_look, "version": __version__}
    try:
        # A block for each partition, so that each is a task of its own.
        source = ray.data.from_items([{"part": part} for part in wave], override_num_blocks=len(wave))
        pool = ray.data.TaskPoolStrategy(size=workers)
        for row in source.map(work, fn_kwargs=given, num_cpus=1, compute=pool).iter_rows():
            part = left.pop(row["number"])
            yield part, _result(part, json.loads(row["told"]))
    except ray.exceptions.RayError as error:
        # Ray has tried again by itself before it says so, and does not say of which partition.
        first, said = next(iter(left.values())), str(error).strip().splitlines()[-1]
        others = f" this or another one of {len(left)} was worked on when" if len(left) > 1 else ""
        yield first, RuntimeError(f"{others} Ray gave up: {type(error).__name__}: {said}".strip())


def _attempt(row: Mapping[str, Any], *, content: Content, task: Task, only_look: bool, version: str) -> dict[str, Any]:
    """Work on a partition in a process of the cluster, and return what came of it as plain values."""
    part: Partition = row["part"]
    told: dict[str, Any]
    try:
        if version != __version__:
            raise RuntimeError(
                f"{socket.gethostname()} has sevenfold {__version__}; expected {version}; install that there"
            )
        if not task.parts.is_dir():
            raise RuntimeError(
                f"{socket.gethostname()} has no folder {task.parts}; expected one that all machines of the cluster share"
            )
        torch.set_num_threads(1)
        result = jobs.attempt(_bundle(content, task), task, part, lambda rows: None, only_look=only_look)
    except Exception as error:  # told in the process that holds the journal
        result = error
    if isinstance(result, DataError):
        told = {"bad": list(result.problems)}
    elif isinstance(result, places.ChangedError):
        told = {"changed": result.changes, "where": traceback.format_exception(result)}
    elif isinstance(result, Exception):
        told = {"failed": str(result).strip() or type(result).__name__, "where": traceback.format_exception(result)}
    else:
        told = {"done": None if result is None else asdict(result)}
    told["fetched"] = places.learned([file.place for file in part.files if file.place is not None])
    return {"number": part.number, "told": json.dumps(told)}


def _result(part: Partition, told: Mapping[str, Any]) -> Result:
    """Return what `_attempt` told."""
    places.learn([(url, version, digest) for url, version, digest in told["fetched"]])
    if "bad" in told:
        return DataError(part.files[0].name, told["bad"])
    if "where" in told:
        error = places.ChangedError(told["changed"]) if "changed" in told else RuntimeError(told["failed"])
        error.add_note("".join(told["where"]))
        return error
    return None if told["done"] is None else Entry(**told["done"])


def _content(bundle: Bundle) -> Content:
    with tempfile.TemporaryDirectory() as room:
        bundles.save(Path(room) / "bundle", bundle)
        return {name: (Path(room) / "bundle" / name).read_bytes() for name in bundles.FILES}


def _bundle(content: Content, task: Task) -> Bundle:
    """Return the bundle of these files as it works in this job; it is read once by each process."""
    global _loaded
    key = (content["bundle.json"], task.operation, json.dumps(dict(task.options), sort_keys=True))
    if _loaded is None or _loaded[0] != key:
        with tempfile.TemporaryDirectory() as room:
            for name, held in content.items():
                (Path(room) / name).write_bytes(held)
            found = bundles.load(Path(room))
        _loaded = key, operations.configured(operations.accepting(found), task.operation, task.options)
    return _loaded[1]


@contextmanager
def connected(processors: int) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or start one for the block; one that the caller is connected to stays.

    Args:
        processors: of a cluster that is started.

    Raises:
        RuntimeError: no cluster answers at RAY_ADDRESS, or this process was on another one before.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    own = nullcontext() if address else _on_loopback()
    with own, _connected(address, processors):
        yield


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a cluster that is started in the block listen on loopback: whoever reaches its ports can run code on it.

    That is how Ray works on systems that it makes no clusters of. Its processes learn it by a variable, this one by what Ray
    has read of it when it was imported; that must not stay so, or else no other cluster could call this process back.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    with variables.within(**{ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _connected(address: str | None, processors: int) -> Iterator[None]:
    global _joined
    import ray

    if ray.is_initialized():
        yield
        return
    if address:
        _reach(address)
        if _joined not in (None, address):
            raise RuntimeError(
                f"this process was on {f'the cluster {_joined}' if _joined else 'a cluster of its own'} before, and Ray loses "
                f"calls where it goes to that of {address}; begin another process"
            )
    _joined = address or ""
    # Paths of Unix sockets are short: a folder for temporary files may lie too deep.
    with tempfile.TemporaryDirectory(prefix=f"ray-{os.getpid()}-", dir="/tmp", ignore_cleanup_errors=True) as room:
        own = {"address": "local", "num_cpus": processors, "include_dashboard": False, "_temp_dir": room}
        with _same_handlers():
            try:
                ray.init(**({"address": address} if address else own), log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                where = f"RAY_ADDRESS is {address}, and no cluster takes the work" if address else "Ray does not start"
                raise RuntimeError(f"{where}: {str(error).strip()}; or leave out `--engine ray`") from error
        try:
            yield
        finally:
            with _same_handlers():
                ray.shutdown()


def _reach(address: str) -> None:
    """Look whether anybody listens at an address: Ray itself tries for minutes.

    Raises:
        RuntimeError: nobody does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # a word such as "auto"
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise RuntimeError(
            f"RAY_ADDRESS is {address}, and nobody answers there ({error}); expected a Ray cluster, as `ray start --head` "
            "makes one; unset it for one on this machine"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data from telling how it goes about things; the job has its own progress."""
    import ray.data

    logger, context = logging.getLogger("ray.data"), ray.data.DataContext.get_current()
    before = logger.level, context.enable_progress_bars
    logger.setLevel(logging.ERROR)
    context.enable_progress_bars = False
    try:
        yield
    finally:
        logger.setLevel(before[0])
        context.enable_progress_bars = before[1]


@contextmanager
def _same_handlers() -> Iterator[None]:
    """Undo what Ray does to SIGTERM: a job that is told to end has work to clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
