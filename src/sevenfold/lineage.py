"""The story of a model, a job or an output: back to code, data and environment, and forward to every job that used it."""

import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

from sevenfold import files, formats, jobs, places, provenance
from sevenfold.registry import origins, receipts, tracking, versions
from sevenfold.registry.receipts import Receipt
from sevenfold.registry.versions import Version
from sevenfold.workspace import Workspace

WIDTH = 80
"""Columns of the text."""


def trace(workspace: Workspace, asked: str) -> dict[str, Any]:
    """Return the story of a registered model, a job's receipt, or a job's output, as plain JSON.

    Args:
        asked: `NAME`, `NAME@ALIAS`, `NAME/VERSION`, or the path of a receipt or an output.

    Returns:
        `asked`; `output` (path, digest, state) and `job` (the receipt), None where a model was asked for; `model` (label,
        aliases, digest, tags that say how it was judged and moved), `run`, `code` (commit, dirty, patch, here), `data`
        (raw and prepared digests, verdict), `params` and `lock_digest`, `environment`; all None where the job's model is
        not registered any more; `pruned` (label, run, published, at), if it was removed by `sevenfold prune`; `jobs`: each
        receipt with its `state`, newest first. A state is "unchanged", "changed", "missing" or "elsewhere".

    Raises:
        LookupError: there is no such model, or the output is of no job that is known.
        FileNotFoundError, ValueError: the receipt is missing or no receipt.
    """
    tracking.initialise(workspace)
    job, output = _job(workspace, asked)
    if job is None:
        resolved = versions.resolve(workspace, asked)
        version, digest = resolved.version or _version(workspace, resolved.label, resolved.digest), resolved.digest
    else:
        version, digest = _version(workspace, job.model, job.digest), job.digest
    used = receipts.of(workspace, digest)
    if job is not None and job.run_id not in {receipt.run_id for receipt in used}:
        used = sorted([job, *used], key=lambda receipt: receipt.ended, reverse=True)
    nothing = dict.fromkeys(("model", "run", "code", "data", "params", "lock_digest", "environment"))
    return {
        "asked": asked,
        "output": output,
        "job": None if job is None else job.to_json(),
        "digest": digest,
        **(nothing if version is None else _origin(workspace, version)),
        "pruned": _pruned(workspace, digest) if version is None else None,
        "jobs": [receipt.to_json() | {"state": state(receipt)} for receipt in used],
    }


def _pruned(workspace: Workspace, digest: str) -> dict[str, str] | None:
    found = versions.pruned(workspace, digest)
    return None if found is None else {"label": found[0], **found[1]}


def state(receipt: Receipt) -> str:
    """Return whether a job's output is still there as it was: "unchanged", "changed" or "missing"; "elsewhere" for an address."""
    if places.is_url(receipt.output):
        return "elsewhere"  # what a store holds is not read through for a question
    path = Path(receipt.output)
    if not path.exists():
        return "missing"
    return "unchanged" if files.digest(path) == receipt.output_digest else "changed"


def _job(workspace: Workspace, asked: str) -> tuple[Receipt | None, dict[str, str] | None]:
    """Return the receipt that a path means, and what became of the output; None where `asked` is no path of a job's."""
    path = Path(asked)
    if path.name.endswith(".receipt.json"):
        receipt = _read(path)
        return receipt, {"path": receipt.output, "digest": receipt.output_digest, "state": state(receipt)}
    beside = jobs.receipt_path(path)
    if beside.is_file():
        receipt = _read(beside)
        digest = files.digest(path) if path.exists() else None
        what = "missing" if digest is None else "unchanged" if digest == receipt.output_digest else "changed"
        return receipt, {"path": asked, "digest": receipt.output_digest, "state": what}
    if not path.is_file():
        if path.suffix in formats.OUTPUT_SUFFIXES:  # no model is named so
            raise FileNotFoundError(f"{asked} does not exist, nor does a receipt beside it; check the path")
        return None, None
    digest = files.digest(path)
    found = receipts.of_output(workspace, digest)
    if not found:
        raise LookupError(
            f"{asked} has no receipt beside it, and no job of this store wrote these bytes (SHA-256 {digest[:12]}); it was "
            "changed since, or is of another workspace; name its receipt"
        )
    return found[0], {"path": asked, "digest": digest, "state": "unchanged"}


def _read(path: Path) -> Receipt:
    try:
        return Receipt.from_json(files.parse_json(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; name the receipt that lies beside a job's output") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no receipt of this version's jobs ({error}); run the job again to get one"
        ) from None


def _version(workspace: Workspace, label: str, digest: str) -> Version | None:
    """Return the version of this digest, that of this label before others; None where none is registered."""
    there = [found for found in versions.every(workspace) if found.digest == digest]
    return min(there, key=lambda found: found.label != label, default=None)


def _origin(workspace: Workspace, version: Version) -> dict[str, Any]:
    chain = origins.chain(workspace, version)
    trained = chain[-1]
    origin, tags = origins.of(workspace, trained), trained.tags
    commit, _, old = tags.get("git_commit", "none").partition("-")
    dirty = tags.get("git_dirty", str(old == "dirty").lower()) == "true"
    patch = tags.get("git_patch", "kept" if origins.kept(workspace, trained, provenance.PATCH) else "not kept")
    lock, setting = (origins.kept(workspace, trained, name) for name in (provenance.LOCK, provenance.PARAMS))
    told = origins.kept(workspace, trained, provenance.ENVIRONMENT)
    verdict = versions.artifact(workspace, trained, f"{tags.get('dataset', '')}.json")
    checked = files.read_json(verdict) if verdict is not None and verdict.is_file() else None
    path = origin.params.get("dataset.path", "unknown")
    kept = ("dataset", "application", "candidate", "variant", "verdict", "rival", "beats_rivals", "decision")
    later = ("promoted_at", "promoted_over", "promoted_because")
    judged = {k: v for k, v in version.tags.items() if k in (*kept, *later) or k.startswith(("decided_", "moved_"))}
    return {
        "model": {
            "label": version.label,
            "aliases": list(version.aliases),
            "digest": version.digest,
            "published": origins.of(workspace, version).published.isoformat(timespec="seconds"),
            "moved_from": [before.label for before in chain[1:]],
            "tags": judged,
        },
        "run": {"id": origin.run_id, "name": origin.run_name, "experiment": origin.experiment},
        "code": {
            "commit": commit,
            "dirty": dirty,
            "patch": patch if dirty else None,
            "here": commit != "none" and provenance.has_commit(workspace, commit),
        },
        "data": {
            "path": path,
            "raw_md5": provenance.locked(lock).get(path) if lock is not None else None,
            "prepared_digest": tags.get("data_digest"),
            "rows": None if checked is None else checked["rows"],
            "passed": None if checked is None else checked["passed"],
            "failed": None if checked is None else checked["failed"],
        },
        "params": {"digest": None if setting is None else files.digest(setting), "logged": dict(origin.params)},
        "lock_digest": tags.get("lock_digest"),
        "environment": None if told is None else files.read_json(told),
    }


def text(story: dict[str, Any]) -> str:
    """Return the story for people, in sections, 80 columns wide."""
    lines: list[str] = []

    def section(title: str, *facts: tuple[str, str | None]) -> None:
        lines.extend(["", title] if lines else [title])
        for name, value in facts:
            if value:
                lines.extend(
                    textwrap.wrap(
                        value, WIDTH, initial_indent=f"  {name:<13}", subsequent_indent=" " * 15, break_on_hyphens=False
                    )
                )

    if story["output"] is not None:
        output = story["output"]
        changed = output["state"] == "changed"
        note = (
            "CHANGED since the job wrote it: this story is of the bytes that it wrote" if changed else output["state"]
        )
        section("Output", ("path", output["path"]), ("SHA-256", output["digest"]), ("state", note))
    if story["job"] is not None:
        job = story["job"]
        done = f"{job['operation']} with {job['model']}, {job['rows']:,} rows in {job['seconds']:.2f} s"
        section(
            "Job",
            ("what", done),
            ("when", f"{_moment(job['ended'])} by {job['user']}, sevenfold {job['sevenfold']}"),
            ("input", job["input"]),
            ("SHA-256", job["input_digest"]),
            ("run", job["run_id"] or "none: the tracking store was away"),
        )
    if story["model"] is None:
        gone = story["pruned"]
        note = "it is not registered here; its story ends with its digest"
        if gone is not None:
            note = (
                f"it was {gone['label']} ({gone['candidate']}), published {gone['published'][:10]} and pruned {gone['at'][:10]}; "
                f"its run {gone['run']} is still there, with numbers, params and provenance"
            )
        section("Model", ("digest", story["digest"]), ("note", note))
    else:
        _tell(story, section)
    used = story["jobs"]
    section(f"Jobs that used it: {len(used)}")
    for job in used:
        lines.append(f"  {_moment(job['ended'])} {job['operation']}, {job['rows']:,} rows, by {job['user']}")
        lines.append(f"    from {job['input']}")
        lines.append(f"    to   {job['output']} ({'CHANGED since' if job['state'] == 'changed' else job['state']})")
    return "\n".join(lines)


def _tell(story: dict[str, Any], section: Any) -> None:
    model, code, data, told = story["model"], story["code"], story["data"], story["model"]["tags"]
    aliases = f" ({', '.join(model['aliases'])})" if model["aliases"] else ""
    promoted = [told.get(f"promoted_{what}", "?") for what in ("at", "over", "because")]
    section(
        "Model",
        ("version", f"{model['label']}{aliases}, published {_moment(model['published'])}"),
        ("digest", model["digest"]),
        ("candidate", f"{told.get('candidate', '?')} ({told.get('variant', '?')})"),
        ("moved from", ", from ".join(model["moved_from"]) + f": threshold {told.get('moved_threshold')}")
        if model["moved_from"]
        else ("", None),
        ("verdict", told.get("verdict")),
        (
            "decision",
            f"{told.get('decision', 'none')}: {told.get('decided_because', 'no gate was asked').replace(chr(10), '; ')}",
        ),
        ("promoted", "{}, over {}: {}".format(*promoted) if "promoted_at" in told else None),
        ("run", f"{story['run']['name']} in {story['run']['experiment']} ({story['run']['id']})"),
    )
    dirty = f"uncommitted changes: {code['patch']}" if code["dirty"] else "nothing uncommitted"
    absent = "" if code["here"] or code["commit"] == "none" else "; this repository does not have it"
    section(
        "Code",
        ("commit", f"{code['commit']}{absent}"),
        ("besides", dirty if code["commit"] != "none" else "the workspace was not in git"),
        ("dvc.lock", story["lock_digest"]),
        ("params.yaml", story["params"]["digest"]),
    )
    verdict = "unknown"
    if data["passed"] is not None:
        count = ", ".join(f"{n} {severity}" for severity, n in data["failed"].items() if n) or "none"
        verdict = f"{'passed' if data['passed'] else 'failed'} ({data['rows']:,} rows; expectations not met: {count})"
    section(
        "Data",
        ("raw", f"{data['path']}, MD5 {data['raw_md5'] or 'unknown'}"),
        ("prepared", data["prepared_digest"]),
        ("validation", verdict),
    )
    around = story["environment"]
    if around is None:
        section("Environment", ("note", "none was kept with this version"))
        return
    hardware, packages = around["hardware"], around["packages"]
    chosen = ("torch", "numpy", "pandas", "scikit-learn", "scipy", "sevenfold")
    section(
        "Environment",
        ("software", f"Python {around['python']}, {around['system']}"),
        ("packages", ", ".join(f"{n} {packages[n]}" for n in chosen if n in packages) + f"; {len(packages)} in all"),
        ("hardware", f"{hardware['processor']}, {hardware['cores']} cores, {hardware['instructions']}"),
        ("GPUs", ", ".join(hardware["gpus"]) or "none"),
        ("threads", str(around["threads"])),
    )


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"
