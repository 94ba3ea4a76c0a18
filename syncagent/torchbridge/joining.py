"""Ranks that run out of inputs before others (``torch.distributed.algorithms.join.Join``): how many passes they miss.

Such a rank stays in the block until the last one has run out, too.  For each pass that another one begins meanwhile it
takes part in the collectives, without a batch of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from syncagent.torchbridge.frames import leave_out_own_frames
from syncagent.torchbridge.patches import Patches, find

_JOIN = "torch.distributed.algorithms.join.Join"
_NAMES = ("__enter__", "notify_join_context", "_get_num_nonjoined_procs")

BlockEnded = Callable[[int, int], None]
"""Called on the block's thread: with the passes that this rank has begun, and those of others after these."""


class Blocks:
    """Follows the blocks of ``Join`` in this process between :meth:`start` and :meth:`stop`."""

    def __init__(self, began: Callable[[], None], ended: BlockEnded) -> None:
        self._began, self._ended = began, ended
        self._patches = Patches()
        self._counts_passes = False
        self._own = 0
        self._others = 0

    def start(self) -> str:
        """Begin, and return a sentence on what is lost where this torch lacks a name."""
        import torch

        join = find(torch, _JOIN.removeprefix("torch."))
        if join is None:
            return ""  # a torch without any torch.distributed: nothing can join
        missing = [name for name in _NAMES if getattr(join, name, None) is None]
        if missing:
            return (
                f"torch {torch.__version__} has no {_JOIN}.{missing[0]}: where ranks have uneven inputs, their steps "
                "are not matched"
            )
        self._patches.wrap(join, "__enter__", lambda original: self._entering(join, original))
        self._patches.wrap(join, "_get_num_nonjoined_procs", self._asking)
        return ""

    def stop(self) -> None:
        self._patches.restore()
        self._counts_passes = False

    def _entering(self, join: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def enter(block: Any) -> Any:
            if self._patches:
                if not self._counts_passes:  # not before: a job without uneven inputs may compile its forward pass
                    self._counts_passes = True
                    notify = join.notify_join_context
                    self._patches.put(join, "notify_join_context", staticmethod(self._notifying(notify)))
                self._own = self._others = 0
                self._began()
            return original(block)

        return enter

    def _notifying(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """It is called as a pass begins, and returns a collective's handle for the first model of a block."""

        @functools.wraps(original)
        def notify_join_context(joinable: Any) -> Any:
            try:
                work = original(joinable)
            except BaseException as error:
                leave_out_own_frames(error)
                raise
            if work is not None:
                self._own += 1
            return work

        return notify_join_context

    def _asking(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """It is called by a rank that has run out, once for each pass of the others, and returns how many they are."""

        @functools.wraps(original)
        def get_num_nonjoined_procs(block: Any) -> Any:
            try:
                others = original(block)
            except BaseException as error:
                leave_out_own_frames(error)
                raise
            if others:
                self._others += 1
            elif self._patches:
                self._ended(self._own, self._others)
            return others

        return get_num_nonjoined_procs


def footprint() -> dict[str, object]:
    """Return what is changed in torch, as it is now."""
    import torch

    join = find(torch, _JOIN.removeprefix("torch."))
    return {f"{_JOIN}.{name}": getattr(join, name, None) for name in _NAMES} if join is not None else {}
