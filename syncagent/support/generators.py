"""Something that is open around a generator, of either kind, while it runs, and not while its caller does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Suspendable(Protocol):
    """What is open."""

    def suspended(self) -> AbstractContextManager[None]: ...


Begin = Callable[[], AbstractContextManager[Suspendable]]


def around_generator(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    """Return the generator function with what ``begin`` opens around each of its generators."""

    def called(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with begin() as opened:
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


def around_async_generator(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    """Do as :func:`around_generator` for an asynchronous one."""

    async def called(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        with begin() as opened:
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
