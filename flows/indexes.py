"""Index folders on a schedule: add, remove, compact, and search; `flows.batch` with the operation `index` builds one."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State

from flows import errors, lateness, server
from sevenfold import index_folders, index_jobs, jobs, workspace

Step = Literal["add", "remove", "compact"]


@flow(name="index", flow_run_name="{step} {index}")
def change(
    step: Step,
    index: str,
    source: str | None = None,
    ids: list[str] | list[int] | None = None,
    id_column: str | None = None,
    columns: list[str] | None = None,
    model: str | None = None,
    folder: str | None = None,
) -> "dict[str, Any] | State[None]":
    """Change an index folder, and return what it holds then.

    Args:
        step: "add" takes `source` in, "remove" takes `ids` out, "compact" writes the folder anew.
        index: the folder.
        source: rows or images to add: a file, a folder of files, or a pattern.
        ids: of the rows to remove.
        id_column: of `source`; null for the one that the folder was built with.
        columns: of `source`, which are carried; null for all that the model does not use.
        model: where the folder's model lies now, if not where it was.
        folder: the workspace (default: the one around the current folder).

    Raises:
        ValueError: what the step needs is missing.
    """
    if missed := lateness.missed():
        return missed
    if (step == "add") != (source is not None) or (step == "remove") != (ids is not None):
        raise ValueError(f"step is {step!r}; expected `source` with add, `ids` with remove, and neither with compact")
    place = workspace.find(Path(folder) if folder else None)
    place.initialise()
    target = Path(index)
    with place.settled():
        if source is not None:
            settings = jobs.Settings(
                columns=None if columns is None else tuple(columns), options={"id": id_column} if id_column else {}
            )
            index_jobs.add(place, target, source, model=model, settings=settings)
        elif ids is not None:
            index_folders.remove(target, ids)
        else:
            index_folders.compact(target)
    told = index_folders.inspect(target)
    get_run_logger().info("%s: %s", index, step)
    create_markdown_artifact(f"```\n{index_folders.describe(told)}\n```", key="index", description=f"{step} {index}")
    return told


@flow(name="search", flow_run_name="search {index}")
def search(
    index: str,
    query: str,
    destination: str,
    k: int = 10,
    where: list[str] | None = None,
    vectors: bool = False,
    model: str | None = None,
    separator: str | None = None,
    folder: str | None = None,
) -> "int | State[None]":
    """Write the nearest neighbours of queries to a file, and return how many queries there were.

    Args:
        index: the index folder.
        query: rows or images: a file, a folder of files, or a pattern.
        destination: .parquet or .csv; a row for each neighbour.
        k: neighbours of each query.
        where: conditions on carried columns, such as "price < 20".
        vectors: the query holds vectors, and no model is asked.
        model: where the folder's model lies now, if not where it was.
        separator: of queries in CSV files; null to find it from the header of each.
        folder: the workspace (default: the one around the current folder).
    """
    if missed := lateness.missed():
        return missed
    place = workspace.find(Path(folder) if folder else None)
    place.initialise()
    with place.settled():
        answers = index_jobs.search(
            place, Path(index), query, k=k, where=where or [], vectors=vectors, model=model, separator=separator
        )
        count = index_jobs.written(answers, Path(destination))
    get_run_logger().info("neighbours of %s queries in %s", f"{count:,}", destination)
    return count


def main() -> int:
    """Run one of the flows with parameters in JSON; 0 after success."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("flow", choices=("change", "search"))
    parser.add_argument("parameters", type=json.loads, metavar="JSON", help="the parameters of the flow")
    given = parser.parse_args()
    try:
        server.join("flows.indexes")
        made: Any = change(**given.parameters) if given.flow == "change" else search(**given.parameters)
        print(json.dumps(made, indent=2))
    except Exception as error:
        return errors.tell(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
