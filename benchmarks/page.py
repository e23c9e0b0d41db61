"""docs/benchmarks.md, a section for each benchmark: what was measured, when, on what, and by which command."""

import datetime
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column holds names, the others numbers."""
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)]), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def machine() -> str:
    """Return the processor, its cores and what it can, and the device that torch would use."""
    import torch

    facts: Mapping[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.is_file():
        facts = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", info.read_text(), re.MULTILINE))
    name = facts.get("model name") or platform.processor() or platform.machine()
    able = [one for one in ("avx512_bf16", "amx_bf16") if one in facts.get("flags", "").split()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([f"{cores} cores of {name}", *able, *devices])


def section(title: str, body: str, packages: Sequence[str] = ()) -> str:
    """Return a section: its title, when, where and how it was measured, and the body."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "scikit-learn", *packages))
    command = " ".join(["python", *(Path(a).name if a == sys.argv[0] else _shown(a) for a in sys.argv)])
    command = command.replace(f"python {Path(sys.argv[0]).name}", f"python benchmarks/{Path(sys.argv[0]).name}", 1)
    when = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return f"## {title}\n\n{when}, {machine()}; {versions}; `{command}`\n\n{body}\n"


def _shown(argument: str) -> str:
    """Hide where data lie on this machine: only the last part of a path counts."""
    return f"DATA/{Path(argument).name}" if argument.startswith("/") else argument


def write(name: str, text: str) -> None:
    """Put a section between its markers on the page, or at the end of it."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "# Benchmarks\n"
    marked = f"<!-- {name} -->\n{text.strip()}\n<!-- /{name} -->"
    pattern = re.compile(rf"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
    page = pattern.sub(lambda _: marked, page) if pattern.search(page) else f"{page.rstrip()}\n\n{marked}\n"
    PAGE.write_text(page, encoding="utf-8")
