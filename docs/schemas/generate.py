"""Writes the JSON Schemas of reports and captures from the model of a report, so that they are never out of date.

python docs/schemas/generate.py
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import types
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from syncagent.report import captured, model

FOLDER = Path(__file__).parent
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_WRITTEN_AT = {"type": "number", "description": "When the line was written, in seconds since the Unix epoch."}
_TOTALS = {
    "duration_s": "number", "steps": "integer", "step_ms": ["number", "null"], "step_stall_ms": ["number", "null"],
    "stalled_ms": "number", "events": "integer", "dropped": "integer",
}  # fmt: skip


def report_schema() -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    whole = _object(model.Report, definitions)
    whole["properties"] = {"schema": {"const": model.SCHEMA}, **whole["properties"]}
    whole["required"] = ["schema", *whole["required"]]
    return {
        "$schema": _DRAFT,
        "title": "A report of syncagent",
        "description": "Later versions may add keys that are not listed here; readers ignore those.",
        **whole,
        "$defs": definitions,
    }


def capture_schema() -> dict[str, Any]:
    """The schema of one line: what a line is stands in its ``type``."""
    definitions: dict[str, Any] = {}
    row = _object(model.SiteRow, definitions)
    site = {name: found for name, found in row["properties"].items() if name != "id"}
    sums = {name: site[name] for name in captured.SUMS}
    number = {"site": {"type": "integer", "description": "The number of the site in this capture."}}
    host = _object(model.HostRow, definitions)["properties"]
    host_number = {"host": {"type": "integer", "description": "The number of the row in this capture."}}
    report = _object(model.Report, definitions)["properties"]
    lines = {
        "header": {
            "capture": {"const": captured.VERSION},
            "schema": {"const": model.SCHEMA},
            "syncagent": {"type": "string"},
            "syncagent_origin": {"type": "object"},
        },
        "run": {"t": _WRITTEN_AT, "run": report["run"], "sensors": report["sensors"], "notes": report["notes"]},
        "site": {"t": _WRITTEN_AT, **number, **site},
        "sums": {"t": _WRITTEN_AT, **number, **sums},
        "host": {"t": _WRITTEN_AT, **host_number, **host},
        "host_sums": {"t": _WRITTEN_AT, **host_number, **{name: host[name] for name in captured.HOST_SUMS}},
        "totals": {"t": _WRITTEN_AT, **{name: {"type": kind} for name, kind in _TOTALS.items()}},
        "event": _object(model.EventRow, definitions)["properties"],
        "step": _object(model.StepRow, definitions)["properties"],
        "end": {"t": _WRITTEN_AT},
    }
    required = {name: list(properties) for name, properties in lines.items()}
    required["site"] = ["t", "site", *row["required"]]  # others came later
    required["step"].remove("collective_ms")
    used = {"RunInfo", "SensorStatus", "CallSite", "OpShare", "RankShare"}
    return {
        "$schema": _DRAFT,
        "title": "A line of a capture of syncagent",
        "description": "Each line of the file is a JSON object; the last line of a type, and of a site, is the newest.",
        "type": "object",
        "required": ["type"],
        "oneOf": [
            {"properties": {"type": {"const": kind}, **properties}, "required": ["type", *required[kind]]}
            for kind, properties in lines.items()
        ],
        "$defs": {name: found for name, found in definitions.items() if name in used},
    }


def _object(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, said = get_type_hints(kind), _field_docstrings(kind)
    properties = {}
    for field in dataclasses.fields(kind):
        properties[field.name] = _of_hint(hints[field.name], definitions)
        if field.name in said:
            properties[field.name]["description"] = said[field.name]
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    return {"type": "object", "properties": properties, "required": required}


def _of_hint(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # in front of what it refers to
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if get_origin(hint) is types.UnionType:
        (inner,) = (option for option in get_args(hint) if option is not types.NoneType)
        found = _of_hint(inner, definitions)
        return {"type": [found["type"], "null"]} if "type" in found else {"anyOf": [found, {"type": "null"}]}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _of_hint(get_args(hint)[0], definitions)}
    return {"type": _TYPES[hint]}


@cache
def _field_docstrings(kind: type) -> dict[str, str]:
    """The string below each field, on one line and without markup."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(below.value.value).replace("``", "").split())
    return found


def texts() -> dict[str, str]:
    """The text of each schema's file."""
    schemas = {"report.schema.json": report_schema(), "capture.schema.json": capture_schema()}
    return {name: json.dumps(schema, indent=1) + "\n" for name, schema in schemas.items()}


if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
