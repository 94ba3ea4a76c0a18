"""Decides whether a file belongs to a package or module, by the folders that modules are imported from."""

from __future__ import annotations

import functools
import os
import sys

__all__ = ["belongs_to"]

_INSTALLED = ("/site-packages/", "/dist-packages/")


def belongs_to(path: str, module: str) -> bool:
    """Return whether the file is ``package.module`` itself, or below it.

    The names of the folders above are not enough: a checkout that is named like its package also holds scripts, tests
    and often a ``.venv`` with every library, which do not belong to the package.
    """
    inside = module.replace(".", "/")
    path = path.replace(os.sep, "/")
    names = _below_roots(path, tuple(sys.path))
    if names:
        return any(name in {f"{inside}.py", inside} or name.startswith(f"{inside}/") for name in names)
    # Imported from elsewhere (an editable installation), or seen on another machine.
    return path.endswith(f"/{inside}.py") or f"/{inside}/" in path


@functools.lru_cache(maxsize=4096)
def _below_roots(path: str, roots: tuple[str, ...]) -> tuple[str, ...]:
    """Return the file's path below each folder that modules are imported from."""
    for mark in _INSTALLED:
        before, found, name = path.rpartition(mark)
        if found and before:
            return (name,)
    names = []
    for root in roots:
        folder = os.path.abspath(root).replace(os.sep, "/").rstrip("/") + "/"
        if path.startswith(folder):
            names.append(path[len(folder) :])
    return tuple(names)
