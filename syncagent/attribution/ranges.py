"""Keeps the labels of the ``torch.profiler.record_function`` ranges that are open on each thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.faults import Faults
    from syncagent.records import ThreadState

__all__ = ["Ranges"]


class Ranges:
    """Wraps enter and exit of the public class ``record_function`` while it is on."""

    def __init__(self, thread_state: Callable[[], ThreadState], faults: Faults) -> None:
        self._state = thread_state
        self._original: tuple[Any, Any] | None = None
        self._safely = faults.shield("the watch for labels of record_function")

    def start(self) -> None:
        from torch.profiler import record_function

        enter: Any = record_function.__enter__
        leave: Any = record_function.__exit__
        safely, opened, closed = self._safely, self._opened, self._closed

        def entered(self: Any) -> Any:
            safely(opened, self)
            return enter(self)

        def left(self: Any, *error: Any) -> Any:
            safely(closed, self)
            return leave(self, *error)

        self._original = (enter, leave)
        record_function.__enter__ = entered  # type: ignore[method-assign]
        record_function.__exit__ = left  # type: ignore[method-assign]

    def stop(self) -> None:
        if self._original is not None:
            from torch.profiler import record_function

            record_function.__enter__, record_function.__exit__ = self._original  # type: ignore[method-assign]
            self._original = None

    def _opened(self, label: Any) -> None:
        thread = self._state()
        thread.ranges = (*thread.ranges, str(label.name))
        thread.range_ids = (*thread.range_ids, id(label))

    def _closed(self, label: Any) -> None:
        thread = self._state()
        if id(label) in thread.range_ids:  # else it was opened before the agent came
            place = len(thread.range_ids) - 1 - thread.range_ids[::-1].index(id(label))
            thread.ranges = thread.ranges[:place]
            thread.range_ids = thread.range_ids[:place]
