"""The report as one HTML page that needs nothing but itself: an overview, then each data set and its contests."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal
from urllib.parse import quote

from sevenfold import document, gate, glossary
from sevenfold.evaluation import DRAWS, GROUP, Contest, Judgement, difference, label, number
from sevenfold.pictures import Picture

SHOWN = 5
"""Metrics in a contest's first table; all of them are in another one, which is folded."""

SEVERAL = 6
"""Contests from which on pictures are folded too."""

EXAMPLES = 3
"""Values that stand for all that did not meet an expectation."""

# Colours keep a contrast of 4.5 to 1 or more on their background, in light and in dark.
_STYLE = """
:root { --win: #1a6b36; --loss: #8a4500; --open: #4b5560; --none: #b3261e; --chosen: #eaf3ec; }
@media (prefers-color-scheme: dark) { :root { --win: #7fd99a; --loss: #f2b063; --open: #b6c0ca; --none: #ff9a91; --chosen: #1d2b22; } }
html { scroll-padding-top: 1rem; }
main { max-width: 76rem; }
h2 { font-size: 1.4rem; margin: 2.25rem 0 .75rem; padding-top: 1rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.15rem; margin: 0; }
h4 { font-size: 1rem; margin: 1rem 0 .5rem; }
p { margin: .5rem 0; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
nav ul, ul.overview { list-style: none; padding: 0; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .75rem 0; }
nav a { display: inline-block; padding: .25rem 0; }
ul.overview { margin: 1rem 0; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
ul.overview li {
  display: grid; grid-template-columns: minmax(9rem, 14rem) 13.5rem 1fr; gap: .25rem 1rem; padding: .6rem 1rem;
  border-top: 1px solid var(--line); align-items: start;
}
ul.overview li:first-child { border-top: 0; }
.mark { font-weight: 600; }
.win { color: var(--win); } .loss { color: var(--loss); } .open { color: var(--open); } .none { color: var(--none); }
.soft { color: var(--soft); }
section.contest {
  background: var(--card); border: 1px solid var(--line); border-left: .5rem solid var(--open); border-radius: .5rem;
  padding: 1rem 1.25rem; margin: 1.25rem 0;
}
section.contest.is-win { border-left-color: var(--win); } section.contest.is-loss { border-left-color: var(--loss); }
section.contest.is-none { border-left-color: var(--none); }
.head { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; align-items: baseline; } .head a { margin-left: auto; }
table { margin: .5rem 0; }
table.wide { width: 100%; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--card); }
.text { display: block; font-weight: 400; font-size: .85rem; color: var(--soft); }
th.meaning { min-width: 13rem; }
tr.chosen > * { background: var(--chosen); } tr.chosen td.n { font-weight: 600; }
abbr { text-decoration: none; }
svg.bar { width: 6.5rem; height: 1.56rem; display: block; }
svg.bar .zero { stroke: var(--soft); stroke-width: .6; stroke-dasharray: 2 1.5; }
svg.bar .span { stroke: currentColor; stroke-width: 2; } svg.bar .dot { fill: currentColor; }
.figures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
figure.png { grid-column: 1 / -1; }
figure img { max-width: max(100%, 30rem); }
details { border-top: 1px solid var(--line); margin: .5rem 0 0; }
summary { cursor: pointer; font-weight: 600; padding: .6rem 0; }
ul.notes { margin: .5rem 0; padding-left: 1.25rem; }
code, pre { font: .9em ui-monospace, monospace; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: .35rem; padding: .75rem; margin: .5rem 0; overflow-x: auto; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0; }
@media (max-width: 48rem) {
  main { padding: 1rem .6rem 3rem; }
  ul.overview li { grid-template-columns: 1fr; }
  section.contest { padding: .75rem .6rem; border-left-width: .3rem; }
  tbody th { min-width: 9rem; overflow-wrap: anywhere; }
}
@media print { details::details-content { content-visibility: visible; } }
""".strip()


@dataclass(frozen=True)
class Timing:
    """How long a stage took when it last ran here, in seconds, and on what."""

    seconds: float
    machine: str


@dataclass(frozen=True)
class Chapter:
    """One contest, with what is told of it beside its scores.

    about: what the application judges, in a sentence.
    variants: the variant of each candidate, also of one without a result.
    differences: of everybody but the chosen, its primary metric minus the chosen one's; text says why there is none.
    compared: pictures of all side by side. own: of the chosen candidate at work. curves: of the trainings.
    remarks: what the chosen one's training said of itself.
    timings: by (stage, data set or candidate) of what has a result, in order; None where the stage did not run here.
    """

    contest: Contest
    about: str = ""
    variants: Mapping[str, str] = field(default_factory=dict)
    differences: Mapping[str, gate.Interval | str] = field(default_factory=dict)
    compared: Sequence[Picture] = ()
    own: Sequence[Picture] = ()
    curves: Picture | None = None
    remarks: Sequence[str] = ()
    timings: Mapping[tuple[str, str], Timing | None] = field(default_factory=dict)


Outcome = Literal["win", "loss", "open", "none"]

MARKS: Mapping[Outcome, str] = {"win": "▲", "loss": "▼", "open": "●", "none": "✕"}


def outcome(contest: Contest) -> tuple[Outcome, str]:
    """Return how a contest ended, in a word and in a few; it says what `Contest.verdict` says."""
    if contest.chosen is None:
        return "none", "no result"
    if contest.rival is None or contest.against is None:
        return "open", "no rival"
    if number(contest.score(contest.chosen)) == number(contest.score(contest.rival)):
        return "open", "no difference that matters"
    if contest.against.low > 0:
        return "win", "autoencoder wins"
    if contest.against.high < 0:
        return "loss", "rival wins"
    return "open", "no proven difference"


def ranked(contest: Contest) -> dict[str, Judgement]:
    """Return candidates and rivals, the best on the test rows first; equals by name."""
    everyone = {**contest.candidates, **contest.rivals}
    return dict(sorted(everyone.items(), key=lambda item: (-contest.score(item[0]), item[0])))


def shown(contest: Contest) -> list[str]:
    """Return the metrics of the first table: the primary one, then those that say most.

    These are what most of the table can be filled with and the glossary explains; of several of a kind, as at several
    levels of noise, one comes first, and the others after one of each other kind.
    """
    everyone = ranked(contest).values()
    names = {metric for judgement in everyone for metric in judgement.test.metrics} - {contest.primary}
    kinds: dict[str, int] = {}
    keys = {}
    for metric in sorted(names, key=lambda m: (m.count("_"), m)):
        meaning = glossary.explain(metric)
        kind = meaning.term if meaning else metric
        holders = sum(metric in judgement.test.metrics for judgement in everyone)
        keys[metric] = (-holders, meaning is None, kinds.get(kind, 0))
        kinds[kind] = kinds.get(kind, 0) + 1
    return [contest.primary, *sorted(keys, key=keys.__getitem__)[: SHOWN - 1]] if everyone else []


def page(chapters: Sequence[Chapter], verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the report. The same results give the same bytes, as long as the timings are the same.

    Args:
        verdicts: each data set's validation verdict, as JSON, in the order of the page.
    """
    datasets = list(dict.fromkeys([*verdicts, *(c.contest.dataset for c in chapters)]))
    parts = [
        "<h1>Does an autoencoder help on these data?</h1>",
        _navigation(datasets),
        _overview(chapters),
        _reading(),
    ]
    for dataset in datasets:
        own = [c for c in chapters if c.contest.dataset == dataset]
        parts.append(_dataset(dataset, verdicts.get(dataset), own, folded=len(chapters) > SEVERAL))
    parts.append(_rebuilding())
    return document.html("sevenfold report", f"{document.TABLES}\n{document.FIGURES}\n{_STYLE}", parts)


def _anchor(*names: str) -> str:
    """Return an id that a link can name."""
    return "-".join(re.sub(r"[^\w.-]+", "_", name) for name in names)


def _link(anchor: str, text: str) -> str:
    return f"<a href='#{quote(anchor)}'>{escape(text)}</a>"


def _mark(contest: Contest) -> str:
    kind, words = outcome(contest)
    return f"<span class='mark {kind}'><span aria-hidden='true'>{MARKS[kind]}</span> {words}</span>"


def _navigation(datasets: Iterable[str]) -> str:
    links = [("overview", "Overview"), ("reading", "How to read this")]
    links += [(_anchor("data", d), d) for d in datasets] + [("rebuilding", "Make it again")]
    items = "".join(f"<li>{_link(*link)}</li>" for link in links)
    return f"<nav aria-label='Contents'><ul>{items}</ul></nav>"


def _overview(chapters: Sequence[Chapter]) -> str:
    heading = "<h2 id='overview'>Overview</h2>"
    if not chapters:
        return f"{heading}<p>No contest was held: no candidate in params.yaml takes part in one.</p>"
    ends = [outcome(c.contest)[0] for c in chapters]
    told = {
        "win": "won by an autoencoder",
        "open": "without a proven difference",
        "loss": "won by a rival",
        "none": "without a result",
    }
    counts = ", ".join(f"{ends.count(kind)} {words}" for kind, words in told.items() if kind in ends)
    lines = []
    for chapter in chapters:
        contest = chapter.contest
        name = _link(_anchor(contest.dataset, contest.application), f"{contest.dataset}: {contest.application}")
        lines.append(f"<li><span>{name}</span>{_mark(contest)}<span>{escape(_sentence(contest.verdict))}</span></li>")
    plural = "contests" if len(chapters) > 1 else "contest"
    return f"{heading}<p>{len(chapters)} {plural}: {counts}.</p><ul class='overview'>{''.join(lines)}</ul>"


def _sentence(text: str) -> str:
    """Close a clause with a full stop. Names keep their small letters."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _reading() -> str:
    entries = {
        "Candidates and rivals": "Candidates are autoencoders; rivals are classical methods for the same task. Both "
        "learned from the same training rows and were tuned on the same validation rows.",
        "Chosen": "The candidate that was best on the validation rows stands for the autoencoders. Numbers are of the "
        "test rows, which nobody had seen, but for those under `on validation`. The best rival is the one that is best "
        "on the test rows, the hardest to beat.",
        "Differences": "Each is somebody's number minus the chosen candidate's, with its 95 % interval: paired bootstrap, "
        f"{DRAWS} draws of the same test rows for both; rows that come in groups are drawn by whole groups. An interval "
        "that holds 0 proves nothing. Each interval stands for itself: of twenty, one may miss by chance.",
        "↑ and ↓": "Higher or lower is better. The first metric of a table decides, and there higher is always better.",
        "How long it took": "The time of a step when it last ran on this machine. What was taken from the cache has none.",
    }
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items())
    return f"<details id='reading'><summary>How to read this</summary><dl>{listed}</dl></details>"


def _rebuilding() -> str:
    commands = (
        "dvc repro            # every result, without publishing anything\n"
        "sevenfold report     # this page\n"
        "sevenfold run        # both, then publish the winners and elect champions\n"
        "dvc metrics show     # the same numbers in the terminal\n"
        "dvc plots show       # curves and scores as plots"
    )
    return f"<h2 id='rebuilding'>Make it again</h2><pre tabindex='0'>{escape(commands)}</pre>"


def _dataset(name: str, verdict: Mapping[str, Any] | None, chapters: Sequence[Chapter], *, folded: bool) -> str:
    parts = [f"<h2 id='{_anchor('data', name)}'>{escape(name)}</h2>", _verdict(verdict)]
    parts += [_contest(chapter, folded=folded) for chapter in chapters]
    if not chapters:
        parts.append("<p>No candidate takes part in a contest on it.</p>")
    return "\n".join(parts)


def _verdict(verdict: Mapping[str, Any] | None) -> str:
    """Say whether the data met their expectations, and which they did not meet."""
    if verdict is None:
        return "<p class='none'>The data have not been validated yet.</p>"
    failed = [e for e in verdict["expectations"] if not e["success"]]
    count = len(verdict["expectations"])
    size = f"{verdict['rows']:,} rows, {verdict['columns']:,} columns"
    if verdict["passed"]:
        warned = f", with {len(failed):,} warning{'s' * (len(failed) > 1)}" if failed else ""
        state = f"<span class='win'>Data passed</span>{warned}: {size}, {count:,} expectations"
    else:
        state = (
            f"<span class='none'>Data failed</span>: {size}; {len(failed):,} of {count:,} expectations not met, and no "
            "older result counts"
        )
    if not failed:
        return f"<p>{state}.</p>"
    head = [("severity", ""), ("column", "wrap"), ("expected", "wrap"), ("observed", "wrap"), ("values", "n")]
    rows = []
    for e in failed:
        examples = ", ".join(e["examples"][:EXAMPLES])
        observed = escape(e["observed"]) + (f"<span class='text'>{escape(examples)}</span>" if examples else "")
        cells = [
            _cell(e["severity"]),
            _cell(e["column"] or "the table", "wrap"),
            _cell(e["expected"], "wrap"),
            f"<td class='wrap'>{observed}</td>",
            _cell(f"{e['unexpected']:,}", "n"),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    title = f"What {'warns' if verdict['passed'] else 'failed'} ({len(failed):,})"
    return f"<p>{state}.</p><details><summary>{title}</summary>{_table(head, rows, title)}</details>"


def _contest(chapter: Chapter, *, folded: bool) -> str:
    contest = chapter.contest
    kind, _ = outcome(contest)
    anchor, title = _anchor(contest.dataset, contest.application), f"{contest.dataset}: {contest.application}"
    parts = [
        f"<div class='head'><h3 id='{anchor}'>{escape(title)}</h3>{_mark(contest)}{_link('overview', 'overview')}</div>",
        f"<p class='soft'>{escape(chapter.about)}</p>" if chapter.about else "",
        f"<p>{escape(_sentence(contest.verdict))}</p>",
        _notes(chapter),
        _scores(chapter),
    ]
    opened = "" if folded else " open"
    if chapter.compared:
        parts.append(f"<details{opened}><summary>Side by side</summary>{_figures(chapter.compared)}</details>")
    if chapter.own:
        summary = f"{escape(contest.chosen or '')} at work"
        parts.append(f"<details{opened}><summary>{summary}</summary>{_figures(chapter.own)}</details>")
    if contest.candidates or contest.rivals:
        parts.append(f"<details><summary>Every metric, and what it means</summary>{_metrics(contest)}</details>")
    if chapter.curves is not None:
        parts.append(f"<details><summary>How the trainings went</summary>{_figures([chapter.curves])}</details>")
    if chapter.timings:
        parts.append(
            f"<details><summary>How long it took, and on what</summary>{_timings(chapter.timings, title)}</details>"
        )
    parts.append(f"<details><summary>Make it again</summary>{_commands(contest)}</details>")
    body = "\n".join(part for part in parts if part)
    return f"<section class='contest is-{kind}' aria-labelledby='{anchor}'>\n{body}\n</section>"


def _notes(chapter: Chapter) -> str:
    """List what a reader has to know beside the verdict."""
    contest, notes = chapter.contest, []
    if contest.chosen is not None:
        if note := _place(contest):
            notes.append(note)
        values = contest.candidates[contest.chosen].test.values
        count = len(next(iter(values.values())))
        of = f" of {len(set(values[GROUP].tolist())):,} groups, which are drawn whole" if GROUP in values else ""
        notes.append(f"Judged on {count:,} test rows{of}.")
        notes += [f"{contest.chosen}: {_sentence(remark)}" for remark in chapter.remarks]
    return f"<ul class='notes'>{''.join(f'<li>{escape(n)}</li>' for n in notes)}</ul>" if notes else ""


def _place(contest: Contest) -> str:
    """Say where the chosen candidate ended on the test rows, where that is not first of the candidates."""
    assert contest.chosen is not None
    scores = {name: contest.score(name) for name in contest.candidates}
    ahead = [n for n in ranked(contest) if n in scores and scores[n] > scores[contest.chosen]]
    if not ahead or number(scores[ahead[0]]) == number(scores[contest.chosen]):
        return ""
    place = _ordinal(len(ahead) + 1)
    return (
        f"{contest.chosen} was chosen on validation rows; it is {place} of {len(scores)} candidates on the test rows, where "
        f"{ahead[0]} has {label(contest.primary)} {number(scores[ahead[0]])}."
    )


def _ordinal(place: int) -> str:
    words = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
    if place <= len(words):
        return words[place - 1]
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"


def _who(chapter: Chapter, name: str) -> str:
    """Return the heading of somebody's row: the name, and what it is."""
    kind = f"candidate, {chapter.variants[name]}" if name in chapter.variants else "rival"
    # Where a line is too short for a name, it is broken behind an underscore.
    broken = escape(name).replace("_", "_<wbr>")
    return f"<th scope='row'>{broken}<span class='text'>{escape(kind)}</span></th>"


def _scores(chapter: Chapter) -> str:
    """Return the first table: everybody, best first, with differences to the chosen; then who has no result, and why."""
    contest, metrics = chapter.contest, shown(chapter.contest)
    everyone = ranked(contest)
    if not everyone and not contest.missing:
        return ""
    head = [_heading(m) for m in metrics]
    titles = [("name", ""), *head[:1]]
    if contest.chosen is not None:
        titles += [
            ("difference to the chosen", "n"),
            ("<abbr title='95 % intervals; the middle is the chosen'>drawn</abbr>", ""),
        ]
    if everyone:
        titles.append(("on validation", "n"))
    titles += head[1:]
    reach = _reach([i for i in chapter.differences.values() if isinstance(i, gate.Interval)])
    rows = []
    for name, judgement in everyone.items():
        cells = [_who(chapter, name)]
        cells += [_value(judgement, m) for m in metrics[:1]]
        if contest.chosen is not None:
            interval = chapter.differences.get(name)
            cells.append(_cell("chosen", "n") if name == contest.chosen else _difference(interval))
            cells.append(_bar(interval if isinstance(interval, gate.Interval) else None, reach))
        cells.append(_cell(number(judgement.validation.metrics[contest.primary]), "n"))
        cells += [_value(judgement, m) for m in metrics[1:]]
        rows.append(f"<tr{_chosen(contest, name)}>{''.join(cells)}</tr>")
    for name, reason in contest.missing.items():
        why = f"<td class='none wrap' colspan='{max(len(titles) - 1, 1)}'>no result: {escape(reason)}</td>"
        rows.append(f"<tr>{_who(chapter, name)}{why}</tr>")
    if len(titles) == 1:
        titles.append(("result", ""))
    return _table(titles, rows, f"Scores of {contest.name}")


def _chosen(contest: Contest, name: str) -> str:
    return " class='chosen'" if name == contest.chosen else ""


def _heading(metric: str) -> tuple[str, str]:
    """Return a metric's name with its direction as a column's heading, as HTML, and the column's class."""
    meaning = glossary.explain(metric)
    arrow = {"higher": " ↑", "lower": " ↓", None: ""}[meaning.better] if meaning else ""
    text = escape(label(metric)) + arrow
    return (f"<abbr title='{escape(meaning.text)}'>{text}</abbr>" if meaning else text), "n"


def _value(judgement: Judgement, metric: str) -> str:
    metrics = judgement.test.metrics
    return _cell(number(metrics[metric]) if metric in metrics else "-", "n")


def _reach(intervals: Sequence[gate.Interval]) -> float:
    """Return how large a difference the bars show: what is far out is cut off, else all others would be dots."""
    ends = sorted(max(abs(i.low), abs(i.high)) for i in intervals if math.isfinite(i.low) and math.isfinite(i.high))
    return min(ends[-1], 1.5 * ends[len(ends) // 2]) if ends else 0.0


def _difference(interval: gate.Interval | str | None) -> str:
    if interval is None:
        return _cell("-", "n")
    if isinstance(interval, str):
        return _cell(f"none: {interval}", "wrap")
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return _cell(f"{_signed(interval.difference)}, not known how sure", "n")
    kind, word = "open", "not proven"
    if interval.low > 0:
        kind, word = "win", "better"
    elif interval.high < 0:
        kind, word = "loss", "worse"
    span = f"{_signed(interval.low)} to {_signed(interval.high)}"
    return f"<td class='n {kind}'>{_signed(interval.difference)} {word}<span class='text'>{span}</span></td>"


def _signed(value: float) -> str:
    text = difference(value)
    return f"+{text}" if value > 0 else text


def _bar(interval: gate.Interval | None, reach: float) -> str:
    """Return a cell with an interval on a line whose middle is the chosen candidate."""

    def place(value: float) -> str:
        return f"{50 + 48 * max(-1.0, min(1.0, value / reach)):.1f}"

    drawn = "<line class='zero' x1='50' x2='50' y1='0' y2='24'/>"
    kind = "open"
    if interval is not None and reach > 0 and math.isfinite(interval.low) and math.isfinite(interval.high):
        kind = "win" if interval.low > 0 else "loss" if interval.high < 0 else "open"
        if abs(interval.difference) <= reach:
            drawn += f"<line class='span' x1='{place(interval.low)}' x2='{place(interval.high)}' y1='12' y2='12'/>"
            drawn += f"<circle class='dot' cx='{place(interval.difference)}' cy='12' r='2'/>"
        else:  # out of reach: an arrow that points there
            edge, side = (98, 1) if interval.difference > 0 else (2, -1)
            drawn += f"<path class='dot' d='M{edge} 12 l{-6 * side} -4 v8 z'/>"
    return f"<td class='{kind}'><svg class='bar' viewBox='0 0 100 24' aria-hidden='true' focusable='false'>{drawn}</svg></td>"


def _metrics(contest: Contest) -> str:
    """Return every metric of everybody on the test rows, a row for each metric."""
    everyone = ranked(contest)
    names = sorted({metric for judgement in everyone.values() for metric in judgement.test.metrics})
    names = [contest.primary, *(n for n in names if n != contest.primary)]
    titles = [("metric", "meaning"), *((escape(n), "n") for n in everyone)]
    rows = []
    for metric in names:
        meaning = glossary.explain(metric)
        text = f"<span class='text'>{escape(meaning.text)}</span>" if meaning else ""
        heading, _ = _heading(metric)
        values = "".join(_value(judgement, metric) for judgement in everyone.values())
        rows.append(f"<tr><th scope='row' class='meaning'>{heading}{text}</th>{values}</tr>")
    return _table(titles, rows, f"Every metric of {contest.name}")


def _timings(timings: Mapping[tuple[str, str], Timing | None], title: str) -> str:
    what = {
        "rivals": "fit, tune and judge the rivals, in all contests on {}",
        "train": "train {}",
        "evaluate": "judge {}",
    }
    rows = []
    for (stage, subject), timing in timings.items():
        step = f"<th scope='row'>{escape(what[stage].format(subject))}</th>"
        if timing is None:
            rows.append(f"<tr>{step}<td class='soft' colspan='2'>taken from the cache</td></tr>")
        else:
            rows.append(f"<tr>{step}{_cell(duration(timing.seconds), 'n')}{_cell(timing.machine)}</tr>")
    return _table([("step", ""), ("time", "n"), ("on", "")], rows, f"Times of {title}", kind="narrow")


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _commands(contest: Contest) -> str:
    lines = [f"dvc repro rivals@{contest.dataset}"]
    lines += [f"dvc repro evaluate@{name}" for name in [contest.chosen or "NAME"]]
    lines.append("sevenfold run")
    return f"<pre tabindex='0'>{escape(chr(10).join(lines))}</pre>"


def _figures(pictures: Iterable[Picture]) -> str:
    figures = []
    for picture in pictures:
        title = escape(picture.title)
        image = f"<img src='{picture.uri}' alt='{escape(picture.description)}'>"
        figures.append(
            f"<figure class='{picture.kind}'><figcaption>{title}</figcaption>{_scrolling(image, picture.title)}</figure>"
        )
    return f"<div class='figures'>{''.join(figures)}</div>"


def _scrolling(content: str, title: str) -> str:
    """Put something wide into a box that scrolls by itself, by keyboard too."""
    return f"<div class='scroll' role='region' tabindex='0' aria-label='{escape(title)}'>{content}</div>"


def _cell(value: str, kind: str = "") -> str:
    return f"<td class='{kind}'>{escape(value)}</td>" if kind else f"<td>{escape(value)}</td>"


def _table(head: Sequence[tuple[str, str]], rows: Sequence[str], title: str, kind: str = "wide") -> str:
    """Return a table; headings are HTML, with the class of their column."""
    cells = "".join(f"<th scope='col' class='{k}'>{h}</th>" if k else f"<th scope='col'>{h}</th>" for h, k in head)
    body = f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return _scrolling(f"<table class='{kind}'>{body}</table>", title)
