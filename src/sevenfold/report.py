"""The report: every contest's table, verdict and curves as one HTML file that opens offline."""

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sevenfold.evaluation import Contest, number

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #b35900; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #f0883e; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; } td.n { white-space: nowrap; } td.wrap { min-width: 14rem; }
tr.chosen td { font-weight: 600; background: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); } .aside { opacity: .75; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
"""

NEAREST = 1e-4
"""Of the first epoch's distance to the best: what is nearer is drawn as this near, on a logarithmic axis."""


def page(
    contests: Sequence[Contest], verdicts: Mapping[str, Mapping[str, Any]], curves: Mapping[str, pd.DataFrame]
) -> str:
    """Return the report. Same results, same bytes.

    Args:
        verdicts: each data set's validation verdict, as JSON.
        curves: each candidate's history.
    """
    parts = ["<h1>Does an autoencoder help on these data?</h1>", _overview(contests), _data(verdicts)]
    parts += [_contest(c, {n: curves[n] for n in c.candidates if n in curves}) for c in contests]
    parts.append("<p class='aside'>Rebuild with <code>dvc repro</code>. Candidates are chosen on validation rows; every number "
                 "here is measured on test rows. Intervals are 95 %, paired bootstrap.</p>")  # fmt: skip
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<link rel='icon' href='data:,'><title>sevenfold report</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _cell(value: str, kind: str = "") -> str:
    return f"<td class='{kind}'>{html.escape(value)}</td>" if kind else f"<td>{html.escape(value)}</td>"


def _table(head: Sequence[tuple[str, str]], rows: Sequence[str]) -> str:
    cells = "".join(
        f"<th scope='col' class='{k}'>{html.escape(h)}</th>" if k else f"<th scope='col'>{html.escape(h)}</th>"
        for h, k in head
    )
    return f"<div class='scroll'><table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _overview(contests: Sequence[Contest]) -> str:
    rows = []
    for c in contests:
        ours = number(c.score(c.chosen)) if c.chosen else "-"
        theirs = number(c.score(c.rival)) if c.rival else "-"
        tone = "good" if c.against is not None and c.against.low > 0 else "bad"
        cells = [
            _cell(c.dataset),
            _cell(c.application),
            _cell(c.chosen or "-"),
            _cell(ours, "n"),
            _cell(c.rival or "-"),
            _cell(theirs, "n"),
        ]
        rows.append(f"<tr>{''.join(cells)}{_cell(c.verdict, f'wrap {tone}')}</tr>")
    head = [
        ("data set", ""),
        ("application", ""),
        ("winner", ""),
        ("winner's number", "n"),
        ("best rival", ""),
        ("rival's number", "n"),
        ("verdict", ""),
    ]
    return _table(head, rows) if rows else "<p>No contest has a result.</p>"


def _data(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, verdict in verdicts.items():
        failed = sum(not e["success"] for e in verdict["expectations"])
        tone = "good" if verdict["passed"] else "bad"
        rows.append(
            f"<tr>{_cell(name)}{_cell('passed' if verdict['passed'] else 'failed', tone)}{_cell(str(verdict['rows']), 'n')}"
            f"{_cell(str(len(verdict['expectations'])), 'n')}{_cell(str(failed), 'n')}</tr>"
        )
    head = [("data set", ""), ("validation", ""), ("rows", "n"), ("expectations", "n"), ("not met", "n")]
    return f"<h2>Data</h2>{_table(head, rows)}" if rows else ""


def _contest(contest: Contest, curves: Mapping[str, pd.DataFrame]) -> str:
    everyone = {**contest.candidates, **contest.rivals}
    extra = sorted({m for j in everyone.values() for m in j.test.metrics} - {contest.primary})
    head = [("name", ""), ("kind", ""), *((m.replace("_", " "), "n") for m in [contest.primary, *extra])]
    names = sorted(everyone, key=lambda n: (-contest.score(n), n))
    rows = []
    for name in names:
        kind = "autoencoder" if name in contest.candidates else "rival"
        metrics = everyone[name].test.metrics
        cells = [_cell(name), _cell(kind), _cell(number(metrics[contest.primary]), "n")]
        cells += [_cell(number(metrics[m]) if m in metrics else "-", "n") for m in extra]
        rows.append(
            f"<tr class='chosen'>{''.join(cells)}</tr>" if name == contest.chosen else f"<tr>{''.join(cells)}</tr>"
        )
    for name, reason in contest.missing.items():
        why = html.escape(f"no result: {reason}")
        rows.append(f"<tr>{_cell(name)}<td class='wrap bad' colspan='{len(head) - 1}'>{why}</td></tr>")
    heading = f"{contest.dataset}: {contest.application}"
    verdict = html.escape(contest.verdict)
    return f"<h2>{html.escape(heading)}</h2><p>{verdict}.</p>{_table(head, rows)}{_curves(contest, curves)}"


def above_best(losses: pd.Series) -> pd.Series:
    """Return how far each epoch's loss is above the best, as a share of what the first one was; at least `NEAREST`."""
    above: pd.Series = losses - losses.min()
    # Where the first epoch is the best one, of the farthest.
    share: pd.Series = above / (above.iloc[0] or above.max() or 1.0)
    return share.clip(lower=NEAREST)


def _curves(contest: Contest, curves: Mapping[str, pd.DataFrame]) -> str:
    """Draw how far each candidate's validation loss is from its best, for those that have more than one epoch.

    Losses of different variants are different things, squared errors or bounds on a likelihood, and comparing their
    values would mislead; how each of them falls and whether it rises again can be seen side by side.
    """
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Names inside an SVG are random unless they are salted; the date would change every time.
    with mpl.rc_context({"svg.hashsalt": contest.name, "font.size": 9}):
        figure = Figure(figsize=(7, 2.6), layout="constrained")
        axes = figure.subplots()
        for name, curve in curves.items():
            axes.plot(curve["epoch"], above_best(curve["validation_loss"]), label=name, linewidth=1.2)
        axes.set(xlabel="epoch", ylabel="validation loss above its best", yscale="log", ylim=(NEAREST / 2, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    label = html.escape(f"Validation loss above its best by epoch of {', '.join(curves)}", quote=True)
    svg = svg[svg.index("<svg") :].replace("<svg", f"<svg role='img' aria-label='{label}'", 1)
    return f"<figure>{svg}</figure>"
