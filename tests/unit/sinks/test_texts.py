"""Attribute values that can be sent and stored."""

from __future__ import annotations

from syncagent.telemetry.texts import ITEMS_MAX, TEXT_MAX, Texts


def test_control_characters_are_spelt_out():
    """A NUL makes some back ends refuse the whole request, and an escape sequence acts on a terminal."""
    texts = Texts()
    assert texts.fit("a\x00b\x1b[31mc\x7f\x9b") == "a\\x00b\\x1b[31mc\\x7f\\x9b"
    assert texts.fit("line one\n\tline two: λ") == "line one\n\tline two: λ"
    assert texts.cut == 0


def test_megabytes_are_cut_and_counted():
    texts = Texts()
    assert len(texts.fit("x" * 5_000_000)) == TEXT_MAX
    assert texts.fit("x" * TEXT_MAX) == "x" * TEXT_MAX
    assert len(texts.fit_all(map(str, range(1_000_000)))) == ITEMS_MAX
    assert texts.cut == 2


def test_lone_surrogates_can_be_encoded():
    """They stand for the bytes of file names that are no UTF-8."""
    assert Texts().fit("/data/\udcff.py") == "/data/\\udcff.py"


def test_what_has_no_value_is_left_out():
    assert Texts().present({"a": None, "b": "", "c": 0, "d": False, "e": "x"}) == {"c": 0, "d": False, "e": "x"}
    assert Texts().fit_all(()) is None
