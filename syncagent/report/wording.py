"""Formats durations, counts, places and costs for people."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from syncagent.events import HostCause
from syncagent.report import cells
from syncagent.report.model import HOST_SYNC, CauseRow, LateRank, Report, RunInfo, SiteRow
from syncagent.sites import package_path, working_folder
from syncagent.support.printable import clean

__all__ = [
    "DASH", "an", "at", "began", "busy", "call", "clean", "cost", "count", "duration", "function", "known_duration",
    "lateness", "length", "mark", "named",
    "per_step", "phases", "place", "plural", "processes", "share", "short_path", "times_are",
]  # fmt: skip

DASH = "\N{EN DASH}"
"""Stands for a number that is not known."""

_SHOWN = 5


def duration(ms: float) -> str:
    """``350 ns``, ``41 µs``, ``41.0 ms``, ``4.10 s``, ``2 min 3 s``."""
    if ms <= 0:
        return "0"
    if ms < 0.0009995:
        return f"{ms * 1e6:.0f} ns"
    if ms < 0.9995:
        return f"{ms * 1e3:.0f} µs"
    if ms < 999.5:
        return f"{ms:.3g} ms" if ms >= 99.95 else f"{ms:.1f} ms"
    if ms < 59_995:
        return f"{ms / 1e3:.2f} s"
    minutes, seconds = divmod(round(ms / 1e3), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def times_are(run: RunInfo, otherwise: str = "this CPU's, not a GPU's") -> str:
    """What the times of a simulated run are, as the end of a sentence."""
    return otherwise if run.modelled is None else f"modelled for {an(run.modelled)}, not measured on one"


def an(gpu: str) -> str:
    """``an H100``."""
    return f"an {clean(gpu)}"


def busy(run: RunInfo) -> str:
    """How busy the modelled GPU was, as a sentence; empty where times are not modelled."""
    if run.modelled is None or run.gpu_busy_s is None or run.duration_s <= 0:
        return ""
    part = share(min(run.gpu_busy_s / run.duration_s, 1.0))
    return f"The {clean(run.modelled)} would be busy {part}* of the run ({duration(run.duration_s * 1e3)}*)."


def mark(report: Report) -> str:
    """What follows each figure of a simulated run."""
    return "*" if report.run.simulated else ""


def known_duration(ms: float | None) -> str:
    """A duration; a dash where it is not known."""
    return DASH if ms is None else duration(ms)


def share(part: float) -> str:
    """``12.3 %``; what is less than a tenth of a percent, but not 0, is ``<0.1 %``."""
    if 0 < part < 0.0005:
        return "<0.1 %"
    return f"{part * 100:.1f} %"


def count(number: int) -> str:
    return f"{number:,}"


def per_step(rate: float | None) -> str:
    """``2``, ``0.25``; a dash where no step was marked."""
    if rate is None:
        return DASH
    if 0 < rate < 0.01:
        return "<0.01"
    return f"{rate:,.2f}".rstrip("0").rstrip(".") if rate < 100 else f"{rate:,.0f}"


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def length(run: RunInfo) -> str:
    """``20 steps in 4.10 s``."""
    return f"{plural(run.steps, 'step')} in {duration(run.duration_s * 1e3)}"


def began(run: RunInfo) -> str:
    """``2026-11-29 15:49 UTC``; as it is written where that is no time."""
    try:
        started = datetime.fromisoformat(run.started.replace("Z", "+00:00")).astimezone(timezone.utc)
    except (ValueError, OverflowError):  # of a year that Python does not know
        return run.started
    return started.strftime("%Y-%m-%d %H:%M UTC")


def processes(run: RunInfo, size: int | None = None) -> str:
    """``3 processes``, ``2 ranks``, ``rank 1``, of ``size`` ranks ``rank 1 of 2``; empty for a process without rank."""
    if run.processes:
        return f"{run.processes:,} processes"
    if run.ranks:
        return plural(len(run.ranks), "rank")
    return "" if run.rank is None else f"rank {run.rank} of {size}" if size else f"rank {run.rank}"


def short_path(file: str, cwd: str = "") -> str:
    """A file as people know it: from its package for installed code, from ``cwd`` below that, else as it is.

    It is also the same on another machine, as long as the project's layout is.
    """
    inside = package_path(file)
    if inside is not None:
        return inside
    base = cwd or working_folder()
    return file.removeprefix(base.rstrip("/") + "/") if base else file


def to_read(saved: str) -> str:
    """What shows all of a report that was saved there: a command, or the file itself, if people read its format."""
    name = clean(short_path(saved))
    return name if saved.endswith((".html", ".md", ".sarif", ".trace.json")) else f"syncagent report {name}"


_SPELLED = {
    "__bool__": "bool(tensor)", "__float__": "float(tensor)", "__int__": "int(tensor)", "__len__": "len(tensor)",
    "__index__": "tensor as an index", "__contains__": "in tensor", "__getitem__": "tensor[...]",
    "__setitem__": "tensor[...] = ...", "__repr__": "repr(tensor)", "__str__": "str(tensor)",
    "__format__": "format(tensor)", "__array__": "numpy(tensor)",
    "__iter__": "iter(tensor)", "__reversed__": "reversed(tensor)", "__complex__": "complex(tensor)",
    "__deepcopy__": "deepcopy(tensor)", "__reduce_ex__": "pickle(tensor)",
}  # fmt: skip
"""How Python's own methods are written in a program."""


def call(api: str | None) -> str:
    """A call as a program has it: ``Tensor.item()``, ``torch.nonzero()``, ``tensor[...]``; empty where not known."""
    if not api:
        return ""
    name = clean(api)
    method = name.rpartition(".")[2]
    if method in _SPELLED:
        return _SPELLED[method]
    if name.startswith("torch.") and name.split(".")[-2] in {"Tensor", "TensorBase"}:  # whichever module has it
        return f"Tensor.{method}()"
    return f"{name}()"


def named(api: str | None, op: str, more: str = "") -> str:
    """The call as the program has it, and the op behind it: ``Tensor.item() (aten::_local_scalar_dense)``."""
    calls, behind = call(api), clean(op)
    return f"{calls} ({behind}{more})" if calls and calls != f"{behind}()" else f"{behind}{more}"


_UNNAMED = re.compile(r"(^|\.<locals>\.|\.)<(module|cell line: \d+|genexpr|listcomp|setcomp|dictcomp)>")


def function(name: str) -> str:
    """The function that a person would name: for a comprehension the one it is in; empty outside of all."""
    return clean(_UNNAMED.sub("", name))


def place(file: str, line: int, cwd: str = "") -> str:
    """``loss.py:41``; in a cell of a notebook ``In [3], line 7``."""
    return at(short_path(file, cwd) if file else "", line)


def at(name: str, line: int) -> str:
    """The same for a file that has the name by which people know it."""
    if not name:
        return "(line unknown)"
    cell = cells.name_of(name)
    if cell is not None:
        return f"{cell}, line {line}" if line else cell
    return f"{clean(name)}:{line}" if line else clean(name)


def phases(site: SiteRow) -> str:
    """The phases that a site waited in, with their counts where there are several."""
    counted = [part for part in site.phases if part.count]
    if len(counted) < 2:
        return clean(site.phase)
    return ", ".join(f"{clean(part.phase)} {count(part.count)}" for part in counted)


def lateness(report: Report) -> list[str]:
    """Which ranks the others wait for, and why, a sentence for each; empty where ranks could not be compared."""
    late = report.lateness
    if late is None:
        return []
    if not late.ranks:
        return [f"No rank holds the others up: compared in {plural(late.steps, 'step')}."]
    return [_late_rank(report, rank) for rank in late.ranks[:_SHOWN]]


def _late_rank(report: Report, late: LateRank) -> str:
    star, cwd = mark(report), report.run.cwd
    causes = [f"{share(cause.share)}{star} {_cause(cause, cwd)}" for cause in late.causes]
    why = f": {', '.join(causes)}" if causes else ""
    held = f"{share(late.share)}{star} of the time ({duration(late.held_ms)}{star} per step)"
    machine = f" on {clean(late.host)}" if late.host and late.host != report.run.host else ""
    return f"Rank {late.rank}{machine} holds the job up {held}{why}."


def _cause(cause: CauseRow, cwd: str) -> str:
    where = f" at {place(cause.file, cause.line, cwd)}" if cause.file else ""
    if cause.cause in {HOST_SYNC, HostCause.LINE}:
        return f"`{clean(cause.source)}`{where}" if cause.source else f"a {cause.cause}{where or ' at an unknown line'}"
    return f"{cause.cause}{where}"


def cost(report: Report) -> list[str]:
    """The cost of all syncs, what the columns mean, and the order of fixes; empty where no cost was asked for."""
    row = report.cost
    if row is None:
        return []
    if row.abstained is not None or row.measured_step_ms is None:
        return [f"cost: not known, {clean(row.abstained or 'no step was measured')}"]
    step = f"a step takes {duration(row.measured_step_ms)}"
    if not row.gain_all_ms:
        return [f"cost: none; {step}, and would take as long if nothing waited"]
    part = share(row.gain_all_ms / row.measured_step_ms)
    lines = [
        f"cost: {step} and would gain {duration(row.gain_all_ms)} ({part}) if nothing waited",
        "gain: per step, if this site alone did not wait; idle: GPU time without work after its waits, per step",
    ]
    sites = {site.id: site for site in report.sites}
    shown = [(sites[entry.site], entry.gain_ms) for entry in row.order if entry.site in sites]
    if len(shown) > 1:
        cwd = report.run.cwd
        gains = [f"{place(site.file, site.line, cwd)} {duration(gain)}" for site, gain in shown[:_SHOWN]]
        more = f", and {plural(len(shown) - _SHOWN, 'more site')}" if len(shown) > _SHOWN else ""
        lines.append(f"cumulative gain if fixed in this order: {', '.join(gains)}{more}")
    return [*lines, *(f"note on the cost: {clean(note)}" for note in row.notes)]
