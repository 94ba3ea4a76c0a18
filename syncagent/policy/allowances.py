"""What settings allow: lines, functions, files, modules and kinds, packs for libraries, and the baseline."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from syncagent.attribution.importable import belongs_to
from syncagent.errors import ConfigError
from syncagent.policy.baseline import Baseline

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncagent.events import CallSite
    from syncagent.settings.schema import Settings

__all__ = ["Allowances", "Entry"]


class Entry(NamedTuple):
    """One parsed entry of the ``allow`` setting or of a pack, and the reason it gives."""

    reason: str
    file: str | None = None
    line: int | None = None
    module: str | None = None
    function: str | None = None

    @classmethod
    def parse(cls, text: str, reason: str) -> Entry:
        head, _, tail = text.rpartition(":")
        if tail.isdigit() and head.endswith(".py"):
            return cls(reason, file=head, line=int(tail))
        if text.endswith(".py"):
            return cls(reason, file=text)
        return cls(reason, module=head, function=tail) if head else cls(reason, module=tail)

    def covers(self, site: CallSite) -> bool:
        path = site.file.replace(os.sep, "/")
        if self.file is not None:
            same = path == self.file or path.endswith("/" + self.file.removeprefix("./").lstrip("/"))
            return same and self.line in (None, site.line)
        in_module = belongs_to(path, self.module or "")
        return in_module and (self.function is None or f".{site.function}".endswith(f".{self.function}"))


class Allowances:
    """Everything that settings allow.  Raises :class:`ConfigError` for a pack or baseline that cannot be read."""

    def __init__(self, settings: Settings) -> None:
        self.kinds: frozenset[str] = frozenset(settings.allow_kinds)
        self._entries = tuple(Entry.parse(text, f"allow: {text}") for text in settings.allow)
        for name in settings.allow_packs:
            self._entries += _pack(name)
        self.baseline = Baseline(settings.baseline) if settings.baseline else None
        self.by_site = bool(self._entries or self.baseline)
        """Whether the lines of a sync matter."""

    def sites(self, sites: Iterable[CallSite]) -> str | None:
        """Return the reason why a sync may pass: ``sites`` are its lines in libraries, then the user's."""
        for site in sites:
            for entry in self._entries:
                if entry.covers(site):
                    return entry.reason
        return None


def pack_for(sites: Iterable[CallSite]) -> str | None:
    """Return the name of the built-in pack that would allow a sync with these lines."""
    from syncagent.policy import packs

    lines = tuple(sites)
    for name, entries in packs.PACKS.items():
        for entry in entries:
            if any(Entry.parse(entry.where, "").covers(line) for line in lines):
                return name
    return None


def _pack(name: str) -> tuple[Entry, ...]:
    from syncagent.policy import packs

    try:
        entries = packs.pack(name)
    except KeyError:
        known = ", ".join(packs.names())
        raise ConfigError(f"syncagent: setting allow_packs is {name!r}, but it must be one of {known}.") from None
    except ValueError as error:
        raise ConfigError(f"syncagent: setting allow_packs is {name!r}, but {error}") from None
    return tuple(Entry.parse(entry.where, f"pack {name}: {entry.reason}") for entry in entries)
