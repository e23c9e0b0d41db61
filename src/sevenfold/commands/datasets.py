"""Commands about data sets: `dataset add`."""

import argparse
from pathlib import Path

from sevenfold import workspace
from sevenfold.commands import base, project


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add these commands."""
    dataset = commands.add_parser(
        "dataset",
        help="work on data sets",
        description="Work on data sets.",
        epilog="example: sevenfold dataset add sales sales.csv --label churn",
    )
    kinds = dataset.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new = base.command(
        kinds,
        "add",
        _dataset_add,
        "put a data set under DVC, and write its entry and a draft suite",
        "sevenfold dataset add sales sales.csv --label churn --normal no --id customer",
    )
    new.add_argument("name", metavar="NAME", help="lower-case letters, digits, _ and -")
    new.add_argument("path", metavar="PATH", type=Path, help="CSV, Parquet, npz, npy, IDX or a folder of images")
    new.add_argument("--label", metavar="COLUMN", help="column that judges: splits are stratified by it")
    normal_help = "a label of the normal class, for anomaly; may repeat"
    new.add_argument("--normal", metavar="LABEL", action="append", default=[], help=normal_help)
    new.add_argument("--id", metavar="COLUMN", dest="identifier", help="column that identifies a row")
    new.add_argument("--group", metavar="COLUMN", help="column whose values stay together in one split")
    part_help = "column that says which split a row is in: train, validation or test"
    new.add_argument("--part", metavar="COLUMN", help=part_help)
    new.add_argument(
        "--drop", metavar="COLUMN", action="append", default=[], help="a column that is no feature; may repeat"
    )
    categorical_help = "a column of numbers that are categories; may repeat"
    new.add_argument("--categorical", metavar="COLUMN", action="append", default=[], help=categorical_help)
    new.add_argument("--separator", metavar="TEXT", help="what stands between the values of a CSV file")
    gap_help = "a text that is a gap in a CSV file, as the empty field is; may repeat"
    new.add_argument("--gap", metavar="TEXT", action="append", default=[], help=gap_help)
    labels_help = "for IDX and npy: a second file, IDX or npy, with one label per row"
    new.add_argument("--labels", metavar="FILE", type=Path, help=labels_help)
    only_help = "an application to propose contests for (default: all that suit the data); may repeat"
    new.add_argument("--only", metavar="APPLICATION", action="append", default=[], help=only_help)
    new.add_argument("--run", action="store_true", help="train, judge and elect right away, as `sevenfold run` does")
    new.add_argument("--range", metavar=("LOW", "HIGH"), type=float, nargs=2, help="lowest and highest value of images")


def _dataset_add(given: argparse.Namespace) -> int:
    from sevenfold import enrolment, pipeline

    place = workspace.find()
    place.initialise()
    made = enrolment.add(
        place,
        given.name,
        given.path,
        label=given.label,
        normal=given.normal,
        identifier=given.identifier,
        group=given.group,
        part=given.part,
        drop=given.drop,
        categorical=given.categorical,
        value_range=tuple(given.range) if given.range else None,
        separator=given.separator,
        gaps=given.gap,
        labels=given.labels,
        only=given.only,
        track=pipeline.track,
    )
    print(f"{made.raw.relative_to(place.root)} is under DVC")
    print(f"{made.suite.relative_to(place.root)} was drafted from the training rows; it is yours to edit")
    print(f"params.yaml has the data set and its first candidates: {', '.join(made.candidates)}")
    for note in made.notes:
        print(f"note: {note}")
    kept = [place.params, made.suite, made.raw.with_name(f"{made.raw.name}.dvc")]
    names = " ".join(str(path.relative_to(place.root)) for path in kept)
    if given.run:
        print(f"keep them by `git add {names}`", flush=True)
        return project.run(debug=given.debug)
    print(f"next: read them, `git add {names}`, then `sevenfold run`")
    return 0
