"""What is printed does nothing to a terminal."""

from __future__ import annotations

import pytest

from syncagent.support.printable import clean, has_controls

HARMFUL = ["\x1b[31m", "\x9b31m", "\x07", "\x00", "\x7f", "\r", "\n", "\u202e", "\u2066", "\u2028", "\u200f", "\x85"]


@pytest.mark.parametrize("char", HARMFUL)
def test_what_a_terminal_acts_on_is_written_as_an_escape(char):
    shown = clean(f"a{char}b")
    assert shown.isprintable()
    assert shown.startswith("a\\")
    assert has_controls(f"a{char}b")


@pytest.mark.parametrize("text", ["x = 1  # naïve 模型 😀", "", "a\tb"])
def test_other_text_stays(text):
    """But for the tab, which is a blank."""
    assert clean(text) == text.replace("\t", " ")
    assert not has_controls(text)


def test_what_stands_for_bytes_that_are_no_text_can_be_printed():
    assert clean("\udcff.py").encode() == b"\\udcff.py"
