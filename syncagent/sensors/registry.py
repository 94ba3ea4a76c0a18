"""All sensors there are, and the set of them that one agent runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from syncagent.report.model import SensorStatus
from syncagent.sensors.collectives import CollectiveSensor
from syncagent.sensors.copies import CopyWatch
from syncagent.sensors.driver import DriverSensor
from syncagent.sensors.explicit import ExplicitSensor
from syncagent.sensors.host_time import HostTimeSensor
from syncagent.sensors.kernels import KernelSensor
from syncagent.sensors.modes import ModeSensor
from syncagent.sensors.monitored import MonitoredSensor
from syncagent.sensors.sampled_steps import Sampled
from syncagent.sensors.sampling import StepSampling
from syncagent.sensors.simulated import SimulatedSensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from syncagent.recording.recorder import Recorder
    from syncagent.sensors.base import Conditions, Sensor

    TurnOn = Callable[[str, Callable[[], None], Callable[[], None]], None]

SENSORS: tuple[type[Sensor], ...] = (
    DriverSensor,  # first: the others take their stalls from it
    SimulatedSensor,
    KernelSensor,
    ExplicitSensor,
    MonitoredSensor,
    ModeSensor,
    HostTimeSensor,
    CollectiveSensor,  # behind the driver's, whose library it uses
)
"""One line for each, in the order in which they start and reports list them."""

OF_RANKS: tuple[type[Sensor], ...] = (HostTimeSensor, CollectiveSensor)
"""Those of a process that is one of several ranks, which may become known after the start."""


EXACT = "driver"
"""The sensor that measures each wait in every step, by whatever other sensor it is named: then no stall is scaled."""


class SensorSet:
    """The sensors of one agent: which there are, which of them run, and what the report says of them.

    ``kinds`` takes the place of :data:`SENSORS`.
    """

    def __init__(self, recorder: Recorder, conditions: Conditions, kinds: Iterable[type[Sensor]] | None = None) -> None:
        self.conditions = conditions
        self._faults = recorder.faults
        self._sensors = [kind(recorder, conditions) for kind in kinds or SENSORS if kind.is_listed(conditions)]
        kernels = next((sensor for sensor in self._sensors if isinstance(sensor, KernelSensor)), None)
        modes = next((sensor for sensor in self._sensors if isinstance(sensor, ModeSensor)), None)
        self.copies = kernels.copies if kernels is not None else CopyWatch(recorder, conditions, None)
        self.sampling: StepSampling | None = None
        """What has some steps watched whole, where that is how the process is watched."""
        if conditions.some_steps:
            self.sampling = StepSampling(recorder, conditions, kernels, modes)
            self.sampling.passed_through = lambda: self.passed_through
            self.sampling.exact_stalls = lambda: self._is_live(EXACT)
            for sensor in self._sensors:
                if isinstance(sensor, (KernelSensor, ModeSensor, SimulatedSensor)):
                    sensor.explains = self._explained
        self._recorder = recorder
        self.host: HostTimeSensor | None = None
        """What looks at the training thread besides its waits, where that is one of several ranks."""
        self._collectives: CollectiveSensor | None = None
        self._find_those_of_ranks()
        self._drivers = [sensor for sensor in self._sensors if isinstance(sensor, DriverSensor)]
        self._final: tuple[SensorStatus, ...] | None = None

    def look_for_new_code(self, *, now: bool = False) -> None:
        """Have the driver sensor look for what was loaded since: twice a second at most, or ``now``."""
        for driver in self._drivers:
            driver.walk(now=now)

    def _find_those_of_ranks(self) -> None:
        """Keep them at hand: each step asks for them on the training thread."""
        self.host = next((sensor for sensor in self._sensors if isinstance(sensor, HostTimeSensor)), None)
        self._collectives = next((sensor for sensor in self._sensors if isinstance(sensor, CollectiveSensor)), None)

    def take_waits_for_collectives(self) -> None:
        """Have what the GPU has waited for other ranks recorded, as far as it is over; on the agent's own thread."""
        if self._collectives is not None:
            self._collectives.poll()

    def step_ended(self) -> None:
        """Have it noted where the training thread, which calls this, has its work done."""
        if self._collectives is not None:
            self._collectives.step_ended()

    def start(self, turn_on: TurnOn, *, on_thread: bool = False) -> None:
        """Start those that watch all threads, or those that watch only the one that calls this.

        ``turn_on(part, start, stop)`` keeps what fails from the others.
        """
        for sensor in self._sensors:
            if sensor.starts_on_thread is on_thread and sensor.is_wanted(self.conditions):
                turn_on(sensor.part, sensor.start, sensor.stop)

    def join_ranks(self, turn_on: TurnOn) -> None:
        """Start what only a process of several ranks has, where it has become one after the start."""
        if self.conditions.several_ranks:
            return
        self.conditions = replace(self.conditions, several_ranks=True)
        for kind in OF_RANKS:
            if kind.is_listed(self.conditions):
                sensor = kind(self._recorder, self.conditions)
                self._sensors = [*self._sensors, sensor]
                if sensor.is_wanted(self.conditions):
                    turn_on(sensor.part, sensor.start, sensor.stop)
        self._find_those_of_ranks()

    @property
    def partly(self) -> CopyWatch | StepSampling:
        """What is watched part of the time: all that ops may wait for, or copies alone."""
        return self.sampling or self.copies

    def _explained(self) -> str:
        return self.sampling.detail if self.sampling is not None else ""

    def sampled(self) -> Sampled:
        """Return how many steps or intervals were watched, by how many each of them stands for.

        None where every one is, and where no more are since torch.compile is in use: they stand for no later ones.
        """
        sampling = self.sampling
        return Sampled(False, Counter()) if sampling is None or sampling.gave_way else sampling.periods.sampled

    @property
    def first_ns(self) -> int:
        """Time that the agent has added to the first steps, which it has watched whole in place of a few of them."""
        return self.sampling.first_ns if self.sampling is not None else 0

    def is_named(self, moment_ns: int) -> bool:
        """Whether every sync of the training thread was named at that moment (``perf_counter_ns``)."""
        return self.sampling is None or self.sampling.periods.at(moment_ns).period > 0

    def _is_live(self, name: str) -> bool:
        return any(sensor.name == name and sensor.live for sensor in self._final or self._sensors)

    def statuses(self) -> tuple[SensorStatus, ...]:
        """Return a row for each sensor, as it is now or was when :meth:`conclude` was called."""
        if self._final is not None:
            return self._final
        rows = (SensorStatus(s.name, s.live, s.cannot_see, s.detail) for s in self._sensors)
        return self._faults.guard("the list of sensors", lambda: tuple(rows), ())

    def conclude(self) -> None:
        """Keep the statuses as they are: the sensors are about to stop."""
        self._final = self.statuses()

    def blind_spots(self) -> list[str]:
        """Return a phrase for each thing that keeps syncs from a gate, where there can be syncs at all."""
        if not (self.conditions.simulate or self.conditions.has_cuda):
            return []
        live = {status.name for status in self.statuses() if status.live}
        dead = [s.name for s in self._sensors if s.needed_by_gates and s.name not in live]
        return [*(f"the sensor {name} is not live" for name in dead), *(gap for s in self._sensors for gap in s.gaps)]

    @property
    def notes(self) -> list[str]:
        sampled = self.sampling.notes if self.sampling is not None else []
        return [*sampled, *(note for sensor in self._sensors for note in sensor.notes)]

    @property
    def passed_through(self) -> int:
        """Calls that passed through a sensor without a record."""
        return sum(sensor.passed_through for sensor in self._sensors)
