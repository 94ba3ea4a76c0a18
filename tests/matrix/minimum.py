"""The lowest versions that pyproject.toml allows, read from it."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pathlib import Path

_DECLARED = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>[\w.]+)(?P<marker>\s*;.*)?")
EXTRAS = ("torch", "grpc", "opentelemetry", "prometheus")
"""Those that users install; tools for development may be of any version."""


def pins(pyproject: Path) -> dict[str, str]:
    """Name of each dependency -> ``name==lowest version``, with the marker that it has."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    declared = list(project["dependencies"])
    for extra in EXTRAS:
        declared += project["optional-dependencies"].get(extra, ())
    found = {}
    for text in declared:
        match = _DECLARED.fullmatch(text)
        if match is None:
            raise ValueError(f"pyproject.toml: {text!r} has no lower bound of the form name>=version")
        found[match["name"]] = f"{match['name']}=={match['version']}{match['marker'] or ''}"
    return found
