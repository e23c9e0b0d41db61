"""Processors: how many this process may use."""

import os


def count() -> int:
    """Return the number of cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
