"""Makes attribute values safe to send: of bounded length and readable; counts what was cut."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from syncagent.telemetry import semconv

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opentelemetry.util.types import AttributeValue

    from syncagent.events import CallSite

TEXT_MAX = 16_384
"""Characters of one attribute's text."""
ITEMS_MAX = 64
"""Texts in one attribute."""

_CONTROLS = {number: f"\\x{number:02x}" for number in (*range(32), *range(127, 160)) if chr(number) not in "\n\t"}
"""A NUL makes some back ends (PostgreSQL's text) refuse the whole request; an escape sequence acts on terminals."""


class AttributeSanitizer:
    """Makes of any text what every exporter can encode and every back end can store."""

    def __init__(self) -> None:
        self.cut = 0
        """How many values were longer than allowed."""

    def clean(self, attributes: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
        """Return the attributes that have a value, with their texts cleaned."""
        return {
            name: self.clean_text(value) if isinstance(value, str) else value
            for name, value in attributes.items()
            if value is not None and value != ""
        }

    def clean_text(self, value: str, most: int = TEXT_MAX) -> str:
        """Return the text without control characters, and without the lone surrogates of undecodable file names."""
        if len(value) > most:
            self.cut += 1
            value = value[: most - 1] + "…"
        if value.isascii() and value.isprintable():
            return value
        return value.translate(_CONTROLS).encode("utf-8", "backslashreplace").decode("utf-8")

    def clean_texts(self, values: Iterable[str]) -> list[str] | None:
        """Return the texts of one attribute, or ``None`` where there are none."""
        first = list(islice(values, ITEMS_MAX + 1))
        self.cut += len(first) > ITEMS_MAX
        return [self.clean_text(value, TEXT_MAX // 16) for value in first[:ITEMS_MAX]] or None


def location(site: CallSite | None, names: tuple[str, str, str] = semconv.CODE) -> dict[str, AttributeValue | None]:
    """Return file, line and function of a site under these names; nothing where the site is not known."""
    return {} if site is None else dict(zip(names, (site.file, site.line or None, site.function), strict=True))
