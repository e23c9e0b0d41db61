"""A check of a champion as one HTML page that needs nothing but itself: what was found, how to read it, and plots."""

import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from sevenfold import document, drift, pictures
from sevenfold.histograms import Histogram
from sevenfold.monitoring import Check
from sevenfold.pictures import Picture
from sevenfold.registry.checks import Past
from sevenfold.retraining import Decision

JOBS_SHOWN = 30

_SHORT = 24  # letters that stay on one line of a table

_TOO_NEAR = 0.1  # share of a plot's height

_WORDS = {"ok": "● no drift beyond chance", "tell": "▲ look at this", "retrain": "▲ train again"}

# Colours keep a contrast of 4.5 to 1 or more on their background, in light and in dark.
_STYLE = """
:root { --ok: #1a6b36; --tell: #8a4500; --retrain: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ok: #7fd99a; --tell: #f2b063; --retrain: #ff9a91; } }
main { max-width: 76rem; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
p { margin: .25rem 0; }
.soft { color: var(--soft); }
.mark { font-size: 1.15rem; font-weight: 600; }
.ok { color: var(--ok); } .tell { color: var(--tell); } .retrain { color: var(--retrain); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem 1.25rem; margin: 1.25rem 0; }
table { width: 100%; }
td.tight { white-space: nowrap; }
.figures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure img { width: 100%; max-width: 34rem; }
ul { margin: .5rem 0; padding-left: 1.25rem; }
@media (max-width: 40rem) { main { padding: 1rem .6rem 3rem; } section { padding: .75rem .6rem; } }
@media print { section { break-inside: avoid; } }
""".strip()


def page(check: Check, decision: Decision, past: Sequence[Past]) -> str:
    """Return the page of a check; equal checks give equal pages.

    Args:
        past: earlier checks, the newest first.
    """
    title = f"{check.model}: {check.when:%Y-%m-%d %H:%M} UTC"
    parts = [
        f"<header><h1>{escape(title)}</h1><p class='mark {decision.verdict}'>{_WORDS[decision.verdict]}</p>"
        f"<p class='soft'>{escape(check.sentence())}</p></header>",
        _findings(check, decision),
        _numbers(check),
        _distributions(check),
        _time(check, past),
        _columns(check),
        _jobs(check),
    ]
    return document.html(title, f"{document.TABLES}\n{document.FIGURES}\n{_STYLE}", parts)


def _section(name: str, heading: str, content: str) -> str:
    return f"<section aria-labelledby='{name}'><h2 id='{name}'>{escape(heading)}</h2>{content}</section>"


def _table(name: str, heads: Sequence[str], rows: Sequence[Sequence[str | float]], *, wrap: Sequence[str] = ()) -> str:
    """Return a table; numbers stand at the right, cells below the heads in `wrap` may be broken."""

    def right(value: str | float) -> bool:
        return not isinstance(value, str) or re.fullmatch(r"[\d.]+%", value) is not None

    def cell(head: str, value: str | float) -> str:
        if right(value):
            text = value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
            return f"<td class='n'>{text}</td>"
        kind = "tight" if len(str(value)) < _SHORT else "wrap" if head in wrap else ""
        return f"<td{f' class={kind!r}' if kind else ''}>{escape(str(value))}</td>"

    numeric = [all(right(row[i]) or not row[i] for row in rows) for i in range(len(heads))]
    top = "".join(f"<th scope='col'{' class=n' * n}>{escape(h)}</th>" for h, n in zip(heads, numeric, strict=True))
    lines = "".join(f"<tr>{''.join(cell(h, v) for h, v in zip(heads, row, strict=True))}</tr>" for row in rows)
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{escape(name, quote=True)}'><table><thead><tr>{top}"
        f"</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _findings(check: Check, decision: Decision) -> str:
    found = {str(f) for f in check.findings}
    rest = "".join(f"<li>{escape(reason)}</li>" for reason in decision.reasons if reason not in found)
    rows = [(f.what, f.number, f.expectation, "large" if f.large else "some", f.reading) for f in check.findings]
    table = _table(
        "findings", ("what", "number", "expected", "how much", "how to read it"), rows, wrap=("how to read it",)
    )
    return _section("found", "What was found", (table if rows else "") + (f"<ul>{rest}</ul>" if rest else ""))


def _numbers(check: Check) -> str:
    rows: list[tuple[str, str | float]] = [
        ("rows compared", check.rows),
        ("rows that the model does not take", check.refused),
    ]
    if check.worst is not None:
        rows.append((f"largest PSI, of {check.worst[0]}", check.worst[1]))
    if check.drift is not None:
        rows += [("rows of the training to compare with", check.drift.rows_then)]
        if check.drift.error_ratio is not None:
            rows.append((f"{drift.ERROR}, times that of held-out rows", check.drift.error_ratio))
    if check.scores is not None:
        one = check.scores
        known = f"{one.share:.1%} of anomalies counted in" if one.share else "of normal rows alone"
        rows += [
            ("share of rows flagged", f"{one.flagged:.2%}"),
            (f"share expected, {known}", f"{one.expected:.2%}"),
        ]
        if one.psi is not None and one.ks is not None:
            rows += [("PSI of the scores", one.psi), ("KS of the scores", one.ks)]
    return _section("numbers", "The numbers", _table("numbers", ("", "now"), rows))


def _distributions(check: Check) -> str:
    drawn = [_drawn(i, histogram) for i, histogram in enumerate(check.histograms)]
    if not drawn:
        return ""
    return _section(
        "drawn", "The farthest columns, then and now", f"<div class='figures'>{''.join(map(_figure, drawn))}</div>"
    )


def _figure(picture: Picture) -> str:
    return (
        f"<figure><figcaption>{escape(picture.title)}</figcaption>"
        f"<img src='{picture.uri}' alt='{escape(picture.description, quote=True)}'></figure>"
    )


def _drawn(number: int, histogram: Histogram) -> Picture:
    then, now = np.array(histogram.then), np.array(histogram.now)

    def draw(axes: Any) -> None:
        if histogram.edges is not None:
            edges = np.array(histogram.edges)
            axes.stairs(then, edges, fill=True, color=pictures.THIRD, alpha=0.35, label="then")
            axes.stairs(now, edges, color=pictures.OURS, linewidth=1.8, label="now")
            if histogram.mark is not None:
                axes.axvline(histogram.mark, color="black", linewidth=1, linestyle="--", label="threshold")
        else:
            labels = [text if len(text) <= 16 else f"{text[:15]}…" for text in histogram.labels or ()]
            at = np.arange(len(labels))
            axes.bar(at - 0.2, then, 0.4, color=pictures.THIRD, alpha=0.5, label="then")
            axes.bar(at + 0.2, now, 0.4, color=pictures.OURS, label="now")
            axes.set_xticks(at, labels, rotation=30 * (len(labels) > 4), ha="right" if len(labels) > 4 else "center")
        axes.set(ylabel="share of rows")
        axes.legend(frameon=False, fontsize=8)

    where = (
        f"from {histogram.edges[0]:.3g} to {histogram.edges[-1]:.3g}"
        if histogram.edges is not None
        else f"of {len(histogram.then)} categories"
    )
    apart = float(np.abs(then - now).sum() / 2)
    description = f"Shares of rows {where}; {apart:.0%} of them lie in other bars now than then."
    return pictures.plot(f"column-{number}", histogram.name, description, draw, size=(4.8, 2.6))


def _time(check: Check, past: Sequence[Past]) -> str:
    points = [(p.when, p.worst) for p in reversed(past) if p.worst is not None]
    if check.worst is not None:
        points.append((check.when, check.worst[1]))
    if not points:
        return ""
    values = [value for _, value in points]

    def draw(axes: Any) -> None:
        from matplotlib import dates as of_dates

        dates: Any = of_dates
        axes.plot([dates.date2num(when) for when, _ in points], values, "o-", color=pictures.OURS, markersize=4)
        top = max(0.3, 1.1 * max(values))
        for height, name in ((drift.SOME, "some"), (drift.LARGE, "large")):
            if height / top < _TOO_NEAR:
                continue  # its name would lie on the other one
            axes.axhline(height, color=pictures.THIRD, linewidth=1, linestyle="--")
            axes.annotate(
                name,
                (1, height),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 2),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
        axes.set_ylim(0, top)
        if len(points) == 1:  # else the axis would span years or nothing
            middle = dates.date2num(points[0][0])
            axes.set_xlim(middle - 1, middle + 1)
        locator = dates.AutoDateLocator(maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
        axes.set(ylabel="largest PSI")

    description = f"The largest PSI of {len(points)} checks, from {values[0]:.3g} to {values[-1]:.3g} now."
    picture = pictures.plot("time", "Largest PSI of each check", description, draw, size=(4.8, 2.6))
    return _section("over-time", "Over time", f"<div class='figures'>{_figure(picture)}</div>")


def _columns(check: Check) -> str:
    if check.drift is None:
        return ""
    rows: list[tuple[str | float, ...]] = []
    for m in check.drift.ranked[: drift.SHOWN]:
        distance = "" if m.distance is None else m.distance
        kind = "total variation" if m.categorical else "KS"
        rows.append((m.name, m.psi, m.psi_raw, distance, kind, f"{m.missing_then:.1%}", f"{m.missing_now:.1%}"))
    heads = ("column", "PSI", "as measured", "distance", "which is", "gaps then", "gaps now")
    reading = (
        f"<p class='soft'>A PSI below {drift.SOME:g} is stable, up to {drift.LARGE:g} some drift, above it large. It is 0 "
        "where chance alone may have made it.</p>"
    )
    left = len(check.drift.columns) - len(rows)
    more = f"<p class='soft'>{left:,} more columns are nearer.</p>" if left else ""
    return _section("columns", "Every column, the farthest first", reading + _table("columns", heads, rows) + more)


def _jobs(check: Check) -> str:
    if not check.jobs:
        return ""
    rows = []
    for job in check.jobs[:JOBS_SHOWN]:
        own = "" if job.worst is None else f"{job.worst[0]} {job.worst[1]:.3g}"
        state = f"{job.state}: {job.note}" if job.note else job.state
        rows.append(
            (f"{job.when:%Y-%m-%d %H:%M}", job.operation, job.model, job.rows, job.sampled, own, job.input, state)
        )
    heads = ("ended", "operation", "model", "rows", "read again", "its first rows' PSI", "input", "state")
    left = len(check.jobs) - len(rows)
    more = f"<p class='soft'>{left:,} older ones were looked at, too.</p>" if left else ""
    return _section("jobs", "The jobs", _table("jobs", heads, rows, wrap=("input", "state")) + more)
