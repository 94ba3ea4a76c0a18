"""Adds to a report the source around its worst sites, as it is on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from syncagent.attribution.statements import shown
from syncagent.events import CallSite
from syncagent.report.model import Report, SiteRow, SourceRow
from syncagent.support import redaction
from syncagent.support.pace import yield_gil
from syncagent.support.reading import source_lines

SITES = 100
"""How many sites have their source shown."""
AROUND = 3
"""How many lines there are before and after a site's."""
_LONGEST = 240
"""Longer lines are cut, and end with "…" then: they are data, not code."""
_LONGEST_OWN = 2_000
"""The same of the lines of a site itself, which may be told by what stands at their ends."""


def with_context(report: Report) -> Report:
    """The report with ``sources``, for each file that still has a site's text at its line."""
    wanted: dict[str, set[int]] = defaultdict(set)
    own: set[tuple[str, int]] = set()
    for site in report.sites[:SITES]:
        for line in lines_of(site):
            text = source_lines(line.file)
            # The file may have been changed since.
            if line.source and 0 < line.line <= len(text) and shown(text[line.line - 1]) == line.source:
                first, last = max(line.line - AROUND, 1), min(line.line + AROUND, len(text))
                wanted[line.file].update(range(first, last + 1))
                last = line.span.end_line if line.span is not None else line.line
                own.update((line.file, number) for number in range(line.line, min(last, len(text)) + 1))
        yield_gil()

    def shown_line(file: str, number: int) -> str:
        is_own = (file, number) in own
        longest, text = _LONGEST_OWN if is_own else _LONGEST, source_lines(file)[number - 1].rstrip()
        begin = text if len(text) <= longest else text[:longest] + "…"
        # Columns count in a site's own lines, which are in the report in any case.
        return begin if is_own else redaction.source(begin)

    rows = (
        SourceRow(file, run[0], tuple(shown_line(file, number) for number in run))
        for file, numbers in sorted(wanted.items())
        for run in runs(sorted(numbers))
    )
    return replace(report, sources=tuple(rows))


def lines_of(site: SiteRow) -> Iterator[CallSite | SiteRow]:
    """The lines of a site at which something may have to be changed, the most telling first."""
    yield from (line for line in (site.forward, site, site.library) if line is not None)


def runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Split sorted numbers where some are missing between two of them."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run
