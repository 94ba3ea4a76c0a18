"""Calls all sinks in their order; one that fails is switched off, and the others go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncagent.support.pace import yield_gil
from syncagent.support.threads import AgentThread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from syncagent.delivery.sink import Sink
    from syncagent.events import SyncEvent
    from syncagent.support.faults import Faults

__all__ = ["GuardedSinks"]

_CLOSE_TIMEOUT_S = 2.0
"""How long a sink that has failed may take to close."""
_EVENTS_PER_CALL = 8


class GuardedSinks:
    """The sinks of one agent that have not failed."""

    def __init__(self, sinks: Iterable[Sink], faults: Faults) -> None:
        self._sinks = list(sinks)
        self._faults = faults

    def call(self, method: str, *args: object) -> None:
        """Call a method of every sink."""
        for sink in self._sinks:
            try:
                getattr(sink, method)(*args)
            except Exception as error:
                self._sinks = [other for other in self._sinks if other is not sink]
                self._faults.add(f"sink {sink.name}", error)
                if method != "close":
                    _close_in_time(sink)

    def give(self, events: Sequence[SyncEvent]) -> None:
        """Hand over events a few at a time, with pauses for the training threads."""
        for first in range(0, len(events), _EVENTS_PER_CALL):
            self.call("events", events[first : first + _EVENTS_PER_CALL])
            yield_gil()

    def forget(self) -> None:
        """Call none of them any more."""
        self._sinks = []


def _close_in_time(sink: Sink) -> None:
    """Have a sink that has failed release its files, threads and ports; errors in doing so are not reported."""

    def close() -> None:
        try:
            sink.close()
        except Exception:
            pass

    thread = AgentThread(target=close, name="syncagent-close")
    try:
        thread.start()
    except RuntimeError:  # the interpreter is ending
        return
    thread.join(_CLOSE_TIMEOUT_S)
