"""Replaces attributes of modules and classes for a while, and puts back only what it still owns.

A program may patch the same attribute after us.  Its replacement then calls ours, and putting the original back would
silently throw the program's own away: such an attribute is left as it is, so a replacement has to pass calls on once
its owner has stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from syncagent.support.modules import names_in

ABSENT = object()
"""What :attr:`Patch.original` is where the module or class itself had no such attribute (a class may inherit one)."""


class Patch:
    """One attribute that has another value from :meth:`apply` to :meth:`restore`; both may be called again."""

    __slots__ = ("holder", "name", "original", "value")

    def __init__(self, holder: Any, name: str, value: Any) -> None:
        self.holder = holder
        self.name = name
        self.value = value
        self.original = vars(holder).get(name, ABSENT)

    @property
    def is_owned(self) -> bool:
        """Whether our value is the one in place."""
        return vars(self.holder).get(self.name, ABSENT) is self.value

    @property
    def is_original(self) -> bool:
        """Whether what was found when the patch was made is the one in place."""
        return vars(self.holder).get(self.name, ABSENT) is self.original

    def apply(self) -> None:
        setattr(self.holder, self.name, self.value)

    def restore(self) -> None:
        """Put the original back, unless something else has taken the place of our value."""
        if not self.is_owned:
            return
        if self.original is ABSENT:
            delattr(self.holder, self.name)
        else:
            setattr(self.holder, self.name, self.original)


class Patches:
    """Patches that are made one after another and restored together, the last one first."""

    def __init__(self) -> None:
        self._made: list[Patch] = []

    def __bool__(self) -> bool:
        return bool(self._made)

    @property
    def are_owned(self) -> bool:
        """Whether there are any, and our value is the one in place of each."""
        return bool(self._made) and all(patch.is_owned for patch in self._made)

    def put(self, holder: Any, name: str, value: Any) -> None:
        """Set an attribute."""
        patch = Patch(holder, name, value)
        patch.apply()
        self._made.append(patch)

    def wrap(self, holder: Any, name: str, wrapper_of: Callable[[Any], Any]) -> bool:
        """Replace an attribute by what ``wrapper_of`` makes of it; ``False`` where there is none to be wrapped."""
        original = getattr(holder, name, None)
        if original is None:
            return False
        self.put(holder, name, wrapper_of(original))
        return True

    def restore(self) -> None:
        while self._made:
            self._made.pop().restore()


def find(root: Any, path: str) -> Any:
    """Return what a dotted path names below ``root``, or ``None`` where a part of it is missing."""
    for part in path.split(".") if path else ():
        root = getattr(root, part, None)
    return root


def exchange_everywhere(name: str, old: object, new: object) -> None:
    """Put one function in the place of another in every module that has it under this name, as by an import."""
    for module in list(sys.modules.values()):
        names = names_in(module)
        if names.get(name) is old:
            names[name] = new
