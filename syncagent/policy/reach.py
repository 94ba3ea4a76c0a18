"""Which regions (watches inside a watch) cover a sync, and which policy judges it."""

from __future__ import annotations

from itertools import count
from threading import get_ident
from typing import TYPE_CHECKING

from syncagent.policy.scopes import open_scopes, scopes_by_thread, scopes_of_backward

if TYPE_CHECKING:
    from syncagent.attribution.locator import Locator
    from syncagent.attribution.threads import WatchedThread
    from syncagent.policy.judge import Policy
    from syncagent.policy.scopes import Scopes

__all__ = ["Numbers", "Reach", "in_force", "innermost", "open_reaches"]

Numbers = tuple[int, ...]
"""The regions that cover a sync, by number; the last one's policy comes first."""

open_reaches: list[Reach] = []
"""All open regions, the oldest first.  Empty in most programs: all that their hot path checks."""
_numbers = count(1)


class Reach:
    """What a region covers: the thread or asyncio task that opened it, and the backward passes called there.

    With ``every_thread`` it covers other threads as well.  A region that does not judge leaves that to the one around
    it.
    """

    def __init__(self, outer: Reach | None, policy: Policy, *, judges: bool = True, every_thread: bool = False) -> None:
        self.number = next(_numbers)
        self.numbers: Numbers = (*(outer.numbers if outer is not None else ()), self.number)
        """This one and those around it, outermost first."""
        self.outer = outer
        self.judge: Policy | None = policy
        """``None`` once it has failed: nothing is judged then."""
        self.judges = judges
        self.every_thread = every_thread
        self.ident = get_ident()
        self.is_open = True


def innermost(scopes: Scopes) -> Reach | None:
    """Return the innermost open region among those scopes."""
    for scope in reversed(scopes):
        if isinstance(scope, Reach) and scope.is_open:
            return scope
    return None


def covering(locator: Locator, thread: WatchedThread) -> tuple[Reach | None, list[Reach]]:
    """Return the innermost region of this thread or task, and those of other threads that cover it, newest first."""
    own = innermost(open_scopes())
    if own is None and scopes_by_thread:
        own = innermost(scopes_of_backward(locator, thread))
    # A copy of the list: others open and close regions meanwhile.
    others = [reach for reach in tuple(open_reaches) if reach.every_thread and reach.ident != thread.ident]
    return own, others[::-1]


def in_force(locator: Locator, thread: WatchedThread, of_process: Policy | None) -> tuple[Numbers, Policy | None]:
    """Return the regions that cover a sync of this thread, and the policy that judges it.

    That is the innermost region's; ``of_process`` where no region judges.
    """
    own, others = covering(locator, thread)
    numbers = own.numbers if own is not None else ()
    if others:
        numbers = (*(reach.number for reach in others[::-1] if reach.number not in numbers), *numbers)
    while own is not None:
        if own.judges and own.is_open:
            return numbers, own.judge
        own = own.outer
    for reach in others:
        if reach.judges:
            return numbers, reach.judge
    return numbers, of_process
