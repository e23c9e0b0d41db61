"""What commands share: how one is described, how they find the workspace, and how they print tables."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sevenfold import workspace
from sevenfold.workspace import Workspace

MODEL_HELP = "`NAME` (its champion), `NAME@challenger`, `NAME/3`, or a bundle's folder"


def command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], int],
    help_: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help_,
        description=help_[:1].upper() + help_[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # which leaves the example on one line
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=command)
    return parser


def initialised(*, check: bool = True) -> Workspace:
    """Return the workspace with its private folders, database and DVC settings in place, and sound params if asked for."""
    from sevenfold import pipeline
    from sevenfold.registry import tracking

    place = workspace.find()
    place.initialise()
    pipeline.initialise(place)
    if check:
        from sevenfold import stages

        stages.check(place)
    tracking.initialise(place)
    return place


@contextmanager
def registry() -> Iterator[Workspace]:
    """Give the workspace with its registry ready."""
    place = workspace.find()
    place.initialise()
    with place.settled():
        from sevenfold.registry import tracking

        tracking.initialise(place)
        yield place


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of cells as text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in lines]


def wrapped(text: str, indent: str = "    ") -> str:
    """Return text in lines of a terminal's width; in a log it stays one line, to be found by line."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
    )
