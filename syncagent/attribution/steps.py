"""Counts training steps without the user's help, by the steps of optimizers.

The optimizer that steps first leads: each of its steps ends a training step, so a second optimizer (a GAN's) does not
count double, and gradient accumulation counts once.  A step that GradScaler skips because of infinities still ends a
training step, as it does in the user's own loop.  Once ``syncagent.step()`` has been called, it alone ends steps; the
callback of a trainer ends them as long as that trainer runs.

Ranks of a job are compared by the numbers of their steps.  A rank that runs out of inputs before others, in a block of
``Join``, leaves out the numbers of the steps that it misses.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable
from typing import Any

from syncagent.support.faults import Faults
from syncagent.torchbridge import joining
from syncagent.torchbridge.frames import leave_out_own_frames
from syncagent.torchbridge.internals import optimizer_hooks, skip_in_dynamo
from syncagent.torchbridge.patches import Patches, find

StepEnded = Callable[[int, int, int], None]

_IMPATIENCE = 8
"""After so many steps of other optimizers without one of the leader's, another one leads."""


class Steps:
    """Counts steps and calls ``ended(step, start_ns, end_ns)``, by ``now_ns``, after each."""

    def __init__(
        self, ended: StepEnded, faults: Faults | None = None, now_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self.current = 0
        self.count = 0
        self._ended = ended
        self._now_ns = now_ns
        self._began_ns = now_ns()
        self._by_hand = False
        self._leader: weakref.ref[Any] | None = None
        self._others = 0
        self._stepped = False
        self._is_numbered = False
        """Whether the program has said the number of the running step."""
        self._count_before_block = 0
        self.stepped: Callable[[], None] = lambda: None
        """Called on the thread of each step of an optimizer, and of each that is marked by hand."""
        self._hook: Any = None
        self._patches = Patches()
        self.without: list[str] = []
        """One sentence for each name that this torch lacks."""
        self._safely = (faults or Faults()).shield("the count of steps")
        self._blocks = joining.Blocks(
            lambda: self._safely(self._block_began), lambda own, others: self._safely(self._block_ended, own, others)
        )

    def start(self) -> None:
        import torch

        def stepped(optimizer: Any, *_: Any) -> None:
            self._safely(self._optimizer_stepped, optimizer)

        skip_in_dynamo(stepped)  # else a compiled optimizer.step() would be compiled with it
        try:
            from torch.optim.optimizer import register_optimizer_step_post_hook as register
        except ImportError:
            self.without.append(
                f"torch {torch.__version__} has no hook of optimizers: steps are marked by step() alone"
            )
        else:
            self._hook = register(stepped)
        if not self._patches.wrap(find(torch, "amp.GradScaler"), "update", self._wrap_update):
            self.without.append(
                f"torch {torch.__version__} has no torch.amp.GradScaler.update: skipped steps are not counted"
            )
        lost = self._blocks.start()
        if lost:
            self.without.append(lost)

    def _wrap_update(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def update(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                result = original(scaler, *args, **kwargs)
            except BaseException as error:
                leave_out_own_frames(error)
                raise
            if self._patches:  # the program's own patch may call this beyond the agent's end
                self._safely(self._scaler_updated)
            return result

        return update

    def stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._blocks.stop()
        self._patches.restore()

    def mark(self, step: int | None) -> None:
        """End the running step by hand; ``step`` is the number of the one that begins."""
        self._by_hand = True
        self._safely(self.stepped)
        self._safely(self._end, step)

    def begin(self, step: int | None = None) -> None:
        """Let the next step begin now: what ran since the last one belongs to none.

        With a number it has that one, and is ended by hand.
        """
        if step is not None:
            self._by_hand = self._is_numbered = True
            self.current = step
        self._began_ns = max(self._now_ns(), self._began_ns)

    def follow_optimizers(self) -> None:
        """Let optimizers mark the steps again, after a time in which they were marked by hand."""
        self._by_hand = False

    def choose_anew(self) -> None:
        """Let the optimizer that steps next lead: another training begins, and the one of before may still be alive."""
        self._leader, self._others = None, 0

    @property
    def by_hand(self) -> bool:
        """Whether steps are marked by hand."""
        return self._by_hand

    def _optimizer_stepped(self, optimizer: Any) -> None:
        self.stepped()
        if self._by_hand:
            return
        leader = self._leader() if self._leader is not None else None
        if leader is None or self._others >= _IMPATIENCE:
            self._leader, leader = weakref.ref(optimizer), optimizer
        if optimizer is leader:
            self._others = 0
            self._stepped = True
            self._end(None)
        else:
            self._others += 1

    def _scaler_updated(self) -> None:
        """GradScaler's ``update`` ends every iteration; if no optimizer stepped since the last, it was skipped."""
        if not self._stepped:
            self.stepped()
            if not self._by_hand:
                self._end(None)
        self._stepped = False

    def _block_began(self) -> None:
        self._count_before_block = self.count

    def _block_ended(self, own: int, others: int) -> None:
        """Leave out the steps that the others made meanwhile: as many passes each as this rank's own had."""
        if not self._is_numbered:
            steps = self.count - self._count_before_block
            self.current += round(others * steps / own) if own and steps else others
        self.begin()

    def _end(self, following: int | None) -> None:
        now = max(self._now_ns(), self._began_ns)  # in case the clock goes back
        ended, began = self.current, self._began_ns
        self.count += 1
        self.current = ended + 1 if following is None else following
        self._is_numbered = following is not None
        self._began_ns = now
        self._ended(ended, began, now)


def footprint() -> dict[str, object]:
    """Return what is changed in torch, as it is now."""
    import torch

    return {
        "torch.amp.GradScaler.update": find(torch, "amp.GradScaler.update"),
        "optimizers' hooks": optimizer_hooks(),
        **joining.footprint(),
    }
