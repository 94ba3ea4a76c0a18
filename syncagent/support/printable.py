"""Text from outside as one line that is safe to print: nothing in it makes a terminal do something."""

from __future__ import annotations


def clean(text: str) -> str:
    """One line that is safe to print: what is not printable, terminal escapes among it, is written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else " " if char == "\t" else char.encode("unicode_escape").decode() for char in text
    )


def has_controls(text: str) -> bool:
    """Whether a terminal would act on it: C0 and C1 controls but for the tab, DEL, and what reorders letters."""
    return not text.isprintable() and any(char in _CONTROLS for char in text)


_CONTROLS = frozenset(
    chr(number)
    for span in ((0, 9), (10, 32), (127, 160), (0x200E, 0x2010), (0x2028, 0x202F), (0x2066, 0x206A), (0x061C, 0x061D))
    for number in range(*span)
)
