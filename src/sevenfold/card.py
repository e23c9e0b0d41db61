"""A version's model card: what it is for, how good it is, on what, against whom, and how to use it. Pure: Markdown out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sevenfold import evaluation, gate

MOST_SLICES = 20
"""Lines of the table of slices; the page of a version is to be read."""


@dataclass(frozen=True)
class Facts:
    """What a card says.

    about: what the application is, in a sentence.
    rows: of each split, by its name.
    validation: what the check of the data came to, in words.
    against: chosen minus each rival on the test rows, by the rival's name; or why they cannot be compared.
    slices: rows and deciding metric of each part of the test rows, by its name such as "city=Bern"; NaN where the metric
        is not defined; empty where the metric is of no single rows.
    undivided: columns of categories that are not among the slices, since they have too many values.
    takes: what a row is, in words.
    refuses: what is not taken for a row, a sentence each.
    megabytes, milliseconds: of the bundle's files, and for 1,000 rows.
    remarks: what the training said of the model.
    provenance: name -> value, such as the commit.
    """

    contest: evaluation.Contest
    about: str
    variant: str
    operation: str
    digest: str
    rows: Mapping[str, int]
    validation: str
    against: Mapping[str, gate.Interval | str]
    slices: Mapping[str, tuple[int, float]]
    undivided: Sequence[str]
    takes: str
    refuses: Sequence[str]
    megabytes: float
    milliseconds: float
    remarks: Sequence[str]
    provenance: Mapping[str, str]


def markdown(facts: Facts) -> str:
    """Return the card. A contest has to have a chosen candidate.

    Names of columns and candidates are taken as they are, but for what would break a table.
    """
    contest = facts.contest
    assert contest.chosen is not None
    chosen = contest.candidates[contest.chosen]
    metric = evaluation.label(contest.primary)
    example = "rows" if facts.takes.startswith("a table") else "images"
    operation, name = facts.operation, contest.name
    parts = [
        f"# {name}: {contest.chosen} ({facts.variant})",
        f"{facts.about} **Verdict:** {contest.verdict}.",
        "## Use",
        f"```python\nimport sevenfold\nresult = sevenfold.load({name!r}).predict({example})\n```",
        f"```sh\nsevenfold {operation} {name} INPUT OUTPUT\n```",
        "## Against its rivals",
        f"{metric} on the test rows, higher is better. The difference is this model's minus the rival's, with its 95 % "
        "interval (paired bootstrap).",
        _table(
            ["", metric, "difference", "95 % interval", "who wins"],
            [
                [f"**{contest.chosen}** (this model)", evaluation.number(contest.score(contest.chosen)), "", "", ""],
                *(_row(contest, rival, facts.against[rival]) for rival in _ranked(contest)),
            ],
        ),
    ]
    failed = {n: why for n, why in contest.missing.items() if n not in contest.candidates}
    if failed:
        parts.append("Without a result: " + "; ".join(f"{n} ({_cell(why)[:200]})" for n, why in failed.items()) + ".")
    parts += [
        "## Numbers",
        _table(
            ["metric", "test", "validation"],
            [
                [
                    evaluation.label(n),
                    evaluation.number(value),
                    evaluation.number(chosen.validation.metrics[n]) if n in chosen.validation.metrics else "",
                ]
                for n, value in chosen.test.metrics.items()
            ],
        ),
        *_slices(facts),
        "## Cost",
        f"{_amount(facts.megabytes)} MB on disk; {_amount(facts.milliseconds)} ms for 1,000 rows by `{operation}`, on the "
        "processor of the machine that published it.",
        "## Data",
        f"{contest.dataset}: " + ", ".join(f"{count:,} rows of {split}" for split, count in facts.rows.items()) + ". "
        f"Verdict on the data: {facts.validation}.",
        "## Limits",
        "\n".join(
            f"- {line}"
            for line in (
                f"It takes {facts.takes}; anything else is refused with every problem listed.",
                *facts.refuses,
                "The numbers hold for rows like the test rows. Rows far from those of training are computed all the same, and "
                "nothing here says how well.",
                *facts.remarks,
            )
        ),
        "## Provenance",
        _table(["what", "value"], [[n, f"`{v}`"] for n, v in {"digest": facts.digest, **facts.provenance}.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def on_a_page(text: str) -> str:
    """Return a card for MLflow's page of a version, which draws a table's columns without any room between them."""
    lines = text.split("\n")
    return "\n".join(
        line.replace(" | ", "&nbsp;&nbsp;&nbsp; | ") if line.startswith("| ") and not line.startswith("| ---") else line
        for line in lines
    )


def _slices(facts: Facts) -> list[str]:
    """Return the section on slices: the worst first, but those of few rows, which say little, after all others."""
    if not facts.slices:
        return []
    metric = evaluation.label(facts.contest.primary)

    def rank(name: str) -> tuple[bool, bool, float]:
        rows, score = facts.slices[name]
        unknown = not math.isfinite(score)
        return unknown, rows < gate.FEWEST_IN_SLICE, 0.0 if unknown else score

    ranked = sorted(facts.slices, key=rank)
    lines = []
    for name in ranked[:MOST_SLICES]:
        rows, score = facts.slices[name]
        lines.append([name, f"{rows:,}", evaluation.number(score) if math.isfinite(score) else "not defined"])
    said = [f"{metric} on parts of the test rows, the worst first"]
    if any(rows < gate.FEWEST_IN_SLICE for rows, _ in facts.slices.values()):
        said[0] += f"; parts of fewer than {gate.FEWEST_IN_SLICE} rows, which say little, come after the others"
    if len(ranked) > MOST_SLICES:
        said.append(f"{len(ranked) - MOST_SLICES} more are left out")
    if facts.contest.application == "anomaly":
        said.append("A part that is all normal, or all anomalies, is judged together with all rows of the other kind")
    if not all(math.isfinite(score) for _, score in facts.slices.values()):
        said.append(f"Where {metric} is not defined, the rows of the part are too few or too much alike for it")
    if facts.undivided:
        said.append(f"Not divided by {', '.join(facts.undivided)}: too many values")
    return ["## Slices", ". ".join(said) + ".", _table(["slice", "rows", metric], lines)]


def _amount(value: float) -> str:
    """Return three digits of a size or a time, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.3f}"


def scores(contest: evaluation.Contest) -> str:
    """Return everybody's primary metric, the best on test first, as a table in Markdown."""
    metric = evaluation.label(contest.primary)
    everybody = {**contest.candidates, **contest.rivals}
    rows = [
        [
            f"**{n}** (chosen)" if n == contest.chosen else n,
            "candidate" if n in contest.candidates else "rival",
            evaluation.number(contest.score(n)),
            evaluation.number(everybody[n].validation.metrics[contest.primary]),
        ]
        for n in sorted(everybody, key=contest.score, reverse=True)
    ]
    rows += [[n, "no result", "", reason[:200]] for n, reason in contest.missing.items()]
    return _table(["name", "kind", f"{metric} on test", "on validation"], rows) + "\n"


def _ranked(contest: evaluation.Contest) -> list[str]:
    return sorted(contest.rivals, key=contest.score, reverse=True)


def _row(contest: evaluation.Contest, rival: str, found: gate.Interval | str) -> list[str]:
    if isinstance(found, str):
        return [rival, evaluation.number(contest.score(rival)), "", found, "not compared"]
    wins = "this model" if found.low > 0 else rival if found.high < 0 else "not proven"
    between = f"{_signed(found.low)} to {_signed(found.high)}"
    return [rival, evaluation.number(contest.score(rival)), _signed(found.difference), between, wins]


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + evaluation.difference(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
