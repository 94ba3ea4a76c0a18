"""Which pyproject.toml has a say, and whose."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from syncagent.settings import schema, sources
from syncagent.support import trust

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
STRANGER = 65534


@pytest.fixture(autouse=True)
def _nothing_set(no_settings):
    """A folder without pyproject.toml, an environment without settings."""


def write(folder, policy="warn"):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pyproject.toml"
    file.write_text(f"[tool.syncagent]\npolicy = '{policy}'\n")
    return file


def ignored(file):
    """Why the file was not read; the settings are then the defaults."""
    settings = sources.load()
    assert settings == schema.Settings()
    assert settings.file is None
    [sentence] = settings.warnings
    assert sentence.startswith(f"'{file}' was not read for settings: ")
    return sentence.partition(": ")[2]


class TestWhichFile:
    def test_the_one_that_was_read_is_known(self, tmp_path):
        file = write(tmp_path)
        assert sources.load().file == str(file)
        file.write_text("[project]\nname = 'x'\n")
        assert sources.load().file is None

    @pytest.mark.parametrize("mark", [".git", ".hg"])
    def test_the_search_ends_at_the_top_of_the_repository(self, tmp_path, monkeypatch, mark):
        """The file there counts; those above belong to something else."""
        write(tmp_path)
        inner = tmp_path / "repository" / "scripts"
        inner.mkdir(parents=True)
        monkeypatch.chdir(inner)
        assert sources.load().policy == "warn"
        (tmp_path / "repository" / mark).mkdir()
        assert sources.load().policy == "observe"
        write(tmp_path / "repository", "raise")
        assert sources.load().policy == "raise"

    def test_a_work_tree_whose_git_is_a_file_is_a_repository_too(self, tmp_path, monkeypatch):
        write(tmp_path)
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / ".git").write_text("gitdir: ../main/.git/worktrees/tree\n")
        monkeypatch.chdir(tmp_path / "tree")
        assert sources.load().policy == "observe"

    def test_the_search_ends_at_the_home_folder(self, tmp_path, monkeypatch):
        """Also where the variable names it by a link."""
        write(tmp_path)
        inner = tmp_path / "home" / "me" / "job"
        inner.mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "home" / "me")
        monkeypatch.chdir(inner)
        assert sources.load().policy == "warn"
        for home in (tmp_path / "home" / "me", tmp_path / "link"):
            monkeypatch.setenv("HOME", str(home))
            assert sources.load().policy == "observe"
        write(tmp_path / "home" / "me", "raise")
        assert sources.load().policy == "raise"


class TestWhoseFile:
    @as_root
    def test_a_strangers_file_is_not_read_and_that_is_reported(self, tmp_path):
        """Even if it is the nearest one, and even in a folder that is writable by everyone."""
        tmp_path.chmod(0o1777)
        file = write(tmp_path)
        os.chown(file, STRANGER, STRANGER)
        assert ignored(file) == "it belongs to user 65534, who is neither root, nor you, nor the owner of the script"

    @as_root
    def test_the_owner_of_the_script_decides_already(self, tmp_path, monkeypatch):
        """Containers run as root over code that another user owns."""
        os.chown(write(tmp_path), STRANGER, STRANGER)
        (tmp_path / "train.py").write_text("")
        monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "train.py"), raising=False)
        assert sources.load().policy == "observe"
        os.chown(tmp_path / "train.py", STRANGER, STRANGER)
        assert sources.load().policy == "warn"
        monkeypatch.undo()

    @as_root
    def test_the_script_that_is_going_to_run_may_be_named(self, tmp_path):
        os.chown(write(tmp_path), STRANGER, STRANGER)
        (tmp_path / "train.py").write_text("")
        os.chown(tmp_path / "train.py", STRANGER, STRANGER)
        assert sources.load(script=str(tmp_path / "train.py")).policy == "warn"
        assert sources.load(script=str(tmp_path / "none.py")).policy == "observe"

    @as_root
    def test_a_module_is_the_working_folders_owners(self, tmp_path, monkeypatch):
        """Python imports from there, unless it was asked not to."""
        os.chown(write(tmp_path), STRANGER, STRANGER)
        monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
        monkeypatch.setattr(sys, "argv", ["-m"])
        assert sources.load().policy == "observe"
        os.chown(tmp_path, STRANGER, STRANGER)
        assert sources.load().policy == "warn"

    def test_a_file_that_everybody_may_write_to_is_not_read(self, tmp_path):
        file = write(tmp_path)
        file.chmod(0o666)
        assert ignored(file) == "anyone may write to it"
        file.chmod(0o664)
        assert sources.load().policy == "warn"

    @as_root
    def test_of_a_link_both_owners_count(self, tmp_path):
        """Whose file it points at, and who chose that."""
        target = write(tmp_path / "elsewhere")
        link = tmp_path / "pyproject.toml"
        link.symlink_to(target)
        assert sources.load().policy == "warn"
        os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
        assert "it belongs to user 65534" in ignored(link)
        os.chown(link, 0, 0, follow_symlinks=False)
        os.chown(target, STRANGER, STRANGER)
        assert "it belongs to user 65534" in ignored(link)

    def test_where_files_have_no_owners_all_are_read(self, tmp_path, monkeypatch):
        monkeypatch.delattr(os, "geteuid")
        assert trust.owners() == frozenset()
        write(tmp_path).chmod(0o666)
        assert sources.load().policy == "warn"


class TestWhatCannotBeRead:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"this is no TOML", "it is not TOML ("),
            (b"\xff\xfe", "it is not TOML ("),
            (b"a = " + b"[" * 5000, "it is "),
            (b"[tool]\nsyncagent = 'on'", "its tool.syncagent is not a table"),
        ],
        ids=["broken", "encoding", "deep", "table"],
    )
    def test_a_broken_file_is_reported(self, tmp_path, content, says):
        (tmp_path / "pyproject.toml").write_bytes(content)
        assert ignored(tmp_path / "pyproject.toml").startswith(says)

    @pytest.mark.parametrize("kind", ["a pipe", "a directory", "a device"])
    def test_what_is_no_file_is_reported_at_once(self, tmp_path, kind):
        """And nothing waits for the other end of a pipe."""
        path = tmp_path / "pyproject.toml"
        {"a pipe": os.mkfifo, "a directory": Path.mkdir, "a device": lambda p: p.symlink_to("/dev/zero")}[kind](path)
        assert ignored(path) == f"it is {kind}, not a regular file"

    def test_a_file_of_any_size_is_reported(self, tmp_path):
        with (tmp_path / "pyproject.toml").open("wb") as stream:
            stream.truncate(2**33)
        assert re.fullmatch(r"it has more than \d+ MiB", ignored(tmp_path / "pyproject.toml"))
