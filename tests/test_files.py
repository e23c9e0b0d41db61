"""Files and folders appear whole or not at all, and equal contents have equal digests."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest

from sevenfold import files


def fill(path, text):
    if path.name == "folder":
        (path / "sub").mkdir(parents=True)
        (path / "sub" / "a").write_text(text)
    else:
        path.write_text(text)


def content(path):
    return (path / "sub" / "a" if path.is_dir() else path).read_text()


@pytest.fixture(params=["file", "folder"])
def path(request, tmp_path):
    return tmp_path / "deep" / "er" / request.param


def test_what_is_written_appears_at_the_end_and_leaves_nothing_beside_it(path):
    for text in ("one", "two"):
        with files.whole(path) as draft:
            assert not path.exists() if text == "one" else content(path) == "one"
            fill(draft, text)
        assert content(path) == text
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_everything_is_as_it_was(path, error):
    for before in (None, "one"):
        if before:
            path.parent.mkdir(parents=True, exist_ok=True)
            fill(path, before)
        with pytest.raises(error), files.whole(path) as draft:  # noqa: PT012
            fill(draft, "half")
            raise error
        assert [p.name for p in path.parent.iterdir()] == ([path.name] if before else [])
    assert content(path) == "one"


def test_a_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    fill(path, "one")
    rename = type(path).rename

    def fails_once_for_the_draft(self, target):
        if target == path and self.name == "folder":
            raise OSError("no space left on device")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", fails_once_for_the_draft)
    with pytest.raises(OSError, match="no space left"), files.whole(path) as draft:
        fill(draft, "two")
    assert content(path) == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path, ready = tmp_path / "file", tmp_path / "ready"
    path.write_text("old")
    program = (
        "import time, pathlib\nfrom sevenfold import files\n"
        f"with files.whole(pathlib.Path({str(path)!r})) as draft:\n"
        f"    draft.write_text('half')\n    pathlib.Path({str(ready)!r}).touch()\n    time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert path.read_text() == "new"


def test_a_block_that_wrote_nothing_is_an_error(path):
    with pytest.raises(FileNotFoundError, match=r"nothing was written that could become .*deep/er"), files.whole(path):
        pass
    assert not path.exists()


def test_equal_values_give_equal_json(tmp_path):
    assert files.dumps({"b": [1.5, "ü"], "a": None}) == files.dumps({"a": None, "b": [1.5, "ü"]})
    files.write_json(tmp_path / "a.json", {"b": [1.5, "ü"], "a": None})
    assert files.read_json(tmp_path / "a.json") == {"a": None, "b": [1.5, "ü"]}
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_json_that_cannot_be_read_is_named_with_a_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.json does not exist; run `dvc repro` or `sevenfold run` to make"):
        files.read_json(tmp_path / "a.json")
    for damage in (b'{"a": 1', b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(damage)
        with pytest.raises(ValueError, match=r"a\.json is not valid JSON \(.+\); remove it and run `dvc repro`"):
            files.read_json(tmp_path / "a.json")


def test_a_files_digest_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    assert files.digest(tmp_path / "a") == hashlib.sha256(b"x" * 100_000).hexdigest()


def test_a_folders_digest_tells_names_and_contents_and_not_where_it_lies(tmp_path):
    def made(name, **contents):
        for file, text in contents.items():
            (tmp_path / name / "sub").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "sub" / file).write_text(text)
        return files.digest(tmp_path / name)

    first = made("one", a="1", b="2")
    assert made("two", b="2", a="1") == first
    others = [made("three", a="1", c="2"), made("four", a="2", b="1"), made("five", a="1"), made("six", ab="12")]
    assert len({first, *others}) == 5
