"""All sensors there are, and the set of them that one agent runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncagent.report.model import SensorStatus
from syncagent.sensors.copies import CopyWatch
from syncagent.sensors.explicit import ExplicitSensor
from syncagent.sensors.kernels import KernelSensor
from syncagent.sensors.modes import ModeSensor
from syncagent.sensors.monitored import MonitoredSensor
from syncagent.sensors.simulated import SimulatedSensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from syncagent.recording.recorder import Recorder
    from syncagent.sensors.base import Conditions, Sensor

    TurnOn = Callable[[str, Callable[[], None], Callable[[], None]], None]

SENSORS: tuple[type[Sensor], ...] = (
    SimulatedSensor,
    KernelSensor,
    ExplicitSensor,
    MonitoredSensor,
    ModeSensor,
)
"""One line for each, in the order in which they start and reports list them."""


class SensorSet:
    """The sensors of one agent: which there are, which of them run, and what the report says of them.

    ``kinds`` takes the place of :data:`SENSORS`.
    """

    def __init__(self, recorder: Recorder, conditions: Conditions, kinds: Iterable[type[Sensor]] | None = None) -> None:
        self.conditions = conditions
        self._faults = recorder.faults
        self._sensors = [kind(recorder, conditions) for kind in kinds or SENSORS if kind.is_listed(conditions)]
        watches = (sensor.copies for sensor in self._sensors if isinstance(sensor, KernelSensor))
        self.copies = next(watches, None) or CopyWatch(recorder, conditions, None)
        self._final: tuple[SensorStatus, ...] | None = None

    def start(self, turn_on: TurnOn, *, on_thread: bool = False) -> None:
        """Start those that watch all threads, or those that watch only the one that calls this.

        ``turn_on(part, start, stop)`` keeps what fails from the others.
        """
        for sensor in self._sensors:
            if sensor.starts_on_thread is on_thread and sensor.is_wanted(self.conditions):
                turn_on(sensor.part, sensor.start, sensor.stop)

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
        return [note for sensor in self._sensors for note in sensor.notes]

    @property
    def passed_through(self) -> int:
        """Calls that passed through a sensor without a record."""
        return sum(sensor.passed_through for sensor in self._sensors)
