"""The parts of an agent that are turned on one after another, and off in reverse order."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.support.faults import Faults

__all__ = ["Parts"]


class Parts:
    """Turns parts on and off; one that fails is off, and the others work without it."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._on: list[tuple[str, Callable[[], None]]] = []

    def turn_on(self, part: str, start: Callable[[], None], stop: Callable[[], None]) -> None:
        """Start a part; ``stop`` undoes whatever ``start`` has done, however far it got."""
        self._on.append((part, stop))
        try:
            start()
        except Exception as error:
            self._faults.add(part, error, "could not be started and is off")
            self._faults.guard(part, stop, None)
            self._on.remove((part, stop))

    def turn_off(self) -> None:
        """Stop all parts that are on, the last one first."""
        while self._on:
            part, stop = self._on.pop()
            try:
                stop()
            except Exception as error:
                self._faults.add(part, error, "could not be turned off")
