"""Which line of the user's code each thread stood on, and when: an account that owes nothing to the agent.

``sys.monitoring`` (Python 3.12 and later) reports each line that is run and of each function that is entered or left;
it costs nothing in code that is not the user's.
"""

from __future__ import annotations

import sys
import threading
import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from types import CodeType

    from typing_extensions import Self

__all__ = ["AVAILABLE", "Place", "TrueLines"]

AVAILABLE = sys.version_info >= (3, 12)
_TOOLS = (3, 1, 5, 0, 2, 4)
"""The agent has one of its own, the fourth."""


class Place(NamedTuple):
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file.rpartition('/')[2]}:{self.line}"


class _Log:
    """Where one thread stood from each of these times on."""

    def __init__(self) -> None:
        self.stack: list[Place] = []
        self.times: list[int] = []
        self.places: list[Place | None] = []

    def note(self) -> None:
        self.times.append(time.perf_counter_ns())
        self.places.append(self.stack[-1] if self.stack else None)

    def at(self, ns: int) -> Place | None:
        index = bisect_right(self.times, ns) - 1
        return self.places[index] if index >= 0 else None


class TrueLines:
    """Follows all threads while it is entered; ``folders`` say what the user's code is."""

    def __init__(self, folders: tuple[str, ...]) -> None:
        self._folders = folders
        self._tool = -1
        self._local = threading.local()
        self._logs: dict[str, list[_Log]] = {}
        """Of the threads by their names: several may have had the same one."""

    def __enter__(self) -> Self:
        if not AVAILABLE:
            return self
        monitoring = sys.monitoring
        events = monitoring.events
        tool = self._tool = next(number for number in _TOOLS if monitoring.get_tool(number) is None)
        monitoring.use_tool_id(tool, "true lines")
        entered, left = self._entered, self._left
        for event, call in (
            (events.LINE, self._line), (events.PY_START, entered), (events.PY_RESUME, entered),
            (events.PY_RETURN, left), (events.PY_YIELD, left), (events.PY_UNWIND, self._unwound),
            (events.PY_THROW, self._thrown),
        ):  # fmt: skip
            monitoring.register_callback(tool, event, call)
        monitoring.set_events(
            tool,
            events.LINE | events.PY_START | events.PY_RESUME | events.PY_RETURN | events.PY_YIELD | events.PY_UNWIND
            | events.PY_THROW,
        )  # fmt: skip
        monitoring.restart_events()
        return self

    def __exit__(self, *_: object) -> None:
        if AVAILABLE:
            sys.monitoring.set_events(self._tool, 0)
            sys.monitoring.free_tool_id(self._tool)

    def at(self, thread: str, ns: int) -> Place | None:
        """Return the line at a moment of ``perf_counter_ns``, of a thread by its name.

        Threads of autograd have no lines: then it is where the main thread stood, which is in ``backward()``.
        """
        logs = self._logs.get(thread)
        if logs is None:
            logs = self._logs.get(threading.main_thread().name, [])
        found = [log for log in logs if log.times and log.times[0] <= ns]
        return max(found, key=lambda log: log.times[0]).at(ns) if found else None

    def _of_user(self, code: CodeType) -> bool:
        return code.co_filename.startswith(self._folders)

    def _here(self) -> _Log:
        log: _Log | None = getattr(self._local, "log", None)
        if log is None:
            log = self._local.log = _Log()
            self._logs.setdefault(threading.current_thread().name, []).append(log)
        return log

    def _entered(self, code: CodeType, _offset: int) -> Any:
        if not self._of_user(code):
            return sys.monitoring.DISABLE
        log = self._here()
        log.stack.append(Place(code.co_filename, code.co_firstlineno))
        log.note()
        return None

    def _left(self, code: CodeType, _offset: int, _value: object) -> Any:
        if not self._of_user(code):
            return sys.monitoring.DISABLE
        log = self._here()
        if log.stack:  # else it was entered before the watch began
            log.stack.pop()
        log.note()
        return None

    def _unwound(self, code: CodeType, offset: int, error: object) -> None:
        if self._of_user(code):
            self._left(code, offset, error)

    def _thrown(self, code: CodeType, offset: int, _error: object) -> None:
        if self._of_user(code):
            self._entered(code, offset)

    def _line(self, code: CodeType, line: int) -> Any:
        if not self._of_user(code):
            return sys.monitoring.DISABLE
        log = self._here()
        log.stack[-1:] = [Place(code.co_filename, line)]
        log.note()
        return None
