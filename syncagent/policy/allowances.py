"""What settings allow: lines, functions, files, modules and kinds, packs for libraries, and the baseline."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from syncagent.attribution.callsite import belongs_to
from syncagent.attribution.statements import statements_of
from syncagent.errors import ConfigError, SyncAgentError
from syncagent.settings import parsing
from syncagent.sites import SiteKey, home_of_process, is_a_little_changed, key_of, naming, normal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import CodeType

    from syncagent.attribution.callsite import Point
    from syncagent.events import CallSite, SyncKind
    from syncagent.settings.schema import Settings
    from syncagent.sites import Frame


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
        if not in_module or self.function is None:
            return in_module
        return f".{without_locals(site.function)}".endswith(f".{without_locals(self.function)}")


def without_locals(function: str) -> str:
    """Return the name of a function as settings and packs have it."""
    return function.replace(".<locals>", "")


def would_allow(text: str, site: CallSite) -> bool:
    """Return whether this line can be the value of the setting ``allow``, and then covers the site."""
    try:
        is_one = text.isprintable() and parsing.allowances("allow", text) == (text,)
    except ConfigError:
        return False
    return is_one and Entry.parse(text, "").covers(site)


class Baseline:
    """The sites of an earlier report, whose syncs are allowed, by the same key as ``syncagent check``.

    A site whose statement has changed a little is known as well, unless the old statement is still in the function:
    then the similar one is new.  Each site of the report accounts for one such change.
    """

    def __init__(self, path: str) -> None:
        """Read the report.  Raises :class:`ConfigError` if it is not one."""
        from syncagent.report import files
        from syncagent.report.wording import short_path

        try:
            report = files.load_merged([path])
        except SyncAgentError as error:
            raise ConfigError(
                f"syncagent: setting baseline is {short_path(path)!r}, but it must be a report that syncagent saved as "
                f"JSON ({error})."
            ) from None
        there, here = report.run.home, home_of_process()
        named, self._named = naming(there, here)
        self._is_whole = bool(there.folder and here.folder)
        self._keys = {site.key(named) for site in report.sites}
        self._by_frame: dict[Frame, list[SiteKey]] = {}
        for key in dict.fromkeys(site.key(named) for site in report.sites):
            self._by_frame.setdefault(key.frame, []).append(key)
        self._stands_for: dict[SiteKey, SiteKey] = {}

    def knows(
        self, kind: SyncKind, points: Sequence[Point | None], resolve: Callable[[Point | None], CallSite | None]
    ) -> bool:
        """Return whether the report has this site; ``points`` are the user's, the library's and the forward line."""
        user, library, forward = map(resolve, points)
        key = key_of(kind, user, library, forward, self._named)
        if key in self._keys:
            return True
        for known in self._by_frame.get(key.frame, ()):
            if self._stands_for.get(known, key) != key or not is_a_little_changed(known, key):
                continue
            changed = [
                (text, point) for text, now, point in zip(known.texts, key.texts, points, strict=True) if text != now
            ]
            if all(point is not None and self._is_gone(text, point[0]) for text, point in changed):
                return self._stands_for.setdefault(known, key) == key
        return False

    def _is_gone(self, text: str, code: CodeType) -> bool:
        """Return whether the statement is no longer in this function; ``False`` without the source."""
        statements = statements_of(code)
        if not statements:
            return False
        texts = {normal(statement.text) for statement in statements}
        if not self._is_whole:  # the report has single lines
            texts |= {normal(line.strip()) for statement in statements for line in statement.text.splitlines()}
        return text not in texts


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
        return next((entry.reason for site in sites for entry in self._entries if entry.covers(site)), None)


def pack_for(sites: Iterable[CallSite]) -> str | None:
    """Return the name of the built-in pack that would allow a sync with these lines."""
    from syncagent.policy import packs

    lines = tuple(sites)
    entries = ((name, Entry.parse(entry.where, "")) for name, pack in packs.PACKS.items() for entry in pack)
    return next((name for name, entry in entries if any(map(entry.covers, lines))), None)


def _pack(name: str) -> tuple[Entry, ...]:
    from syncagent.policy import packs

    return tuple(Entry.parse(entry.where, f"pack {name}: {entry.reason}") for entry in packs.pack(name))
