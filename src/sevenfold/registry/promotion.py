"""Who is champion: the alias that a batch job follows, moved whole or not at all, and the journal of its moves.

The journal is the tags `move.0001`, `move.0002`, ... of the registered model. An entry is written before anything moves and
closed after the new champion was loaded through the alias, so that one that was broken off is known.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import EllipsisType
from typing import Any, Literal

from sevenfold.bundles import BundleError
from sevenfold.registry import locking, tracking, verification, versions
from sevenfold.registry.versions import CHALLENGER, CHAMPION, Version
from sevenfold.workspace import Workspace

LONGEST_TAG = 5000
"""Characters that MLflow keeps of a tag."""

How = Literal["run", "hand"]
What = Literal["promotion", "rollback"]
State = Literal["begun", "done", "failed", "interrupted"]


class ConflictError(RuntimeError):
    """Somebody else moved the alias since it was looked at. Looking again tells whether the move still makes sense."""


@dataclass(frozen=True)
class Move:
    """One move of the alias `champion`.

    number: from 1, in order of time.
    by: who, as user@machine.
    how: by a run's election, or by hand.
    before, to: numbers of versions; before is None where there was no champion.
    numbers: what it was decided by.
    effect: whether the alias moved; of a move that is "begun" and not yet looked at, None.
    """

    number: int
    at: datetime
    by: str
    how: How
    what: What
    before: int | None
    to: int
    why: str
    numbers: Mapping[str, float]
    state: State
    effect: bool | None

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "at": self.at.isoformat(timespec="seconds"),
            "by": self.by,
            "how": self.how,
            "what": self.what,
            "from": self.before,
            "to": self.to,
            "why": self.why,
            "numbers": dict(self.numbers),
            "state": self.state,
            "effect": self.effect,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Move":
        fields = {name: v for name, v in value.items() if name != "from"}
        return cls(**fields | {"at": datetime.fromisoformat(value["at"]), "before": value["from"]})


def challenge(workspace: Workspace, version: Version) -> None:
    """Mark a version as the one that last did not pass the gate."""
    tracking.client(workspace).set_registered_model_alias(version.name, CHALLENGER, str(version.number))


def promote(
    workspace: Workspace,
    version: Version,
    *,
    reasons: Sequence[str],
    numbers: Mapping[str, float] | None = None,
    against: int | EllipsisType | None = ...,
    by_hand: bool = False,
) -> Version:
    """Make a version the champion: verify it, write down the move, set the alias, and load it through the alias.

    If that fails, alias and tags are what they were before.

    Args:
        reasons: why.
        numbers: by which it was decided.
        against: the number of the champion that it was decided against, or None for none; by default whoever is.
        by_hand: whether a person decided, and no gate.

    Raises:
        BundleError: the version does not stand up to `verification.verify`.
        ConflictError: another one is champion than the one it was decided against.
        LockedError: somebody else moves the alias for minutes.
        ValueError: a person gives no reason.
    """
    if by_hand and not "".join(reasons).strip():
        raise ValueError(f"a promotion by hand needs a reason, which stays with {version.label}; got none")
    how: How = "hand" if by_hand else "run"
    return _move(workspace, version, "promotion", how, "; ".join(reasons), numbers or {}, against)


def rollback(workspace: Workspace, name: str, *, reason: str) -> Version:
    """Make the champion before the present one champion again, and return it. Repeated, it goes further back.

    Raises:
        LookupError: there is none.
        BundleError: it does not stand up to verification; the alias stays.
    """
    present = versions.champion(workspace, name)
    target = previous(workspace, name)
    if target is None:
        raise LookupError(no_way_back(workspace, name))
    try:
        return _move(workspace, target, "rollback", "hand", reason, {}, present.number if present else None)
    except BundleError as error:
        others = ", ".join(
            str(v.number)
            for v in versions.every(workspace, name)
            if v.number not in {target.number, present and present.number}
        )
        hint = f"; `sevenfold promote {name} VERSION --reason ...` takes another one: {others}" if others else ""
        raise BundleError(f"{error}{hint}") from None


def no_way_back(workspace: Workspace, name: str) -> str:
    """Return why there is nothing to roll back to, with what there is instead."""
    found = versions.every(workspace, name)
    if not found:
        return versions.unknown(workspace, name)
    return (
        f"{name} has no champion before the present one; `sevenfold promote {name} VERSION --reason ...` takes any of: "
        f"{versions.listed(found)}"
    )


def previous(workspace: Workspace, name: str) -> Version | None:
    """Return the version that `rollback` would go back to, or None."""
    present = versions.champion(workspace, name)
    there = {version.number: version for version in versions.every(workspace, name)}
    line = _line(history(workspace, name))
    now = (
        present.number if present is not None else None
    )  # where somebody took the alias away, the last one is the way back
    return next((there[number] for number in reversed(line) if number in there and number != now), None)


def _line(moves: Sequence[Move]) -> list[int]:
    """Return the champions that led to the last one, which is the last of them.

    A rollback takes off what came after the one it goes back to, and the one that it leaves wherever that stands: somebody
    found that one bad, and rolling back further must not return to it.
    """
    line: list[int] = []
    for move in moves:
        if not move.effect:
            continue
        if move.what == "rollback" and move.to in line:
            while line[-1] != move.to:
                line.pop()
            kept = [number for number in line if number != move.before or number == move.to]
            line = [number for i, number in enumerate(kept) if i == 0 or kept[i - 1] != number]
        elif not line or line[-1] != move.to:
            line.append(move.to)
    return line


def history(workspace: Workspace, name: str) -> list[Move]:
    """Return every move of a registered model's champion in order of time; none where there is no such model.

    One that is "begun" is under way, or was broken off: then it took effect if the alias is where it was to go.

    Raises:
        RuntimeError: somebody edited the journal so that it cannot be read.
    """
    found = versions.registered(workspace, name)
    if found is None:
        return []
    moves = [_entry(name, key, text) for key, text in found.tags.items() if key.startswith("move.")]
    moves.sort(key=lambda move: move.number)
    if moves and moves[-1].state == "begun":
        moves[-1] = replace(moves[-1], effect=int(found.aliases.get(CHAMPION, 0)) == moves[-1].to)
    return moves


def _entry(name: str, key: str, text: str) -> Move:
    try:
        return Move.from_json(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # Not skipped: what a rollback goes back to hangs on every entry.
        raise RuntimeError(
            f"tag {key!r} of {name} is no entry of the journal ({type(error).__name__}: {error}); somebody edited it, or a "
            "newer sevenfold wrote it; remove the tag on the model's page in MLflow, or use that sevenfold"
        ) from None


def displaced_by_hand(workspace: Workspace, version: Version) -> Move | None:
    """Return the move by which a person replaced this version as champion, unless one has promoted it again since."""
    found = None
    for move in history(workspace, version.name):
        if move.effect and move.how == "hand":
            if move.before == version.number:
                found = move
            elif move.to == version.number:
                found = None
    return found


def _move(
    workspace: Workspace,
    version: Version,
    what: What,
    how: How,
    why: str,
    numbers: Mapping[str, float],
    against: int | EllipsisType | None,
) -> Version:
    client = tracking.client(workspace)
    with locking.held(workspace, version.name):
        before = versions.champion(workspace, version.name)
        moves = _settled(workspace, version.name)
        if against is not ... and (before.number if before else None) != against:
            raise ConflictError(_conflict(version, against, before, moves))
        if before is not None and before.number == version.number:
            return before
        verification.verify(workspace, version)
        tags = versions.reread(workspace, version).tags
        move = Move(
            number=moves[-1].number + 1 if moves else 1,
            at=datetime.now(UTC),
            by=f"{tracking.user()}@{platform.node()}",
            how=how,
            what=what,
            before=before.number if before else None,
            to=version.number,
            why=" ".join(why.split()),
            numbers=dict(numbers),
            state="begun",
            effect=None,
        )
        story = _story(version.name, move)
        _write(workspace, version.name, move)
        alias_is_ours = False
        try:
            versions.annotate(workspace, version, story)
            now = versions.champion(workspace, version.name)  # by means that know no lock, such as MLflow's pages
            if (now.number if now else None) != move.before:
                raise ConflictError(_conflict(version, move.before, now, moves))
            client.set_registered_model_alias(version.name, CHAMPION, str(version.number))
            alias_is_ours = True
            verification.verify(workspace, version, alias=CHAMPION)
        except BaseException:
            if alias_is_ours and before is None:
                client.delete_registered_model_alias(version.name, CHAMPION)
            elif alias_is_ours and before is not None:
                client.set_registered_model_alias(version.name, CHAMPION, str(before.number))
            for key in story.keys() - tags.keys():
                client.delete_model_version_tag(version.name, str(version.number), key)
            versions.annotate(workspace, version, {key: tags[key] for key in story.keys() & tags.keys()})
            _write(workspace, version.name, replace(move, state="failed", effect=False))
            raise
        _write(workspace, version.name, replace(move, state="done", effect=True))
        _tidy(workspace, version, before, move)
        return versions.reread(workspace, version)


def _story(name: str, move: Move) -> dict[str, str]:
    """Return what a version's page tells of the move that made it champion."""
    back = ", rolled back" if move.what == "rollback" else ""
    return {
        "promoted_at": move.at.isoformat(timespec="seconds"),
        "promoted_by": move.by,
        "promoted_how": {"run": "by a run", "hand": "by hand"}[move.how] + back,
        "promoted_over": f"{name}/{move.before}" if move.before is not None else "none",
        "promoted_because": move.why[:LONGEST_TAG],
        "promoted_numbers": json.dumps(dict(move.numbers))[:LONGEST_TAG],
    }


def _tidy(workspace: Workspace, version: Version, before: Version | None, move: Move) -> None:
    """Let the pages tell who is no champion any more, and that a champion is no challenger."""
    client = tracking.client(workspace)
    if before is not None:
        replaced = {"replaced_at": move.at.isoformat(timespec="seconds"), "replaced_by": version.label}
        versions.annotate(workspace, before, replaced | {"replaced_because": move.why[:LONGEST_TAG]})
    now = versions.reread(workspace, version)
    for key in ("replaced_at", "replaced_by", "replaced_because"):
        if key in now.tags:
            client.delete_model_version_tag(version.name, str(version.number), key)
    if CHALLENGER in now.aliases:
        client.delete_registered_model_alias(version.name, CHALLENGER)


def _settled(workspace: Workspace, name: str) -> list[Move]:
    """Return the journal, after closing a last entry that was broken off, and mending what it left half-told on pages.

    Only for who holds the lock.
    """
    moves = history(workspace, name)
    if moves and moves[-1].state == "begun":
        moves[-1] = replace(moves[-1], state="interrupted")
        there = {version.number: version for version in versions.every(workspace, name)}
        to, before = there.get(moves[-1].to), there.get(moves[-1].before or 0)
        if to is not None and moves[-1].effect:
            _tidy(workspace, to, before, moves[-1])
        elif to is not None:
            _retell(workspace, to, moves)
        _write(workspace, name, moves[-1])  # last, so that what is killed before is done again
    return moves


def _retell(workspace: Workspace, version: Version, moves: Sequence[Move]) -> None:
    """Let a version's page tell of the last move that made it champion, or of none."""
    last = next((move for move in reversed(moves) if move.effect and move.to == version.number), None)
    if last is not None:
        versions.annotate(workspace, version, _story(version.name, last))
        return
    for key in versions.reread(workspace, version).tags:
        if key.startswith("promoted_"):
            tracking.client(workspace).delete_model_version_tag(version.name, str(version.number), key)


def _write(workspace: Workspace, name: str, move: Move) -> None:
    text = _line_of_json(move)
    while len(text) > LONGEST_TAG:
        # Some characters take several in JSON, hence by proportion, and again if need be. The numbers go last.
        kept = len(move.why) * LONGEST_TAG // len(text) - 20
        numbers = move.numbers if kept > 0 else {}
        move = replace(move, why=f"{move.why[: max(kept, 0)].rstrip(' .')} ...", numbers=numbers)
        text = _line_of_json(move)
    tracking.client(workspace).set_registered_model_tag(name, f"move.{move.number:04d}", text)


def _line_of_json(move: Move) -> str:
    return json.dumps(move.to_json(), separators=(",", ":"), ensure_ascii=False)


def _conflict(version: Version, against: int | None, before: Version | None, moves: Sequence[Move]) -> str:
    expected = f"version {against}" if against is not None else "no version"
    got = before.label if before else "none"
    last = next((move for move in reversed(moves) if move.effect), None)
    by = f" ({last.what} by {last.by} at {last.at:%Y-%m-%d %H:%M:%S} UTC: {last.why})" if last else ""
    return (
        f"{version.label} was not promoted: it was decided against {expected}, and champion is {got} meanwhile{by}; look at "
        f"`sevenfold history {version.name}` and decide again"
    )
