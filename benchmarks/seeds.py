"""Repeat one contest of params.yaml over several split seeds, since one split of a small data set says little.

    python benchmarks/seeds.py wdbc anomaly --seeds 5

Prints the test metrics of the chosen candidate and of every rival, mean and range over the seeds, and writes them to
benchmarks/results/<data set>-<application>.json, from which the README's table is made.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sevenfold import evaluation, files, params, stages, training, workspace
from sevenfold.models.base import ModelSpec


def contest(
    place: workspace.Workspace, settings: params.Params, dataset: str, name: str, seed: int
) -> evaluation.Contest:
    """Hold one contest on the split of `seed`, all in memory."""
    prepared = stages.in_splits(place, settings, dataset, seed=seed)
    application = stages.application(settings, dataset, name)
    candidates = {}
    for candidate, what in settings.of_dataset(dataset).items():
        if name not in what.applications:
            continue
        learn, held_out = prepared.train, prepared.validation
        if what.rows == "normal":
            learn, held_out = learn.only_normal(), held_out.only_normal()
        model, _ = training.fit(
            ModelSpec.of(what.variant, prepared.schema.layout, what.options),
            learn,
            held_out,
            training.Settings(**settings.settings(candidate).model_dump()),
            seed=settings.seed,
            device="cpu",
            on_epoch=lambda epoch: None,
        )
        candidates[candidate] = evaluation.judge(application, model, prepared)[1]
    rivals, failed = evaluation.judge_rivals(application, prepared)
    return evaluation.hold(dataset, name, application, candidates, rivals, failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("application")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    place = workspace.find()
    settings = stages.check(place)
    torch.set_num_threads(settings.training.threads)
    found: dict[str, dict[str, list[float]]] = {}
    seconds = []
    for seed in range(arguments.seeds):
        start = time.perf_counter()
        held = contest(place, settings, arguments.dataset, arguments.application, seed)
        seconds.append(time.perf_counter() - start)
        everyone = dict(held.candidates) | dict(held.rivals)
        if held.chosen is not None:
            everyone["sevenfold"] = held.candidates[held.chosen]
        for name, judgement in everyone.items():
            for metric, value in judgement.test.metrics.items():
                found.setdefault(name, {}).setdefault(metric, []).append(value)
        print(
            f"seed {seed}: chosen {held.chosen}, {seconds[-1]:.1f} s; "
            + "; ".join(f"{n} has no result: {r}" for n, r in held.missing.items())
        )
    primary = held.primary
    metrics = [primary, *(m for m in found["sevenfold"] if m != primary)]
    print(f"\n| {held.name} | " + " | ".join(metrics) + " |\n|" + " --- |" * (len(metrics) + 1))
    for name in sorted(found, key=lambda n: -np.mean(found[n][primary])):
        cells = [
            f"{np.mean(found[name][m]):.4f} ({min(found[name][m]):.3f} to {max(found[name][m]):.3f})"
            if m in found[name]
            else "-"
            for m in metrics
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    result: dict[str, Any] = {
        "contest": held.name,
        "primary": primary,
        "seeds": arguments.seeds,
        "rivals": sorted(held.rivals),
        "test": {n: {m: round(float(np.mean(v)), 6) for m, v in values.items()} for n, values in found.items()},
    }
    path = Path(__file__).parent / "results" / f"{held.name}.json"
    files.write_json(path, result)
    print(f"\nwrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
