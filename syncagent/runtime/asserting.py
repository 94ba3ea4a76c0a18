"""Assertions: at most so many host syncs in what runs inside, else an error at its end that names each line.

The end raises, not the sync: no ``except`` of the program and no ``pytest.raises`` can swallow that, and one message
has all lines.  A policy of ``raise`` stops at the first sync, before it waits.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from syncagent.errors import ConfigError, HostSyncAssertionError
from syncagent.events import SyncKind
from syncagent.policy import gate
from syncagent.runtime import process
from syncagent.runtime.decorating import Opened
from syncagent.runtime.watching import Watch
from syncagent.settings import sources

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from syncagent.report.findings import Counted
    from syncagent.report.model import Report, SiteRow

_SHOWN = 10
_UNKNOWN = "a line that is not known"
_OWN: dict[str, Any] = {"policy": "observe", "warmup_steps": 0}
"""An assertion judges by itself, from the first call on."""
SEES_ALL: dict[str, Any] = {
    "policy": "observe", "detail": "syncs", "copies": "all", "report": None, "journal": "off", "capture": "off",
    "summary": False, "cost": False, "baseline": None,
}  # fmt: skip
"""An agent for the time in which something asks: it sees all and leaves nothing behind."""


def a_number(most: object) -> int:
    """Return it if it is a number of syncs.  Raises :class:`~syncagent.ConfigError` otherwise."""
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise ConfigError(
            f"syncagent: the most host syncs that are allowed are {most!r}; it must be a whole number from 0 up."
        )
    return most


class SyncAssertion(Watch):
    """See :func:`syncagent.assert_max_syncs`."""

    asserts = True

    def __init__(self, most: int | None, settings: Mapping[str, Any], *, kinds: Collection[str] | None = None) -> None:
        """``most`` is ``None`` where the caller compares; of ``kinds``, only these count, else all that are judged."""
        known = [kind.value for kind in SyncKind]
        for kind in kinds or ():
            if kind not in known:
                raise ConfigError(f"syncagent: kind {kind!r} is not allowed; it must be one of {', '.join(known)}.")
        self.most = None if most is None else a_number(most)
        self.kinds = kinds
        super().__init__(sources.load({**_OWN, **settings}))
        self._alone = sources.load({**SEES_ALL, **_OWN, **settings})

    def _begin(self) -> Opened:
        """Open a region, in an agent that is started where none is running, for all assertions that overlap."""
        give_back = process.lend(self._alone)
        try:
            opened = super()._begin()
        except BaseException:
            give_back()
            raise
        before = sys.exc_info()[1]

        def close() -> None:
            opened.close()
            give_back()
            if self.most is not None and sys.exc_info()[1] is before:  # an error of the program's goes first
                check(opened.handle.report(), self.most, self.kinds)

        return Opened(opened.handle, close)


def check(report: Report, most: int, kinds: Collection[str] | None = None) -> None:
    """Raise :class:`~syncagent.HostSyncAssertionError` if a report has more syncs, or of these kinds, than that."""
    from syncagent.report.findings import counted

    found = counted(report, kinds)
    number = sum(one.number for one in found)
    if number > most:
        raise HostSyncAssertionError(message(found, number, most, report))
    gaps = [note.removeprefix(gate.NOTE) for note in report.notes if note.startswith(gate.NOTE)]
    if report.dropped:
        gaps.append(f"{report.dropped:,} were dropped")
    if gaps:
        raise HostSyncAssertionError(f"host syncs could not be counted: {'; '.join(gaps)}")


def message(found: Collection[Counted], number: int, most: int, report: Report) -> str:
    """Return the error's text: a sentence, then each line, the expression that waits, and what to do about it."""
    from syncagent.report import wording

    limit = "none is allowed" if most == 0 else f"at most {most:,} {'is' if most == 1 else 'are'} allowed"
    lines = [f"{wording.plural(number, 'host sync')}, but {limit}"]
    for site, times in sorted(found, key=lambda one: (-one.number, one.site.file, one.site.line))[:_SHOWN]:
        where = f"{wording.place(site.file, site.line, report.run.cwd)} in {site.function}" if site.file else _UNKNOWN
        waits = wording.named(site.api, site.op)
        if site.library is not None:
            waits += f" in {wording.place(site.library.file, site.library.line, report.run.cwd)}"
        lines += [f"  {where}", f"    {_expression(site)}"]
        lines.append(f"    {waits}, {'once' if times == 1 else f'{times:,} times'}")
        if site.advice:
            lines.append(f"    \N{RIGHTWARDS ARROW} {site.advice}")
    if len(found) > _SHOWN:
        lines.append(f"  and {wording.plural(len(found) - _SHOWN, 'more line')}")
    return "\n".join(wording.clean(line) for line in lines if line.strip())


def _expression(site: SiteRow) -> str:
    """Return the part of the line that waits, where Python knows it, else the line."""
    span = site.span
    if span is None or span.end_line != site.line:
        return site.source
    return site.source[span.column - span.indent : span.end_column - span.indent] or site.source
