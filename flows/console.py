"""What a person sees of a run: progress while it lasts, and a table at its end."""

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from sevenfold.registry import versions
from sevenfold.workspace import Workspace

_NOISE = ("Running stage ", "> sevenfold ", "Updating lock file", "Generating lock file", "To track the changes with git", "\tgit add",
          "To enable auto staging", "\tdvc config", "Use `dvc push`", "Stage '")  # fmt: skip
"""How lines begin that DVC prints around a stage."""


class Display:
    """Progress of some steps that run side by side: a bar and a line for each on a terminal, plain lines in a log."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._lock = threading.Lock()
        self._live: Live | None = None
        if sys.stdout.isatty():
            self._whole = Progress(TextColumn("all"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._steps = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._all = self._whole.add_task("all", total=total)
            self._lines: dict[str, TaskID] = {}
            self._live = Live(Group(self._whole, self._steps), refresh_per_second=8)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, step: str) -> None:
        with self._lock:
            if self._live is not None:
                self._lines[step] = self._steps.add_task(step, total=None, note="")

    def line(self, step: str, text: str) -> None:
        """Show a line that a step printed, unless it is DVC's own talk."""
        if not text.strip() or text.startswith(_NOISE):
            return
        with self._lock:
            if self._live is not None:
                note = text.removeprefix(f"{step.partition('@')[2]}: ")
                self._steps.update(self._lines[step], note=note[: max(20, self._live.console.width - 50)])
            else:
                print(f"[{self._done}/{self._total}] {text}", flush=True)

    def note(self, text: str) -> None:
        """Show a line that is of no step."""
        with self._lock:
            if self._live is None:
                print(f"[{self._done}/{self._total}] {text}", flush=True)
            else:
                self._live.console.print(text, highlight=False, markup=False)

    def end(self, step: str, text: str = "") -> None:
        """Show that a step is over; `text` says how, where that is worth a line."""
        with self._lock:
            self._done += 1
            if self._live is None:
                if text:
                    print(f"[{self._done}/{self._total}] {text}", flush=True)
                return
            if text:
                self._live.console.print(text, highlight=False, markup=False)
            if step in self._lines:
                self._steps.remove_task(self._lines.pop(step))
            self._whole.advance(self._all)


def champions(place: Workspace) -> dict[str, str] | None:
    """Return the champion of each contest, for a table; None where the registry does not say."""
    try:
        return {name: version.label for name, version in versions.champions(place).items()}
    except Exception:  # whatever a store may say: what was done is to be shown all the same
        return None


def results(metrics: Mapping[str, Mapping[str, Any]], champions: Mapping[str, str] | None) -> Table:
    """Return the table that a run ends with.

    Args:
        metrics: data set -> application -> what `evaluation.summary` says.
        champions: contest -> the version that is champion; None where nobody knows now.
    """
    table = Table(box=None, pad_edge=False)
    headings: Sequence[tuple[str, dict[str, Any]]] = (
        ("data set", {"no_wrap": True}),
        ("application", {"no_wrap": True}),
        ("winner", {"overflow": "fold"}),
        ("number", {"justify": "right"}),
        ("best rival", {"overflow": "fold"}),
        ("number", {"justify": "right"}),
        ("verdict", {"ratio": 1}),
        ("champion", {"overflow": "fold"}),
    )
    for heading, options in headings:
        table.add_column(heading, **options)
    for dataset, contests in metrics.items():
        for application, found in contests.items():
            rival = found.get("rival", {})
            table.add_row(
                dataset,
                application,
                found.get("winner", "-"),
                _number(found.get("score")),
                rival.get("name", "-"),
                _number(rival.get("score")),
                found["verdict"],
                "unknown" if champions is None else champions.get(f"{dataset}-{application}", "none"),
            )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def console() -> Console:
    """Return a console as wide as the terminal, or wide enough for a table in a log."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
