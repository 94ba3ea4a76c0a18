"""The corpus is data: what can be checked of it without a GPU."""

from __future__ import annotations

import os
from collections import Counter

import pytest

pytest.importorskip("torch")
os.environ.setdefault("CORPUS_DEVICE", "cpu")  # read when the corpus is imported

from tests.gpu.corpus import CASES, Case


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_source_compiles(case: Case) -> None:
    compile(case.setup, "setup", "exec")
    compile(case.call, "call", "exec")
    if case.needs:
        compile(case.needs, "needs", "eval")


def test_both_kinds_are_many() -> None:
    expected = Counter(case.expect for case in CASES)
    assert expected[True] >= 260
    assert expected[False] >= 260


def test_every_case_has_a_family_and_a_call() -> None:
    assert [case.name for case in CASES if not (case.family and case.call.strip())] == []
