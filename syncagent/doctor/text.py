"""The findings as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from syncagent.doctor.section import Section
from syncagent.support.printable import clean

_LABEL = 11


def lines(section: Section, width: int) -> Iterator[str]:
    """The rows of a section, its name before the first."""
    if section.name == "versions":
        shown = [f"{row.name} {row.found}{f' ({row.note})' if row.note else ''}" for row in section.rows]
        yield from _wrapped("", " · ".join(shown), width)
        return
    names = max((len(row.name) for row in section.rows), default=0)
    for number, row in enumerate(section.rows):
        label = section.name if number == 0 else ""
        text = f"{row.found}  {row.note}" if row.note else row.found
        yield from _wrapped(f"{label:<{_LABEL}}{clean(row.name):<{names}}  ", text, width)


def verdict(problems: Sequence[str], width: int) -> Iterator[str]:
    """The problems, numbered, or that there are none; and what else one can do."""
    yield ""
    if problems:
        yield "1 problem:" if len(problems) == 1 else f"{len(problems)} problems:"
    else:
        yield "Everything that was asked for works."
    for number, problem in enumerate(problems, 1):
        yield from _wrapped(f"{number:>3}. ", f"{problem[:1].upper()}{problem[1:]}", width)
    yield "This only looks. `syncagent selftest` fires known syncs and says whether each was seen, and how exactly."


def _wrapped(start: str, text: str, width: int) -> Iterator[str]:
    found = textwrap.wrap(clean(text), max(width - len(start), 30), break_long_words=False, break_on_hyphens=False) or [
        ""
    ]
    yield f"{start}{found[0]}".rstrip()
    yield from (f"{'':<{len(start)}}{line}" for line in found[1:])
