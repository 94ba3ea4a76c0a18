"""The outcome of a selftest as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from syncagent.report import wording

_SIMULATED = (
    "Simulated device: there is no GPU in this test. Waits are real, but the device announces them itself, and",
    "times are this CPU's. The sensors that a GPU needs (kernels, explicit, monitored) were not tested.",
)


def render(outcome: Mapping[str, Any]) -> str:
    """Every call with what each ``detail`` made of it, the promises, the cost, the verdict."""
    calls: list[dict[str, Any]] = outcome["calls"]
    details = list(dict.fromkeys(call["detail"] for call in calls))
    # A row for each case: every detail has the same cases in the same order.
    rows = list(zip(*([call for call in calls if call["detail"] == detail] for detail in details), strict=True))
    waiting = [row for row in rows if row[0]["kind"] is not None]
    others = [row for row in rows if row[0]["kind"] is None]
    broken = sum(each["status"] == "BROKEN" for each in (*calls, *outcome["promises"]))
    verdict = (
        "Everything holds." if outcome["passed"] else f"BROKEN: {wording.plural(broken, 'promise')} of the agent's."
    )
    lines = [
        " · ".join([
            f"syncagent {outcome['syncagent']} selftest", wording.clean(outcome["device"]), f"torch {outcome['torch']}",
            f"Python {outcome['python']}",
        ]),
        wording.clean(outcome["native"]["why_not"] or "The native library is there."),
        *(_SIMULATED if outcome["simulated"] else ()),
        "",
        f"Known syncs, each behind {outcome['queued_ms']:.0f} ms of queued work. Under each detail: the sensor that",
        "saw it, the stall that it reported, and by how much less that is than the call took.",
        *_table(
            ["", "kind", "call", *(head for detail in details for head in (detail, "stall", "less by"))],
            [_waiting(row) for row in waiting],
        ),
        *_complaints(waiting),
        "",
        "Calls that do not wait",
        *_table(["", "call", *details], [_other(row) for row in others]),
        *_complaints(others),
        "",
        "Promises",
        *(_promise(promise) for promise in outcome["promises"]),
        "",
        f"Cost in µs a call, on this thread{' (simulated device: no figure for a GPU)' * outcome['simulated']}",
        *_cost(outcome["cost_us"]),
        *(f"note: {wording.clean(note)}" for note in outcome["notes"]),
        "",
        verdict,
    ]  # fmt: skip
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _waiting(row: Sequence[dict[str, Any]]) -> list[str]:
    cells = [_status(row), row[0]["kind"], wording.clean(row[0]["call"])]
    for call in row:
        if call["stall_ms"] is None:
            cells += ["nothing", wording.DASH, wording.DASH]
        else:
            cells += [call["sensor"], f"{call['stall_ms']:.2f} ms", f"{call['error_us']:.0f} µs"]
    return cells


def _other(row: Sequence[dict[str, Any]]) -> list[str]:
    return [
        _status(row),
        wording.clean(row[0]["call"]),
        *("reported" if c["reported"] else "not reported" for c in row),
    ]


def _status(row: Sequence[dict[str, Any]]) -> str:
    found = {call["status"] for call in row}
    return next(status for status in ("BROKEN", "unclear", "ok") if status in found)


def _complaints(rows: Iterable[Sequence[dict[str, Any]]]) -> list[str]:
    return [
        f"{call['status']}: {wording.clean(call['call'])} under detail={call['detail']}: {wording.clean(call['why'])}"
        for row in rows
        for call in row
        if call["why"]
    ]


def _promise(promise: Mapping[str, Any]) -> str:
    under = f"  (detail={promise['detail']})" if promise["detail"] else ""
    return f"{promise['status']:<6}  {wording.clean(promise['said'])}{under}"


def _cost(cost: Mapping[str, Mapping[str, float]]) -> list[str]:
    ways = list(next(iter(cost.values())))
    heads = ["", *(way if way == "without" else f"detail={way}" for way in ways)]
    return _table(heads, [[what, *(f"{us[way]:.1f}" for way in ways)] for what, us in cost.items()])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    right = [
        all(cell[:1].isdigit() or cell[:1] in "-\N{EN DASH}" for cell in column) for column in zip(*rows, strict=True)
    ]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            f"{cell:>{width}}" if is_right else f"{cell:<{width}}"
            for cell, width, is_right in zip(cells, widths, right, strict=True)
        )

    return [line(heads), *map(line, rows)]
