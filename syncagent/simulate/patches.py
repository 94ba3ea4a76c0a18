"""Everything that the simulated device changes in torch: restored together, and applied again together."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from syncagent.torchbridge.patches import ABSENT, Patch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Changes", "also", "begin", "put"]


class _Action(NamedTuple):
    """A change that is not an attribute."""

    apply: Callable[[], object]
    restore: Callable[[], object]


class Changes:
    """Patches and other changes, in the order in which they were made."""

    def __init__(self) -> None:
        self._changes: list[Patch | _Action] = []
        self._by_value: dict[int, Patch] = {}
        """By the id of what was put, the patch that says what it took the place of."""

    def put(self, holder: Any, name: str, value: Any) -> None:
        """Set an attribute of a module or class."""
        patch = Patch(holder, name, value)
        if patch.original is not ABSENT and not isinstance(value, (bool, int)):
            self._by_value[id(value)] = patch
        self._make(patch)

    def _make(self, change: Patch | _Action) -> None:
        self._changes.append(change)
        change.apply()

    def also(self, apply: Callable[[], object], restore: Callable[[], object]) -> None:
        """Make any other change."""
        self._make(_Action(apply, restore))

    @property
    def can_be_applied_again(self) -> bool:
        """Whether torch is what it was when the changes were made."""
        return bool(self._changes) and all(x.is_original for x in self._changes if isinstance(x, Patch))

    def adopt(self, modules: Iterable[tuple[str, Any]]) -> None:
        """Include the names by which other modules have imported what was put: they change with the rest."""
        for module_name, module in modules:
            for holder in (module, *_classes_of(module_name, module)):
                for name, value in list(vars(holder).items()):
                    known = self._by_value.get(id(value))
                    if known is not None and known.value is value:
                        patch = Patch(holder, name, value)
                        patch.original = known.original
                        with contextlib.suppress(AttributeError, TypeError):
                            patch.apply()  # a value that cannot be set again is not ours to change
                            self._changes.append(patch)

    def apply_again(self) -> None:
        for change in self._changes:
            change.apply()

    def restore(self) -> None:
        for change in reversed(self._changes):
            change.restore()


def _classes_of(module_name: str, module: Any) -> Iterator[type]:
    for value in list(vars(module).values()):
        if issubclass(type(value), type) and getattr(value, "__module__", None) == module_name:
            yield value


_current = Changes()
_former: list[Changes] = []
"""Kept because torch.jit knows functions by their ids, and the program may still hold them."""


def begin() -> Changes:
    """Start a new list of changes, to which :func:`put` and :func:`also` add."""
    global _current
    _former.append(_current)
    _current = Changes()
    return _current


def put(holder: Any, name: str, value: Any) -> None:
    _current.put(holder, name, value)


def also(apply: Callable[[], object], restore: Callable[[], object]) -> None:
    _current.also(apply, restore)
