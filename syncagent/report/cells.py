"""Names a notebook's cells as people know them: ``In [3]`` in place of the file that their code claims to have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from syncagent.attribution import cells
from syncagent.events import CallSite
from syncagent.report.model import CellRow, HostRow, OpRow, Report, SiteRow

_FILE = re.compile(r"<ipython-input-(?P<number>\d+)-.*>|.*[/\\]ipykernel_\d+[/\\]\d+\.py")
"""As of IPython, and as of the kernel of a notebook; :mod:`syncagent.sites` has the others that people type into."""
_NAME = re.compile(r"In \[\d+\]|cell")
_UNKNOWN = "cell"


def numbered(sites: Iterable[SiteRow], ops: Iterable[OpRow], host: Iterable[HostRow] = ()) -> tuple[CellRow, ...]:
    """Return the numbers of the cells that these lines are in, as far as this process knows them."""
    files = {line.file: None for site in sites for line in _lines(site)}
    files |= {row.file: None for rows in (ops, host) for row in rows}
    found = ((file, cells.number_of(file)) for file in files if _FILE.fullmatch(file))
    return tuple(CellRow(file, number) for file, number in found if number)


def shown(report: Report) -> Report:
    """Return the report with the names of cells for files, as they are shown; they are no paths any more."""
    numbers = {row.file: row.number for row in report.cells}
    files = {line.file for site in report.sites for line in _lines(site)}
    files |= {row.file for rows in (report.ops, report.host) for row in rows}
    names = {file: name for file in files if (name := name_of(file, numbers.get(file))) is not None}
    if not names:
        return report

    def named(line: CallSite | None) -> CallSite | None:
        return line and replace(line, file=names.get(line.file, line.file))

    return replace(
        report,
        sites=tuple(
            replace(
                site,
                file=names.get(site.file, site.file),
                forward=named(site.forward),
                library=named(site.library),
                stack=tuple(frame for frame in map(named, site.stack) if frame is not None),
            )
            for site in report.sites
        ),
        ops=tuple(replace(op, file=names.get(op.file, op.file)) for op in report.ops),
        host=tuple(replace(row, file=names.get(row.file, row.file)) for row in report.host),
        # Cells without a number have one name, so that no source could be found by it.
        sources=tuple(
            replace(row, file=names.get(row.file, row.file))
            for row in report.sources
            if row.file not in names or row.file in numbers
        ),
    )


def name_of(file: str, number: int | None = None) -> str | None:
    """Return ``In [3]``, or ``cell`` where the number is not known; ``None`` for what is no cell."""
    if _NAME.fullmatch(file):
        return file
    found = _FILE.fullmatch(file)
    if found is None:
        return None
    number = number or int(found["number"] or 0)
    return f"In [{number}]" if number else _UNKNOWN


def _lines(site: SiteRow) -> Iterable[SiteRow | CallSite]:
    return (site, *site.stack, *(line for line in (site.forward, site.library) if line is not None))
