"""Attribute values that can be sent and stored."""

from __future__ import annotations

from syncagent.telemetry.attributes import ITEMS_MAX, TEXT_MAX, AttributeSanitizer


def test_control_characters_are_spelt_out():
    """A NUL makes some back ends refuse the whole request, and an escape sequence acts on a terminal."""
    sanitizer = AttributeSanitizer()
    assert sanitizer.clean_text("a\x00b\x1b[31mc\x7f\x9b") == "a\\x00b\\x1b[31mc\\x7f\\x9b"
    assert sanitizer.clean_text("line one\n\tline two: λ") == "line one\n\tline two: λ"
    assert sanitizer.cut == 0


def test_megabytes_are_cut_and_counted():
    sanitizer = AttributeSanitizer()
    assert len(sanitizer.clean_text("x" * 5_000_000)) == TEXT_MAX
    assert sanitizer.clean_text("x" * TEXT_MAX) == "x" * TEXT_MAX
    assert len(sanitizer.clean_texts(map(str, range(1_000_000)))) == ITEMS_MAX
    assert sanitizer.cut == 2


def test_lone_surrogates_can_be_encoded():
    """They stand for the bytes of file names that are no UTF-8."""
    assert AttributeSanitizer().clean_text("/data/\udcff.py") == "/data/\\udcff.py"


def test_what_has_no_value_is_left_out():
    assert AttributeSanitizer().clean({"a": None, "b": "", "c": 0, "d": False, "e": "x"}) == {
        "c": 0,
        "d": False,
        "e": "x",
    }
    assert AttributeSanitizer().clean_texts(()) is None
