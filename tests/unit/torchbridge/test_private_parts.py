"""torch's private parts are touched in two rooms: the bridge to it, and the simulated device."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import syncagent

PACKAGE = Path(syncagent.__file__).parent
SOURCES = {path.relative_to(PACKAGE): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
ELSEWHERE = sorted(path for path in SOURCES if path.parts[0] not in {"torchbridge", "simulate"})

OF_PYTHON = {"_getframe", "_current_frames", "_exit", "_is_gil_enabled", "_replace", "_delete", "_active"}
"""Documented, or private to the standard library alone."""
OF_TELEMETRY = {"_RUNTIME_CONTEXT", "_current_context"}
"""OpenTelemetry's."""
OF_LIGHTNING = {"_batches_that_stepped"}
"""Lightning's; without it the number of steps stands in."""
NO_UNDERSCORE = {"raw_repr", "redispatch_boxed", "DispatchKey", "DispatchKeySet", "TorchDispatchMode"}
"""torch documents none of these."""
ALWAYS = {"_C", "_dynamo", "_modules", "_schema", "_op", "_ops", "_handle", "_parameters"}
"""torch's, even where one of ours is named like it."""
BY_NAME = {"getattr", "hasattr", "setattr", "delattr", "find", "wrap", "put", "import_module"}
"""Calls whose strings name attributes."""


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def own_names(tree):
    """What a module defines: its functions, classes, variables and attributes, slots and parameters included."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}:
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


OWN = {name for path in ELSEWHERE for name in own_names(SOURCES[path])} | OF_PYTHON | OF_TELEMETRY | OF_LIGHTNING
OWN -= ALWAYS


def private_names(tree):
    """Each private name of torch's that this code touches."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            own = ast.unparse(node.value) in {"self", "cls"}
            if node.attr in NO_UNDERSCORE or (is_private(node.attr) and node.attr not in OWN and not own):
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names = [*node.module.split("."), *(name.name for name in node.names)]
            yield from (name for name in names if is_private(name) or name in NO_UNDERSCORE)
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names if name.name.startswith("torch")]
            yield from (part for name in names for part in name.split(".") if is_private(part))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BY_NAME:
            strings = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            parts = {part for string in strings for part in string.split(".")}
            yield from (part for part in parts if is_private(part) and part not in OWN)


@pytest.mark.parametrize("path", ELSEWHERE, ids=str)
def test_only_the_bridge_and_the_simulated_device_touch_what_torch_keeps_to_itself(path):
    """So that a new torch can break two rooms, not the house."""
    assert list(private_names(SOURCES[path])) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("torch._C._cuda_synchronize()", ["_cuda_synchronize", "_C"]),
        ("from torch._dynamo import config", ["_dynamo"]),
        ("import torch.utils._python_dispatch", ["_python_dispatch"]),
        ("from torch import _C", ["_C"]),
        ("node._sequence_nr()", ["_sequence_nr"]),
        ("op._schema.name", ["_schema"]),
        ("keys.raw_repr()", ["raw_repr"]),
        ("getattr(torch, '_C')", ["_C"]),
        ("find(torch, '_C._autograd')", ["_C", "_autograd"]),
        ("patches.wrap(module, '_modules', wrapper)", ["_modules"]),
        ("self._recorder; sys._getframe(); torch.nn.Module; getattr(self, '_recorder')", []),
    ],
)
def test_private_names_are_found_on_modules_objects_and_in_strings(code, found):
    assert sorted(private_names(ast.parse(code))) == sorted(found)
