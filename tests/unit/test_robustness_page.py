"""docs/robustness.md: whatever it says was tried is shown by a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "robustness.md"
TRIED = PAGE.read_text(encoding="utf-8").partition("\n## What all of this costs\n")[0]
ROWS = [line for line in TRIED.splitlines() if line.startswith("| ") and not line.startswith("| tried")]


def test_the_page_has_rows():
    assert len(ROWS) > 80


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_each_row_names_tests_that_exist(row):
    references = re.findall(r"`(tests/[^`]+)`", row.rsplit("|", 2)[1])
    assert references, row
    for reference in references:
        file, _, name = reference.partition("::")
        assert (ROOT / file).is_file(), reference
        if name:
            pattern = rf"^\s*(def|class) {re.escape(name.partition('[')[0])}\b"
            assert re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), reference
