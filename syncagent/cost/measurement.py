"""The cost in an agent: when its window opens, and what the report gets of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from syncagent.report.model import BusyRow, CostRow, OrderRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from syncagent.cost.estimate import CostEstimate, SiteCost
    from syncagent.cost.window import Window
    from syncagent.events import SyncEvent
    from syncagent.report.model import Report, SiteRow
    from syncagent.settings.schema import Settings
    from syncagent.support.faults import Faults


class CostMeasurement:
    """Holds the window of an agent, once one is asked for."""

    def __init__(
        self, settings: Settings, events_since: Callable[[int], Sequence[tuple[SyncEvent, int]]], faults: Faults
    ) -> None:
        self._settings = settings
        self._events_since = events_since
        self._faults = faults
        self.window: Window | None = None

    def ask(self, steps: int, begin: int | None = None) -> None:
        """Have a window open after ``begin`` more steps, by default after the warm-up, in place of an earlier one."""
        from syncagent.cost.window import Window

        if self.window is not None:
            self.window.close("a later window was asked for")
        begin = max(self._settings.warmup_steps, 1) if begin is None else begin
        self.window = Window(steps, begin, self._events_since, self._faults)
        if self._settings.simulate:
            self.window.close("the device is simulated, and its times are the CPU's")
        elif self._settings.wraps_every_op:
            self.window.close('detail is "ops", which slows the very steps that are to be measured: use "syncs"')

    @property
    def capturing(self) -> bool:
        """Whether every sync has to be seen now."""
        return self.window is not None and self.window.capturing

    @property
    def is_open(self) -> bool:
        """Whether steps are being timed or captured, so that nothing may slow them."""
        return self.window is not None and self.window.is_open

    def end(self) -> None:
        """Close the window: the run is over."""
        if self.window is not None:
            self.window.end()

    def applied(self, report: Report) -> Report:
        """The report with the cost, or the reason why it is not known; unchanged where no window was asked for."""
        if self.window is None:
            return report
        if (estimate := self.window.estimate()) is not None:
            return _with(report, estimate)
        return not_known(report, self.window.why or "there is no window")


def not_known(report: Report, why: str) -> Report:
    """The report of a run whose cost could not be estimated."""
    return replace(report, cost=CostRow(0, None, None, None, why))


def _with(report: Report, estimate: CostEstimate) -> Report:
    """The report with ``idle_ms``, ``gain_ms`` and ``advice`` at its sites, and the order in which to fix them."""
    by_row = {cost.site.row: cost for cost in estimate.sites if cost.site.row is not None}
    order = [(estimate.sites[fix.site].site.row, fix.gain_ms) for fix in estimate.order]
    notes = list(estimate.notes)
    if estimate.unmatched:
        notes.append(f"{estimate.unmatched} waits of the window found nothing to wait for, or no sensor saw them")
    return replace(
        report,
        sites=tuple(_site_with(site, by_row.get(site.id)) for site in report.sites),
        cost=CostRow(
            estimate.steps,
            estimate.step_ms,
            estimate.measured_step_ms,
            estimate.gain_all_ms,
            estimate.abstained,
            tuple(OrderRow(row, gain_ms) for row, gain_ms in order if row is not None),
            tuple(notes),
            tuple(BusyRow(start_ns, end_ns) for start_ns, end_ns in estimate.gpu_busy_ns),
        ),
    )


def _site_with(site: SiteRow, cost: SiteCost | None) -> SiteRow:
    if cost is None:
        return site
    return replace(site, idle_ms=cost.idle_ms, gain_ms=cost.gain_ms, advice=cost.advice_with(site.advice))
