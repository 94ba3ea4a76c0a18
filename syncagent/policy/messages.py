"""What a violation says: what waited where, what to do about it, and how to allow it."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from syncagent.attribution.cells import number_of
from syncagent.events import CallSite, SyncKind
from syncagent.policy import allowances
from syncagent.sites import package_path
from syncagent.support.printable import clean


class Violation(NamedTuple):
    """A sync that the policy forbids."""

    op: str
    kind: SyncKind
    site: CallSite | None
    library: CallSite | None
    """The line inside a library that made the call, where the user's is further out."""
    step: int
    stall_ns: int
    """0 where it was stopped before the wait."""
    broken: str
    """The budget that it breaks; empty for the policy itself."""
    pack: str | None = None
    """The pack that would allow it."""


def message(violation: Violation) -> str:
    """Return what the error or the warning says, on one line."""
    op, kind, site, library, step, stall_ns, broken, pack = violation
    where = f"{_place(site)} ({site.source or site.function})" if site is not None else "an unknown line"
    inside = library if library is not None and library != site else None
    if inside is not None:
        where += f", in {package_path(inside.file) or inside.file}:{inside.line} {inside.function} ({inside.source})"
    did = f"made the host wait {_duration(stall_ns)} for the GPU" if stall_ns else "makes the host wait for the GPU"
    instead = _advice(op, kind, site, inside)
    return clean(
        f"{op} {did} in step {step} at {where}{f': {broken}' if broken else ''}. "
        f"{f'What to do: {instead}. ' if instead else ''}"
        f'If it is wanted, allow it with `with syncagent.allow("reason"):` around the line'
        f"{f', SYNCAGENT_ALLOW_PACKS={pack}' if pack else ''}{_setting(site, inside)}."
    )


def _duration(stall_ns: int) -> str:
    from syncagent.report.wording import duration  # formats of reports: only where there is something to say

    return duration(stall_ns / 1e6)


def _advice(op: str, kind: SyncKind, site: CallSite | None, library: CallSite | None) -> str:
    from syncagent.report.advising import for_line  # it parses source: only where there is something to say

    try:
        advice = for_line(op, None, kind.value, site, library)
    except Exception:  # advice that cannot be given must not hide the violation
        return ""
    return str(advice) if advice is not None else ""


def _setting(site: CallSite | None, library: CallSite | None) -> str:
    """Return the setting that allows least: the library's function, not all that the user's line does.

    It can be pasted into a shell; empty where no setting can name the line, as in a cell or in a program from a pipe.
    """
    if site is None:
        return " or SYNCAGENT_ALLOW"
    proposed = f"{site.file}:{site.line}"
    if library is not None and (inside := package_path(library.file)) is not None:
        module = inside.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        proposed, site = f"{module}:{allowances.without_locals(library.function)}", library
    return f" or SYNCAGENT_ALLOW={shlex.quote(proposed)}" if allowances.would_allow(proposed, site) else ""


def _place(site: CallSite) -> str:
    from syncagent.report import cells

    cell = cells.name_of(site.file, number_of(site.file))
    return f"{cell}, line {site.line}" if cell is not None else f"{site.file}:{site.line}"
