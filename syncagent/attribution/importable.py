"""Whether a file belongs to a package or module, by where imports begin and not by any folder of that name above it."""

from __future__ import annotations

import functools
import os
import sys

__all__ = ["belongs_to"]

_INSTALLED = ("/site-packages/", "/dist-packages/")


def belongs_to(path: str, module: str) -> bool:
    """Is the file ``package.module`` itself, or below it?

    A checkout in a folder that is named like its package holds scripts, tests and often ``.venv`` with every library;
    they are none of the package's.
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
    """The file as seen from each folder that modules are imported from."""
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
