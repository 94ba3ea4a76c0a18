"""From a sync in the backward pass to the forward line that made its autograd node, and to the ``backward()`` line.

Autograd's own threads have no Python frame of the user's.  What leads back is the node's sequence number, which the
forward op could read when it ran, and the context that ``backward()`` hands to those threads, which holds the caller's
:class:`~syncagent.recording.recorder.ThreadState`.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from syncagent.support.compat import current_frames

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from syncagent.attribution.callsite import Where
    from syncagent.recording.records import ThreadState
    from syncagent.torchbridge.internals import Internals

__all__ = ["OWNER", "Forward", "ForwardSites", "backward_frame", "owner_of_backward"]

OWNER: ContextVar[ThreadState | None] = ContextVar("syncagent_owner", default=None)
"""The state of the thread this context belongs to."""

_SLOTS = 1 << 16
_new = tuple.__new__  # what a NamedTuple's own constructor does, in half the time


class Forward(NamedTuple):
    """What is remembered of the forward op that made an autograd node."""

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
        """Keep what is known already of the node: a sync's own record says more."""
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


def owner_of_backward(state: ThreadState, internals: Internals, states: Iterable[ThreadState]) -> ThreadState | None:
    """Find the thread that called the ``backward()`` in which this thread works; ``None`` if that is not certain.

    A backward pass has one caller, so it is looked for once a pass: where torch does not hand the caller's context on,
    that takes a look at the frames of all threads.
    """
    task = internals.graph_task()
    known_task, known = state.owner
    if known is not None and known_task == task:
        return known
    owner = _owner_by_context(internals)
    if owner is None:
        inside = [other for other in states if other is not state and backward_frame(other, internals) is not None]
        owner = inside[0] if len(inside) == 1 else None
    state.owner = (task, owner)
    return owner


def _owner_by_context(internals: Internals) -> ThreadState | None:
    context: Any = internals.backward_context()
    owner: ThreadState | None = context.get(OWNER) if context is not None else None
    return owner


def backward_frame(owner: ThreadState, internals: Internals) -> FrameType | None:
    """Return the frame in which that thread waits for the autograd engine, if it does."""
    frame = current_frames().get(owner.ident)
    while frame is not None:
        if frame.f_code is internals.backward_entry:
            return frame
        frame = frame.f_back
    return None
