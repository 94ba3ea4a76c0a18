"""Random numbers of the agent's own: a program that has seeded :mod:`random` gets from it what it would get alone."""

from __future__ import annotations

import random
import secrets
from types import BuiltinMethodType, FunctionType, MethodType, SimpleNamespace
from typing import Any, TypeVar

from opentelemetry.sdk.trace.id_generator import IdGenerator

__all__ = ["OwnIds", "with_own_random"]

_own = random.SystemRandom()


class OwnIds(IdGenerator):
    """Ids from the system's generator, where the SDK's are from Python's global one."""

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or 1

    def generate_trace_id(self) -> int:
        return secrets.randbits(128) or 1

    def is_trace_id_random(self) -> bool:
        return True


T = TypeVar("T")


def with_own_random(made: T, depth: int = 3) -> T:
    """Return ``made``, an exporter, with those of its methods that use :mod:`random` using the agent's generator.

    Exporters, or the clients they hold, draw how long to wait before they try again.  Their classes, which the program
    may use as well, stay as they are.
    """
    if depth:
        for part in list(getattr(made, "__dict__", {}).values()):
            if type(part).__module__.startswith("opentelemetry.exporter."):
                with_own_random(part, depth - 1)
    for owner in reversed(type(made).__mro__):
        for name, method in vars(owner).items():
            if isinstance(method, FunctionType):
                drawing = {word: own for word in method.__code__.co_names if (own := _ours(method, word)) is not None}
                if drawing and hasattr(made, "__dict__"):
                    setattr(made, name, MethodType(_with_globals(method, drawing), made))
    return made


def _ours(method: FunctionType, word: str) -> Any:
    """Return what stands in for a global of the method's that draws from the global generator."""
    found = method.__globals__.get(word)
    if found is random:
        names = (name for name in dir(_own) if not name.startswith("_"))
        return SimpleNamespace(**{name: getattr(_own, name) for name in names})
    owner = getattr(found, "__self__", None)
    if isinstance(found, (MethodType, BuiltinMethodType)) and owner is getattr(random, "_inst", random):
        return getattr(_own, found.__name__)
    return None


def _with_globals(method: FunctionType, changed: dict[str, Any]) -> FunctionType:
    copy = FunctionType(
        method.__code__, {**method.__globals__, **changed}, method.__name__, method.__defaults__, method.__closure__
    )
    copy.__kwdefaults__ = method.__kwdefaults__
    return copy
