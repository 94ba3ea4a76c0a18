"""Gates, which stop a job or fail its check: what they need to be in force, and whether they were.

A gate is ``raise``, or ``warn`` with a baseline.  It fails closed: a job whose gate cannot be in force does not start,
and the report of one whose gate failed on the way says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncagent.policy.allowances import Allowances

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncagent.settings.schema import Settings

__all__ = ["FAILED", "HELD", "NOTE", "check", "that_matter"]

HELD, FAILED = "held", "failed"
NOTE = "the gate did not hold: "
"""How a note begins that says why."""

_PARTS = (
    "the policy", "attribution", "recording", "adding up", "the rule of ", "the sensor ",
    "the simulated device's sensor", "the watch for copies", "the watch for calls of synchronize()",
    "the watch for steps", "draining", "reading what a thread left", "sink summary", "delivery", "the report",
    "the description of the run", "the list of sensors",
)  # fmt: skip
"""Parts of the agent without which syncs are missed, judged wrongly or not reported."""
_HARMLESS = ("the policy's remote control", "the sensor modes")


def check(settings: Settings) -> None:
    """Read what the policy goes by; raises :class:`~syncagent.ConfigError` for a pack or baseline that is not there."""
    Allowances(settings)


def that_matter(parts: Iterable[str]) -> list[str]:
    """Return those parts of the agent whose failure lets a sync pass a gate."""
    return [part for part in parts if part.startswith(_PARTS) and part not in _HARMLESS]
