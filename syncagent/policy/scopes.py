"""What is open around a sync: ``syncagent.allow`` blocks, in which syncs are wanted, and regions.

A region is a watch inside a watch.  The innermost one that judges decides which policy a sync meets.
"""

from __future__ import annotations

import functools
import inspect
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar

from syncagent.support.generators import around_async_generator, around_generator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from typing_extensions import Self  # mypy's own copy: nothing is installed for it

    from syncagent.attribution.locator import Locator
    from syncagent.attribution.threads import WatchedThread

P = TypeVar("P")  # a policy, or None; judge.py reads what is open here

Scopes = tuple[Any, ...]
"""What is open, outermost first: the reasons of ``allow`` blocks, ``None`` for a ``first_only`` block that was entered
before, and regions (:class:`Reach`)."""

_OPEN: ContextVar[Scopes] = ContextVar("syncagent_allowed", default=())
scopes_by_thread: dict[int, Scopes] = {}
"""The same by thread, for autograd's threads under a torch (2.11) that does not hand them the caller's context."""
_entered: dict[tuple[int, int], tuple[object, object]] = {}
"""Blocks with ``first_only`` that were entered; the values keep the objects alive whose ids are in the keys."""

open_scopes = _OPEN.get
"""Returns what is open on this thread or in this task, without what the caller of ``backward()`` has open."""


class allow:  # noqa: N801 - reads as a verb: with syncagent.allow("reason")
    """Syncs inside are wanted: they are recorded with the reason and never warned of or raised.

    A context manager and a decorator, also of coroutines, of generators of both kinds, whose caller it does not cover,
    and of static and class methods.  It holds for this thread or asyncio task, for the autograd threads of a
    ``backward()`` inside it, and in every region (a watch inside a watch) that is opened inside.  One object may be
    open several times.  With ``first_only`` it holds only the first time that this ``with`` statement, or
    this decorated function, is entered in the process: for code that may wait once, while it sets itself up.
    """

    def __init__(self, reason: str | None = None, *, first_only: bool = False) -> None:
        if callable(reason) or isinstance(reason, (staticmethod, classmethod)):
            raise TypeError(
                f'syncagent.allow takes a reason, as in @syncagent.allow("logged once"), but not {reason!r}'
            )
        self.reason = str(reason) if reason else "allowed"
        self.first_only = first_only
        self._function: Any = None

    def __enter__(self) -> Self:
        enter(self._reason_at(sys._getframe(1)))
        return self

    def __exit__(self, *_error: object) -> None:
        _leave_newest()

    def __call__(self, function: Any) -> Any:
        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(self(function.__func__))
        scope = type(self)(self.reason, first_only=self.first_only)
        scope._function = function
        if inspect.iscoroutinefunction(function):

            async def allowed_coroutine(*args: Any, **kwargs: Any) -> Any:
                with scope:
                    return await function(*args, **kwargs)

            return functools.wraps(function)(allowed_coroutine)
        if inspect.isgeneratorfunction(function):
            return functools.wraps(function)(around_generator(function, scope._around_values))
        if inspect.isasyncgenfunction(function):
            return functools.wraps(function)(around_async_generator(function, scope._around_values))

        @functools.wraps(function)
        def allowed(*args: Any, **kwargs: Any) -> Any:
            with scope:
                return function(*args, **kwargs)

        return allowed

    def _around_values(self) -> _Block:
        """Begin the block of a generator of the decorated function."""
        return _Block(self._reason_at(sys._getframe()))

    def _reason_at(self, frame: FrameType) -> str | None:
        """Return the reason, or ``None`` where this was entered before and holds the first time alone."""
        return None if self.first_only and self._was_entered(frame) else self.reason

    def _was_entered(self, frame: FrameType) -> bool:
        """Return whether this statement or function was entered before, and remember that it is now."""
        if self._function is not None:
            key, keeps = (id(self._function), 0), self._function
        else:
            key, keeps = (id(frame.f_code), frame.f_lasti), frame.f_code
        mine = (keeps, object())
        return _entered.setdefault(key, mine) is not mine


class _Block:
    """An ``allow`` block around a generator, which does not cover the generator's caller."""

    def __init__(self, reason: str | None) -> None:
        self._reason = reason

    def __enter__(self) -> Self:
        enter(self._reason)
        return self

    def __exit__(self, *_error: object) -> None:
        _leave_newest()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Be outside of it while the caller runs."""
        _leave_newest()
        try:
            yield
        finally:
            enter(self._reason)


def _leave_newest() -> None:
    """Close the newest block that is open: in a generator it may end while a region is open that began after it."""
    scopes = _OPEN.get()
    for place in reversed(range(len(scopes))):
        if scopes[place] is None or isinstance(scopes[place], str):
            _set(scopes[:place] + scopes[place + 1 :])
            return


def enter(scope: Any) -> None:
    """Open a scope on this thread or in this task."""
    _set((*_OPEN.get(), scope))


def leave(scope: Any) -> None:
    """Close a region on this thread, and others that have ended and may have been closed on another one."""
    _set(tuple(s for s in _OPEN.get() if s is None or isinstance(s, str) or (s is not scope and s.is_open)))


def forget(scope: Any) -> None:
    """Remove a scope that has ended from all threads, wherever it was closed."""
    for ident, scopes in tuple(scopes_by_thread.items()):
        if any(other is scope for other in scopes) and scopes_by_thread.get(ident) is scopes:
            rest = tuple(other for other in scopes if other is not scope)
            if rest:
                scopes_by_thread[ident] = rest
            else:
                scopes_by_thread.pop(ident, None)


def _set(scopes: Scopes) -> None:
    _OPEN.set(scopes)
    if scopes:
        scopes_by_thread[get_ident()] = scopes
    else:
        scopes_by_thread.pop(get_ident(), None)


def open_reason(locator: Locator, thread: WatchedThread) -> str | None:
    """Return the innermost open block's reason, on an autograd thread that of ``backward()``'s caller."""
    scopes = _OPEN.get()
    if not scopes and scopes_by_thread:
        scopes = scopes_of_backward(locator, thread)
    return reason_in(scopes) if scopes else None


def reason_in(scopes: Scopes) -> str | None:
    """Return the innermost open block's reason."""
    return next((scope for scope in reversed(scopes) if isinstance(scope, str)), None)


def scopes_of_backward(locator: Locator, thread: WatchedThread) -> Scopes:
    """Return what the caller of the ``backward()`` in which this thread works has open."""
    internals = locator.internals
    if internals.graph_task() == -1:
        return ()
    context: Any = internals.backward_context()
    if context is not None:
        scopes: Scopes = context.get(_OPEN, ())
        return scopes
    owner = locator.owner_of_backward(thread)
    return scopes_by_thread.get(owner.ident, ()) if owner is not None else ()


# --- regions

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

    def __init__(self, outer: Reach | None, policy: Any, *, judges: bool = True, every_thread: bool = False) -> None:
        self.number = next(_numbers)
        self.numbers: Numbers = (*(outer.numbers if outer is not None else ()), self.number)
        """This one and those around it, outermost first."""
        self.outer = outer
        self.judge = policy
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
    return own, others_covering(thread.ident)


def others_covering(ident: int) -> list[Reach]:
    """Return the regions of other threads that cover this one, newest first."""
    # A copy of the list: others open and close regions meanwhile.
    return [reach for reach in tuple(open_reaches) if reach.every_thread and reach.ident != ident][::-1]


def in_force(locator: Locator, thread: WatchedThread, of_process: P) -> tuple[Numbers, P]:
    """Return the regions that cover a sync of this thread, and the policy that judges it.

    That is the innermost region's; ``of_process`` where no region judges.
    """
    return judged_by(*covering(locator, thread), of_process)


def judged_by(own: Reach | None, others: list[Reach], of_process: P) -> tuple[Numbers, P]:
    """Return the numbers of these regions, and the policy that judges in them: see :func:`in_force`."""
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
