"""Editors and type checkers know the public interface: see tests/typing/api.py."""

from __future__ import annotations

import importlib.util
import sys
from typing import get_args

import pytest

from syncagent.settings import schema
from tests import processes

CHECKERS = {"mypy": ["mypy", "--strict"], "pyright": ["pyright", "--pythonpath", sys.executable]}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("checker", CHECKERS)
def test_the_public_interface_is_typed(checker):
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    done = processes.run("-m", *CHECKERS[checker], "tests/typing/api.py", cwd=processes.ROOT, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_setting_is_a_typed_keyword_and_every_typed_keyword_a_setting():
    assert list(schema.Keywords.__annotations__) == list(schema.PARSERS)


@pytest.mark.parametrize(
    ("name", "literal"),
    [
        ("policy", schema.PolicyName),
        ("detail", schema.Detail),
        ("copies", schema.Copies),
        ("judge_threads", schema.JudgedThreads),
    ],
)
def test_the_words_that_a_type_names_are_the_words_that_are_accepted(name, literal):
    assert [schema.parse(name, word) for word in get_args(literal)] == list(get_args(literal))
    assert schema.PARSERS[name].choices == get_args(literal)
