"""A process that does a part of a run, and ends with the one that began it."""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

LEASH = "SEVENFOLD_FLOW_LEASH"
"""The variable that tells a process of a run to end when its standard input does."""

PATIENCE = 20.0
"""Seconds that a process has to end by itself, each time that it is asked."""

_ending = threading.Event()


def ends_in_order() -> None:
    """Let a request to end this process unwind it, so that what it began is ended and what it holds is cleared away.

    A second request changes nothing: the first is being done.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    if not _ending.is_set():
        _ending.set()
        raise SystemExit(128 + number)


@contextmanager
def limited(hours: float | None) -> Iterator[None]:
    """Ask this process to end where a block takes longer: what hangs gives signs of life for ever, and holds its locks.

    Args:
        hours: more than 0; None for as long as it takes.

    Raises:
        ValueError: hours is 0 or less.
    """
    if hours is None:
        yield
        return
    if not hours > 0:
        raise ValueError(f"hours is {hours}; expected more than 0, such as 24, or none for as long as it takes")

    def end() -> None:
        print(f"error: this takes longer than {hours:g} hours, and is ended", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(3600 * hours, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def leash() -> None:
    """Ask this process to end when the one that called it is gone, if that is what `call` wants.

    The kernel closes the other end of its standard input however that one died, which could not ask any more.
    """
    if os.environ.pop(LEASH, None) is None:
        return

    def watch() -> None:
        while os.read(0, 64):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def born(pid: int) -> str:
    """Return what tells a process from every other one that had or will have its number, on this machine.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    try:
        # In ticks since the machine started, which no change of the clock moves; after the name, which may hold anything.
        ticks = (
            Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text(encoding='utf-8').strip()} {ticks}"
    except OSError:
        return f"{psutil.Process(pid).create_time():.2f}"


def below(pid: int) -> list[psutil.Process]:
    """Return the processes below one, which may be gone at any time."""
    with suppress(psutil.NoSuchProcess):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def call(
    module: str,
    *arguments: str,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> tuple[int, str]:
    """Run a Python module as a process, and return its exit status and the last lines of what it said.

    Whatever ends this process ends that one first, by force if need be, with all below it; if this one is killed, that one,
    where it has called `leash`, ends by itself.

    A process that a signal has ended has 128 and the signal's number for its status, as in a shell.

    Args:
        folder: where it works; by default here.
        environment: its variables; by default those of this process.
        on_line: called with each line that it prints; by default it prints for itself, and nothing is returned of that.
    """
    # A session of its own, so that Ctrl-C in a terminal reaches it once, by way of this process.
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**(os.environ if environment is None else environment), LEASH: "stdin"},
        stdin=subprocess.PIPE,
        stdout=None if on_line is None else subprocess.PIPE,
        stderr=None if on_line is None else subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=20)
    try:
        for line in process.stdout or ():
            last.append(line.rstrip())
            if on_line is not None:
                on_line(last[-1])
        code = process.wait()
        return (code if code >= 0 else 128 - code), "\n".join(last)
    except BaseException:
        # Asked twice, since a process that is just starting may miss the first time.
        for _ in range(2):
            with suppress(subprocess.TimeoutExpired):
                process.terminate()
                process.wait(PATIENCE)
                break
        else:
            # Trainers are in sessions of their own.
            all_of_it = [*below(process.pid), psutil.Process(process.pid)]
            for one in all_of_it:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait(5)
            # The kernel ends them in its own time, until which they hold their memory, devices and locks.
            psutil.wait_procs(all_of_it, timeout=5)
        raise
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
