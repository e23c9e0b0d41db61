"""Whether the rows that jobs meet are still like those that their model learned from.

A check reads rows of recent jobs again, compares them with the reference of the champion's bundle, and scores where the model
scores.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sevenfold import drift, findings, histograms, operations, resampling, score_drift
from sevenfold.applications.anomaly import Anomaly
from sevenfold.bundles import Bundle
from sevenfold.findings import Finding
from sevenfold.histograms import Histogram
from sevenfold.registry.receipts import Receipt
from sevenfold.resampling import Job, Sample
from sevenfold.score_drift import Scores

ROWS = 10_000
"""Rows that a check compares at most, of all jobs together."""


@dataclass(frozen=True)
class Check:
    """What came of looking at the jobs of a model.

    model, digest: of the champion whose reference the rows were compared with.
    jobs: the newest first.
    rows: how many were compared. refused: how many more the model would not take.
    drift, scores: None where there were no rows; scores of anomaly models alone.
    """

    model: str
    digest: str
    when: datetime
    jobs: tuple[Job, ...]
    rows: int
    refused: int
    drift: drift.Drift | None
    scores: Scores | None
    findings: tuple[Finding, ...]
    histograms: tuple[Histogram, ...] = ()

    @property
    def large(self) -> bool:
        """Whether there is more than is tolerated of what training again may mend."""
        return any(f.large and f.curable for f in self.findings)

    @property
    def newest(self) -> str:
        """What tells whether another check has seen other rows: the digest of the newest job's input."""
        newest = resampling.newest(self.jobs)
        return "" if newest is None else newest.digest

    @property
    def seen(self) -> int:
        """Rows that anything is known of, those of jobs whose input is gone counted as far as their receipts do."""
        return self.rows + self.refused + sum(job.first_rows for job in self.jobs if job.stands_in)

    @property
    def worst(self) -> tuple[str, float] | None:
        """Return the name and PSI of what is farthest, of rows and of receipts; None where nothing is known."""
        known = [] if self.drift is None else [self.drift.worst]
        known += [*filter(None, (resampling.stood_in(self.jobs), resampling.newest_worst(self.jobs)))]
        return max(known, key=lambda one: one[1], default=None)

    def metrics(self) -> dict[str, float]:
        """Return the numbers by name, as the tracking store gets them; of columns the farthest `drift.SHOWN`."""
        found: dict[str, float] = {"jobs": len(self.jobs), "rows": self.rows, "refused": self.refused}
        if self.worst is not None:
            found["drift_worst"] = self.worst[1]
        if self.rows + self.refused:
            found["refused_share"] = self.refused / (self.rows + self.refused)
        if self.drift is not None:
            ranked = self.drift.ranked
            found["missing_worst"] = max((abs(m.missing_now - m.missing_then) for m in ranked), default=0.0)
            found |= {f"drift_psi.{m.name}": m.psi for m in ranked[: drift.SHOWN]}
            found |= {f"drift_distance.{m.name}": m.distance for m in ranked[: drift.SHOWN] if m.distance is not None}
            if self.drift.error is not None:
                found["error_psi"] = self.drift.error.psi
            if self.drift.error_ratio is not None:
                found["error_ratio"] = self.drift.error_ratio
        if self.scores is not None:
            told = asdict(self.scores)
            found |= {f"{n}_share": told[n] for n in ("flagged", "expected")}
            found |= {f"score_{n}": told[n] for n in ("psi", "ks") if told[n] is not None}
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON of bounded size."""
        return {
            "model": self.model,
            "digest": self.digest,
            "when": self.when.isoformat(timespec="seconds"),
            "jobs": [asdict(job) | {"when": job.when.isoformat(timespec="seconds")} for job in self.jobs],
            "rows": self.rows,
            "refused": self.refused,
            "drift": None if self.drift is None else self.drift.to_json(),
            "scores": None if self.scores is None else asdict(self.scores),
            "findings": [asdict(f) for f in self.findings],
            "histograms": [asdict(h) for h in self.histograms],
        }

    def sentence(self) -> str:
        """Return what a person should know, in one line."""
        read = sum(job.state == "read" for job in self.jobs)
        many = f"{len(self.jobs)} job{'s' * (len(self.jobs) != 1)}"
        looked = f"{many}, {read} of them read again" if read != len(self.jobs) else many
        if not self.jobs:
            return f"{self.model}: no job to look at"
        told = [] if self.drift is None else [self.drift.sentence()]
        if self.refused:
            told.append(f"{self.refused:,} rows that the model does not take")
        if self.scores is not None:
            told.append(f"{self.scores.flagged:.1%} of rows flagged, {self.scores.expected:.1%} expected")
        return f"{self.model}: {looked}: {'; '.join(told) or 'nothing to compare'}"


def examine(
    bundle: Bundle,
    receipts: Sequence[Receipt],
    *,
    model: str,
    digest: str,
    when: datetime,
    own: Path | None = None,
    rows: int = ROWS,
    tolerated: float = drift.LARGE,
) -> Check:
    """Read rows of jobs again, and compare them with what the bundle learned from.

    An input that is gone or was changed since is not read; where the job used this very bundle, what its receipt says of
    its first rows stands in its place.

    Args:
        receipts: the newest first; of several with one input the newest counts.
        own: the data set's own file, which the model learned from: a job on it tells nothing.
        rows: to compare, at most; of large samples fewer.
        tolerated: the PSI above which a finding is large.

    Raises:
        ValueError: the bundle has no reference.
    """
    if bundle.reference is None:
        raise ValueError(
            f"{model} does not know what its training rows looked like: its bundle is of a format before 4; train and "
            "publish it again"
        )
    bundle = operations.accepting(bundle)
    sample, told = resampling.resample(bundle, receipts, digest=digest, own=own, rows=rows)
    return judge(
        bundle,
        sample,
        told,
        model=model,
        digest=digest,
        when=when,
        tolerated=tolerated,
    )


def judge(
    bundle: Bundle,
    sample: Sample,
    told: tuple[Job, ...],
    *,
    model: str,
    digest: str,
    when: datetime,
    tolerated: float = drift.LARGE,
) -> Check:
    """Compare a sample of rows, which may have none, with what the bundle learned from."""
    assert bundle.reference is not None
    x, observed = sample.x, sample.observed
    found, scores, drawn = None, None, []
    if len(x):
        found = drift.compare(bundle.reference, bundle.model, bundle.schema, x, observed)
        drawn = histograms.of_columns(bundle, found, x, observed)
        if isinstance(bundle.application, Anomaly):
            scores, of_scores = score_drift.compare(
                bundle.application, bundle.application.score(bundle.model, x, observed)
            )
            drawn.append(of_scores)
    told_of = [
        *([] if found is None else findings.of_columns(found, tolerated, anomalies=scores is not None)),
        *findings.of_refused(sample),
        *([] if scores is None else findings.of_scores(scores, tolerated)),
        *findings.of_jobs(told, tolerated),
    ]
    return Check(model, digest, when, told, len(x), sample.refused, found, scores, tuple(told_of), tuple(drawn))
