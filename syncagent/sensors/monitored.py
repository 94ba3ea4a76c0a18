"""Calls of ``synchronize`` on C types, which cannot be wrapped: seen through ``sys.monitoring`` (Python 3.12+).

``torch.Stream`` and ``torch.Event`` are such types.  Only code that names ``synchronize`` is watched for calls; every
other code object is looked at once, when it first runs, and never again.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from syncagent.errors import HostSyncError, HostSyncWarning
from syncagent.events import SyncKind
from syncagent.recording.waits import begin_named, end_named
from syncagent.sensors.base import Sensor
from syncagent.sensors.explicit import nothing_pending
from syncagent.support.compat import read_frames, running_threads
from syncagent.torchbridge.frames import leave_out_own_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import CodeType

    from syncagent.recording.recorder import Recorder
    from syncagent.sensors.base import Conditions

_now = time.perf_counter_ns
_NAME = "synchronize"
_TOOL_IDS = (4, 3, 5)  # 0 to 2 are reserved: debugger, coverage, profiler


class MonitoredSensor(Sensor):
    """Times calls of given C methods, from Python code of any thread."""

    name = "monitored"

    def __init__(self, recorder: Recorder, conditions: Conditions) -> None:
        super().__init__(recorder, conditions)
        self._targets: Mapping[Any, str] = {}
        self._tool: int | None = None
        self._entered = threading.local()
        self._watched: list[CodeType] = []
        self.why_not = ""
        self._callbacks: dict[str, Callable[..., Any]] = {
            "PY_START": self._code_starts, "CALL": self._called, "C_RETURN": self._returned, "C_RAISE": self._returned,
        }  # fmt: skip

    @property
    def live(self) -> bool:
        return self._tool is not None and not self.why_not

    @property
    def cannot_see(self) -> str:
        return self.why_not or "synchronize() of torch.Stream and torch.Event from C++"

    def start(self, targets: Mapping[Any, str] | None = None) -> None:
        """Watch for calls of ``targets`` (method descriptor → shown name); by default those of torch's C types."""
        monitoring: Any = getattr(sys, "monitoring", None)
        if monitoring is None:
            self.why_not = "synchronize() of torch.Stream and torch.Event (Python 3.12 and later could)"
            return
        tool = next((number for number in _TOOL_IDS if monitoring.get_tool(number) is None), None)
        if tool is None:
            self.why_not = "synchronize() of torch.Stream and torch.Event: all ids of sys.monitoring are taken"
            return
        self._targets = targets if targets is not None else _c_methods()
        monitoring.use_tool_id(tool, "syncagent")
        self._tool = tool
        for event, callback in self._callbacks.items():
            monitoring.register_callback(tool, getattr(monitoring.events, event), self._guarded(callback))
        for ident in running_threads():  # what runs already does not start again
            for code, _ in read_frames(ident, "f_code", "f_lasti"):
                self._look_at(code)
        monitoring.set_events(tool, monitoring.events.PY_START)

    def stop(self) -> None:
        if self._tool is not None:
            monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]  # of 3.12
            monitoring.set_events(self._tool, 0)
            for code in self._watched:
                monitoring.set_local_events(self._tool, code, 0)
            self._watched.clear()
            for event in self._callbacks:
                monitoring.register_callback(self._tool, getattr(monitoring.events, event), None)
            monitoring.free_tool_id(self._tool)
            self._tool = None

    @classmethod
    def footprint(cls) -> dict[str, object]:
        monitoring: Any = getattr(sys, "monitoring", None)
        return {"tools of sys.monitoring": [monitoring.get_tool(number) for number in range(6)]} if monitoring else {}

    def _guarded(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Stop watching if a callback fails: its exception would otherwise be raised in the program's code."""
        wanted = (HostSyncError, HostSyncWarning)  # by names that stay while the interpreter is torn down
        ending = sys.is_finalizing

        def guarded(*args: Any) -> Any:
            try:
                return None if self.why_not else callback(*args)
            except wanted as error:
                leave_out_own_frames(error)
                raise
            except Exception as error:
                if ending():
                    return None
                self.why_not = "synchronize() of torch.Stream and torch.Event: the agent failed"
                self._recorder.fault("the watch for calls of synchronize()", error, "failed and is off")

        return guarded

    def _look_at(self, code: CodeType) -> None:
        if _NAME in code.co_names and self._tool is not None:
            monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]  # of 3.12
            monitoring.set_local_events(self._tool, code, monitoring.events.CALL)
            self._watched.append(code)

    def _code_starts(self, code: CodeType, _offset: int) -> Any:
        self._look_at(code)
        return sys.monitoring.DISABLE  # type: ignore[attr-defined, unused-ignore]  # of 3.12

    def _shown(self, function: Any) -> str | None:
        try:
            shown = self._targets.get(function)
            if shown is None and getattr(function, "__name__", "") == _NAME:  # bound already: (stream.synchronize)()
                owner = type(getattr(function, "__self__", None))
                shown = self._targets.get(owner.__dict__.get(_NAME))
        except TypeError:  # not hashable: not one of ours
            return None
        return shown

    def _called(self, _code: CodeType, _offset: int, function: Any, argument: Any) -> None:
        shown = self._shown(function)
        if shown is None:
            return
        entered, recorder = self._entered, self._recorder
        entered.at_ns = None
        state = recorder.threads.current()
        if state.op is not None:  # a wrapper further out has asked, and times it
            return
        frame = sys._getframe(1)
        entered.is_idle = nothing_pending(getattr(function, "__self__", None) or argument)
        allowed = recorder.ask(shown, SyncKind.EXPLICIT, frame, state, (), self.name)
        entered.context = recorder.describe(state, shown, SyncKind.EXPLICIT, frame, (), self.name, allowed)
        entered.at_ns = _now()
        entered.before = begin_named(state.slot)

    def _returned(self, _code: CodeType, _offset: int, function: Any, _argument: Any) -> None:
        shown = self._shown(function)
        started = getattr(self._entered, "at_ns", None)
        if shown is None or started is None:
            return
        returned = _now()
        self._entered.at_ns = None
        recorder = self._recorder
        state = recorder.threads.current()
        if state.op is None:
            stall_ns = end_named(state.slot, self._entered.before, returned - started)
            stall_ns = 0 if self._entered.is_idle else stall_ns
            recorder.settle(state, self._entered.context, SyncKind.EXPLICIT, started, stall_ns, returned)


def _c_methods() -> dict[Any, str]:
    import torch

    found = {}
    for name in ("Stream", "Event"):
        shown = f"torch.{name}.{_NAME}"
        method = vars(getattr(torch, name, object)).get(_NAME)
        if method is not None:
            found[method] = shown
    return found
