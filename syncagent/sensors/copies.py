"""Which copies are watched: all that the setting ``copies`` means.

A Python kernel on ``copy_`` in every step costs an ordinary training step several percent, in one step of 64 nothing
that can be distinguished from noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from syncagent.events import Weight

if TYPE_CHECKING:
    from syncagent.events import SyncEvent
    from syncagent.recording.recorder import Recorder
    from syncagent.recording.records import ThreadState
    from syncagent.sensors.base import Conditions

_FIRST = 4
_EARLY = 256
_OFTEN, _SELDOM = 16, 64

_ITSELF = Weight()
_WATCHES_ALL = "SYNCAGENT_COPIES=all watches them"


class _Switched(Protocol):
    """What can watch copies on one thread for a while: the kernel sensor is that."""

    @property
    def live(self) -> bool: ...
    @property
    def hot_armed(self) -> bool: ...
    @property
    def gave_way(self) -> bool: ...
    def arm_hot(self) -> None: ...
    def disarm_hot(self) -> None: ...


class CopyWatch:
    """Has copies watched in all steps, in sampled ones or in none; ``kernels`` is what watches, if there is any."""

    def __init__(self, recorder: Recorder, conditions: Conditions, kernels: _Switched | None) -> None:
        self._recorder = recorder
        self._setting = conditions.copies if kernels is not None else "off"
        self._follows_policy = conditions.copies_follow_policy
        self._kernels = kernels
        self._sampling = CopySampling(on=self._setting == "sampled")

    thing = "copies"
    """What a region that judges syncs has to see all of."""
    whole = "copies: every one on the region's thread"
    """How a region's report says that it has."""

    @property
    def always(self) -> bool:
        """Whether every copy of every thread is watched from the start."""
        return self._setting == "all"

    @property
    def has_work(self) -> bool:
        """Whether watching copies is ever turned on or off."""
        return self._sampling.has_work

    @property
    def can_change(self) -> bool:
        """Whether copies can be turned on and off now."""
        return self.has_work and self._kernels is not None and self._kernels.live

    @property
    def gave_way(self) -> bool:
        """Whether copies are no longer watched since torch.compile is in use."""
        return self._kernels is not None and self._kernels.gave_way

    def start(self) -> None:
        """Begin on the thread that starts the agent: the first steps are sampled."""
        if self._setting == "sampled" and self._kernels is not None:
            self._recorder.threads.current().copies_armed = True
            self._recorder.faults.guard("the watch for copies", self._kernels.arm_hot, None)

    def update(self, state: ThreadState, step: int, *, wanted: bool) -> None:
        """Watch this thread's copies in this step, if it is a sampled one, or a region or a cost window wants them."""
        wanted = wanted or (state.trains and self._sampling.watches(step))
        if wanted or state.copies_armed:
            state.copies_armed = wanted
            kernels = self._kernels
            if kernels is None or not kernels.live or wanted == kernels.hot_armed:
                return
            if wanted:
                kernels.arm_hot()
            else:
                kernels.disarm_hot()

    def policy_changed(self, policy: str, following: int) -> None:
        """From step ``following`` on, sample only if the policy allows it: under ``raise`` no copy may go unseen."""
        if self._follows_policy and self._setting == "sampled":
            self._sampling.change(following, on=policy != "raise")

    def weight(self, event: SyncEvent, _moment_ns: int = 0) -> Weight:
        """Return how many copies this one stands for, where no region has seen them all."""
        if event.op != "aten::copy_" or event.sensor != "kernels":
            return _ITSELF
        if not self._sampling.watches(event.step):
            return _ITSELF  # watched for the sake of a cost window, or of a region in another task of this thread
        copies = self._sampling.weight(event.step)
        return Weight(copies, copies, event.step)

    @property
    def detail(self) -> str:
        """What a report says of it."""
        if self.gave_way:
            return f"copies: not watched since torch.compile is in use; {_WATCHES_ALL}"
        return {"all": "copies: every one", "sampled": CopySampling.words, "off": "copies: not watched"}[self._setting]

    def unseen(self, *, every_thread: bool) -> str | None:
        """Return why a region that wants every copy, of every thread or of its own, does not see them all."""
        if self._kernels is None or not self._kernels.live or self.always:
            return None
        if self._setting == "off":
            return ': setting copies is "off" for the process'
        if self.gave_way:
            return f" since torch.compile is in use; {_WATCHES_ALL}"
        return f" on other threads than its own; {_WATCHES_ALL}" if every_thread else None


class CopySampling:
    """The first four steps, one in 16 up to step 256, one in 64 from there on.

    In each stretch of 16 or 64 steps the one that is watched is drawn by a hash: a program that copies every tenth step
    is neither missed nor met each time.
    """

    words = f"copies: in the first {_FIRST} steps and one in {_OFTEN}, after {_EARLY} steps one in {_SELDOM}, scaled up"

    def __init__(self, *, on: bool) -> None:
        self._since = [(0, on)]
        self.has_work = on
        """Whether anything is ever turned on or off: not where all copies are watched, or none, from the start."""
        self._stretch = (0, 0, -1)
        """Begin, end and chosen step of the stretch last asked about; replaced whole, since several threads ask."""

    def change(self, step: int, *, on: bool) -> None:
        """From ``step`` on copies are sampled, or all of them watched."""
        self._since.append((step, on))
        self.has_work = True

    def watches(self, step: int) -> bool:
        """Return whether this step is one of those."""
        begin, end, chosen = self._stretch
        if not begin <= step < end:
            begin, length = _stretch(step)
            chosen = begin + (begin * 0x9E3779B1 >> 9) % length
            self._stretch = (begin, begin + length, chosen)
        return step == chosen or not self._since[-1][1] or step < _FIRST

    def weight(self, step: int) -> float:
        """Return how many copies one seen in that step stands for."""
        sampled = next((on for since, on in reversed(self._since) if step >= since), False)
        return float(_stretch(step)[1]) if sampled and step >= _FIRST else 1.0


def _stretch(step: int) -> tuple[int, int]:
    """Return where the stretch of a step begins and how long it is: one of its steps is watched, for all of them."""
    if step < _OFTEN:
        return _FIRST, _OFTEN - _FIRST
    length = _OFTEN if step < _EARLY else _SELDOM
    return step - step % length, length
