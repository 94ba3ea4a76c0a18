"""Makes a report of a capture (``syncagent.capture.writer``), whose process was killed or is still running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from syncagent.errors import SyncAgentError
from syncagent.report.model import SCHEMA, Report
from syncagent.support import reading, storage

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SUMS", "VERSION", "is_capture", "read"]

VERSION = 1
SUMS = (
    "count", "stall_ms", "stall_ms_p50", "stall_ms_max", "allowed_count", "violations", "step_stall_ms", "per_step",
    "ops",
)  # fmt: skip
"""The columns of a site that grow; the others are written once, and again when they change."""


def is_capture(content: bytes) -> bool:
    """Whether a file that begins like this holds a capture."""
    return content.startswith(b'{"type":"header","capture":')


def read(file: Path, content: bytes) -> Report:
    """The report of the newest state that a capture holds.

    A line that is incomplete, as the last one of a killed process may be, is left out, and a note says so.  Raises
    :class:`SyncAgentError` for what is no capture that can be read.
    """
    name = repr(str(file))
    lines, broken = _parse(content)
    version = lines[0].get("capture") if lines else None
    if version != VERSION:
        raise SyncAgentError(
            f"{name} is a capture of version {version!r}, but this syncagent reads version {VERSION} only"
        )
    sites: dict[Any, dict[str, Any]] = {}
    run: dict[str, Any] = {}
    totals: dict[str, Any] = {}
    events, step_times, ended = [], [], False
    for line in lines[1:]:
        match line.pop("type", None):
            case "run":
                run = line
            case "site":
                sites[_key(line)] = line
            case "sums":
                if _key(line) in sites:
                    sites[_key(line)].update(line)
                else:
                    broken += 1
            case "totals":
                totals = line
            case "event":
                events.append(line)
            case "step":
                step_times.append(line)
            case "end":
                ended = True
    if not run or not totals:
        raise SyncAgentError(f"{name} is not a whole capture: nothing was written after its header")
    values = _values(run, totals, list(sites.values()), events, step_times)
    values["run"]["ended"] = ended
    values["notes"] += _notes(file, broken, totals, len(events), ended=ended)
    return Report.from_dict(values, name=name)


def _parse(content: bytes) -> tuple[list[dict[str, Any]], int]:
    lines: list[dict[str, Any]] = []
    broken = 0
    for text in content.split(b"\n"):
        if not text.strip():
            continue
        try:
            line = reading.from_json(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            broken += 1
    return lines, broken


def _key(line: dict[str, Any]) -> str:
    return repr(line.get("site"))


def _values(
    run: dict[str, Any],
    totals: dict[str, Any],
    sites: list[dict[str, Any]],
    events: list[dict[str, Any]],
    step_times: list[dict[str, Any]],
) -> dict[str, Any]:
    """The JSON values of the report; they are checked when the report is made of them."""
    steps = _number(totals.get("steps"))
    for site in sites:
        site["id"] = site.get("site")
        site["per_step"] = _number(site.get("count")) / steps if steps else None
        if totals.get("step_stall_ms") is None:
            site["step_stall_ms"] = None
        elif site.get("step_stall_ms") is None:  # written before the first step, and it has not waited since
            site["step_stall_ms"] = 0.0
    duration_ms = _number(totals.get("duration_s")) * 1e3
    about, notes = run.get("run"), run.get("notes")
    return {
        "schema": SCHEMA,
        "run": {
            **(about if isinstance(about, dict) else {}),
            "steps": totals.get("steps"),
            "duration_s": totals.get("duration_s"),
        },
        "sensors": run.get("sensors"),
        "overhead": {"agent_ms_per_step": None, "share": None},
        "dropped": totals.get("dropped"),
        "totals": {
            "syncs": round(sum(_number(site.get("count")) for site in sites)),
            "stall_ms": sum(_number(site.get("stall_ms")) for site in sites),
            "stall_share": min(_number(totals.get("stalled_ms")) / duration_ms, 1.0) if duration_ms > 0 else 0.0,
            "step_ms": totals.get("step_ms"),
            "step_stall_ms": totals.get("step_stall_ms"),
        },
        "sites": sites,
        "events": events,
        "step_times": step_times,
        "notes": list(notes) if isinstance(notes, list) else [],
    }


def _number(value: object) -> float:
    """The value, or 0 if it is no number; making the report then fails with a sentence."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _TOO_LARGE
    return float(value) if is_number else 0.0  # type: ignore[arg-type]  # mypy cannot see it in is_number


_TOO_LARGE = 1e300


def _notes(file: Path, broken: int, totals: dict[str, Any], events: int, *, ended: bool) -> list[str]:
    notes = []
    if not ended and storage.is_locked(file):
        notes.append("from the capture of a process that is still running")
    elif not ended:
        notes.append(
            "from the capture of a process that did not end by itself: what it saw in its last second or two is missing"
        )
    if broken:
        notes.append(f"{broken:,} line{'s are' if broken > 1 else ' is'} not whole and left out of the capture's sums")
    seen = totals.get("events")
    if isinstance(seen, int) and seen > events:
        notes.append(f"the time line has {events:,} of {seen:,} syncs; the sums have all")
    return notes
