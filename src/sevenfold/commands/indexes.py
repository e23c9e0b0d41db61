"""Commands about index folders: `index build`, `add`, `remove`, `compact`; and `search`."""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

from sevenfold import places, workspace
from sevenfold.commands import base, jobs

STEPS = ("build", "add", "remove", "compact")
SHOWN = 100
"""Neighbours that a terminal shows at most."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add these commands."""
    index = commands.add_parser(
        "index",
        help="build a folder in which like rows or images are found, add to it, remove from it",
        description="Build an index folder, or change one: index MODEL INPUT FOLDER, or index add|remove|compact FOLDER ...",
        epilog="example: sevenfold index fashion-search shoes shoes-index",
    )
    steps = index.add_subparsers(title="steps", metavar="STEP", required=True)
    add = functools.partial(base.command, steps)

    build = add("build", _build, "build an index folder", "sevenfold index build fashion-search shoes shoes-index")
    build.add_argument("model", metavar="MODEL", help=base.MODEL_HELP)
    build.add_argument("input", metavar="INPUT", help=jobs.INPUT_HELP)
    build.add_argument("output", metavar="FOLDER", type=places.parsed, help="a new folder; a receipt lies beside it")
    build.add_argument(
        "--recall", metavar="SHARE", type=float, help="of the truly nearest, to be found (default: the model's)"
    )
    build.add_argument("--neighbours", metavar="NUMBER", type=int, help="that a search usually asks for")
    build.add_argument("--kind", metavar="KIND", help="exact, graph, inverted, product or scalar (default: chosen)")
    more = add("add", _add, "add rows or images to an index folder", "sevenfold index add shoes-index more-shoes")
    more.add_argument("folder", metavar="FOLDER", type=Path, help="an index folder")
    more.add_argument("input", metavar="INPUT", help=jobs.INPUT_HELP)
    more.add_argument("--model", metavar="MODEL", help="where the folder's model lies now, if not where it was")
    for job in (build, more):
        job.add_argument(
            "--id", metavar="COLUMN", help="the column of ids (default: paths of image files, else positions)"
        )
        columns_help = "columns of the input that are carried (default: all that the model does not use)"
        job.add_argument("--columns", metavar="COLUMN", nargs="*", help=columns_help)
        jobs.add_settings(job)
    less = add(
        "remove", _remove, "remove rows from an index folder", "sevenfold index remove shoes-index sku-17 sku-23"
    )
    less.add_argument("folder", metavar="FOLDER", type=Path, help="an index folder")
    less.add_argument("ids", metavar="ID", nargs="+", help="ids of rows")
    compact = add(
        "compact",
        _compact,
        "write an index folder anew, without what was removed",
        "sevenfold index compact shoes-index",
    )
    compact.add_argument("folder", metavar="FOLDER", type=Path, help="an index folder")

    search = base.command(commands, "search", _search, "find the nearest of rows or images in an index folder",
                          "sevenfold search shoes-index query.png -k 10 --html found.html")  # fmt: skip
    search.add_argument("folder", metavar="FOLDER", type=Path, help="an index folder")
    search.add_argument("query", metavar="QUERY", help=jobs.INPUT_HELP)
    search.add_argument("-k", metavar="NUMBER", type=int, default=10, help="neighbours of each query (default: 10)")
    where_help = "only where this holds for a carried column: 'price < 20', 'kind in boot, shoe'; may repeat"
    search.add_argument("--where", metavar="CONDITION", action="append", default=[], help=where_help)
    search.add_argument("--vectors", action="store_true", help="QUERY holds vectors, as an array or as columns")
    search.add_argument("--model", metavar="MODEL", help="where the folder's model lies now, if not where it was")
    search.add_argument("--limit", metavar="NUMBER", type=int, help="only the first queries")
    search.add_argument("--separator", metavar="TEXT", help=jobs.SEPARATOR_HELP)
    shape = search.add_mutually_exclusive_group()
    shape.add_argument("--output", metavar="FILE", type=Path, help=".parquet or .csv with all neighbours")
    shape.add_argument("--html", metavar="FILE", type=Path, help="a page that shows queries and neighbours, of images")
    search.add_argument(
        "--images", metavar="FOLDER", type=Path, help="where the paths of indexed images begin, for --html"
    )
    search.add_argument("--label", metavar="COLUMN", help="the carried column that stands below each image, for --html")
    shape.add_argument("--json", action="store_true", help="print the neighbours for machines")


def _build(given: argparse.Namespace) -> int:
    options = {name: getattr(given, name) for name in ("id", "recall", "neighbours", "kind")}
    return jobs.run(given, "index", jobs.settings(given, **options))


def _add(given: argparse.Namespace) -> int:
    place = workspace.find()
    place.initialise()
    with place.settled():
        from sevenfold import index_jobs

        how = jobs.settings(given, id=given.id)
        with jobs.going_on(lambda: index_jobs.adding(given.folder)), jobs.shown() as show:
            added = index_jobs.add(place, given.folder, given.input, model=given.model, settings=how, on_progress=show)
    _tell(given, added.manifest)
    if added.aside is not None:
        count = added.receipt.details["quarantined"]
        print(f"{added.aside}: {count:,} rows that do not fit the model, each with the reason", file=sys.stderr)
    if not given.json:
        jobs.tell_drift(added.receipt)
    return 0


def _tell(given: argparse.Namespace, manifest: Any) -> None:
    from sevenfold import files, index_folders

    if getattr(given, "json", False):
        print(files.dumps(index_folders.inspect(given.folder)).rstrip())
    else:
        print(f"{given.folder}: {manifest.count:,} rows, generation {manifest.generation}")


def _remove(given: argparse.Namespace) -> int:
    from sevenfold import index_folders

    whole = index_folders.Manifest.read(given.folder).form.ids != "text"
    if whole and (odd := [name for name in given.ids if not name.lstrip("-").isdigit()]):
        raise ValueError(f"ids are {', '.join(odd)}; expected whole numbers, as in this folder; name others")
    _tell(given, index_folders.remove(given.folder, [int(name) if whole else name for name in given.ids]))
    return 0


def _compact(given: argparse.Namespace) -> int:
    from sevenfold import index_folders

    _tell(given, index_folders.compact(given.folder))
    return 0


def _search(given: argparse.Namespace) -> int:
    place = workspace.find()
    place.initialise()
    with place.settled():
        from sevenfold import index_jobs

        answers = index_jobs.search(
            place,
            given.folder,
            given.query,
            k=given.k,
            where=given.where,
            vectors=given.vectors,
            model=given.model,
            limit=given.limit,
            separator=given.separator,
        )
        if given.output is not None:
            count = index_jobs.written(answers, given.output)
            print(f"{given.output}: neighbours of {count:,} queries")
            return 0
        if given.html is not None:
            print(index_jobs.page(answers, given.folder, given.html, images=given.images, label=given.label))
            return 0
        answer = next(answers)
        if given.json:
            found = [line for one in (answer, *answers) for line in json.loads(one.table.to_json(orient="records"))]
            print(json.dumps(found, indent=2, ensure_ascii=False))
            return 0
        table = answer.table
        print(*base.columns(index_jobs.texts(table.head(SHOWN))), sep="\n")
        if len(table) > SHOWN or next(answers, None) is not None:
            print("there are more; `--output FILE` writes all of them", file=sys.stderr)
    return 0
