"""Makes a report of a capture (``syncagent.capture.writer``), whose process was killed or is still running."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from syncagent.errors import SyncAgentError
from syncagent.report.model import SCHEMA, Report
from syncagent.support import reading, storage

VERSION = 1
SUMS = (
    "count", "stall_ms", "stall_ms_p50", "stall_ms_max", "allowed_count", "violations", "step_stall_ms", "per_step",
    "ops", "sensors", "estimated_ms", "phases",
)  # fmt: skip
"""The columns of a site that grow; the others are written once, and again when they change."""
HOST_SUMS = ("count", "ms")
"""The same of a row of host time; one with a count of 0 has become part of another."""


_WHOLE = {"sums": "site", "host_sums": "host"}
"""Which line a line with sums continues."""


def is_capture(content: bytes) -> bool:
    """Whether a file that begins like this holds a capture."""
    return content.startswith(b'{"type":"header","capture":')


def read(file: Path, content: bytes, *, explain: bool = True) -> Report:
    """The report of the newest state that a capture holds; advice and source are added where ``explain`` says so.

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
    rows: dict[str, dict[str, dict[str, Any]]] = {"site": {}, "host": {}}
    others: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines[1:]:
        kind = str(line.pop("type", ""))
        whole = _WHOLE.get(kind, kind)
        if whole not in rows:
            others[kind].append(line)
            continue
        known, number = rows[whole], repr(line.get(whole))
        if kind == whole:
            known[number] = line
        elif number in known:
            known[number].update(line)
        else:
            broken += 1
    run, totals = ([{}, *others[kind]][-1] for kind in ("run", "totals"))
    if not run or not totals:
        raise SyncAgentError(f"{name} is not a whole capture: nothing was written after its header")
    values = values_of(run, totals, list(rows["site"].values()))
    values["host"] = found_rows(rows["host"].values())
    values["events"], values["step_times"] = others["event"], _newest_of_each(others["step"])
    report = report_of(file, values, broken=broken, totals=totals, events=len(others["event"]), ended="end" in others)
    if not explain:
        return report
    from syncagent.report.explaining import explained  # loaded only for what is read: each process loads this module

    return explained(report)


def report_of(
    file: Path, values: dict[str, Any], *, broken: int, totals: dict[str, Any], events: int, ended: bool
) -> Report:
    """The report of the JSON values, with notes on what is not in them."""
    values["run"]["ended"] = ended
    values["notes"] += _notes(file, broken, totals, events, ended=ended)
    return Report.from_dict(values, name=repr(str(file)))


def found_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of host time without those that have become part of others."""
    return [row for row in rows if row.get("count") != 0]


def _newest_of_each(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each step once, as it was last written: what is known late comes in a line of its own."""
    return list({repr((step.get("step"), step.get("start_ns"))): step for step in steps}.values())


def _parse(content: bytes) -> tuple[list[dict[str, Any]], int]:
    texts = [text for text in content.split(b"\n") if text.strip()]
    lines = []
    for text in texts:
        with suppress(ValueError):
            lines.append(reading.from_json(text))
    whole = [line for line in lines if isinstance(line, dict)]
    return whole, len(texts) - len(whole)


def values_of(
    run: dict[str, Any],
    totals: dict[str, Any],
    sites: list[dict[str, Any]],
    *,
    syncs: float | None = None,
    stall_ms: float | None = None,
) -> dict[str, Any]:
    """The JSON values of the report; they are checked when the report is made of them.

    ``syncs`` and ``stall_ms`` are the sums over the sites, where these are elsewhere.
    """
    steps = number(totals.get("steps"))
    for site in sites:
        site["id"] = site.get("site")
        site["per_step"] = number(site.get("count")) / steps if steps else None
        if totals.get("step_stall_ms") is None:
            site["step_stall_ms"] = None
        elif site.get("step_stall_ms") is None:  # written before the first step, and it has not waited since
            site["step_stall_ms"] = 0.0
    duration_ms = number(totals.get("duration_s")) * 1e3
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
            "syncs": round(sum(number(site.get("count")) for site in sites) if syncs is None else syncs),
            "stall_ms": sum(number(site.get("stall_ms")) for site in sites) if stall_ms is None else stall_ms,
            "stall_share": min(number(totals.get("stalled_ms")) / duration_ms, 1.0) if duration_ms > 0 else 0.0,
            "step_ms": totals.get("step_ms"),
            "step_stall_ms": totals.get("step_stall_ms"),
        },
        "sites": sites,
        "notes": list(notes) if isinstance(notes, list) else [],
    }


def number(value: object) -> float:
    """The value, or 0 if it is no number; making the report then fails with a sentence."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _TOO_LARGE
    return float(value) if is_number else 0.0  # type: ignore[arg-type]  # mypy cannot see it in is_number


_TOO_LARGE = 1e300


def _notes(file: Path, broken: int, totals: dict[str, Any], events: int, *, ended: bool) -> list[str]:
    end = "process that did not end by itself: what it saw in its last second or two is missing"
    if not ended and storage.is_locked(file):
        end = "process that is still running"
    seen = totals.get("events")
    notes = [
        not ended and f"from the capture of a {end}",
        broken and f"{broken:,} line{'s are' if broken > 1 else ' is'} not whole and left out of the capture's sums",
        isinstance(seen, int)
        and seen > events
        and f"the time line has {events:,} of {seen:,} syncs; the sums have all",
    ]
    return [note for note in notes if note]
