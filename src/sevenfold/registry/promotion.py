"""Who is champion: the alias that a batch job follows, moved whole or not at all."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sevenfold import bundles
from sevenfold.registry import tracking, versions
from sevenfold.registry.versions import CHALLENGER, CHAMPION, Version
from sevenfold.workspace import Workspace


def challenge(workspace: Workspace, version: Version) -> None:
    """Mark a version as the one that last did not pass the gate."""
    tracking.client(workspace).set_registered_model_alias(version.name, CHALLENGER, str(version.number))


def promote(workspace: Workspace, version: Version, *, reasons: Sequence[str]) -> Version:
    """Make a version the champion: verify its bundle, tag it, set the alias, and load it through the alias.

    If that fails, alias and tags are what they were before.

    Raises:
        BundleError: the bundle does not load, or its digest is not the version's.
    """
    client = tracking.client(workspace)
    with workspace.lock("promotion"):
        bundles.load(versions.bundle_folder(workspace, version), expected=version.digest)
        tags = versions.reread(workspace, version).tags
        before = versions.champion(workspace, version.name)
        story = {
            "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "promoted_over": before.label if before else "none",
            "promoted_because": "; ".join(reasons)[:5000],
        }
        try:
            versions.annotate(workspace, version, story)
            client.set_registered_model_alias(version.name, CHAMPION, str(version.number))
            resolved = versions.resolve(workspace, f"{version.name}@{CHAMPION}")
            bundles.load(resolved.folder, expected=version.digest)
        except BaseException:
            if before is None:
                client.delete_registered_model_alias(version.name, CHAMPION)
            else:
                client.set_registered_model_alias(version.name, CHAMPION, str(before.number))
            for key in story.keys() - tags.keys():
                client.delete_model_version_tag(version.name, str(version.number), key)
            versions.annotate(workspace, version, {key: tags[key] for key in story.keys() & tags.keys()})
            raise
        challenger = versions.by_alias(workspace, version.name, CHALLENGER)
        if challenger is not None and challenger.number == version.number:
            client.delete_registered_model_alias(version.name, CHALLENGER)
        return versions.reread(workspace, version)
