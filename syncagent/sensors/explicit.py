"""The calls with which a program asks to wait, wrapped by name while the agent is on.

Each call counts, even where nothing was left to wait for: otherwise two runs of one program would differ.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING, Any

from syncagent.events import SyncKind
from syncagent.recording.waits import begin_named, end_named
from syncagent.sensors.base import Sensor
from syncagent.torchbridge.frames import leave_out_own_frames
from syncagent.torchbridge.internals import EMPTY_CACHE, SYNCHRONIZE
from syncagent.torchbridge.patches import Patches, find

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from syncagent.recording.recorder import Recorder
    from syncagent.sensors.base import Conditions

_now = time.perf_counter_ns


class ExplicitSensor(Sensor):
    """Times explicit synchronize calls."""

    name = "explicit"
    needed_by_gates = True

    def __init__(self, recorder: Recorder, conditions: Conditions) -> None:
        super().__init__(recorder, conditions)
        self._patches = Patches()
        self.without: list[str] = []

    @property
    def live(self) -> bool:
        return bool(self._patches)

    @property
    def cannot_see(self) -> str:
        return "; ".join(["waits that no Python call asked for", *self.without])

    def start(self) -> None:
        import torch

        for targets, wrapper_of in ((SYNCHRONIZE, self._timed), (EMPTY_CACHE, self._freeing)):
            for place, attribute, shown in targets:
                if not self._patches.wrap(find(torch, place), attribute, functools.partial(wrapper_of, shown)):
                    self.without.append(f"{shown}: torch.{place}.{attribute} is not in this torch")

    def stop(self) -> None:
        self._patches.restore()

    @classmethod
    def footprint(cls) -> dict[str, object]:
        import torch

        return {shown: find(torch, f"{place}.{name}") for place, name, shown in (*SYNCHRONIZE, *EMPTY_CACHE)}

    def _timed(self, shown: str, original: Callable[..., Any]) -> Callable[..., Any]:
        recorder, patches = self._recorder, self._patches

        def watched(frame: FrameType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            state = recorder.threads.current()
            if state.op is not None or not patches:  # the program's own patch may call this beyond the agent's end
                return original(*args, **kwargs)
            is_idle = bool(args) and nothing_pending(args[0])
            allowed = recorder.ask(shown, SyncKind.EXPLICIT, frame, state, (), self.name)
            context = recorder.describe(state, shown, SyncKind.EXPLICIT, frame, (), self.name, allowed)
            started = _now()
            state.op = shown
            before = begin_named(state.slot)
            try:
                return original(*args, **kwargs)
            finally:
                returned = _now()
                stall_ns = end_named(state.slot, before, returned - started)
                state.op = None
                stall_ns = 0 if is_idle else stall_ns
                recorder.settle(state, context, SyncKind.EXPLICIT, started, stall_ns, returned)

        @functools.wraps(original)
        def synchronize(*args: Any, **kwargs: Any) -> Any:
            try:
                return watched(sys._getframe(1), args, kwargs)
            except BaseException as error:
                leave_out_own_frames(error)
                raise

        return synchronize

    def _freeing(self, shown: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a call that waits if it frees memory, which is known only afterwards."""
        recorder, patches = self._recorder, self._patches

        @functools.wraps(original)
        def empty_cache(*args: Any, **kwargs: Any) -> Any:
            from torch.cuda import memory_reserved

            if not patches:
                return original(*args, **kwargs)

            state = recorder.threads.current()
            reserved = memory_reserved()
            started = _now()
            before = begin_named(state.slot)
            try:
                result = original(*args, **kwargs)
            except BaseException as error:
                leave_out_own_frames(error)
                raise
            finally:
                returned = _now()
                stall_ns = end_named(state.slot, before, returned - started)
            if memory_reserved() < reserved:
                context = recorder.describe(state, shown, SyncKind.OTHER, sys._getframe(1), (), self.name)
                recorder.settle(state, context, SyncKind.OTHER, started, stall_ns, returned)
            return result

        return empty_cache


def nothing_pending(waited_for: Any) -> bool:
    """Has this stream or event nothing left to wait for?  Then ``synchronize`` on it stalls for nothing (1.3 µs)."""
    try:
        return bool(waited_for.query())
    except Exception:  # a device, which cannot be asked; or a stream that is being captured
        return False
