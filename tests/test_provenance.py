"""What is said of a workspace's commit is true, its patch makes the files again, and git is left as it was."""

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from sevenfold import provenance
from sevenfold.workspace import Workspace
from tests.conftest import SMALL


def git(folder, *arguments):
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    return subprocess.run(["git", *author, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def place(tmp_path):
    """A workspace in a folder of its repository."""
    root = tmp_path / "repository" / "project"
    root.mkdir(parents=True)
    (root / "params.yaml").write_text(SMALL)
    (root / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  fetch@wdbc:\n    outs:\n    - path: data/raw/wdbc.parquet\n      md5: abc\n"
    )
    (root / "code.py").write_text("old = 1\n")
    (root.parent / ".gitignore").write_text("*.secret\n")
    (root.parent / "above.txt").write_text("above\n")
    git(root.parent, "init", "--quiet")
    git(root.parent, "add", "--all")
    git(root.parent, "commit", "--quiet", "--message", "all")
    return Workspace(root)


def change(place):
    (place.root / "code.py").write_text("new = 2\n")
    for folder in ("src", "notes"):
        (place.root / folder).mkdir()
    (place.root / "src" / "added.bin").write_bytes(bytes(range(256)))
    (place.root / "src" / "[odd] *name.py").write_text("odd = 1\n")
    (place.root.parent / "above.txt").write_text("above, changed\n")
    for secret in (".env", "src/.env.local", "src/server.key", "notes/letter.txt"):
        (place.root / secret).write_text("hunter2\n")
    (place.root / "password.secret").write_text("hunter2\n")


def test_a_clean_workspace_has_a_commit_and_no_patch(place, tmp_path):
    found = provenance.collect(place)
    assert (found.commit, found.dirty, found.patch) == (git(place.root, "rev-parse", "HEAD").strip(), False, None)
    assert {p.name for p in provenance.write(place, tmp_path / "kept", provenance.collect(place))} == {
        "params.yaml",
        "dvc.lock",
        "environment.json",
    }
    assert found.tags().keys() == {"git_commit", "git_dirty", "lock_digest"}
    assert provenance.has_commit(place, found.commit)
    assert not provenance.has_commit(place, "0" * 40)


@pytest.mark.parametrize("setting", ["diff.noprefix", "diff.mnemonicPrefix", "color.ui"])
def test_the_patch_makes_sources_again_without_secrets_or_other_files_of_the_user(place, tmp_path, setting):
    change(place)
    git(place.root, "config", setting, "always" if setting == "color.ui" else "true")
    git(place.root, "add", "code.py")
    before = git(place.root, "status", "--porcelain"), git(place.root, "count-objects")
    files = provenance.write(place, tmp_path / "kept", provenance.collect(place))
    assert (git(place.root, "status", "--porcelain"), git(place.root, "count-objects")) == before
    assert tmp_path / "kept" / "uncommitted.patch" in files
    assert b"hunter2" not in (tmp_path / "kept" / "uncommitted.patch").read_bytes()
    git(tmp_path, "clone", "--quiet", str(place.root.parent), "again")
    git(tmp_path / "again", "apply", "--binary", str(tmp_path / "kept" / "uncommitted.patch"))
    for name in ("project/code.py", "project/src/added.bin", "project/src/[odd] *name.py", "above.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (place.root.parent / name).read_bytes()


def test_a_tracked_file_that_may_hold_a_secret_is_left_out_of_the_patch_and_the_tags_say_so(place, tmp_path):
    (place.root / ".dvc").mkdir()
    secrets = [".dvc/config", ".env", "id_[odd] *name", "server.pem"]
    for name in secrets:
        (place.root / name).write_text("without\n")
    git(place.root, "add", "--all")
    git(place.root, "commit", "--quiet", "--message", "more")
    for name in secrets[1:]:
        (place.root / name).write_text("hunter2\n")
    (place.root / ".dvc/config").write_text("['remote \"r\"']\n    secret_access_key = hunter2\n")
    alone = provenance.collect(place)
    assert (alone.dirty, alone.patch) == (True, None)
    told = "4 files that may hold secrets were left out: project/.dvc/config, project/.env, project/id_[odd] *name and 1 more"
    assert alone.tags()["git_patch"] == told
    (place.root / "code.py").write_text("new = 2\n")
    found = provenance.collect(place)
    assert found.tags()["git_patch"] == f"kept; {told}"
    assert b"new = 2" in found.patch
    assert b"hunter2" not in found.patch
    (tmp_path / "patch").write_bytes(found.patch)
    git(tmp_path, "clone", "--quiet", str(place.root.parent), "again")
    git(tmp_path / "again", "apply", "--binary", str(tmp_path / "patch"))
    assert (tmp_path / "again/project/.env").read_text() == "without\n"


def test_a_secret_that_is_gone_is_left_out_too(place):
    (place.root / ".env").write_text("hunter2\n" * 20)
    git(place.root, "add", "--all")
    git(place.root, "commit", "--quiet", "--message", "more")
    git(place.root, "rm", "--quiet", ".env")
    (place.root / "code.py").write_text("new = 2\n")
    found = provenance.collect(place)
    assert b"hunter2" not in found.patch
    assert "left out: project/.env" in found.unkept


def test_changes_in_the_users_own_files_alone_make_no_patch(place):
    (place.root / "notes.txt").write_text("mine\n")
    found = provenance.collect(place)
    assert (found.dirty, found.patch) == (True, None)
    assert found.tags()["git_patch"] == "they are in files of the user's own, which are not kept"


def test_a_patch_that_is_too_large_is_not_kept_and_the_tags_say_so(place, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "MOST_PATCH", 100)
    change(place)
    found = provenance.collect(place)
    assert found.dirty
    assert found.patch is None
    assert "were not kept; at most 100 are" in found.tags()["git_patch"]
    assert not any(
        p.name == "uncommitted.patch" for p in provenance.write(place, tmp_path / "kept", provenance.collect(place))
    )


def test_outside_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "params.yaml").write_text(SMALL)
    found = provenance.collect(Workspace(tmp_path))
    assert (found.commit, found.dirty, found.lock_digest) == ("none", False, "none")


def test_the_environment_names_packages_machine_and_threads(place, tmp_path):
    provenance.write(place, tmp_path, provenance.collect(place))
    told = json.loads(Path(tmp_path / "environment.json").read_text())
    assert told["packages"]["numpy"] == metadata.version("numpy")
    assert told["threads"] == 1
    assert told["hardware"]["cores"] >= 1


def test_a_lock_says_the_digest_of_each_path(place, tmp_path):
    assert provenance.locked(place.root / "dvc.lock") == {"data/raw/wdbc.parquet": "abc"}
    assert provenance.locked(tmp_path / "none") == {}
