"""Waits on the simulated device, which itself reports when a caller physically waits for one of its streams."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from syncagent.sensors.base import Sensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from syncagent.events import SyncKind
    from syncagent.recording.recorder import Recorder
    from syncagent.sensors.base import Conditions


class SimulatedSensor(Sensor):
    """Records every wait on the simulated device, on all threads."""

    name = "simulated"
    part = "the simulated device's sensor"
    needed_by_gates = True

    def __init__(self, recorder: Recorder, conditions: Conditions) -> None:
        super().__init__(recorder, conditions)
        self._live = False

    @classmethod
    def is_listed(cls, conditions: Conditions) -> bool:
        return conditions.simulate

    is_wanted = is_listed

    @property
    def live(self) -> bool:
        return self._live

    @property
    def cannot_see(self) -> str:
        from syncagent import simulate

        real = "anything of a real GPU: which calls wait comes from rules measured on an H100, and times are the CPU's"
        return "; ".join((real, *simulate.missing()))

    def start(self) -> None:
        from syncagent import simulate

        simulate.observe_waits(self)
        self._live = True

    def stop(self) -> None:
        if self._live:
            from syncagent import simulate

            simulate.observe_waits(None)
            self._live = False

    @classmethod
    def footprint(cls) -> dict[str, object]:
        from syncagent.simulate import waits

        return {"the simulated device's observer": waits.current_observer()}

    def before(self, op: str, kind: SyncKind, args: Sequence[object]) -> object:
        """Ask the policy before the device waits; what it returns comes back in :meth:`after`."""
        recorder = self._recorder
        state = recorder.threads.current()
        frame: FrameType | None = sys._getframe(1)
        allowed = recorder.ask(op, kind, frame, state, args, self.name)
        return (state, kind, recorder.describe(state, op, kind, frame, args, self.name, allowed))

    def after(self, token: Any, start_ns: int, end_ns: int) -> None:
        """Record the wait."""
        state, kind, context = token
        self._recorder.settle(state, context, kind, start_ns, end_ns - start_ns, time.perf_counter_ns())
