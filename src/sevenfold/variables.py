"""Variables of this process's environment that hold for a block."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def within(**named: str) -> Iterator[None]:
    """Set variables inside the block, and put each back to what it was, or was not, after it."""
    before = {name: os.environ.get(name) for name in named}
    os.environ.update(named)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
