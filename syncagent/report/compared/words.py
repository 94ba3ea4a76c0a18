"""A comparison in words: what all its forms say alike."""

from __future__ import annotations

from collections.abc import Mapping

from syncagent.report import wording
from syncagent.report.compare import VERDICTS, Change, Comparison, Measure, Sides, StepChange, Verdict

_SAID: Mapping[Verdict, tuple[str, str]] = {
    "new": ("is new", "are new"),
    "grown": ("waits more often", "wait more often"),
    "changed": ("has changed a little", "have changed a little"),
    "shrunk": ("waits less often", "wait less often"),
    "gone": ("is gone", "are gone"),
    "same": ("is as it was", "are as they were"),
}


def headline(comparison: Comparison) -> str:
    """``1 site is new, 2 are gone and 9 are as they were.``"""
    found = [(verdict, number) for verdict in VERDICTS if (number := len(comparison.of(verdict)))]
    if not found:
        return "No host sync in either report."
    parts = [f"{number:,} {_SAID[verdict][number != 1]}" for verdict, number in found]
    first, number = found[0]
    parts[0] = f"{wording.plural(number, 'site')} {_SAID[first][number != 1]}"
    last = f" and {parts.pop()}" if len(parts) > 1 else ""
    return f"{', '.join(parts)}{last}."


def step_time(steps: StepChange, simulated: Sides) -> str:
    """``12.1 ms  →  9.0 ms, 3.1 ms saved``, with what was predicted."""
    old, new = mark(simulated.old), mark(simulated.new)
    saved = f"{wording.duration(abs(steps.saved_ms))}{old or new} {'saved' if steps.saved_ms >= 0 else 'longer'}"
    line = f"{wording.duration(steps.old_ms)}{old}  →  {wording.duration(steps.new_ms)}{new}, {saved}"
    if steps.predicted_ms is not None and steps.mended:
        predicted = wording.duration(steps.predicted_ms) + old
        line += f"; {predicted} was predicted for the sites that are gone or wait less often"
    return f"{line} ({steps.unpriced} of them had no predicted gain)" if steps.unpriced else line


def mark(simulated: bool) -> str:
    """What follows each time of a simulated device."""
    return "*" if simulated else ""


def marks(comparison: Comparison) -> str:
    """What the mark means; empty where there is none."""
    simulated = comparison.simulated
    return f"of a simulated device: {' or '.join(comparison.times)}" if simulated.old or simulated.new else ""


def measure(found: Measure, simulated: bool) -> str:
    """``20 syncs (2 per step), 41.0 ms``."""
    rate = "" if found.per_step is None else f" ({wording.per_step(found.per_step)} per step)"
    return ", ".join(filter(None, (f"{wording.plural(found.count, 'sync')}{rate}", stall(found, simulated))))


def stall(found: Measure, simulated: bool) -> str:
    """``41.0 ms``; empty where it is not known, as in a baseline."""
    return wording.duration(found.stall_ms) + mark(simulated) if found.stall_ms else ""


def before_and_after(change: Change, simulated: Sides) -> str:
    """Both measures, as far as there are two."""
    sides = ((change.old, simulated.old), (change.new, simulated.new))
    return "  →  ".join(measure(found, is_simulated) for found, is_simulated in sides if found)


def place(change: Change) -> str:
    """The line, where it is now or, where the site is gone, was."""
    return wording.at(change.file, change.latest.line)


def was(change: Change) -> str:
    """The old text on one line, where the text has changed a little."""
    return wording.clean(" ".join(change.was.split())) if change.was else ""


def advice(change: Change) -> str:
    """What to do about a site that is new or waits more often."""
    wanted = change.new is not None and change.verdict != "shrunk"
    return wording.clean(change.advice) if wanted and change.advice else ""
