"""Runs a decorated function of any kind inside something that is opened for each call and closed after it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, cast, overload

from syncagent.errors import SyncAgentError
from syncagent.runtime.handle import Agent
from syncagent.runtime.regions import Region
from syncagent.support.generators import around_async_generator, around_generator
from syncagent.torchbridge.frames import leave_out_own_frames

if TYPE_CHECKING:
    from typing_extensions import Self

    from syncagent.report.model import Report

Function = Callable[..., Any]
Given = ParamSpec("Given")
Returned = TypeVar("Returned")
_Rest = ParamSpec("_Rest")
_Owner = TypeVar("_Owner")
_Result = TypeVar("_Result")


class Watched(Protocol[Given, _Result]):
    """A function, or a method, that :func:`syncagent.watch` has decorated; it is a function of the same kind.

    What stands here is also found on bound methods: ``trainer.fit.report()``.
    """

    agent: Agent | None
    """The agent, or the region, of the call that has begun or ended last; ``None`` before the first."""
    __name__: str
    __qualname__: str

    def report(self) -> Report:
        """Return the report of that call, which may still be running.

        Raises :class:`~syncagent.SyncAgentError` where it has not been called yet.
        """
        ...

    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> _Result: ...
    # Type checkers bind by this also below @classmethod and @staticmethod: the first overload is for the one, the last
    # for the other.  mypy does not take that one: it thinks that a static method with parameters is bound.
    @overload
    def __get__(
        self: Watched[Concatenate[type[_Owner], _Rest], _Result], instance: object, owner: type[_Owner], /
    ) -> Watched[_Rest, _Result]: ...
    @overload
    def __get__(self, instance: None, owner: type[object], /) -> Self: ...
    @overload
    def __get__(
        self: Watched[Concatenate[_Owner, _Rest], _Result], instance: _Owner, owner: type[object] | None = None, /
    ) -> Watched[_Rest, _Result]: ...
    @overload
    def __get__(self, instance: object, owner: type[object] | None = None, /) -> Self: ...


class Opened(NamedTuple):
    """What a watch has begun: the agent, or a region of the one that was running."""

    handle: Agent
    close: Callable[[], object]

    def suspended(self) -> AbstractContextManager[None]:
        """Be outside of the region, if it is one: a generator is for as long as its caller works."""
        return self.handle.suspended() if isinstance(self.handle, Region) else nullcontext()


def decorate(function: Callable[Given, Returned], begin: Callable[[], Opened]) -> Watched[Given, Returned]:
    """Return the function with each call inside what ``begin`` opens; a generator opens it for its first value."""
    if isinstance(function, (staticmethod, classmethod)):
        return cast("Watched[Given, Returned]", type(function)(decorate(function.__func__, begin)))
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"a function can be decorated, or a coroutine or generator function, but not {function!r}")
    bodies = (function, type(function).__call__)  # an object is called by a method of its class
    if any(map(inspect.isasyncgenfunction, bodies)):
        wrap = _async_generator
    elif any(map(inspect.isgeneratorfunction, bodies)):
        wrap = _generator
    elif any(map(inspect.iscoroutinefunction, bodies)):
        wrap = _coroutine
    else:
        wrap = _function

    def begin_call() -> Opened:
        handle, close = begin()

        def end_call() -> None:
            watched.agent = handle  # a function that calls itself has begun others meanwhile
            close()

        watched.agent = handle
        return Opened(handle, end_call)

    def report() -> Report:
        if watched.agent is None:
            name = getattr(function, "__qualname__", repr(function))
            raise SyncAgentError(f"syncagent: {name} has not been called yet, so there is no report of it")
        return watched.agent.report()

    watched = cast("Watched[Given, Returned]", functools.wraps(function)(wrap(function, begin_call)))
    watched.agent = None
    watched.report = report  # type: ignore[method-assign]  # an attribute of a function, found on bound methods as well
    return watched


def _function(function: Function, begin: Callable[[], Opened]) -> Function:
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            with closing(begin()):
                return function(*args, **kwargs)
        except BaseException as error:
            leave_out_own_frames(error)
            raise

    return called


def _coroutine(function: Function, begin: Callable[[], Opened]) -> Function:
    async def called(*args: Any, **kwargs: Any) -> Any:
        try:
            with closing(begin()):
                return await function(*args, **kwargs)
        except BaseException as error:
            leave_out_own_frames(error)
            raise

    return called


def _generator(function: Function, begin: Callable[[], Opened]) -> Function:
    return around_generator(function, lambda: closing(begin()))


def _async_generator(function: Function, begin: Callable[[], Opened]) -> Function:
    return around_async_generator(function, lambda: closing(begin()))
