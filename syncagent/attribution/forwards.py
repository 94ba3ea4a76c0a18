"""Remembers which line of the forward pass made an autograd node.

A node of the backward pass has a sequence number, which the forward op that made it can read as it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from syncagent.attribution.callsite import Where

__all__ = ["Forward", "ForwardSites"]

_SLOTS = 1 << 16
_new = tuple.__new__  # what a NamedTuple's own constructor does, in half the time


class Forward(NamedTuple):
    """A forward op that made an autograd node."""

    sequence: int
    where: Where
    module: str | None


class ForwardSites:
    """The newest 65,536 forward ops of a thread that made an autograd node, by sequence number."""

    __slots__ = ("_ring",)

    def __init__(self) -> None:
        self._ring: list[Forward | None] = []

    def remember(self, sequence: int, where: Where, module: str | None) -> None:
        if not self._ring:  # half a megabyte, which most threads never need
            self._ring = [None] * _SLOTS
        self._ring[sequence % _SLOTS] = _new(Forward, (sequence, where, module))

    def remember_if_new(self, sequence: int, where: Where) -> None:
        """Remember the op unless its node is known already: what a sync remembered says more."""
        ring = self._ring
        if not ring:
            self.remember(sequence, where, None)
            return
        found = ring[sequence % _SLOTS]
        if found is None or found[0] != sequence:
            ring[sequence % _SLOTS] = _new(Forward, (sequence, where, None))

    def find(self, sequence: int) -> Forward | None:
        found = self._ring[sequence % _SLOTS] if self._ring else None
        return found if found is not None and found.sequence == sequence else None
