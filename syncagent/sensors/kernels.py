"""Python kernels around the ops that may wait: on which ops, when, and for which threads.

Most stand there for every thread.  Those on ``copy_``, where copies are sampled, and all of them, where steps are,
stand on the switched key instead: a thread arms them for itself, at no cost while they are not armed.

:mod:`syncagent.torchbridge.dispatcher` puts them in place, :mod:`syncagent.sensors.hooked_op` is what they do.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from syncagent.rules.table import RULES
from syncagent.sensors.base import Sensor
from syncagent.sensors.copies import CopyWatch
from syncagent.sensors.hooked_op import watched
from syncagent.torchbridge.dispatcher import Hooks, is_hooked
from syncagent.torchbridge.host_scalars import HostScalars
from syncagent.torchbridge.switch import Switch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from syncagent.recording.recorder import Recorder
    from syncagent.rules.rule import Rule
    from syncagent.sensors.base import Conditions


class KernelSensor(Sensor):
    """Times what waits on the GPU, wherever it is called from."""

    name = "kernels"
    needed_by_gates = True

    def __init__(
        self,
        recorder: Recorder,
        conditions: Conditions,
        rules: Iterable[Rule] = RULES,
        *,
        device_key: str | None = None,
    ) -> None:
        """``device_key`` replaces every rule's dispatch keys: tests watch CPU ops through the same dispatcher."""
        super().__init__(recorder, conditions)
        self._rules = tuple(rule for rule in rules if rule.keys)
        self._hooks = Hooks(functools.partial(watched, recorder), device_key)
        self._switch = Switch()
        self._host_scalars = HostScalars()
        self.copies = CopyWatch(recorder, conditions, self)
        self.explains: Callable[[], str] = lambda: self.copies.detail
        """What a report says of which calls they watch."""
        self._hot = "off"
        self._gave_way = False

    @property
    def live(self) -> bool:
        return self._hooks.live

    @property
    def cannot_see(self) -> str:
        return "; ".join(["waits inside extensions that call CUDA themselves", *self._hooks.without])

    @property
    def detail(self) -> str:
        return self.explains()

    @property
    def gaps(self) -> list[str]:
        unhooked = ", ".join(self._hooks.unhooked)
        return [f"not hooked: {unhooked}"] if unhooked else []

    @property
    def notes(self) -> list[str]:
        left = (
            "the kernels are still on their ops and pass calls on: other threads compute, and torch cannot take a "
            "kernel off safely while they do"
        )
        return [left] if self._hooks.left_in_place else []

    @property
    def passed_through(self) -> int:
        return self._hooks.passed_through

    @classmethod
    def footprint(cls) -> dict[str, object]:
        kernels: dict[str, object] = {f"kernel of {rule.op}": is_hooked(rule) for rule in RULES if rule.keys}
        return kernels | Switch.footprint() | HostScalars.footprint()

    def start(self) -> None:
        """Put the kernels in place; ``hot`` ones (``copy_``) for every thread and for good only if all are wanted."""
        self._hooks.live = True
        self._gave_way = False
        if self._conditions.some_steps:
            self._switch.prepare()
            self._hooks.put(self._rules, self._switch)
            self._hooks.replace_left()
            self._hot = "switched"
            return
        self._recorder.faults.guard("the way past item()", self._host_scalars.start, None)
        hot = self.copies.always
        self._hooks.put(rule for rule in self._rules if hot or not rule.hot)
        self._hooks.replace_left()
        self._hot = "always" if hot else "off"
        self.copies.start()

    def when_compile_comes(self, then: Callable[[], None]) -> None:
        """Have this called on the thread on which torch.compile comes into use, once what is switched is off there."""
        self._switch.before_compile = then

    def arm_hot(self) -> None:
        """Watch what is switched on this thread from now on, unless torch.compile is in use (1 µs but the first time).

        These are the hot ops, or where steps are sampled all of them.
        """
        if self._hooks.live and self._hot == "off":
            self._switch.prepare()
            self._hooks.put((rule for rule in self._rules if rule.hot), self._switch)
            self._hot = "switched"
        if self._hot == "switched":
            self._switch.turn(True)

    def disarm_hot(self) -> None:
        """Watch what is switched on this thread no longer."""
        if self._hot == "switched":
            self._switch.turn(False)

    @property
    def hot_armed(self) -> bool:
        """Whether what is switched is watched on this thread."""
        return self._hot == "always" or (self._hot == "switched" and self._switch.is_on)

    @property
    def can_switch(self) -> bool:
        """Whether turning the switch holds now: not inside of an op, which puts the thread's keys back at its end."""
        return self._switch.holds

    @property
    def gave_way(self) -> bool:
        """Whether what is switched is no longer watched since torch.compile is in use, or was not at the end."""
        return self._gave_way or (self._hot == "switched" and self._switch.compiles)

    def stop(self) -> None:
        """Restore every kernel; while other threads compute, they are left where they are and pass calls on."""
        self._recorder.faults.guard("the way past item()", self._host_scalars.stop, None)
        self._hooks.live = False
        self._gave_way = self.gave_way
        if self._hot == "switched":
            self._switch.release()
        self._hot = "off"
        self._hooks.take_off(state.ident for state in self._recorder.threads.all)
