"""The threshold of a trained anomaly model: what each setting would flag, and its move to another one without retraining."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sevenfold import bundles, formats, thresholds
from sevenfold.applications.anomaly import Anomaly
from sevenfold.bundles import Bundle
from sevenfold.registry import promotion, versions
from sevenfold.workspace import Workspace

BATCH_SIZE = 8192
"""Rows of a file that are scored at a time."""

MEASURED_AT_THRESHOLD = ("false_positive_rate", "recall")
"""Metrics that are of another threshold once it has moved."""


@dataclass(frozen=True)
class Setting:
    """A policy and its value, and the expected share of anomalies where somebody names one."""

    policy: thresholds.Policy
    value: float
    share: float | None

    def __str__(self) -> str:
        return f"{self.policy} {self.value:g}" + (f" at a share of {self.share:g}" if self.share is not None else "")


@dataclass(frozen=True)
class Effect:
    """What a setting would flag.

    normal, strange: shares of the held-out normal rows, and of the anomalies of `Anomaly.known`.
    rows: of a file that was given; None without one.
    used: whether the model has this setting.
    """

    setting: Setting
    threshold: float
    normal: float
    strange: float
    rows: int | None
    used: bool


def application(bundle: Bundle) -> Anomaly:
    """Return the bundle's anomaly application.

    Raises:
        ValueError: it has another one, which has no threshold.
    """
    if not isinstance(bundle.application, Anomaly):
        raise ValueError(f"this model is for {bundle.application_name}, which has no threshold; name an anomaly model")
    return bundle.application


def setting(of: Anomaly) -> Setting:
    return Setting(of.policy, of.value, of.share)


def scores(bundle: Bundle, source: Path) -> np.ndarray:
    """Return the score of each row of a file, (n,).

    Raises:
        FileNotFoundError, FormatError: the file cannot be read or has no rows.
        DataError: rows do not fit the model's schema.
    """
    parts = []
    for rows in formats.batches(source, BATCH_SIZE):
        x, observed = bundle.schema.transform(rows)
        parts.append(application(bundle).score(bundle.model, x, observed))
    return np.concatenate(parts)


def effects(
    of: Anomaly, wanted: Setting | None, *, share: float | None = None, scored: np.ndarray | None = None
) -> list[Effect]:
    """Return what the setting in use would flag, and the one that is wanted; without one, those worth a look.

    Args:
        share: of anomalies that is expected, for settings that are worth a look; by default the application's own.
        scored: scores of a file's rows, (n,).

    Raises:
        ValueError: the wanted setting is out of range or needs to know more.
    """
    used = setting(of)
    if wanted is not None:
        others = [wanted]
    else:
        share = of.share if share is None else share
        others = [Setting(policy, value, share) for policy, some in thresholds.SETTINGS.items() for value in some]
        if share is None and not of.known.share:
            others = [one for one in others if one.policy != "cost"]  # which nobody can tell without a share
    found = []
    for one in sorted({used, *others}, key=lambda s: (thresholds.POLICIES.index(s.policy), s.value)):
        moved = of if one == used else of.moved(one.policy, one.value, one.share)
        found.append(
            Effect(
                one,
                moved.threshold,
                thresholds.flagged(of.known.normal, moved.threshold),
                thresholds.flagged(of.known.strange, moved.threshold),
                None if scored is None else int((scored > moved.threshold).sum()),
                one == used,
            )
        )
    return found


def moved(bundle: Bundle, to: Setting) -> Bundle:
    """Return the bundle with its threshold at another setting; weights and scores stay."""
    return replace(bundle, application=application(bundle).moved(to.policy, to.value, to.share))


def move(workspace: Workspace, name: str, number: int, to: Setting) -> tuple[versions.Version, bool]:
    """Publish a version of a registered model again, with its threshold moved, and make it champion if that one was.

    Moving it to where some version has it already publishes nothing. Returns the version, and whether it is champion now.

    Raises:
        LookupError: there is no such version.
        ValueError: it has no threshold, or the setting is out of range or needs to know more.
    """
    # No election may come between looking at the champion and taking its place.
    with workspace.lock(f"election-{name}"):
        before = next((v for v in versions.every(workspace, name) if v.number == number), None)
        if before is None:
            raise LookupError(f"{name} has no version {number}; `sevenfold models {name}` lists them")
        bundle = bundles.load(versions.bundle_folder(workspace, before), expected=before.digest)
        held, used = application(bundle).known.normal, setting(application(bundle))
        changed = moved(bundle, to)
        now = application(changed)
        with tempfile.TemporaryDirectory() as room:
            folder = Path(room) / "bundle"
            bundles.save(folder, changed)
            version, _ = versions.republish(
                workspace,
                before,
                folder,
                without=tuple(f"{part}.{m}" for part in ("validation", "test") for m in MEASURED_AT_THRESHOLD),
                metrics={
                    "threshold": now.threshold,
                    "held_out.false_positive_rate": thresholds.flagged(held, now.threshold),
                },
                tags={"moved_from": before.label, "moved_threshold": f"from {used} to {to}"},
                description=f"{before.label} with its threshold moved from {used} to {to}.",
            )
        if versions.CHAMPION in before.aliases and version.number != before.number:
            reason = f"it is {before.label} with its threshold moved from {used} to {to}"
            version = promotion.promote(workspace, version, reasons=[reason], against=before.number, by_hand=True)
        return version, versions.CHAMPION in version.aliases
