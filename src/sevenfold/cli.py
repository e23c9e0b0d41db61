"""The command line: all commands under one name, and where every error ends."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from sevenfold import __version__
from sevenfold.commands import datasets, indexes, jobs, models, monitoring, project


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Exits with 0 after success, 1 after an error, 2 after a wrong call."""
    given = _parser().parse_args(_spelled_out([*sys.argv[1:]] if arguments is None else arguments))
    # Python's own way to end on SIGTERM skips the clean-up of what is half written.
    before = signal.signal(signal.SIGTERM, _end)
    try:
        code: int = given.command(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has had enough
        code = 0
    except Exception as error:
        # The one place where every error ends: as a sentence, or, for those who debug, as it came.
        if given.debug:
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        code = 1
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code)


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the step that `index MODEL INPUT FOLDER` leaves out."""
    if len(arguments) > 1 and arguments[0] == "index" and arguments[1] not in (*indexes.STEPS, "-h", "--help"):
        return ["index", "build", *arguments[1:]]
    return [*arguments]


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _sentence(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{type(error).__name__}: {error}"
    text = str(error).strip() or type(error).__name__
    expected = (ValueError, LookupError, OSError, RuntimeError, ArithmeticError, MemoryError)
    return text if isinstance(error, expected) else f"{type(error).__name__}: {text} (--debug shows where)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sevenfold",
        description="Find out with numbers whether an autoencoder helps on your data, and run the one that does.",
        epilog="example: sevenfold run",
    )
    parser.add_argument("--version", action="version", version=f"sevenfold {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for noun in (project, jobs, indexes, models, monitoring, datasets):
        noun.add_to(commands)
    return parser
