"""What an error and a warning say of a line that has no file."""

from __future__ import annotations

import shlex

import pytest

from syncagent.events import CallSite, SyncKind
from syncagent.policy.allowances import Entry
from syncagent.policy.messages import Violation, message


def said(site, library=None):
    return message(Violation("aten::item", SyncKind.SCALAR_READ, site, library, 2, 0, ""))


def test_a_line_of_a_notebook_is_named_by_its_cell():
    """No path of SYNCAGENT_ALLOW fits a cell, whose file does not exist; the library's function can still be named."""
    cell = CallSite("<ipython-input-3-0f1e2d3c4b5a>", 7, "<module>", "loss.item()")
    assert "in step 2 at In [3], line 7 (loss.item())" in said(cell)
    assert said(cell).endswith('allow it with `with syncagent.allow("reason"):` around the line.')
    library = CallSite("/v/site-packages/lib/loop.py", 9, "fit", "x.item()")
    assert said(cell, library).endswith("around the line or SYNCAGENT_ALLOW=lib.loop:fit.")


def test_a_line_of_a_file_is_named_by_its_path():
    line = CallSite("/home/ada/train.py", 7, "main", "loss.item()")
    assert "in step 2 at /home/ada/train.py:7 (loss.item())" in said(line)
    assert said(line).endswith("around the line or SYNCAGENT_ALLOW=/home/ada/train.py:7.")


@pytest.mark.parametrize(
    "function", ["fit", "Loop.fit", "Loop.fit.<locals>.each", "Loop.fit.<locals>.<listcomp>", "fit.<locals>.<lambda>"]
)
def test_what_it_proposes_for_a_library_can_be_pasted_and_allows_that_function_alone(function):
    line = CallSite("/home/ada/train.py", 7, "main", "loop.fit()")
    library = CallSite("/v/site-packages/lib/loop.py", 9, function, "x.item()")
    (pasted,) = shlex.split(said(line, library).rpartition("SYNCAGENT_ALLOW=")[2].removesuffix("."))
    entry = Entry.parse(pasted, "")
    assert entry.covers(library)
    assert not entry.covers(CallSite(library.file, 9, "Loop.other.<locals>.each", "x.item()"))


def test_a_path_with_blanks_is_quoted():
    line = CallSite("/home/ada/my work/train.py", 7, "main", "loss.item()")
    assert said(line).endswith("or SYNCAGENT_ALLOW='/home/ada/my work/train.py:7'.")


@pytest.mark.parametrize("file", ["<string>", "<stdin>", "/a,b/train.py", "/a:b/train.py", "/bin/train", "/a\x1b/b.py"])
def test_a_setting_that_would_be_refused_is_not_proposed(file):
    assert said(CallSite(file, 7, "main", "loss.item()")).endswith("around the line.")


def test_a_stall_is_told_in_a_unit_that_fits_it():
    line = CallSite("train.py", 7, "main", "loss.item()")
    said = message(Violation("aten::item", SyncKind.SCALAR_READ, line, None, 2, 677, ""))
    assert said.startswith("aten::item made the host wait 677 ns for the GPU in step 2")
