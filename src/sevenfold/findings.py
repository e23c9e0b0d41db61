"""What is not as it was when a model was trained: each finding with a number, what was expected, and how to read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sevenfold import drift, formats, resampling
from sevenfold.resampling import Job, Sample
from sevenfold.score_drift import Scores

REFUSED = 0.05
"""Share of rows that the model does not take from which on it is large."""

Kind = Literal["column", "gaps", "error", "categories", "refused", "scores", "flags", "job"]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was.

    what: the column, or what else it is about.
    number: how far it is off; what it measures, `expectation` says.
    reading: how to read it.
    large: whether it is more than is tolerated.
    curable: whether training again may mend it. Gaps and rows that do not fit are mended at their source, and more flags, and
        worse reconstructions by a model of anomalies, may be what it is there to find.
    """

    kind: Kind
    what: str
    number: float
    expectation: str
    reading: str
    large: bool
    curable: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.number:.3g}; expected {self.expectation}; {self.reading}"


def of_columns(found: drift.Drift, tolerated: float, *, anomalies: bool) -> list[Finding]:
    """Return what rows tell, column by column, the farthest first, and the reconstruction error after them.

    Args:
        tolerated: the PSI above which a finding is large.
        anomalies: whether the model is there to find rows that it reconstructs badly.
    """
    told = []
    expectation = f"a PSI up to {drift.SOME:g}"
    for measure in [m for m in found.ranked if m.psi >= drift.SOME][: drift.SHOWN]:
        missing = measure.missing_then, measure.missing_now
        gaps = resampling.gaps_explain(missing, (found.rows_then, found.rows), measure.psi_raw)
        reading = (
            f"{measure.missing_now:.0%} gaps in place of {measure.missing_then:.0%}: look at what broke at its source"
            if gaps
            else _moved(measure)
        )
        kind: Kind = "gaps" if gaps else "column"
        told.append(Finding(kind, measure.name, measure.psi, expectation, reading, measure.psi > tolerated, not gaps))
    error = found.error
    if error is not None and found.error_rose and error.psi >= drift.SOME:
        ratio = "" if found.error_ratio is None else f"{found.error_ratio:.3g} times that of held-out rows: "
        alone = (
            "columns no longer go together as they did" if not told else "the model does not know these rows any more"
        )
        reading = ratio + alone + ("; or there are more anomalies: look at some" if anomalies else "")
        told.append(
            Finding("error", drift.ERROR, error.psi, expectation, reading, error.psi > tolerated, not anomalies)
        )
    return told


def _moved(measure: drift.Measure) -> str:
    if measure.distance is None:
        return "no value is left to compare"
    name = "total variation" if measure.categorical else "KS"
    return f"its values moved ({name} {measure.distance:.2f}): look at what changed where they come from"


def of_refused(sample: Sample) -> list[Finding]:
    """Return what is wrong with rows that the model does not take: new categories by column, and all else."""
    if not sample.refused:
        return []
    rows = len(sample.x) + sample.refused
    told = []
    for column, values in sample.fresh.items():
        count = sum(values.values())
        named = formats.shown(sorted(values, key=lambda v: (-values[v], v)))
        reading = f"share of rows with new categories {named}: map them to known ones, or train again with them"
        told.append(
            Finding("categories", column, count / rows, "no new categories", reading, count / rows >= REFUSED, True)
        )
    if sample.reasons:
        share = sum(sample.reasons.values()) / rows
        first = max(sample.reasons, key=lambda reason: sample.reasons[reason])
        reading = f"share of rows that do not fit; most often: {first}; mend them at their source"
        told.append(
            Finding("refused", "rows", share, "none that the model does not take", reading, share >= REFUSED, False)
        )
    return told


def of_jobs(told: Sequence[Job], tolerated: float) -> list[Finding]:
    """Return what receipts alone tell: of inputs that are gone, and of the newest job, which others would hide."""
    found = []
    expectation = f"a PSI up to {drift.SOME:g}"
    mean, apart = resampling.stood_in(told), [job for job in told if job.stands_in]
    if mean is not None and mean[1] >= drift.SOME:
        what = f"{len(apart)} job{'s' * (len(apart) != 1)} whose input is not there any more"
        reading = f"mean of the first rows of each, as receipts have it, farthest in {mean[0]}; keep inputs to see more"
        kind: Kind = "gaps" if all(job.by_gaps for job in apart) else "job"
        found.append(Finding(kind, what, mean[1], expectation, reading, mean[1] > tolerated, kind == "job"))
    last = resampling.newest(told)
    if last is not None and last.worst is not None and last.worst[1] >= drift.SOME and apart != [last]:
        name, psi = last.worst
        what = f"{name} in the newest job, of {last.when:%Y-%m-%d %H:%M}"
        reading = f"as its receipt has it of its first {last.first_rows:,} rows"
        reading += ", by gaps: look at what broke at its source" if last.by_gaps else ""
        kind = "gaps" if last.by_gaps else "job"
        found.append(Finding(kind, what, psi, expectation, reading, psi > tolerated, not last.by_gaps))
    return found


def of_scores(scores: Scores, tolerated: float) -> list[Finding]:
    """Return whether scores moved, and whether more rows are flagged, or fewer, than chance explains."""
    told = []
    if scores.psi is not None and scores.psi >= drift.SOME:
        reading = f"scores moved (KS {scores.ks:.2f}): look at the highest ones before the threshold is trusted"
        told.append(
            Finding(
                "scores", "scores", scores.psi, f"a PSI up to {drift.SOME:g}", reading, scores.psi > tolerated, False
            )
        )
    if scores.beyond_chance:
        more = scores.flagged > scores.expected
        reading = (
            "share flagged: an attack, a fault, or rows that the model does not know; look at some before training again"
            if more
            else "share flagged: the model may be blind to what it should find"
        )
        told.append(
            Finding(
                "flags", "flags", scores.flagged, f"about {scores.expected:.3g}", reading, large=True, curable=False
            )
        )
    return told
