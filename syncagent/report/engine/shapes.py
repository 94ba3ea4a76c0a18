"""What the rows of a report look like in SQL, made from the type hints of the model."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from syncagent.report.decode import LARGEST, SIGNED

_TYPES = {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}
_WRITTEN = {
    bool: {"BOOLEAN"},
    int: {"UBIGINT"},
    float: {"DOUBLE", "UBIGINT", "BIGINT", "HUGEINT"},
    str: {"VARCHAR"},
}
"""What DuckDB calls the types of values in JSON that fit a hint."""
_SIGNED = {"UBIGINT", "BIGINT", "HUGEINT"}


@cache
def hints(kind: type) -> dict[str, Any]:
    """The fields of a row with their types, where ``None`` may be left out."""
    return {name: _inner(hint)[0] for name, hint in get_type_hints(kind).items()}


@cache
def optional(kind: type) -> frozenset[str]:
    """The fields of a row that may be ``None``."""
    return frozenset(name for name, hint in get_type_hints(kind).items() if _inner(hint)[1])


def _inner(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) is types.UnionType:
        return next(option for option in get_args(hint) if option is not types.NoneType), True
    return hint, False


def sql_type(hint: Any) -> str:
    """The type of a column with such values."""
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return f"STRUCT({', '.join(f'{quoted(name)} {sql_type(inner)}' for name, inner in hints(hint).items())})"
    if get_origin(hint) is tuple:
        return f"{sql_type(get_args(hint)[0])}[]"
    return _TYPES[hint]


def wanted(hint: Any) -> str:
    """What ``json_transform`` has to be given to make such values of JSON, as a literal of SQL."""
    return literal(json.dumps(as_written(hint)))


def as_written(hint: Any) -> Any:
    """The same as JSON values."""
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return {name: as_written(inner) for name, inner in hints(hint).items()}
    return [as_written(get_args(hint)[0])] if get_origin(hint) is tuple else _TYPES[hint]


def as_read(hint: Any, value: Any) -> Any:
    """What a row was made of, as JSON values: what an earlier version did not write is null in SQL."""
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        assert isinstance(hint, type)
        return {
            name: as_read(inner, value[name])
            for name, inner in hints(hint).items()
            if name in value and (value[name] is not None or name in optional(hint))
        }
    if get_origin(hint) is tuple and isinstance(value, list):
        return [as_read(get_args(hint)[0], each) for each in value]
    return value


def fits(hint: Any, structure: Any, name: str = "") -> bool:
    """Whether what ``json_structure`` found are values of such a type; whether one is missing, it does not say."""
    if structure == "NULL":
        return True
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return isinstance(structure, dict) and all(
            fits(inner, structure[key], key) for key, inner in hints(hint).items() if key in structure
        )
    if get_origin(hint) is tuple:
        return isinstance(structure, list) and fits(get_args(hint)[0], structure[0], name)
    may_be = _SIGNED if hint is int and name in SIGNED else _WRITTEN[hint]
    return isinstance(structure, str) and structure in may_be


def missing(kind: type, row: str) -> dict[str, str]:
    """For each field of a row that may not be ``None``, an expression that is true where it is."""
    return {name: f"{row}.{quoted(name)} IS NULL" for name in hints(kind) if name not in optional(kind)}


def must_be_there(kind: type) -> frozenset[str]:
    """The fields without a default."""
    return frozenset(each.name for each in dataclasses.fields(kind) if each.default is dataclasses.MISSING)


def out_of_place(kind: type, row: str, *, without: Collection[str] = ()) -> str:
    """An expression that is true for a row with a number that is too large, or with a part that is not whole."""
    found = [each for name, hint in hints(kind).items() if name not in without
             for each in _out_of_place(hint, f"{row}.{quoted(name)}")]  # fmt: skip
    return " OR ".join(found) or "false"


def _out_of_place(hint: Any, value: str) -> Iterator[str]:
    if hint is float:
        yield f"coalesce(NOT abs({value}) <= {LARGEST}, false)"
    elif dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        lacks = [f"{value}.{quoted(name)} IS NULL" for name in must_be_there(hint) - optional(hint)]
        yield f"({value} IS NOT NULL AND ({' OR '.join([*lacks, out_of_place(hint, value)])}))"
    elif get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        conditions = ["e IS NULL", *_out_of_place(inner, "e")]
        yield f"len(list_filter({value}, lambda e: {' OR '.join(conditions)})) > 0"


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"
