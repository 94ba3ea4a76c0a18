"""A few steps of a running job: timed without a profiler between two drains, then captured, then replayed."""

from __future__ import annotations

import os
import tempfile
import time
from typing import TYPE_CHECKING

from syncagent.cost import sites
from syncagent.cost import trace as traces
from syncagent.cost.estimate import estimate
from syncagent.errors import SyncAgentError
from syncagent.support.log import get_logger
from syncagent.torchbridge import profiling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from syncagent.cost.estimate import CostEstimate
    from syncagent.events import SyncEvent
    from syncagent.support.faults import Faults

_PLAIN_STEPS, _MOST_PLAIN, _PLAIN_S = 10, 60, 0.5
"""Steps timed without the profiler: at least ten and for half a second, but at most sixty."""


class Window:
    """Advances when a step ends, and runs on the thread in which steps end.

    ``begin`` says after how many steps it opens.  Nothing that fails in here reaches the program: the window then
    closes and ``why`` says why there is no estimate.
    """

    def __init__(
        self, steps: int, begin: int, events_since: Callable[[int], Sequence[tuple[SyncEvent, int]]], faults: Faults
    ) -> None:
        self.steps = steps
        self._begin = begin
        self._events_since = events_since
        self._faults = faults
        self._state = "waiting"
        self._seen = self._number = 0
        self._began_ns = self._opened_ns = 0
        self._measured_ms: float | None = None
        self._capture: profiling.Capture | None = None
        self._path: str | None = None
        self._events: Sequence[tuple[SyncEvent, int]] = ()
        self._estimate: CostEstimate | None = None
        most = _MOST_PLAIN + steps + 1
        self.why: str | None = f"the run ended before the window: it opens after {begin} steps and takes up to {most}"

    @property
    def capturing(self) -> bool:
        """Whether every sync has to be seen now."""
        return self._state == "capturing"

    @property
    def is_open(self) -> bool:
        """Whether steps are being timed, without the profiler or with it."""
        return self._state in {"plain", "capturing"}

    def step_ended(self) -> None:
        """Advance at the end of a step."""
        if self._state == "done":
            return
        try:
            self._advance()
        except Exception as error:
            self._faults.add("the cost window", error, "failed and is closed")
            self.close(f"the window failed: {error}")

    def _advance(self) -> None:
        self._seen += 1
        if self._state == "waiting":
            if self._seen >= self._begin:
                self._open()
        elif self._state == "plain":
            self._number += 1
            if self._number >= _MOST_PLAIN or (
                self._number >= _PLAIN_STEPS and time.perf_counter_ns() - self._began_ns > _PLAIN_S * 1e9
            ):
                self._start_capture()
        elif self._capture is not None:
            self._number += 1
            self._capture.mark(f"{traces.BOUNDARY} {self._number}")
            if self._number > self.steps:
                self._end_capture()

    def _open(self) -> None:
        if self._is_impossible():
            return
        profiling.drain()
        self._state, self._number = "plain", 0
        self._began_ns = time.perf_counter_ns()

    def _is_impossible(self) -> bool:
        why = profiling.why_not()
        if why is not None:
            self.close(why)
        return why is not None

    def _start_capture(self) -> None:
        profiling.drain()
        self._measured_ms = (time.perf_counter_ns() - self._began_ns) / 1e6 / self._number
        if self._is_impossible():
            return
        get_logger().info(f"cost: the next {self.steps + 1} steps run under torch.profiler")
        self._capture = profiling.Capture(self._give_way)
        self._capture.start()
        self._opened_ns = time.time_ns()
        self._state, self._number = "capturing", 0
        for _ in range(3):  # the first mark of a capture is expensive
            self._capture.mark("syncagent#first")
        self._capture.mark(f"{traces.BOUNDARY} 0")

    def _give_way(self) -> None:
        self._capture = None
        self.close(f"the program started a profiler: {profiling.ANOTHER}")

    def _end_capture(self) -> None:
        assert self._capture is not None
        profiling.drain()
        capture, self._capture = self._capture, None
        self._state = "done"
        capture.stop()
        handle, self._path = tempfile.mkstemp(prefix="syncagent-", suffix=".trace.json")
        os.close(handle)
        capture.save(self._path)
        self._events = self._events_since(self._opened_ns)
        self.why = None

    def close(self, why: str) -> None:
        self._state = "done"
        self.why = why
        capture, self._capture = self._capture, None
        if capture is not None:
            self._faults.guard("the end of the capture", capture.stop, None)
        self._delete_trace()

    def end(self) -> None:
        """Close a window that is still open, without an estimate: the run is over."""
        if self._state != "done":
            self.close(self.why or "the run ended before the window")

    def estimate(self) -> CostEstimate | None:
        """Replay what was captured, once; ``None`` with ``why`` where there is nothing to replay."""
        if self._estimate is None and self._path is not None:
            try:
                trace = traces.read(self._path)
                self._estimate = estimate(
                    trace,
                    lambda found, waits: sites.from_events(found, waits, self._events),
                    measured_ms=self._measured_ms,
                )
            except SyncAgentError as error:
                self.why = str(error).replace(repr(self._path), "the window's trace")
            except Exception as error:
                self._faults.add("the replay", error, "failed")
                self.why = f"the replay failed: {error}"
            self._delete_trace()
        return self._estimate

    def _delete_trace(self) -> None:
        path, self._path = self._path, None
        if path is not None:
            self._faults.guard("the window's file", lambda: os.unlink(path), None)
