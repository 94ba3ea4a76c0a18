"""Adds to each site of a report what to do about it, read from the source as it is on this machine."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from dataclasses import replace

from syncagent.advice import reading
from syncagent.advice.advise import advise
from syncagent.advice.reading import Place, waiting_at
from syncagent.advice.what import Advice, Sync, What
from syncagent.attribution.callsite import CallSites
from syncagent.attribution.statements import shown
from syncagent.events import CallSite, Span
from syncagent.report.model import Report, SiteRow
from syncagent.report.wording import short_path
from syncagent.sites import package_path
from syncagent.support.modules import names_in
from syncagent.support.pace import yield_gil
from syncagent.support.reading import source_lines


def advised(report: Report) -> Report:
    """The report with ``advice`` at each site that has none and that nobody has allowed."""
    who_asks = functools.cache(_who_asks)
    by_place = sorted(report.sites, key=lambda site: (site.file, site.line))  # each function is parsed once
    sites = tuple(_advised(site, who_asks) for site in by_place)
    reading.forget()
    return replace(report, sites=sites)


def _advised(site: SiteRow, who_asks: Callable[[str], str]) -> SiteRow:
    if site.advice or site.allowed:
        return site
    advice = of(site, who_asks)
    yield_gil()
    return site if advice is None else replace(site, advice=str(advice), advice_kind=advice.what.value)


def of(site: SiteRow, who_asks: Callable[[str], str] | None = None) -> Advice | None:
    """Return what to do about a site of a report."""
    if site.step_stall_ms == 0 and site.stall_ms > 0:
        return Advice(What.RARE, "this is before the second step, or after the last: leave it")
    line = site.forward or CallSite(site.file, site.line, site.function, site.source, span=site.span)
    return for_line(site.op, site.api, site.kind, line, site.library, site.per_step, who_asks=who_asks)


def for_line(
    op: str, api: str | None, kind: str, line: CallSite | None, library: CallSite | None,
    per_step: float | None = None, lines_of: Callable[[str], list[str]] = source_lines,
    who_asks: Callable[[str], str] | None = None,
) -> Advice | None:  # fmt: skip
    """Return what to do about a sync at a line of the user's, and of a library where that made the call."""
    runs_graph = library is not None and _runs_graph(library)
    named = None if runs_graph else _named(library)
    sync = Sync(op, api or "", kind, per_step, named, _version(named[0]) if named else "")
    waiting = None
    if line is not None and line.source and not runs_graph:
        lines = lines_of(line.file)
        # The file may have been changed since.
        if 0 < line.line <= len(lines) and shown(lines[line.line - 1]) == line.source:
            waiting = waiting_at(Place(lines, line.line, _within(line.span, lines)), _calls(api, kind))
    try:
        advice = advise(sync, waiting)
    except RecursionError:  # an expression that is nested more deeply than Python can follow
        advice = advise(sync, None)
    asking = (who_asks or _who_asks)(advice.asked_by) if advice is not None and advice.asked_by else ""
    return replace(advice, say=f"{advice.say} (it is asked for at {asking})") if advice and asking else advice


_USERS_FILES = 1_000


def _who_asks(pattern: str) -> str:
    """Return where the program asks for it, if that is found in the modules of its own that it has loaded."""
    wanted = re.compile(pattern)
    sites, seen = CallSites(), 0
    for module in tuple(sys.modules.values()):
        file = names_in(module).get("__file__")
        if not isinstance(file, str) or not file.endswith(".py") or not sites.is_users(file):
            continue
        seen += 1
        if seen > _USERS_FILES:
            break
        for number, line in enumerate(source_lines(file), 1):
            if wanted.search(line) and not line.lstrip().startswith("#"):
                return f"{short_path(file)}:{number}"
    return ""


def _within(span: Span | None, lines: list[str]) -> Span | None:
    return span if span is not None and span.end_line <= len(lines) else None


_READS = ("item", "tolist", "float", "int", "bool")


def _calls(api: str | None, kind: str) -> tuple[str, ...]:
    """Return how the API may be written: methods of Python's own have other names in a program."""
    if not api and kind == "scalar_read":
        return _READS
    name = (api or "").rpartition(".")[2]
    written = {"__float__": "float", "__int__": "int", "__bool__": "bool", "__str__": "str", "__repr__": "print"}
    return (written.get(name, name),) if name else ()


_OF_GRAPHS = ("torch/fx/", "torch/_inductor/", "torch/_functorch/", "torch/_dynamo/")


def _runs_graph(library: CallSite) -> bool:
    """Return whether it is code that was made of the program's own, or calls that: its text says nothing.

    What Inductor writes is in no package.
    """
    return (package_path(library.file) or _OF_GRAPHS[0]).startswith(_OF_GRAPHS)


def _named(library: CallSite | None) -> tuple[str, str, str, str] | None:
    if library is None or not library.file:
        return None
    package, _, file = (package_path(library.file) or library.file).partition("/")
    return package, file, library.function, library.statement or library.source


@functools.cache
def _version(package: str) -> str:
    """Return the version of a library that this process has loaded."""
    if package not in sys.modules:
        return ""
    from importlib.metadata import PackageNotFoundError, version  # costs milliseconds, and is seldom asked

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
