"""Frozen dataclasses to JSON values and back, checked against their own type hints."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from syncagent.errors import SyncAgentError

T = TypeVar("T")

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


class _MismatchError(Exception):
    """Where a value is not what its type hint says."""


def encode(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists; numbers that JSON cannot write as ``None``."""
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        return {name: encode(getattr(value, name)) for name in _hints(kind)}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _written(value) if isinstance(value, str) else value


def decode(kind: type[T], values: Any, *, schema: int, name: str) -> T:
    """An instance of ``kind`` from a dictionary; unknown keys are ignored.

    Raises :class:`SyncAgentError` with one sentence, which calls the dictionary ``name``.
    """
    if not isinstance(values, Mapping):
        raise SyncAgentError(f"{name} is not a syncagent report: it is not an object with keys")
    if "schema" not in values:
        raise SyncAgentError(f'{name} is not a syncagent report: it has no key "schema"')
    if type(values["schema"]) is not int or values["schema"] != schema:
        raise SyncAgentError(
            f"{name} has schema {_shown(values['schema'])}, but this version of syncagent reads schema {schema} only"
        )
    try:
        decoded: T = _decode(kind, values, "")
    except _MismatchError as mismatch:
        raise SyncAgentError(f"{name} is not a whole syncagent report: {mismatch}") from None
    return decoded


def decode_row(kind: type[T], values: Mapping[str, Any]) -> T:
    """A row from its values, which have been checked before.

    Raises :class:`SyncAgentError` where they are not what the type hints say after all.
    """
    try:
        decoded: T = _decode(kind, values, "")
    except _MismatchError as mismatch:
        raise SyncAgentError(f"a row of a report is not whole: {mismatch}") from None
    return decoded


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    assert isinstance(kind, type)
    return get_type_hints(kind)


def _decode(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, value, where)
    if get_origin(kind) is types.UnionType:
        inner = next(option for option in get_args(kind) if option is not types.NoneType)
        return None if value is None else _decode(inner, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise _MismatchError(f"{where} should be a list")
        return tuple(_decode(get_args(kind)[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise _MismatchError(f"{where} should be {_NAMES[kind]}")
    if kind is str:
        if _written(value) != value:
            raise _MismatchError(f"{where} has a lone surrogate, which is no character")
        return value
    if kind is not bool:
        _check_range(kind, value, where)
    return kind(value)


def _check_range(kind: type, value: float, where: str) -> None:
    """Python's JSON reads numbers of any length, and 1e999 as infinity: nothing can be computed with either."""
    if not -LARGEST <= value <= LARGEST:
        raise _MismatchError(f"{where} is out of range")
    if kind is int and value < 0 and where.rpartition(".")[2] not in SIGNED:
        raise _MismatchError(f"{where} is a count, and cannot be negative")


LARGEST = 2**63
SIGNED = frozenset({"id", "site", "step", "start_ns", "end_ns"})
"""Integers that are not counts; a program may give its steps any number."""


def _written(value: str) -> str:
    """Names of files may hold bytes that are not UTF-8, which Python reads as lone surrogates: these are escaped."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")


def _shown(value: object) -> str:
    shown = repr(value) if isinstance(value, (str, int, float, type(None))) else f"of type {type(value).__name__}"
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


_LONGEST = 40


def _decode_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _MismatchError(f"{where} should be an object")
    found = {}
    for name, hint in _hints(kind).items():
        if name in value:
            found[name] = _decode(hint, value[name], f"{where}.{name}" if where else name)
        elif kind.__dataclass_fields__[name].default is dataclasses.MISSING:
            raise _MismatchError(f'{where or "it"} has no key "{name}"')
    return kind(**found)
