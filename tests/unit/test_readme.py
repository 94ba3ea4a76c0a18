"""The READMEs say what the committed results say."""

from __future__ import annotations

from tests.gpu import tables


def test_the_tables_are_those_of_the_results():
    """``python tests/gpu/tables.py`` has been run since the results changed."""
    for name in tables.PAGES:
        text = (tables.ROOT / name).read_text(encoding="utf-8")
        assert tables.filled(text) == text, name
