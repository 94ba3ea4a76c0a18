"""What the simulated device changes in torch: each change can be taken back, and made again, in one place."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Patches", "also", "begin", "put"]

_ABSENT = object()


class Patches:
    """Attributes that were set, and other changes, in the order in which they were made."""

    def __init__(self) -> None:
        self._changes: list[tuple[Callable[[], object], Callable[[], object]]] = []
        self._found: list[tuple[Any, str, object]] = []
        """What was there before, of each attribute."""
        self._originals: dict[int, tuple[object, object]] = {}
        """By the id of each value that was put: the value, and what it took the place of."""

    def put(self, holder: Any, name: str, value: Any) -> None:
        """Set an attribute of a module or class."""
        before = vars(holder).get(name, _ABSENT)
        if before is not _ABSENT and not isinstance(value, (bool, int)):
            self._originals[id(value)] = value, before
        self._put(holder, name, before, value)

    def _put(self, holder: Any, name: str, before: object, value: Any) -> None:
        if not any(holder is known and name == attribute for known, attribute, _ in self._found):
            self._found.append((holder, name, before))

        def restore() -> None:
            if vars(holder).get(name, _ABSENT) is not value:
                return  # the program has put its own there, which may call ours
            if before is _ABSENT:
                delattr(holder, name)
            else:
                setattr(holder, name, before)

        self.also(lambda: setattr(holder, name, value), restore)

    def also(self, make: Callable[[], object], undo: Callable[[], object]) -> None:
        """Make any other change."""
        self._changes.append((make, undo))
        make()

    @property
    def fits(self) -> bool:
        """Whether torch is what it was when the changes were made: then they can be made again as they are."""
        return bool(self._changes) and all(
            vars(holder).get(name, _ABSENT) is before for holder, name, before in self._found
        )

    def take_in(self, modules: Iterable[tuple[str, Any]]) -> None:
        """Count in the names by which other modules have imported what was put: they go and come with the rest."""
        for module_name, module in modules:
            for holder in (module, *_classes_of(module_name, module)):
                for name, value in list(vars(holder).items()):
                    known = self._originals.get(id(value))
                    if known is not None and known[0] is value:
                        with contextlib.suppress(AttributeError, TypeError):
                            self._put(holder, name, known[1], value)

    def make_again(self) -> None:
        for make, _ in self._changes:
            make()

    def take_back(self) -> None:
        for _, undo in reversed(self._changes):
            undo()


def _classes_of(module_name: str, module: Any) -> Iterator[type]:
    for value in list(vars(module).values()):
        if issubclass(type(value), type) and getattr(value, "__module__", None) == module_name:
            yield value


_current = Patches()
_former: list[Patches] = []
"""Functions that torch.jit knows by their ids, and that the program may still hold."""


def begin() -> Patches:
    """Start a new list of changes, to which :func:`put` and :func:`also` add."""
    global _current
    _former.append(_current)
    _current = Patches()
    return _current


def put(holder: Any, name: str, value: Any) -> None:
    _current.put(holder, name, value)


def also(make: Callable[[], object], undo: Callable[[], object]) -> None:
    _current.also(make, undo)
