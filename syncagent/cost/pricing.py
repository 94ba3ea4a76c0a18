"""The price in an agent: when its window opens, and what the report gets of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from syncagent.cost.window import Window
    from syncagent.events import SyncEvent
    from syncagent.report.model import Report
    from syncagent.settings.schema import Settings
    from syncagent.support.faults import Faults

__all__ = ["Pricing"]


class Pricing:
    """Holds the window of an agent, once one is asked for; until then a step costs it one look."""

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
            self.window.close('detail is "ops", which slows the very steps that are to be priced: use "syncs"')

    @property
    def capturing(self) -> bool:
        """Whether every sync is to be seen now."""
        return self.window is not None and self.window.capturing

    def captured(self, step: int) -> bool:
        """Whether that step is one of the window's."""
        return self.window is not None and step in self.window.numbers

    def end(self) -> None:
        """The run is over."""
        if self.window is not None:
            self.window.end()

    def applied(self, report: Report) -> Report:
        """The report with the price, or with the reason why there is none; as it is where none was asked for."""
        if self.window is None:
            return report
        from syncagent.cost import rows

        price = self.window.price()
        return rows.priced(report, price) if price else rows.abstained(report, self.window.why or "there is no window")
