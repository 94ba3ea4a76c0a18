"""Adds to each site of a report what to do about it, read from the source as it is on this machine."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from syncagent.advice import reading
from syncagent.advice.advise import advise, calls_backward, in_backward
from syncagent.advice.reading import Place, called, waiting_at
from syncagent.advice.what import Advice, Sync, What
from syncagent.attribution.callsite import CallSites
from syncagent.attribution.statements import shown
from syncagent.events import CallSite, Phase, Span, SyncKind
from syncagent.report.model import Report, SiteRow
from syncagent.report.wording import short_path
from syncagent.sites import package_path
from syncagent.support.modules import names_in
from syncagent.support.pace import yield_gil
from syncagent.support.reading import source_lines


def advised(report: Report) -> Report:
    """The report with ``advice`` at each site that has none and that nobody has allowed."""
    # A script that has ended is no module any more; it is found by its own lines that wait.
    scripts = tuple(dict.fromkeys(site.file for site in report.sites if site.file.endswith(".py")))
    who_asks = functools.cache(functools.partial(_who_asks, scripts=scripts))
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
    own = CallSite(site.file, site.line, site.function, site.source, span=site.span)
    line, library, api = site.forward or own, site.library, site.api
    if site.phase == Phase.BACKWARD:
        if library is None and not _calls_backward(own):  # a function or hook of the program's, that autograd calls
            line, api = own, None
        elif library is not None and site.forward is not None and calls_backward(library.statement or library.source):
            library = None  # a trainer that calls backward(): what waits is of the forward line
    return for_line(site.op, api, site.kind, line, library, site.per_step, who_asks=who_asks) or (
        _of_anomalies(site, who_asks) if line is site.forward else None
    )


def _of_anomalies(site: SiteRow, who_asks: Callable[[str], str] | None) -> Advice | None:
    """Return what to do about a read after each node of the backward pass, if the program asks for these."""
    advice = in_backward(site.kind) if site.kind == SyncKind.SCALAR_READ else None
    asking = (who_asks or _who_asks)(advice.asked_by) if advice is not None else ""
    return replace(advice, say=f"{advice.say} (it is asked for at {asking})") if advice and asking else None


_BACKWARD = re.compile(r"(^|_)(backward|grads?|jacobian|hessian|vjp|jvp|hvp|vhp)(_fn)?$")


def _calls_backward(line: CallSite) -> bool:
    """Return whether the line is one that calls autograd, and none of a function or hook that autograd calls."""
    lines = source_lines(line.file)
    waiting = waiting_at(Place(lines, line.line, _within(line.span, lines)))
    if waiting is None:
        return True
    inside = waiting.node if waiting.is_certain else waiting.statement
    return any(_BACKWARD.search(called(node)) for node in ast.walk(inside))


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


def _who_asks(pattern: str, scripts: Sequence[str] = ()) -> str:
    """Return where the program asks for it, if that is found in the modules of its own that it has loaded."""
    wanted = re.compile(pattern)
    sites = CallSites()
    modules = (names_in(module).get("__file__") for module in tuple(sys.modules.values()))
    named = (file for file in (*scripts, *modules) if isinstance(file, str) and file.endswith(".py"))
    for file in itertools.islice(filter(sites.is_users, named), _USERS_FILES):
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
