"""Has some steps watched whole (``detail="auto"``): turns kernels and modes on and off where steps begin and end.

:mod:`syncagent.sensors.sampled_steps` says which steps those are.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING

from syncagent.events import Weight
from syncagent.sensors.sampled_steps import Level, Periods, sampled_of
from syncagent.torchbridge import calibration
from syncagent.torchbridge.internals import when_cuda_is_used
from syncagent.torchbridge.main_thread import MainThread
from syncagent.torchbridge.modes import acts_on_modes
from syncagent.torchbridge.switch import Switch

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.events import SyncEvent
    from syncagent.recording.recorder import Recorder
    from syncagent.recording.records import ThreadState
    from syncagent.sensors.base import Conditions
    from syncagent.sensors.kernels import KernelSensor
    from syncagent.sensors.modes import ModeSensor

_now = time.perf_counter_ns

FIRST = 20
"""So many steps are watched whole, to begin with."""
FIRST_ADDED_NS = 5_000_000_000
"""They end earlier once the agent has added so much time."""
_NO_STEP_NS = 5_000_000_000
"""A program that uses CUDA and ends no step for so long is sampled by intervals."""
_INTERVAL_NS = 1_000_000_000

_PART = "the sampling of steps"
_SEES_ALL = "SYNCAGENT_DETAIL=syncs sees all"
_NONE = Weight()


_waiting: weakref.WeakSet[StepSampling] = weakref.WeakSet()
"""Those that wait for the first use of CUDA."""


def _call_when_cuda_is_used(sampling: StepSampling) -> None:
    _waiting.add(sampling)
    _ask_for_cuda()
    if _cuda_is_used:
        sampling.cuda_is_used()


_cuda_is_used: list[bool] = []


@functools.cache
def _ask_for_cuda() -> None:
    """Ask torch once in a process: it keeps what is to be called, and has no way to take that back."""

    def used() -> None:
        _cuda_is_used.append(True)
        for sampling in tuple(_waiting):
            sampling.cuda_is_used()

    when_cuda_is_used(used)


class StepSampling:
    """Has the training thread's syncs named, and its ops counted, in the steps that are sampled.

    All of it happens on that thread, where a step ends or, in programs without steps, at about each second.
    """

    part = _PART
    """How a fault names it."""
    thing = "syncs of ops"
    """What a region that judges syncs has to see all of."""
    whole = "every op that may wait on the region's thread"
    """How a region's report says that it has."""

    def __init__(
        self, recorder: Recorder, conditions: Conditions, kernels: KernelSensor | None, modes: ModeSensor | None
    ) -> None:
        self._recorder = recorder
        self._conditions = conditions
        self._kernels = kernels
        self._modes = modes
        self._level = Level(conditions.overhead_of_steps)
        self.periods = Periods()
        self.passed_through: Callable[[], int] = lambda: 0
        """Calls that went through a sensor and left no record; they cost time as well."""
        self.wants: Callable[[ThreadState], bool] = lambda _: False
        """Whether every sync of a thread is to be named now, sampled or not: for a region, or for the cost."""
        self.barred: Callable[[], bool] = lambda: False
        """Whether steps are being measured for another purpose, so that none may be slowed."""
        self.exact_stalls: Callable[[], bool] = lambda: False
        """Whether each wait is measured in every step, so that stalls need no scaling."""
        self._main = MainThread(self._interval_ended, self._failed)
        self._switch = Switch()
        self._live = False
        self._wraps = False
        self._every_step = False
        self._on: ThreadState | None = None
        """The thread that is watched whole now."""
        self._left: ThreadState | None = None
        """One on which the kernels are still on, though steps end elsewhere."""
        self._joins = False
        """Whether the main thread is to be watched as well, since the agent was started on another one."""
        self._units = 0
        self._block = (0, -1)
        """The block of steps that was asked about last, and at which level; its sampled step is kept."""
        self._sampled = 0
        self._is_first = True
        self._first_steps = 0
        self._first_ns = 0
        self._own_ns = 0
        self._added: list[int] = []
        self._lasted: list[int] = []
        self._began_ns = 0
        self._used_ns: int | None = None
        self._has_steps = False
        self._by_intervals = False
        self._is_calibrated = False
        self._compiles = False

    # --- its life

    def start(self, *, modes: bool = True) -> None:
        """Watch this thread whole from now on; without ``modes``, by kernels alone."""
        self._live, self._wraps = True, modes and self._modes is not None and self._modes.live
        if self._kernels is not None and self._kernels.live:
            self._kernels.when_compile_comes(self._compile_comes)
        else:  # the modes have to give way all the same
            self._switch.before_compile = self._compile_comes
            self._switch.prepare()
        if self._conditions.simulate:
            self.cuda_is_used()
        else:
            _call_when_cuda_is_used(self)
        state = self._recorder.threads.current()
        self._began_ns = _now()
        self._begin(state, 1)
        self._joins = state.ident != threading.main_thread().ident
        if self._joins:
            self._main.ask()

    def stop(self) -> None:
        """Turn everything off that is on for this thread; on another it stays on, and does nothing."""
        self._live = False
        calibration.settle()
        _waiting.discard(self)
        self._main.stop()
        self._switch.release()
        self._set(self._recorder.threads.current(), named=False, wrapped=False)
        self.periods.change(_now(), 0)

    def cuda_is_used(self) -> None:
        """Wait for steps from now on, though not for ever."""
        if self._used_ns is None:
            self._used_ns = _now()

    # --- on the training thread

    def step_ended(self, state: ThreadState, lasted_ns: int, following: int) -> None:
        """Decide about the step that begins, once a step has ended on this thread.

        Optimizers that step within the backward pass do so on autograd's threads, or in the midst of torch's C++:
        nothing can be turned on or off there, and such a program is sampled by intervals.
        """
        if not self._live or self._recorder.locator.internals.graph_task() != -1:
            return
        try:
            if not self._has_steps:
                self._steps_begin()
            self._unit_ended(state, lasted_ns, following)
        except Exception as error:
            self._failed(error)

    def _steps_begin(self) -> None:
        """Begin anew where a program that was sampled by intervals ends its first step: they say nothing of steps."""
        self._has_steps, self._by_intervals = True, False
        if self._units:
            self.periods.steps_begin()
            self._is_first, self._first_steps = True, 0
            self._added.clear()
            self._lasted.clear()

    def _failed(self, error: Exception) -> None:
        self._recorder.fault(_PART, error, "failed and is off")
        self._live = False
        self._on = None
        self.periods.change(_now(), 0)
        self._recorder.faults.guard(
            _PART, lambda: self._set(self._recorder.threads.current(), named=False, wrapped=False), None
        )

    def update(self, state: ThreadState, _step: int, *, wanted: bool) -> None:
        """Name this thread's syncs from now on, if a region or the cost wants that, or no longer than sampled."""
        if self._live:
            self._set(state, named=wanted or state is self._on or self._named_always(state), wrapped=None)

    def _unit_ended(self, state: ThreadState, lasted_ns: int, following: int) -> None:
        barred = self.barred()
        was_sampled = self._on is not None
        if self._is_first:
            self._first_unit_ended(lasted_ns)
        elif was_sampled:
            self._level.sampled(lasted_ns)
        elif not barred and not state.named_now:
            self._level.passed(lasted_ns)
        period = 0 if barred else self._period_of(following)
        if period or was_sampled or state.named_now or self._every_step or self.wants(state):
            self._begin(state, period)

    def _period_of(self, number: int) -> int:
        """Return how many steps or intervals this one is to stand for, 0 where it is not sampled."""
        if self._is_first:
            return 1
        level = self._level.level
        if level is None or self._level.holds_back():
            return 0
        block = number >> level
        if self._block != (block, level):
            self._block = block, level
            self._sampled = sampled_of(block, level)
        return 1 << level if number == self._sampled else 0

    def _first_unit_ended(self, lasted_ns: int) -> None:
        self._first_steps += 1
        own_ns = self._own_cost_ns()
        if self._first_steps > 1:  # the first of all has the program's start in it
            self._lasted.append(lasted_ns)
        if self._is_calibrated:
            if self._own_ns:
                self._added.append(own_ns - self._own_ns)
            self._own_ns = own_ns
        if self._first_steps >= FIRST or own_ns >= FIRST_ADDED_NS:
            self._is_first = False
            self._first_ns = own_ns
            self._level.guess(self._added or [own_ns // self._first_steps], self._lasted)
            self._level.compare(self._lasted)

    def _begin(self, state: ThreadState, period: int) -> None:
        """Begin a step or interval on this thread, of which one in ``period`` is watched, or none (0)."""
        if period and (self._is_stopped() or self._is_capturing()):
            period = 0
        if self._on is not None and self._on is not state:
            self._left = self._on  # steps end on another thread than the one that has begun
        self._on = state if period else None
        # Where every step's syncs are named, each stands for itself, and the modes alone are sampled.
        named = bool(period) or self._named_always(state) or self.wants(state)
        self.periods.begin(_now(), min(period, 1) if self._every_step else period, named=named and not self.gave_way)
        self._set(state, named=named, wrapped=bool(period))

    def _named_always(self, state: ThreadState) -> bool:
        return self._every_step and state.trains

    def _set(self, state: ThreadState, *, named: bool, wrapped: bool | None) -> None:
        """Turn on what is wanted on this thread, and off what is not; ``wrapped=None`` leaves the modes."""
        kernels, modes = self._kernels, self._modes
        named = named and not self.gave_way
        if kernels is not None and kernels.live and kernels.hot_armed is not named:
            if named:
                kernels.arm_hot()
            else:
                kernels.disarm_hot()
        state.named_now = named
        if modes is None or wrapped is None or not self._wraps:
            return
        if wrapped and not self.gave_way:
            modes.enter()
        else:
            modes.leave()

    def _is_stopped(self) -> bool:
        return not self._live or self.gave_way

    def _is_capturing(self) -> bool:
        if self._used_ns is None:  # the question itself would initialise CUDA
            return False
        capturing = self._recorder.locator.internals.capturing
        return self._recorder.faults.guard("the check for a graph capture", capturing, False)

    def _compile_comes(self) -> None:
        """Leave at once: torch.compile's guards see the key and the modes, and would compile again without them."""
        self._compiles = True
        self._recorder.faults.guard(_PART, self._leave_for_compile, None)

    def _leave_for_compile(self) -> None:
        self._on = None
        self.periods.change(_now(), 0)
        self._set(self._recorder.threads.current(), named=False, wrapped=False)

    # --- what it costs

    def _own_cost_ns(self) -> int:
        if not self._is_calibrated and self._first_steps >= FIRST:
            self.calibrate()
        if not self._is_calibrated:
            return 0
        return self._recorder.own_cost_ns(self.passed_through())

    def calibrate(self) -> None:
        """Measure once what it costs to get into Python from an op: some milliseconds, on the agent's thread."""
        if not self._is_calibrated:
            try:
                calibration.kernel_ns()
                calibration.mode_ns()
            except calibration.UnmeasuredError:  # the process is being killed
                return
            self._is_calibrated = True

    @property
    def first_ns(self) -> int:
        """How much time the steps that were watched whole to begin with have added, which ``overhead`` is not about."""
        if not self._is_first:
            return self._first_ns
        self.calibrate()
        return self._own_cost_ns()

    # --- programs without steps

    def tick(self) -> None:
        """Look after what no step does; on the agent's thread, several times a second."""
        if not self._live:
            return
        self._main.deliver()
        if self._has_steps or self._used_ns is not None:  # a script that does not train is left in peace
            self.calibrate()
        main = threading.main_thread().ident
        if self._joins or (self._has_steps and self._left is not None and self._left.ident == main):
            self._main.ask()
        now = _now()
        if self._has_steps or self._used_ns is None or now - self._used_ns < _NO_STEP_NS:
            return
        if now - self._began_ns >= _INTERVAL_NS and self._main.ask():
            self._by_intervals = True

    def _interval_ended(self) -> None:
        """On the main thread, between two instructions of the program: end an interval, and begin the next.

        Where the program is inside of an op or of one of our hooks, torch will put this thread's keys and modes back as
        they were, and where it has just asked for the modes, it will look for them: this is not the moment, and the
        next call is a second or less away.
        """
        state = self._recorder.threads.current()
        if not self._live or state.op is not None or state.api is not None:
            return
        if self._recorder.locator.internals.graph_task() != -1 or not self._is_outside(state):
            return
        if acts_on_modes(sys._getframe()):
            return
        if self._joins:
            self._joins = False
            if self._is_first and not self._has_steps:
                self._left = state
                self._set(state, named=not self._is_stopped(), wrapped=None)
            return
        if self._left is state and self._has_steps:
            self._left = None
            self._set(state, named=self.wants(state), wrapped=None)
        if self._has_steps:
            return
        now = _now()
        lasted_ns, self._began_ns = now - self._began_ns, now
        for tally in state.tallies.values():  # as at a step's end: the line's next sync is kept whole
            tally.step = -1
        self._units += 1
        # Intervals last as long with the agent as without: what they cost is known from the agent's own measure alone.
        own_ns = self._own_cost_ns()
        added_ns, self._own_ns = own_ns - self._own_ns, own_ns
        if self._is_first:
            self._first_steps += 1
            if self._units > 1:
                self._added.append(added_ns)
                self._lasted.append(lasted_ns)
            if self._first_steps >= FIRST or own_ns >= FIRST_ADDED_NS:
                self._is_first, self._first_ns = False, own_ns
                self._level.guess(self._added, self._lasted)
        elif self._on is not None:
            self._level.guess([added_ns], [lasted_ns])
        self._begin(state, 0 if self.barred() else self._period_of(self._units))

    def _is_outside(self, state: ThreadState) -> bool:
        is_here = self._kernels is None or not self._kernels.live or self._kernels.can_switch
        return is_here and (self._modes is None or self._modes.can_leave or not (state is self._on and self._wraps))

    # --- as the regions and the policy see it

    @property
    def gave_way(self) -> bool:
        """Whether nothing is sampled any more, since torch.compile is in use."""
        return self._compiles or (self._kernels is not None and self._kernels.gave_way)

    @property
    def can_change(self) -> bool:
        """Whether a thread's syncs can be named from now on, or no longer."""
        return self._live

    def policy_changed(self, policy: str, _following: int) -> None:
        """Name every sync of the training thread where the policy acts on them; the modes stay sampled."""
        self._every_step = policy != "observe"

    def unseen(self, *, every_thread: bool) -> str | None:
        """Return why a region that judges syncs, of every thread or of its own, does not see all of them."""
        if self.gave_way:
            return f" since torch.compile is in use; {_SEES_ALL}"
        return f" on other threads than its own; {_SEES_ALL}" if every_thread else None

    def weight(self, event: SyncEvent, moment_ns: int) -> Weight:
        """Return how many syncs this one stands for; ``moment_ns`` is its start by ``perf_counter_ns``."""
        if event.sensor not in {"kernels", "simulated"} or not event.op.startswith("aten::"):
            return _NONE  # calls that ask to wait are seen in every step
        unit = self.periods.at(moment_ns)
        if unit.period <= 1:
            return _NONE  # the first steps, or a step that was watched for a region, the policy or the cost
        return Weight(float(unit.period), 1.0 if self.exact_stalls() else float(unit.period), unit.since_ns)

    # --- what the report says

    @property
    def detail(self) -> str:
        if self.gave_way:
            return "off since torch.compile is in use; SYNCAGENT_DETAIL=syncs watches it"
        unit = "second" if self._by_intervals else "step"
        first = f"in the first {FIRST} {unit}s, until {FIRST_ADDED_NS // 10**9} s are added"
        level = self._level.level
        if level is None:
            return f"{first}; in none after them, since overhead is 0"
        return f"{first}; then in one {unit} of {1 << level}, scaled up"

    @property
    def notes(self) -> list[str]:
        """Return a sentence for each thing that the reader of a report has to know."""
        notes = []
        if self.gave_way:
            notes.append("torch.compile is in use: from there on no step was sampled, by kernels or by modes")
        unit = "seconds" if self._by_intervals else "steps"
        if self._first_steps:
            added_s = self.first_ns / 1e9
            notes.append(
                f"the first {self._first_steps} {unit} were watched whole, which added {added_s:.2f} s, not counted in "
                "the overhead that is reported"
            )
        total = sum(number for stands_for, number in self.periods.since().items() if stands_for > 1)
        if total:
            scaled = "counts are scaled up" if self.exact_stalls() else "counts and stalls are scaled up"
            notes.append(f"{total} more {unit} were sampled, and what was seen there alone is marked (~): its {scaled}")
        if not self._has_steps and self._main.why_not and self._used_ns is not None:
            notes.append(f"this program has ended no step, and could not be sampled by intervals: {self._main.why_not}")
        return notes
