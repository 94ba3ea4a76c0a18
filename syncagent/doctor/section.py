"""What a check finds: rows for the screen, and the problems among them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """One line: of what, what was found, and a word on that."""

    name: str
    found: str
    note: str = ""


@dataclass(slots=True)
class Section:
    """The rows of one check."""

    name: str
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """A sentence each: what was asked for and does not work, and what to do."""

    def add(self, name: str, found: str, note: str = "") -> None:
        self.rows.append(Row(name, found, note))
