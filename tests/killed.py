"""Run a job again and again, and end it by SIGKILL at each place where a disk is told something, or at random times.

A program of its own, since a process that has worked with threads must not fork: it loads everything, and each run is a
fork of it that has done nothing yet. It prints one line of JSON. Calls: `python -m tests.killed FOLDER boundaries|times`.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet  # noqa: F401 (loaded before the forks)
import torch

from sevenfold import bundles, jobs


def job(folder, bundle, output):
    jobs.apply(
        bundle,
        "m/1",
        "d" * 64,
        "encode",
        folder / "rows.parquet",
        folder / output,
        jobs.Settings(batch_size=64, partition_rows=256, workers=2, on_bad_rows="quarantine"),
    )


def fork(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid):
    """Return the exit code of a fork, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(folder, output):
    """Return what a user finds of an output, but for receipt and manifest, which hold times."""
    found = {}
    for path in sorted([*folder.glob(f"{output}*"), *folder.glob(f"{output}/*")]):
        if path.is_file() and not path.name.endswith(".json"):
            found[path.relative_to(folder).as_posix().removeprefix(output)] = path.read_bytes()
    return found


def dying(count):
    """Make the process kill itself before the count-th call that tells the disk something."""
    left = [count]
    for name in ("fsync", "rename", "link", "truncate"):
        real = getattr(os, name)

        def call(*arguments, real=real, **named):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        setattr(os, name, call)


def main(folder, mode, output):
    folder = Path(folder)
    bundle = bundles.load(folder / "bundle")
    torch.set_num_threads(1)
    start = time.monotonic()
    assert ended(fork(lambda: job(folder, bundle, f"whole{output}"))) == 0
    seconds = time.monotonic() - start
    whole = contents(folder, f"whole{output}")
    kills, odd = 0, []
    if mode == "boundaries":
        for count in range(1, 500):

            def work(count=count):
                dying(count)
                job(folder, bundle, f"killed{output}")

            code = ended(fork(work))
            if code == 0:
                break
            assert code == -signal.SIGKILL, code
            kills += 1
            left = contents(folder, f"killed{output}")
            # What is there is whole, whatever is not there yet.
            if any(whole.get(name) != content for name, content in left.items()):
                odd.append(f"after kill {count}: {sorted(left)}")
            assert ended(fork(lambda: job(folder, bundle, f"killed{output}"))) == 0
            if contents(folder, f"killed{output}") != whole or list(folder.glob(".*")):
                odd.append(f"going on after kill {count}: {sorted(p.name for p in folder.iterdir())}")
            for path in folder.glob("killed*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        chance = random.Random(7)
        for _ in range(5):
            done = False
            while not done:
                pid = fork(lambda: job(folder, bundle, f"killed{output}"))
                time.sleep(chance.uniform(0.3, 1.2) * seconds)
                os.kill(pid, signal.SIGKILL)
                done = ended(pid) == 0 or (folder / f"killed{output}.receipt.json").exists()
                kills += not done
            assert ended(fork(lambda: job(folder, bundle, f"killed{output}"))) == 0
            if contents(folder, f"killed{output}") != whole or list(folder.glob(".*")):
                odd.append(f"{sorted(p.name for p in folder.iterdir())}")
            (folder / f"killed{output}.receipt.json").unlink()
    print(json.dumps({"kills": kills, "odd": odd, "files": sorted(whole)}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
