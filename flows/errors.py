"""Errors: how one that ends a flow's process is told."""

import os
import sys

from sevenfold.commands import project
from sevenfold.registry import tracking

EXPECTED = (ValueError, LookupError, OSError, RuntimeError)
"""Kinds whose message is a sentence for whoever started the flow."""


def tell(error: Exception, sentence: str = "") -> int:
    """Print an error as a sentence, and return the exit status, which is 1.

    Args:
        sentence: what to say in the place of its message.

    Raises:
        Exception: the same one, where nobody foresaw it, and always for those who debug.
    """
    said = sentence or tracking.sentence(error) or (str(error) if isinstance(error, EXPECTED) else "")
    if not said or os.environ.get(project.DEBUG):
        raise error
    print(f"error: {said}", file=sys.stderr)
    return 1
