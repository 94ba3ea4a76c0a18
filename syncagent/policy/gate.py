"""Gates, which stop a job or fail its check: what they need, and whether they held.

A gate is ``raise``, or ``warn`` with a baseline.  It fails closed: a job whose gate cannot be enforced does not start,
and if the gate fails while the job runs, the report says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncagent.policy.allowances import Allowances
from syncagent.settings import parsing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncagent.settings.schema import Settings

HELD, FAILED = "held", "failed"
NOTE = "the gate did not hold: "
"""How the notes begin that give the reasons."""

_PARTS = (
    "the policy", "attribution", "recording", "adding up", "the rule of ", "the sensor ",
    "the simulated device's sensor", "the watch for copies", "the watch for calls of synchronize()",
    "the watch for steps", "the sampling of steps", "draining",
    "reading what a thread left", "sink summary", "delivery", "the report",
    "the description of the run", "the list of sensors",
)  # fmt: skip
"""Parts of the agent without which syncs would be missed, judged wrongly or not reported."""
_HARMLESS = ("the policy's remote control", "the sensor modes")


def check(settings: Settings) -> None:
    """Read packs and baseline.  Raises :class:`~syncagent.ConfigError` for one that does not exist."""
    check_detail(settings)
    Allowances(settings)


def check_detail(settings: Settings) -> None:
    """Raise :class:`~syncagent.ConfigError` for a gate that would see the syncs of some steps alone."""
    if settings.is_gate and settings.samples_steps:
        allowed = "syncs or ops where the policy is a gate, which has to see each sync before it waits"
        raise parsing.rejected("detail", "auto", allowed)


def that_matter(parts: Iterable[str]) -> list[str]:
    """Return those parts of the agent whose failure lets a sync pass a gate."""
    return [part for part in parts if part.startswith(_PARTS) and part not in _HARMLESS]
