"""Waits on the simulated device, which itself reports when a caller physically waits for one of its streams."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from syncagent.recording.waits import begin_named, end_named
from syncagent.sensors.base import Sensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from syncagent.events import SyncKind
    from syncagent.recording.recorder import Recorder
    from syncagent.recording.records import ThreadState
    from syncagent.sensors.base import Conditions


class SimulatedSensor(Sensor):
    """Records every wait on the simulated device, on all threads."""

    name = "simulated"
    part = "the simulated device's sensor"
    needed_by_gates = True

    def __init__(self, recorder: Recorder, conditions: Conditions) -> None:
        super().__init__(recorder, conditions)
        self._live = False
        self.explains: Callable[[], str] = str
        """What a report says of which steps' waits have a name."""

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

        gpu = self._conditions.modelled
        times = f"modelled for an {gpu}, not measured" if gpu else "the CPU's"
        real = f"anything of a real GPU: which calls wait comes from rules measured on an H100, and times are {times}"
        why = simulate.without_runtime()
        runtime = (f"the driver's waits, which are not simulated: {why}",) if why else ()
        return "; ".join((real, *runtime, *simulate.missing()))

    @property
    def detail(self) -> str:
        return self.explains()

    def start(self) -> None:
        from syncagent import simulate

        simulate.observe_waits(self)
        simulate.observe_joins(self._recorder.collectives.add)
        self._live = True

    def stop(self) -> None:
        if self._live:
            from syncagent import simulate

            simulate.observe_waits(None)
            simulate.observe_joins(None)
            self._live = False

    @classmethod
    def footprint(cls) -> dict[str, object]:
        from syncagent.simulate import waits

        return {"the simulated device's observer": waits.current_observer()}

    def before(self, op: str, kind: SyncKind, args: Sequence[object]) -> object:
        """Ask the policy before the device waits; what it returns comes back in :meth:`after`."""
        recorder = self._recorder
        state = recorder.threads.current()
        if self._conditions.some_steps and op.startswith("aten::") and not self._is_named(state):
            return None  # as on a GPU, where the kernels are off in this step
        frame: FrameType | None = sys._getframe(1)
        allowed = recorder.ask(op, kind, frame, state, args, self.name)
        context = recorder.describe(state, op, kind, frame, args, self.name, allowed)
        return (state, kind, context, begin_named(state.slot))

    def _is_named(self, state: ThreadState) -> bool:
        """Whether this thread's ops are watched now, or those of the thread whose backward pass runs here."""
        return state.named_now or getattr(self._recorder.locator.owner_of_backward(state), "named_now", False)

    def after(self, token: Any, start_ns: int, end_ns: int) -> None:
        """Record the wait."""
        if token is None:
            return
        state, kind, context, before = token
        stall_ns = end_named(state.slot, before, end_ns - start_ns)
        self._recorder.settle(
            state, context, kind, start_ns, stall_ns if end_ns > start_ns else 0, time.perf_counter_ns()
        )
