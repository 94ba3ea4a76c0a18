"""torch's private parts are touched in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import syncagent

PACKAGE = Path(syncagent.__file__).parent
ELSEWHERE = [
    path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] not in {"sensors", "simulate"}
]


def private_names(tree):
    """Attributes of torch that begin with an underscore, and imports of such modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id == "torch":
                yield f"torch...{node.attr}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            parts = [*node.module.split("."), *(name.name for name in node.names)]
            if any(part.startswith("_") for part in parts):
                yield node.module


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_sensors_and_the_simulated_device_touch_what_torch_keeps_to_itself(path):
    """So that a new torch can break one room, not the house."""
    assert list(private_names(ast.parse(path.read_text(encoding="utf-8")))) == []
