"""Files that must be new: one writer of several has the name, and a failed one leaves nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from syncagent.support import storage


def without_links(*_args, **_kwargs):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_is_taken_is_not_taken_again(tmp_path, monkeypatch, links):
    """Also where the file system knows no links."""
    if not links:
        monkeypatch.setattr(os, "link", without_links)
    storage.write_new(tmp_path / "x", "one")
    with pytest.raises(FileExistsError):
        storage.write_new(tmp_path / "x", "two")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x", "one")]
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_a_name_that_could_not_be_filled_is_free_again(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", without_links)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        storage.write_new(tmp_path / "x", "text")
    assert list(tmp_path.iterdir()) == []
