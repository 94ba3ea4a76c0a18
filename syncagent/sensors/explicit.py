"""The calls by which a program asks to wait: wrapped by name while the agent is on.

Each counts, also where nothing was left to wait for: by that alone two runs of one program would differ.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from syncagent.events import SyncKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.recording.recorder import Recorder

__all__ = ["ExplicitSensor", "nothing_pending"]

_now = time.perf_counter_ns

_TARGETS = (
    # (where the attribute lives, its name, how the sync is named).  torch.cuda.synchronize looks its C function up at
    # each call, so a reference to it that was taken before the agent came is seen too.
    ("_C", "_cuda_synchronize", "torch.cuda.synchronize"),
    ("_C", "_accelerator_synchronizeDevice", "torch.accelerator.synchronize"),
    ("cuda.Stream", "synchronize", "torch.cuda.Stream.synchronize"),
    ("cuda.Event", "synchronize", "torch.cuda.Event.synchronize"),
)

_EMPTYING = (
    # cudaFree waits for the device, so giving cached memory back does; with nothing cached it does not.
    ("_C", "_cuda_emptyCache", "torch.cuda.empty_cache"),
    ("_C", "_accelerator_emptyCache", "torch.accelerator.empty_cache"),
)


class ExplicitSensor:
    """Times explicit synchronize calls."""

    name = "explicit"

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._restore: list[tuple[Any, str, Any]] = []
        self.without: list[str] = []

    @property
    def live(self) -> bool:
        return bool(self._restore)

    @property
    def cannot_see(self) -> str:
        return "; ".join(["waits that no Python call asked for", *self.without])

    def start(self) -> None:
        import torch

        for place, attribute, shown in (*_TARGETS, *_EMPTYING):
            holder: Any = torch
            for part in place.split("."):
                holder = getattr(holder, part, None)
            original = getattr(holder, attribute, None)
            if original is None:
                self.without.append(f"{shown}: torch.{place}.{attribute} is not in this torch")
                continue
            wrap = self._timed if (place, attribute, shown) in _TARGETS else self._freeing
            setattr(holder, attribute, wrap(original, shown))
            self._restore.append((holder, attribute, original))

    def stop(self) -> None:
        while self._restore:
            setattr(*self._restore.pop())

    def _timed(self, original: Callable[..., Any], shown: str) -> Callable[..., Any]:
        recorder = self._recorder

        def synchronize(*args: Any, **kwargs: Any) -> Any:
            state = recorder.threads.current()
            frame = sys._getframe(1)
            if state.op is not None:
                return original(*args, **kwargs)
            is_idle = bool(args) and nothing_pending(args[0])
            allowed = recorder.ask(shown, SyncKind.EXPLICIT, frame, state, (), self.name)
            context = recorder.describe(state, shown, SyncKind.EXPLICIT, frame, (), self.name, allowed)
            started = _now()
            state.op = shown
            try:
                return original(*args, **kwargs)
            finally:
                returned = _now()
                state.op = None
                stall_ns = 0 if is_idle else returned - started
                recorder.settle(state, context, SyncKind.EXPLICIT, started, stall_ns, returned)

        synchronize.__wrapped__ = original  # type: ignore[attr-defined]
        synchronize.__name__ = getattr(original, "__name__", "synchronize")
        return synchronize

    def _freeing(self, original: Callable[..., Any], shown: str) -> Callable[..., Any]:
        """Wrap a call that waits if it frees memory; that it did shows only afterwards."""
        recorder = self._recorder

        def empty_cache(*args: Any, **kwargs: Any) -> Any:
            from torch.cuda import memory_reserved

            state = recorder.threads.current()
            before = memory_reserved()
            started = _now()
            result = original(*args, **kwargs)
            returned = _now()
            if memory_reserved() < before:
                context = recorder.describe(state, shown, SyncKind.OTHER, sys._getframe(1), (), self.name)
                recorder.settle(state, context, SyncKind.OTHER, started, returned - started, returned)
            return result

        empty_cache.__wrapped__ = original  # type: ignore[attr-defined]
        return empty_cache


def nothing_pending(waited_for: Any) -> bool:
    """Has this stream or event nothing left to wait for?  Then ``synchronize`` on it stalls for nothing (1.3 µs)."""
    try:
        return bool(waited_for.query())
    except Exception:  # a device, which cannot be asked; or a stream that is being captured
        return False
