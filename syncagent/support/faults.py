"""The agent's own mistakes: caught, logged once and kept for the report; the program never sees one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from syncagent.support import redaction
from syncagent.support.log import log_once

T = TypeVar("T")

_MOST = 50


class Faults:
    """What went wrong in one agent, a sentence each."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.parts: dict[str, None] = {}
        """The parts that failed, in the order in which they did."""

    def add(self, part: str, error: BaseException, what: str = "failed and is off") -> None:
        """Keep a fault of ``part`` and log the first of it."""
        if len(self.parts) < _MOST:
            self.parts[part] = None
        self.say(redaction.text(f"{part} {what}: {type(error).__name__}: {error}"))
        log_once(f"fault-{part}", f"a part of the agent {what}", part=part, error=repr(error))

    def say(self, sentence: str) -> None:
        """Keep a sentence for the report."""
        if sentence not in self.sentences and len(self.sentences) <= _MOST:
            more = f"more than {_MOST} parts of the agent failed; the first are above"
            self.sentences.append(sentence if len(self.sentences) < _MOST else more)

    def shield(self, part: str) -> Callable[..., None]:
        """Return what calls ``noticed(*args)`` for a part that only takes note, until that has failed once."""
        is_off = False

        def safely(noticed: Callable[..., None], *args: Any) -> None:
            nonlocal is_off
            if is_off:
                return
            try:
                noticed(*args)
            except Exception as error:
                is_off = True
                self.add(part, error)

        return safely

    def guard(self, part: str, call: Callable[[], T], otherwise: T) -> T:
        """Return what ``call`` does; ``otherwise`` where it fails."""
        try:
            return call()
        except Exception as error:
            self.add(part, error, "failed")
            return otherwise
