"""What one thread can see of another that waits: its line, and what it has published of itself.

The frames are looked at while the thread is inside the driver.  Only code objects and offsets are taken, never a frame:
frames hold the program's tensors, and what must end on its own thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from syncagent.attribution.callsite import (
    COLLECTIVE,
    NOWHERE,
    SET_UP,
    AnyFrame,
    Point,
    Where,
)
from syncagent.attribution.locator import backward_in
from syncagent.events import Phase
from syncagent.policy.scopes import Numbers, innermost, judged_by, others_covering, reason_in, scopes_by_thread
from syncagent.support.compat import Standing, running_threads, standing_of

if TYPE_CHECKING:
    from syncagent.attribution.locator import Locator


OF_PROCESS = object()


class Look(NamedTuple):
    """What a look has found; the defaults say that nothing was."""

    where: Where = NOWHERE
    phase: Phase = Phase.OTHER
    allowed: str | None = None
    regions: Numbers = ()
    library: tuple[Point, ...] = ()
    """The frames of libraries inside the user's line, innermost first."""
    is_collective: bool = False
    is_set_up: bool = False
    judge: Any = OF_PROCESS
    """The policy of the innermost region that judges, ``None`` once that has failed; ``OF_PROCESS``: the process's."""
    thread: str = ""


class Looker:
    """Finds where a thread is; used by the agent's own thread alone."""

    def __init__(self, locator: Locator) -> None:
        self._locator = locator
        self._sites = locator.sites
        self._internals = locator.internals

    def look(self, ident: int, name: str) -> Look | None:
        """Look at a thread by its ``ident``; ``None`` where it has no frame that says anything.

        ``name`` is Python's for it, else the system's: autograd's threads have no frame of the user's, at most those
        of a hook, and work for whoever stands in ``backward()``, where that is a single thread.
        """
        here = standing_of(ident)
        look = self.at(here, ident) if here is not None else None
        if name.startswith("pt_autograd") and (look is None or look.where.user is None):
            outer = self._at_backward()
            if outer is not None:
                look = outer if look is None else _inside(outer, look)
        return look._replace(thread=name) if look is not None else None

    def _at_backward(self) -> Look | None:
        """Describe the only thread that stands in ``backward()``."""
        stands = ((caller, backward_in(standing_of(caller), self._internals)) for caller in running_threads())
        callers = [(caller, outer) for caller, outer in stands if outer is not None]
        if len(callers) != 1:
            return None
        caller, outer = callers[0]
        return self.at(outer, caller)

    def at(self, frame: Standing, ident: int) -> Look:
        """Describe a wait of that thread, which stood there."""
        where = self._sites.capture(frame)
        # What has no GPU runs its backward pass on the thread that calls it.
        is_backward = backward_in(frame, self._internals) is not None
        phase = Phase.BACKWARD if is_backward else self._locator.phase_seen(where.marks, frame)
        return self.described(where, phase, frame, ident)

    def described(self, where: Where, phase: Phase, frame: AnyFrame | None, ident: int) -> Look:
        """Add to line and phase what the thread ``ident`` has published, and the libraries between call and line."""
        library = tuple(self._sites.inside_user(frame))
        scopes = scopes_by_thread.get(ident, ())
        numbers, judge = judged_by(innermost(scopes), others_covering(ident), OF_PROCESS)
        return Look(
            where, phase, reason_in(scopes), numbers, library,
            any(self._sites.bits(code) & COLLECTIVE for code, _ in library), bool(where.marks & SET_UP), judge,
        )  # fmt: skip


def _inside(outer: Look, own: Look) -> Look:
    """Return what a hook on autograd's thread is doing for the line that called ``backward()``."""
    return outer._replace(
        where=own.where.within(outer.where), library=own.library + outer.library,
        is_collective=own.is_collective, is_set_up=own.is_set_up or outer.is_set_up,
    )  # fmt: skip
