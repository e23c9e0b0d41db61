"""A verdict on data as one HTML page that needs nothing but itself: failures first, then what held."""

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sevenfold.validation import Result, Verdict

# Colours keep a contrast of 4.5 to 1 or more on their background, in light and in dark.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #59636e; --line: #d9dee3;
  --critical: #b3261e; --warning: #8a5a00; --info: #0b5cad; --good: #1a6b36;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111418; --card: #1a1e24; --ink: #e8ebee; --soft: #a3adb8; --line: #343b44;
    --critical: #ff9a91; --warning: #f2c063; --info: #8ec2ff; --good: #7fd99a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
p { margin: 0; }
.banner {
  background: var(--card); border: 1px solid var(--line); border-left: .5rem solid var(--good); border-radius: .5rem;
  padding: 1.25rem 1.5rem;
}
.banner.failed { border-left-color: var(--critical); }
.banner strong { color: var(--good); }
.banner.failed strong { color: var(--critical); }
dl { display: flex; flex-wrap: wrap; gap: .75rem 2rem; margin: 1rem 0 0; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
table { width: 100%; border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
th, td { text-align: left; vertical-align: top; padding: .6rem .9rem; border-top: 1px solid var(--line); }
thead th { color: var(--soft); font-size: .85rem; font-weight: 600; border-top: 0; }
tbody th, td { font-weight: 400; overflow-wrap: anywhere; }
tbody th { font-weight: 600; }
th:nth-child(1) { width: 7rem; } th:nth-child(2) { width: 22%; } th:nth-child(3) { width: 28%; }
.critical { color: var(--critical); } .warning { color: var(--warning); } .info { color: var(--info); }
.held { color: var(--soft); }
.critical, .warning, .info { font-weight: 600; white-space: nowrap; }
.examples { display: block; color: var(--soft); font-size: .875rem; }
code { font: .9em ui-monospace, monospace; }
summary { cursor: pointer; font-weight: 600; font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
summary:focus-visible { outline: 3px solid var(--info); outline-offset: 3px; }
@media (max-width: 40rem) {
  main { padding: 1rem .75rem 3rem; }
  table, tbody, tr, tbody th, td { display: block; width: auto !important; }
  table { background: none; border: 0; }
  thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; white-space: nowrap; }
  tr { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
  tr { padding: .75rem 1rem; margin: 0 0 .75rem; }
  tbody th, td { border: 0; padding: .2rem 0; display: grid; grid-template-columns: 5.5rem 1fr; gap: .5rem; }
  tbody th::before, td::before { content: attr(data-label); color: var(--soft); font-weight: 400; font-size: .875rem; }
}
@media print { details::details-content { content-visibility: visible; } }
""".strip()


def page(verdict: "Verdict") -> str:
    """Return the verdict as HTML; equal verdicts give equal pages."""
    failures = verdict.failures()
    passes = [r for r in verdict.expectations if r.success]
    critical, warnings = len(verdict.failures("critical")), len(verdict.failures("warning"))
    name = escape(verdict.dataset)
    if verdict.passed:
        state, sentence = (
            "passed",
            "The data are as agreed." if not failures else "The data are usable; read the warnings.",
        )
    else:
        path = f"<code>data/expectations/{name}.json</code>"
        state, sentence = "failed", f"Mend the data, or, if the change is right, edit {path}."
    facts = {
        "Rows": f"{verdict.rows:,}",
        "Columns": f"{verdict.columns:,}",
        "Held": f"{len(passes):,} of {len(verdict.expectations):,}",
        "Critical": f"{critical:,}",
        "Warnings": f"{warnings:,}",
    }
    listed = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts.items())
    title = f"<h1>{name}: <strong>{state}</strong></h1>"
    parts = [f'<header class="banner {state}">{title}<p>{sentence}</p><dl>{listed}</dl></header>']
    if failures:
        parts.append(f'<section><h2 id="failures">What failed</h2>{_table(failures, "failures")}</section>')
    if passes:
        # Open where there is nothing else to see.
        summary = f'<summary id="passes">What held ({len(passes):,})</summary>'
        parts.append(f"<details{'' if failures else ' open'}>{summary}{_table(passes, 'passes')}</details>")
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: data {state}</title>\n<style>\n{STYLE}\n</style>"
    )
    body = "\n".join(["<main>", *parts, "</main>"])
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _table(results: Iterable["Result"], title: str) -> str:
    # The roles say again what the elements are: laid out as cards, on a phone, they lose them for screen readers.
    head = "".join(
        f'<th role="columnheader" scope="col">{h}</th>' for h in ("Severity", "Column", "Expected", "Observed")
    )
    rows = "\n".join(map(_row, results))
    return (
        f'<table role="table" aria-labelledby="{title}">\n<thead role="rowgroup"><tr role="row">{head}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{rows}\n</tbody>\n</table>'
    )


def _row(result: "Result") -> str:
    place = "the table" if result.column is None else f"<code>{escape(result.column)}</code>"
    severity = escape(result.severity)
    # What held has no need to look alarming.
    colour = "held" if result.success else severity
    observed = escape(result.observed)
    # The first example is part of what was observed.
    if len(result.examples) > 1 and not result.success:
        rows = (f" in row {row}" for row in result.rows) if len(result.rows) == len(result.examples) else iter(())
        texts = [example + next(rows, "") for example in result.examples]
        observed += f'<span class="examples">{escape(", ".join(texts))}</span>'
    cells = {"Expected": escape(result.expected), "Observed": observed}
    rest = "".join(f'<td role="cell" data-label="{k}"><span>{v}</span></td>' for k, v in cells.items())
    return (
        f'<tr role="row"><td role="cell" data-label="Severity"><span class="{colour}">{severity}</span></td>'
        f'<th role="rowheader" scope="row" data-label="Column"><span>{place}</span></th>{rest}</tr>'
    )
