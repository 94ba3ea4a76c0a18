"""Adds to a report what it takes to act on it: advice, and the source around the worst sites."""

from __future__ import annotations

from syncagent.report.advising import advised
from syncagent.report.context import with_context
from syncagent.report.model import Report


def explained(report: Report) -> Report:
    """The report with ``advice`` at its sites, and with ``sources``."""
    return with_context(advised(report))
