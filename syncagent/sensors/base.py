"""What a sensor is: the contract between the ways of noticing a wait and the agent that runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncagent.recording.recorder import Recorder
    from syncagent.settings.schema import Settings


@dataclass(frozen=True, slots=True)
class Conditions:
    """What decides which sensors run, and how."""

    has_cuda: bool = True
    """Whether torch is built for CUDA."""
    simulate: bool = False
    """Whether the simulated device stands in for CUDA."""
    every_op: bool = False
    """Whether every op is wrapped (``detail="ops"``)."""
    some_steps: bool = False
    """Whether ops are wrapped, and syncs named, in sampled steps alone (``detail="auto"``)."""
    overhead: float = 0.0
    """Which share of the time those steps (three quarters of it) and looks at threads that wait (the rest) may add."""
    copies: str = "off"
    """Which copies are timed: ``all``, ``sampled`` or ``off``."""
    copies_follow_policy: bool = False
    """Whether ``copies`` was left to the policy, so that a change of the policy changes it as well."""
    modelled: str | None = None
    """The GPU whose times are modelled on the simulated device."""
    several_ranks: bool = False
    """Whether the process is known to be one of several ranks."""
    collectives: bool = False
    """Whether the waits for collectives are to be measured on GPUs."""

    @property
    def overhead_of_steps(self) -> float:
        return 0.75 * self.overhead

    @property
    def overhead_of_looks(self) -> float:
        return 0.25 * self.overhead

    @classmethod
    def of(cls, settings: Settings) -> Conditions:
        import torch

        return cls(
            getattr(torch.version, "cuda", None) is not None,
            settings.simulate,
            settings.wraps_every_op,
            settings.samples_steps,
            settings.overhead,
            "off" if settings.samples_steps else settings.copies_timed,
            settings.copies is None,
            settings.modelled_gpu,
            collectives=settings.collectives,
        )


class Sensor(ABC):
    """One way of noticing that a thread waits for the GPU.

    To write a new one, subclass this in a file of its own and add the class to ``SENSORS`` in ``registry.py``.

    A sensor patches or hooks something in :meth:`start` and undoes it in :meth:`stop`.  Around a call that waits, on
    the thread that waits, it does this::

        state = recorder.threads.current()
        if state.op is not None:  # a sensor further out is timing this wait
            return original(*args)
        frame = sys._getframe(1)
        allowed = recorder.ask(op, kind, frame, state, args, self.name)  # may raise HostSyncError in the caller's frame
        context = recorder.describe(state, op, kind, frame, args, self.name, allowed)
        started = time.perf_counter_ns()
        state.op = op
        try:
            return original(*args)
        finally:
            returned = time.perf_counter_ns()
            state.op = None
            recorder.settle(state, context, kind, started, returned - started, returned)

    All that can be done before the wait is done before it, since the GPU is at work meanwhile.  This is the training
    thread: no lock that another thread may hold, no formatting, no file.  Only ``ask`` may raise into the program; a
    mistake of the sensor's own goes to ``recorder.fault``.  A sensor knows no sink and no other sensor.
    """

    name: ClassVar[str]
    """How reports and syncs name it."""
    needed_by_gates: ClassVar[bool] = False
    """Whether a policy that stops syncs cannot be in force while this sensor is not live."""
    starts_on_thread: ClassVar[bool] = False
    """Whether it watches only the thread that calls :meth:`start`."""

    def __init__(self, recorder: Recorder, conditions: Conditions) -> None:
        self._recorder = recorder
        self._conditions = conditions

    # --- when it runs

    @classmethod
    def is_listed(cls, conditions: Conditions) -> bool:
        """Return whether reports list it under these conditions: by default, unless the device is simulated."""
        return not conditions.simulate

    @classmethod
    def is_wanted(cls, conditions: Conditions) -> bool:
        """Return whether a sensor that is listed is to be started as well: by default, if torch is built for CUDA."""
        return conditions.has_cuda

    @abstractmethod
    def start(self) -> None:
        """Begin to watch.  What it raises is reported, and :meth:`stop` is called; the program runs on without it."""

    @abstractmethod
    def stop(self) -> None:
        """Undo all that :meth:`start` has done, however far it got.  May be called again."""

    @classmethod
    def footprint(cls) -> Mapping[str, object]:
        """Return what it changes in torch or in Python, by a name for each, as it is now.

        The audit of ``syncagent selftest`` compares this from before the start, while it runs and after the end.
        """
        return {}

    # --- its status, for the report

    @property
    def part(self) -> str:
        """How a fault names it."""
        return f"the sensor {self.name}"

    @property
    @abstractmethod
    def live(self) -> bool:
        """Whether it is watching."""

    @property
    def cannot_see(self) -> str:
        """What it misses by its nature, or because this torch lacks something."""
        return ""

    @property
    def detail(self) -> str:
        """Why it is not live, or what it is armed for."""
        return ""

    @property
    def gaps(self) -> list[str]:
        """A phrase for each thing that it should see and does not, so that no gate can rely on it."""
        return []

    @property
    def notes(self) -> list[str]:
        """A sentence for each thing that the reader of the report has to know."""
        return []

    @property
    def passed_through(self) -> int:
        """How many calls were passed on without a record; their cost is part of the agent's overhead."""
        return 0
