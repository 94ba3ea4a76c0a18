"""Says where a sync comes from: the user's line, the library's, the forward line of a backward op, and the phase.

Autograd's own threads have no Python frame of the user's.  Two things lead back from there: the sequence number of the
autograd node, and the context that ``backward()`` hands to those threads, which names its caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import FrameType
from typing import Any

from syncagent.attribution.callsite import MODULE_CALL, OPTIMIZER, CallSites, Point, Where
from syncagent.attribution.modules import ModuleCalls
from syncagent.attribution.threads import OWNER, Threads, WatchedThread
from syncagent.events import Phase, SyncKind
from syncagent.support.compat import Standing, standing_of
from syncagent.torchbridge.internals import Internals

_OTHER, _FORWARD, _BACKWARD, _OPTIMIZER = Phase.OTHER, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER
_COMPUTING = (SyncKind.DYNAMIC_SHAPE, SyncKind.CHECK)


class Locator:
    """Finds lines and phases, from the frames of a call and from what torch says of the backward pass."""

    def __init__(self, sites: CallSites, internals: Internals, threads: Threads[Any]) -> None:
        self.sites = sites
        self.internals = internals
        self.calls = ModuleCalls()
        self._threads = threads

    def locate(self, thread: WatchedThread, frame: FrameType | None) -> Where:
        """Find the user's line; on an autograd thread, where the user stands in ``backward()`` on another thread."""
        where = self.sites.capture(frame)
        if where.user is None:
            owner = self.owner_of_backward(thread)
            if owner is not None:
                outer = self.sites.capture(backward_frame(owner, self.internals))
                return where.within(outer)
        return where

    def phase(
        self, thread: WatchedThread, marks: int, kind: SyncKind, frame: FrameType | None, args: Sequence[Any] = ()
    ) -> Phase:
        """Return the phase of a sync that is about to wait on this thread, or has just waited."""
        if self.internals.graph_task() != -1:
            return _BACKWARD
        return self.phase_outside_backward(thread, marks, kind, frame, args, grads=self.internals.grad_enabled())

    def phase_outside_backward(
        self, thread: WatchedThread, marks: int, kind: SyncKind, frame: FrameType | None, args: Sequence[Any], *,
        grads: bool,
    ) -> Phase:  # fmt: skip
        """Derive the phase from what is running; outside of modules, from the graph that the call adds to."""
        if marks & OPTIMIZER:
            running = self.sites.running(frame)
            if running:
                # A module that runs in an optimizer's closure belongs to the step, whatever its mode.
                return _OPTIMIZER if running == OPTIMIZER else _FORWARD
        elif marks & MODULE_CALL:
            if grads:
                return _FORWARD
            call: Any = self.sites.outermost_module(frame)
            return self.calls.phase(call, grads=False) if call is not None else _OTHER
        if grads and kind in _COMPUTING:
            graph_sequence = self.internals.graph_sequence
            if any(graph_sequence(value) >= thread.step_sequence for value in args):
                return _FORWARD
        return _OTHER

    def publish_module(self, frame: FrameType | None) -> None:
        """Publish which module runs here with gradients, for those who look at this thread."""
        call: Any = self.sites.outermost_module(frame)
        if call is not None:
            self.calls.phase(call, grads=True)

    def phase_seen(self, marks: int, frame: Standing) -> Phase:
        """Return the phase of another thread that stands there, outside of the backward pass."""
        if marks & OPTIMIZER:
            running = self.sites.running(frame)
            return (_OPTIMIZER if running == OPTIMIZER else _FORWARD) if running else _OTHER
        call = self.sites.outermost_module(frame) if marks & MODULE_CALL else None
        return self.calls.seen(call) if call is not None else _OTHER

    def owner_of_backward(self, thread: WatchedThread) -> WatchedThread | None:
        """Find the thread that called the ``backward()`` in which this thread works.

        ``None`` outside a backward pass, and where the caller is not certain.  A pass has one caller, so it is looked
        for once a pass: where torch does not hand the caller's context on, that takes a look at the frames of all
        threads.
        """
        task = self.internals.graph_task()
        if task == -1:
            return None
        known_task, known = thread.owner
        if known is not None and known_task == task:
            return known
        context: Any = self.internals.backward_context()
        owner: WatchedThread | None = context.get(OWNER) if context is not None else None
        if owner is None:
            others = (other for other in self._threads.all if other is not thread)
            inside = [other for other in others if backward_frame(other, self.internals) is not None]
            owner = inside[0] if len(inside) == 1 else None
        thread.owner = (task, owner)
        return owner

    def forward_of(self, thread: WatchedThread) -> tuple[WatchedThread, Where | None, str | None]:
        """Return the caller of this thread's backward pass, and line and module of the forward op behind its node."""
        owner = self.owner_of_backward(thread) or thread
        sequence = self.internals.node_sequence()
        if sequence != -1:
            for candidate in (owner, thread):
                found = candidate.forwards.find(sequence)
                if found is not None:
                    return owner, found.where, found.module
        return owner, None, None

    def forward_line(self, thread: WatchedThread) -> Point | None:
        """Return the line of the forward pass that a sync is reported with; ``None`` outside the backward pass."""
        where = self.forward_of(thread)[1] if self.internals.graph_task() != -1 else None
        return (where.user or where.library) if where is not None else None

    def node_line(self, thread: WatchedThread, task: int) -> Point | None:
        """Return the user's forward line of the node that runs in this pass; a node's ops come one after another."""
        sequence = self.internals.node_sequence()
        known_task, known_sequence, line = thread.node_line
        if known_sequence != sequence or known_task != task:
            where = self.forward_of(thread)[1]
            line = where.user if where is not None else None
            thread.node_line = (task, sequence, line)
        return line


def backward_frame(owner: WatchedThread, internals: Internals) -> Standing | None:
    """Return where that thread waits for the autograd engine, if it does."""
    return backward_in(standing_of(owner.ident), internals)


def backward_in(stands: Standing | None, internals: Internals) -> Standing | None:
    """Return the innermost call of the autograd engine that this is in."""
    while stands is not None and stands.f_code is not internals.backward_entry:
        stands = stands.f_back
    return stands
