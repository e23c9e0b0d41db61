"""The stages of dvc.yaml: each reads files, calls one library function, writes files. No side effects beyond its outputs.

A DVC cache hit skips a stage's command, so nothing that has to happen every time may live here.
"""

import hashlib
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sevenfold import (
    arithmetic,
    bundles,
    checkpoints,
    drift,
    evaluation,
    files,
    formats,
    modules,
    params,
    pictures,
    preparation,
    processes,
    training,
    trimming,
)
from sevenfold.applications import base
from sevenfold.applications.base import Application
from sevenfold.datasets.base import Dataset, Split
from sevenfold.models.base import PIECE, Autoencoder, ModelSpec
from sevenfold.params import Params
from sevenfold.workspace import Workspace


def fetch(workspace: Workspace, name: str) -> None:
    """Write a built-in data set as a raw file, as if a user had put it there."""
    entry = params.load(workspace.params).fetch[name]
    source = modules.load("datasets", name).fetch
    if problems := modules.option_problems(source, entry.options, of=f"fetch.{name}"):
        raise ValueError("; ".join(problems))
    rows = source(**entry.options)
    path = workspace.root / entry.path
    if rows.images is None:
        formats.write(path, rows.frame)
    else:
        columns = {str(c): rows.frame[c].to_numpy() for c in rows.frame}
        # Fixed-width text, since an array of objects would need pickle.
        columns = {
            c: v.astype(str) if v.dtype == object or v.dtype.kind not in "biuf" else v for c, v in columns.items()
        }
        with files.whole(path) as draft:
            np.savez_compressed(draft, images=rows.images, **columns)
    print(f"{path.relative_to(workspace.root)}: {len(rows)} rows")


def read_raw(workspace: Workspace, settings: Params, dataset: str) -> formats.Rows:
    entry = settings.datasets[dataset]
    return formats.read(workspace.root / entry.path, **entry.read_options)


def validate(workspace: Workspace, dataset: str) -> None:
    """Check a data set against its suite; writes the verdict and its page, then fails if a critical expectation did."""
    from sevenfold import validation

    rows = read_raw(workspace, params.load(workspace.params), dataset)
    suite = validation.read_suite(workspace.suite(dataset))
    verdict = validation.check(to_validate(rows), suite, dataset=dataset)
    path = workspace.verdict(dataset)
    files.write_text(path, verdict.to_json())
    files.write_text(path.with_suffix(".html"), validation.page(verdict))
    warnings = len(verdict.failures("warning"))
    verdict.require()
    print(
        f"{dataset}: {len(verdict.expectations)} expectations met"
        + (f", but for {warnings} warning{'s' * (warnings > 1)}" if warnings else "")
    )


def to_validate(rows: formats.Rows) -> Any:
    """Return the table that a suite speaks of: the rows themselves, or facts about each image beside its columns."""
    import pandas as pd

    from sevenfold import validation

    if rows.images is None:
        return rows.frame
    facts = validation.describe(rows.images, None)
    return pd.concat([facts, rows.frame.drop(columns=[c for c in rows.frame if c in facts])], axis=1)


def prepare(workspace: Workspace, dataset: str) -> None:
    """Split a data set and turn its rows into tensors."""
    settings = params.load(workspace.params)
    prepared = in_splits(workspace, settings, dataset, seed=settings.datasets[dataset].split.seed)
    prepared.save(workspace.prepared(dataset))
    sizes = ", ".join(f"{len(getattr(prepared, part))} {part}" for part in ("train", "validation", "test"))
    print(f"{dataset}: {sizes} rows of shape {prepared.schema.shape}" + "".join(f"; {n}" for n in prepared.notes))


def in_splits(workspace: Workspace, settings: Params, dataset: str, *, seed: int) -> Dataset:
    """Return a data set as params.yaml describes it, split by `seed`."""
    return of_rows(read_raw(workspace, settings, dataset), settings, dataset, seed=seed)


def of_rows(rows: formats.Rows, settings: Params, dataset: str, *, seed: int) -> Dataset:
    """Return these rows as the data set that params.yaml describes, split by `seed`."""
    entry = settings.datasets[dataset]
    return preparation.prepare(
        dataset,
        rows,
        label=entry.label,
        normal=entry.normal,
        identifier=entry.id,
        group=entry.group,
        part=entry.part,
        drop=entry.drop,
        categorical=entry.categorical,
        value_range=entry.range,
        duplicates=entry.duplicates,
        validation=entry.split.validation,
        test=entry.split.test,
        seed=seed,
    )


def application(settings: Params, dataset: str, name: str) -> Application:
    """Return an application with its options for a data set, not yet calibrated."""
    kind: Any = modules.member("applications", name, Application)
    options, place = settings.applications[dataset][name], f"applications.{dataset}.{name}"
    if problems := modules.option_problems(kind, options, of=place):
        raise ValueError("; ".join(problems))
    try:
        made: Application = kind(**options)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return made


def rivals(workspace: Workspace, dataset: str) -> None:
    """Fit and judge the classical rivals of every application on a data set."""
    settings = params.load(workspace.params)
    prepared = Dataset.load(workspace.prepared(dataset))
    with files.whole(workspace.rivals(dataset)) as draft:
        draft.mkdir()
        for name in settings.applications[dataset]:
            contest = application(settings, dataset, name)
            judged, failed = evaluation.judge_rivals(contest, prepared, seconds=settings.rivals.seconds)
            for rival, judgement in judged.items():
                (draft / name / rival).mkdir(parents=True)
                judgement.save(draft / name / rival, contest.primary)
                print(f"{dataset}-{name}: {rival} {contest.primary} {judgement.test.metrics[contest.primary]:.4f}")
            for rival, reason in failed.items():
                print(f"{dataset}-{name}: {rival} has no result: {reason}")
            (draft / name).mkdir(exist_ok=True)
            files.write_json(draft / name / "failed.json", failed)


def train(workspace: Workspace, candidate: str) -> None:
    """Train one candidate; writes its weights and its curves."""
    settings = params.load(workspace.params)
    entry = settings.candidates[candidate]
    dataset = Dataset.load(workspace.prepared(entry.dataset))
    learn, held_out = dataset.train, dataset.validation
    if entry.rows == "normal":
        learn, held_out = learn.only_normal(), held_out.only_normal()
    spec = ModelSpec.of(entry.variant, dataset.schema.layout, entry.options)
    if problems := spec.problems():
        raise ValueError("; ".join(problems))
    show = _Progress(candidate, settings.settings(candidate).epochs)
    remarks = []
    with processes.joined() as (rank, device):

        def fit(rows: Split, *, untrimmed: bool = False) -> tuple[Autoencoder, training.History]:
            return training.fit(
                spec,
                rows,
                held_out,
                training.Settings(**settings.settings(candidate).model_dump()),
                seed=settings.seed,
                device=device,
                on_epoch=show,
                checkpoint=_checkpoint(workspace, candidate, spec, settings, device, untrimmed=untrimmed),
                cache=workspace.kernels,
            )

        try:
            if entry.trim is not None:
                trained_on = trimming.trimmed(fit(learn, untrimmed=True)[0], learn, entry.trim)
                show.close()
                show = _Progress(candidate, settings.settings(candidate).epochs)
                remarks.append(
                    f"of {len(learn)} training rows {len(learn) - len(trained_on)} were left out, which a first training "
                    "reconstructed worst"
                )
                learn = trained_on
            model, history = fit(learn)
        except training.DivergenceError as error:
            if error.model is not None and rank == 0:
                bundles.save_model(workspace.diverged(candidate), spec, error.model)
                kept = workspace.diverged(candidate).relative_to(workspace.root)
                raise training.DivergenceError(f"{error}; the weights of the best epoch before are in {kept}") from None
            raise
    if rank:
        return  # the first process writes for all
    show.close()
    remarks += [*history.notes, *_remarks(model, held_out)]
    for remark in remarks:
        print(f"{candidate}: {remark}")
    bundles.save_model(workspace.candidate(candidate), spec, model)
    files.write_json(workspace.remarks(candidate), remarks)
    files.write_text(workspace.history(candidate), history.to_csv())
    best = history.best
    count = len(history.epochs)
    learns = any(p.requires_grad for p in model.parameters())
    how = f"{count} epoch{'s' * (count > 1)}, the best of them {best.number}" if learns else "in closed form"
    print(f"{candidate}: {how}, validation loss {best.loss:.6g}")


def _remarks(model: Autoencoder, held_out: Split) -> list[str]:
    """Return what the variant has to say about the trained model; it looks at a few thousand rows at most."""
    import torch

    rows = slice(None, None, -(-len(held_out) // PIECE))
    seen = None if held_out.observed is None else base.tensor(held_out.observed[rows])
    with torch.inference_mode():
        return model.remarks(base.tensor(held_out.x[rows]), seen)


_ENGINE = (
    "arithmetic",
    "augmentation",
    "captures",
    "cells",
    "entropy",
    "layouts",
    "loader",
    "networks",
    "optimizer",
    "processes",
    "steps",
    "training",
    "trimming",
)
"""Modules that weights depend on, beside the variants."""

SAVE_EVERY = 30.0
"""Seconds of training that a killed one loses at most."""


def _checkpoint(
    workspace: Workspace, candidate: str, spec: ModelSpec, settings: Params, device: str, *, untrimmed: bool
) -> checkpoints.Checkpoint:
    """Return the place of a training's state: for this spec, these data, settings, code and kind of device alone."""
    import torch

    together, place = processes.group(), torch.device(device)
    entry = settings.candidates[candidate]
    code = Path(__file__).parent
    parts = [
        files.dumps(spec.to_json()),
        files.dumps(settings.settings(candidate).model_dump()),
        f"{settings.seed} {entry.rows} {entry.trim} {untrimmed} {files.digest(workspace.prepared(entry.dataset))}",
        *(files.digest(code / name) for name in ("models", *(f"{module}.py" for module in _ENGINE))),
        f"torch {metadata.version('torch')}",
        f"{place.type} {arithmetic.has_bfloat16(place)} {together.size if together else 1}",
    ]
    workspace.private.mkdir(exist_ok=True, mode=0o700)
    identity = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    # A name of a candidate holds no dot, so no other one has this place.
    place_of = workspace.checkpoint(f"{candidate}.untrimmed" if untrimmed else candidate)
    return checkpoints.Checkpoint(place_of, identity, SAVE_EVERY)


class _Progress:
    """Shows a training's epochs: one line that stays on a terminal, a line every few seconds in a log."""

    def __init__(self, candidate: str, epochs: int) -> None:
        self._candidate, self._epochs = candidate, epochs
        self._terminal = sys.stdout.isatty()
        self._seconds = 0.0
        self._shown = 0.0
        self._seen = 0

    def __call__(self, epoch: training.Epoch) -> None:
        self._seconds += epoch.seconds
        self._seen += 1
        if self._seen == 1 and epoch.number > 1:
            print(f"{self._candidate}: goes on in epoch {epoch.number}, where it was stopped", flush=True)
        last = epoch.number == self._epochs
        if self._seconds - self._shown < (0.1 if self._terminal else 5.0) and not last:
            return
        self._shown = self._seconds
        left = self._seconds / self._seen * (self._epochs - epoch.number)
        terms = ", ".join(f"{n} {v:.4g}" for n, v in epoch.train.items())
        rate = epoch.rows / max(epoch.seconds, 1e-9)
        line = (
            f"{self._candidate}: epoch {epoch.number}/{self._epochs}, {terms}, validation {epoch.loss:.4g}, "
            f"{rate:,.0f} rows/s, at most {left:.0f} s left"
        )
        if self._terminal:
            print(f"\r{line:<110}", end="", flush=True)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Leave the line that stays."""
        if self._terminal and self._shown:
            print()


def evaluate(workspace: Workspace, candidate: str) -> None:
    """Calibrate and judge one candidate in each of its applications; writes a bundle for each."""
    settings = params.load(workspace.params)
    entry = settings.candidates[candidate]
    dataset = Dataset.load(workspace.prepared(entry.dataset))
    spec, model = bundles.load_model(workspace.candidate(candidate))
    # Of all rows, whichever of them the model learned from: those of a job are not chosen either.
    reference = drift.Reference.learn(model, dataset.schema, dataset.train, dataset.validation)
    if entry.trim is not None:
        dataset = _trimmed(dataset, model, entry.trim)
    origin = {
        "dataset": entry.dataset,
        "candidate": candidate,
        "data_path": settings.datasets[entry.dataset].path,
        "data_digest": files.digest(workspace.prepared(entry.dataset)),
        "seed": settings.seed,
        "rows": entry.rows,
    }
    with files.whole(workspace.evaluation(candidate)) as draft:
        files.write_json(draft / "applications.json", list(entry.applications))
        if not entry.applications:
            print(f"{candidate}: is judged in no application")
        for name in entry.applications:
            contest = application(settings, entry.dataset, name)
            known = {"images": len(model.shape) == 3, "labelled": dataset.train.y is not None}
            if reason := contest.unsuited(code=model.code, normal=dataset.train.normal is not None, **known):
                raise ValueError(f"candidates.{candidate}: {name} on {entry.dataset}: {reason}")
            calibrated, judgement = evaluation.judge(contest, model, dataset)
            folder = draft / name
            folder.mkdir(parents=True)
            bundle = bundles.Bundle(spec, model, dataset.schema, name, calibrated, origin, reference)
            bundles.save(folder / "bundle", bundle)
            judgement.save(folder, calibrated.primary)
            (folder / "pictures").mkdir()
            train, test = evaluation.learned_from(calibrated, dataset), calibrated.judged(dataset).test
            pictures.save(folder / "pictures", calibrated.pictures(model, test, train, dataset.schema))
            print(
                f"{entry.dataset}-{name}: {candidate} {calibrated.primary} {judgement.test.metrics[calibrated.primary]:.4f}"
            )


def _trimmed(dataset: Dataset, model: Autoencoder, share: float) -> Dataset:
    """Return the data set with the training rows that the model takes for normal, whatever their labels say."""
    train = trimming.trimmed(model, dataset.train, share)
    if train.normal is not None:
        train = replace(train, normal=np.ones(len(train), bool))
    return replace(dataset, train=train)


def contests(settings: Params) -> list[tuple[str, str]]:
    """Return every (data set, application) that params.yaml asks for and some candidate takes part in."""
    wanted = {(c.dataset, a) for c in settings.candidates.values() for a in c.applications}
    return [(d, a) for d, some in settings.applications.items() for a in some if (d, a) in wanted]


def contest(workspace: Workspace, settings: Params, dataset: str, name: str) -> evaluation.Contest:
    """Collect the judgements of one contest from disk.

    A judgement of weights that have changed since does not count, nor does any on data that have failed since.
    """
    candidates, missing = {}, {}
    if _failed(workspace, dataset):
        reason = f"the data of {dataset} did not pass validation; older results do not count"
        names = [c for c, entry in settings.of_dataset(dataset).items() if name in entry.applications]
        return evaluation.hold(
            dataset, name, application(settings, dataset, name), {}, {}, dict.fromkeys(names, reason)
        )
    for candidate, entry in settings.of_dataset(dataset).items():
        if name not in entry.applications:
            continue
        folder = workspace.evaluation(candidate) / name
        judged, trained = folder / "bundle" / "model.safetensors", workspace.candidate(candidate) / "model.safetensors"
        if not (folder / "scores.json").is_file() or not judged.is_file():
            missing[candidate] = "not evaluated"
        elif not trained.is_file() or files.digest(judged) != files.digest(trained):
            missing[candidate] = "its last training failed or was not evaluated; the older result does not count"
        else:
            candidates[candidate] = evaluation.Judgement.load(folder)
    found: dict[str, evaluation.Judgement] = {}
    folder = workspace.rivals(dataset) / name
    if (folder / "failed.json").is_file():
        missing |= files.read_json(folder / "failed.json")
        found = {p.name: evaluation.Judgement.load(p) for p in sorted(folder.iterdir()) if p.is_dir()}
    return evaluation.hold(dataset, name, application(settings, dataset, name), candidates, found, missing)


def _failed(workspace: Workspace, dataset: str) -> bool:
    """Say whether the last verdict on a data set was bad. Without any, nothing was prepared from it by DVC."""
    path = workspace.verdict(dataset)
    return path.is_file() and not files.read_json(path)["passed"]


def scorecard(workspace: Workspace) -> None:
    """Compare all that have a result: metrics for `dvc metrics`, and a table for `dvc plots`."""
    import pandas as pd

    settings = params.load(workspace.params)
    held = [contest(workspace, settings, dataset, name) for dataset, name in contests(settings)]
    summary: dict[str, dict[str, Any]] = {}
    lines = []
    for one in held:
        summary.setdefault(one.dataset, {})[one.application] = evaluation.summary(one)
        for kind, group in (("candidate", one.candidates), ("rival", one.rivals)):
            lines += [
                {"contest": one.name, "name": n, "kind": kind, "metric": one.primary, "score": one.score(n)}
                for n in group
            ]
        print(f"{one.name}: {one.verdict}")
    files.write_json(workspace.metrics, summary)
    formats.write(workspace.comparison, pd.DataFrame(lines, columns=["contest", "name", "kind", "metric", "score"]))


OF_DATASET: dict[str, Callable[[Workspace, str], None]] = {
    "fetch": fetch,
    "validate": validate,
    "prepare": prepare,
    "rivals": rivals,
}
OF_CANDIDATE: dict[str, Callable[[Workspace, str], None]] = {"train": train, "evaluate": evaluate}


def run(workspace: Workspace, stage: str, subject: str | None) -> None:
    """Run one stage by its name, as dvc.yaml does.

    Raises:
        ValueError: no such stage, data set or candidate.
    """
    start = time.perf_counter()
    if stage == "scorecard":
        scorecard(workspace)
        return
    settings = params.load(workspace.params)
    functions = OF_DATASET | OF_CANDIDATE
    if stage not in functions:
        known = [*functions, "scorecard"]
        raise ValueError(f"no stage {stage!r}{modules.meant(stage, known)}; there are: {', '.join(known)}")
    known = sorted(
        settings.candidates if stage in OF_CANDIDATE else settings.fetch if stage == "fetch" else settings.datasets
    )
    if subject not in known:
        what = "candidate" if stage in OF_CANDIDATE else "data set"
        raise ValueError(
            f"stage {stage}: no {what} {subject!r}{modules.meant(subject or '', known)}; there are: {', '.join(known)}"
        )
    functions[stage](workspace, subject)
    _note_time(workspace, stage, subject, time.perf_counter() - start)


def _note_time(workspace: Workspace, stage: str, subject: str, seconds: float) -> None:
    """Remember for the report how long a stage took and on what. Not an output: it is never the same twice."""
    place = workspace.timing(stage, subject)
    for folder in (workspace.private, place.parent.parent, place.parent):
        folder.mkdir(exist_ok=True, mode=0o700)
    device = "CPU"
    if stage == "train" and (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    files.write_json(place, {"seconds": round(seconds, 3), "machine": f"{platform.machine()}, {device}"})


def problems(workspace: Workspace, settings: Params) -> list[str]:
    """Return everything in sound params that only the code of sources, applications and variants can tell is wrong."""
    if found := _option_problems(settings):
        return found
    try:
        return _suitability(workspace, settings)
    except ValueError as error:  # an option out of its application's range
        return [str(error)]


def _option_problems(settings: Params) -> list[str]:
    """Return what is wrong with the options of sources, applications and variants, as their signatures tell."""
    found = []
    for name, entry in settings.fetch.items():
        found += modules.option_problems(modules.load("datasets", name).fetch, entry.options, of=f"fetch.{name}")
    for dataset, name in ((d, a) for d, some in settings.applications.items() for a in some):
        kind: Any = modules.member("applications", name, Application)
        found += modules.option_problems(
            kind, settings.applications[dataset][name], of=f"applications.{dataset}.{name}"
        )
    for name, candidate in settings.candidates.items():
        found += [
            f"candidates.{name}: {p}" for p in ModelSpec(candidate.variant, (1,), dict(candidate.options)).problems()
        ]
    return found


def _suitability(workspace: Workspace, settings: Params) -> list[str]:
    """Return each application that does not suit its data set, and each candidate that one cannot judge or that learns
    from the wrong rows for it."""
    found = []
    for key, contests in settings.applications.items():
        for wanted in contests:
            reason = _unsuited(workspace, settings, key, wanted, code=None)
            if reason:
                found.append(f"applications.{key}.{wanted}: {reason}")
    if found:
        return found
    for name, candidate in settings.candidates.items():
        dataset = settings.datasets[candidate.dataset]
        if "threads" in candidate.training:
            found.append(
                f"candidates.{name}.training.threads: expected under the common `training` alone, since stages that run "
                "side by side share the cores by it; move it there"
            )
        for wanted in candidate.applications:
            contest = application(settings, candidate.dataset, wanted)
            if name in contest.rivals():
                found.append(f"candidates.{name}: {wanted} has a rival of this name; choose another name")
            code = candidate.options.get("code")  # where there is none it follows from other options, and the data
            if reason := _unsuited(workspace, settings, candidate.dataset, wanted, code=code):
                found.append(f"candidates.{name}: {wanted} on {candidate.dataset}: {reason}")
            rows = contest.learns_from if dataset.normal is not None else "all"
            # What learns from normal rows alone may guess which these are.
            if candidate.rows != rows and not (candidate.rows == "trimmed" and contest.learns_from == "normal"):
                found.append(
                    f"candidates.{name}.rows is {candidate.rows}; {wanted} on {candidate.dataset} learns from {rows} rows; "
                    f"set `rows: {rows}`, or make a candidate of its own for {wanted}"
                )
    return found


def _unsuited(workspace: Workspace, settings: Params, key: str, wanted: str, *, code: int | None) -> str | None:
    dataset = settings.datasets[key]
    return application(settings, key, wanted).unsuited(
        code=code,
        images=_holds_images(workspace.root / dataset.path),
        labelled=dataset.label is not None,
        normal=dataset.normal is not None,
    )


def _holds_images(path: Path) -> bool | None:
    """Say whether a raw file holds images, as far as its name tells; None where it does not."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".parquet")):
        return False
    return True if path.is_dir() or name.endswith((".idx", "ubyte")) else None


def check(workspace: Workspace) -> Params:
    """Read params.yaml and check all of it, with the code it names.

    Raises:
        ParamsError: with every problem found.
    """
    settings, found = params.examine(workspace.params)
    if found := found + _option_problems(settings) if found else problems(workspace, settings):
        raise params.ParamsError(workspace.params, found)
    return settings
