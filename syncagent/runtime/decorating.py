"""Runs a decorated function of any kind inside something that is opened for each call and closed after it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, NamedTuple

from syncagent.runtime.handle import Agent
from syncagent.runtime.regions import Region

Function = Callable[..., Any]


class Opened(NamedTuple):
    """What a watch has begun: the agent, or a region of the one that was running."""

    handle: Agent
    close: Callable[[], object]

    def suspended(self) -> AbstractContextManager[None]:
        """Be outside of the region, if it is one: a generator is for as long as its caller works."""
        return self.handle.suspended() if isinstance(self.handle, Region) else nullcontext()


def decorate(function: Function, begin: Callable[[], Opened]) -> Function:
    """Return the function with each call inside what ``begin`` opens; a generator opens it for its first value."""
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"a function can be decorated, or a coroutine or generator function, but not {function!r}")
    if inspect.isasyncgenfunction(function):
        wrap = _async_generator
    elif inspect.isgeneratorfunction(function):
        wrap = _generator
    elif inspect.iscoroutinefunction(function):
        wrap = _coroutine
    else:
        wrap = _function
    return functools.wraps(function)(wrap(function, begin))


def _function(function: Function, begin: Callable[[], Opened]) -> Function:
    def called(*args: Any, **kwargs: Any) -> Any:
        with closing(begin()):
            return function(*args, **kwargs)

    return called


def _coroutine(function: Function, begin: Callable[[], Opened]) -> Function:
    async def called(*args: Any, **kwargs: Any) -> Any:
        with closing(begin()):
            return await function(*args, **kwargs)

    return called


def _generator(function: Function, begin: Callable[[], Opened]) -> Function:
    def called(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with closing(begin()) as opened:
            values = function(*args, **kwargs)
            call, sent = values.send, None
            while True:
                try:
                    value = call(sent)
                except StopIteration as stop:
                    return stop.value
                try:
                    with opened.suspended():
                        sent, call = (yield value), values.send
                except GeneratorExit:
                    values.close()
                    raise
                except BaseException as error:
                    sent, call = error, values.throw

    return called


def _async_generator(function: Function, begin: Callable[[], Opened]) -> Function:
    async def called(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        with closing(begin()) as opened:
            values = function(*args, **kwargs)
            call, sent = values.asend, None
            while True:
                try:
                    value = await call(sent)
                except StopAsyncIteration:
                    return
                try:
                    with opened.suspended():
                        sent, call = (yield value), values.asend
                except GeneratorExit:
                    await values.aclose()
                    raise
                except BaseException as error:
                    sent, call = error, values.athrow

    return called
