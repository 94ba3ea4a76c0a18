"""Keeps the labels of the ``torch.profiler.record_function`` ranges that are open on each thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from syncagent.log import log_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.recorder import ThreadState

__all__ = ["Ranges"]


class Ranges:
    """Wraps enter and exit of the public class ``record_function`` while it is on."""

    def __init__(self, thread_state: Callable[[], ThreadState]) -> None:
        self._state = thread_state
        self._original: tuple[Any, Any] | None = None
        self.faults: list[str] = []
        """Our own mistake, after which no label is kept any more; the program never sees it."""

    def start(self) -> None:
        from torch.profiler import record_function

        enter: Any = record_function.__enter__
        leave: Any = record_function.__exit__
        state, faults = self._state, self.faults

        def entered(self: Any) -> Any:
            if not faults:
                try:
                    thread = state()
                    thread.ranges = (*thread.ranges, str(self.name))
                    thread.range_ids = (*thread.range_ids, id(self))
                except Exception as error:
                    fail(error)
            return enter(self)

        def left(self: Any, *error: Any) -> Any:
            if not faults:
                try:
                    thread = state()
                    if id(self) in thread.range_ids:  # else it was opened before the agent came
                        place = len(thread.range_ids) - 1 - thread.range_ids[::-1].index(id(self))
                        thread.ranges = thread.ranges[:place]
                        thread.range_ids = thread.range_ids[:place]
                except Exception as error_of_ours:
                    fail(error_of_ours)
            return leave(self, *error)

        def fail(error: Exception) -> None:
            faults.append(f"labels of record_function are not kept any more: the agent failed with {error!r}")
            log_once("ranges", "labels of record_function are not kept any more: the agent failed", error=repr(error))

        self._original = (enter, leave)
        record_function.__enter__ = entered  # type: ignore[method-assign]
        record_function.__exit__ = left  # type: ignore[method-assign]

    def stop(self) -> None:
        if self._original is not None:
            from torch.profiler import record_function

            record_function.__enter__, record_function.__exit__ = self._original  # type: ignore[method-assign]
            self._original = None
