"""Runs a decorated function of any kind inside something that is opened for each call and closed after it."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    Function = Callable[..., Any]

__all__ = ["Opened", "decorate"]


class Opened(Protocol):
    """What a call is inside of; a generator leaves it for as long as its caller works."""

    def suspend(self) -> None:
        """Suspend it."""

    def resume(self) -> None:
        """Resume it."""

    def close(self) -> None:
        """End it."""


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
        opened = begin()
        try:
            return function(*args, **kwargs)
        finally:
            opened.close()

    return called


def _coroutine(function: Function, begin: Callable[[], Opened]) -> Function:
    async def called(*args: Any, **kwargs: Any) -> Any:
        opened = begin()
        try:
            return await function(*args, **kwargs)
        finally:
            opened.close()

    return called


def _generator(function: Function, begin: Callable[[], Opened]) -> Function:
    def called(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        opened = begin()
        try:
            values = function(*args, **kwargs)
            call, sent = values.send, None
            while True:
                try:
                    value = call(sent)
                except StopIteration as stop:
                    return stop.value
                opened.suspend()
                try:
                    sent, call = (yield value), values.send
                except GeneratorExit:
                    opened.resume()
                    values.close()
                    raise
                except BaseException as error:
                    sent, call = error, values.throw
                opened.resume()
        finally:
            opened.close()

    return called


def _async_generator(function: Function, begin: Callable[[], Opened]) -> Function:
    async def called(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        opened = begin()
        try:
            values = function(*args, **kwargs)
            call, sent = values.asend, None
            while True:
                try:
                    value = await call(sent)
                except StopAsyncIteration:
                    return
                opened.suspend()
                try:
                    sent, call = (yield value), values.asend
                except GeneratorExit:
                    opened.resume()
                    await values.aclose()
                    raise
                except BaseException as error:
                    sent, call = error, values.athrow
                opened.resume()
        finally:
            opened.close()

    return called
