"""Adds to a report what it takes to act on it: advice, and the source around the worst sites."""

from __future__ import annotations

from syncagent.report.model import Report


def explained(report: Report) -> Report:
    """The report with ``advice`` at its sites, and with ``sources``."""
    if not report.sites:
        return report
    from syncagent.report.advising import advised  # a run in which nothing waited needs none of the advice
    from syncagent.report.context import with_context

    return with_context(advised(report))
