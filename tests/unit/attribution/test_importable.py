"""Which files belong to a package."""

from __future__ import annotations

import sys

import pytest

from syncagent.attribution.callsite import belongs_to


@pytest.fixture
def _roots(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/home/me/mylib", "/usr/lib/python3.12", "/usr/lib/python3.12/site-packages"])


@pytest.mark.usefixtures("_roots")
@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("/home/me/mylib/mylib/__init__.py", "mylib"),
        ("/home/me/mylib/mylib/data/load.py", "mylib"),
        ("/home/me/mylib/mylib/data/load.py", "mylib.data"),
        ("/home/me/mylib/mylib/data/load.py", "mylib.data.load"),
        ("/home/me/mylib/train.py", "train"),
        ("/usr/lib/python3.12/site-packages/torch/serialization.py", "torch.serialization"),
        ("/elsewhere/lib/python3.9/site-packages/torch/serialization.py", "torch.serialization"),
        ("/opt/editable/src/mylib/data/load.py", "mylib.data"),
    ],
)
def test_a_file_belongs_to_the_modules_that_it_is_imported_under(path, module):
    assert belongs_to(path, module)


@pytest.mark.usefixtures("_roots")
@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("/home/me/mylib/train.py", "mylib"),
        ("/home/me/mylib/tests/test_load.py", "mylib"),
        ("/home/me/mylib/.venv/lib/python3.12/site-packages/numpy/core.py", "mylib"),
        ("/home/me/mylib/.venv/lib/python3.12/site-packages/numpy/mylib/core.py", "mylib"),
        ("/home/me/mylib/mylib/data/load.py", "data"),
        ("/home/me/mylib/mylib/database.py", "mylib.data"),
        ("/usr/lib/python3.12/json/decoder.py", "decoder"),
    ],
)
def test_a_folder_of_that_name_further_up_makes_no_module(path, module):
    """A checkout in a folder that is named like its package, above all."""
    assert not belongs_to(path, module)
