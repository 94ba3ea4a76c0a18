"""Everything that the simulated device changes in torch: restored together, and applied again together."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from syncagent.simulate.failures import for_program, is_for_program
from syncagent.torchbridge.frames import is_agents
from syncagent.torchbridge.patches import ABSENT, Patch


class Changes:
    """Patches and other changes, in the order in which they were made."""

    def __init__(self) -> None:
        self._changes: list[tuple[Callable[[], object], Callable[[], object]]] = []
        """How to apply each one, and how to restore what was there."""
        self._patches: list[Patch] = []
        self._modules_before = set(sys.modules)

    def put(self, patch: Patch) -> None:
        self.make(patch.apply, patch.restore)
        self._patches.append(patch)

    def make(self, apply: Callable[[], object], restore: Callable[[], object]) -> None:
        apply()
        self._changes.append((apply, restore))

    @property
    def can_be_applied_again(self) -> bool:
        """Whether torch is what it was when the changes were made."""
        return all(patch.is_original for patch in self._patches)

    def apply_again(self) -> None:
        self._modules_before = set(sys.modules)
        for apply, _ in self._changes:
            apply()

    def restore(self) -> None:
        with contextlib.suppress(Exception):  # a module may hold objects that cannot even be looked at
            self._adopt()
        for _, restore in reversed(self._changes):
            restore()

    def _adopt(self) -> None:
        """Include the names by which modules imported since have imported what was put: they change with the rest."""
        by_value = {
            id(patch.value): patch
            for patch in self._patches
            if patch.original is not ABSENT and not isinstance(patch.value, (bool, int))
        }
        modules = [(name, x) for name, x in list(sys.modules.items()) if name not in self._modules_before]
        for module_name, module in modules:
            if type(module) is not ModuleType:
                continue
            classes = (x for x in list(vars(module).values()) if issubclass(type(x), type))
            for holder in (module, *(x for x in classes if getattr(x, "__module__", None) == module_name)):
                for name, value in list(vars(holder).items()):
                    if id(value) in by_value:
                        patch = Patch(holder, name, value)
                        patch.original = by_value[id(value)].original
                        with contextlib.suppress(AttributeError, TypeError):
                            self.put(patch)  # a value that cannot be set again is not ours to change


_all: list[Changes] = []
"""The last ones are the current ones.  All are kept: torch.jit knows functions by their ids, and programs hold them."""


def begin() -> Changes:
    """Start a new list of changes, to which :func:`put` and :func:`also` add."""
    _all.append(Changes())
    return _all[-1]


_for_program = functools.cache(for_program)
"""One for each function, under however many names it is put."""


def put(holder: Any, name: str, value: Any) -> None:
    """Set an attribute of a module or class; an error of a function that is put comes without frames of ours."""
    if isinstance(value, FunctionType) and is_agents(value.__code__) and not is_for_program(value):
        value = _for_program(value)
    _all[-1].put(Patch(holder, name, value))


def also(apply: Callable[[], object], restore: Callable[[], object]) -> None:
    """Make any other change."""
    _all[-1].make(apply, restore)
