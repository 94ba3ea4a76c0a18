"""Keeps the labels of the ``torch.profiler.record_function`` ranges that are open on each thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from syncagent.torchbridge.patches import Patches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncagent.attribution.threads import Threads
    from syncagent.support.faults import Faults


def labels(open_ones: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of open ranges."""
    return tuple(str(label.name) for label in open_ones)


class Ranges:
    """Wraps enter and exit of the public class ``record_function`` while it is on.

    Every optimizer opens two ranges per step, so the objects are only kept here; their names are read at a sync.
    """

    def __init__(self, threads: Threads[Any], faults: Faults) -> None:
        self._threads = threads
        self._faults = faults
        self._patches = Patches()

    def start(self) -> None:
        from torch.profiler import record_function

        enter: Any = record_function.__enter__
        leave: Any = record_function.__exit__
        local, current = self._threads.local, self._threads.current

        def entered(self: Any) -> Any:
            result = enter(self)  # which may raise
            try:
                try:
                    open_ones = local.state.open_ranges
                except AttributeError:
                    open_ones = current().open_ranges
                open_ones.append(self)
            except Exception as error:
                failed(error)
            return result

        def left(self: Any, *error: Any) -> Any:
            try:
                open_ones = local.state.open_ranges
                if open_ones and open_ones[-1] is self:
                    open_ones.pop()
                else:
                    _take_out(open_ones, self)
            except AttributeError:
                pass  # it was opened before the agent started
            except Exception as own_error:
                failed(own_error)
            return leave(self, *error)

        def failed(error: Exception) -> None:
            self._faults.add("the watch for labels of record_function", error)
            self.stop()

        self._patches.put(record_function, "__enter__", entered)
        self._patches.put(record_function, "__exit__", left)

    def stop(self) -> None:
        self._patches.restore()


def footprint() -> dict[str, object]:
    """Return what is changed in torch, as it is now."""
    from torch.profiler import record_function

    return {"torch.profiler.record_function": (record_function.__enter__, record_function.__exit__)}


def _take_out(open_ones: list[Any], label: Any) -> None:
    """Close a range that was not the last one opened, and those opened inside it."""
    for place in range(len(open_ones) - 1, -1, -1):
        if open_ones[place] is label:
            del open_ones[place:]
            return
