"""Whether a gate, a policy with consequences, could do what it was asked for, and if not, why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncagent.errors import ConfigError
from syncagent.policy import gate
from syncagent.settings.schema import is_gate

if TYPE_CHECKING:
    from syncagent.recording.recorder import Recorder
    from syncagent.sensors.registry import SensorSet
    from syncagent.settings.schema import PolicyName, Settings
    from syncagent.support.faults import Faults

__all__ = ["GateVerdict", "cannot_hold"]


class GateVerdict:
    """Judges the gate of the process, and what the gates of its regions share with it."""

    def __init__(self, settings: Settings, recorder: Recorder, sensors: SensorSet, faults: Faults) -> None:
        self.is_asked_for = settings.is_gate
        """Whether there is a gate, or was one earlier in the run."""
        self._settings = settings
        self._recorder = recorder
        self._sensors = sensors
        self._faults = faults
        self._lifted: list[str] = []

    def policy_changed(self, policy: PolicyName, by: str) -> None:
        """Note that ``by`` has changed the policy: a gate that is lifted meanwhile did not hold."""
        is_now = is_gate(policy, self._settings.baseline)
        if self.is_asked_for and not is_now:
            self._lifted.append(f"the policy was changed to {policy} by {by}")
        self.is_asked_for = self.is_asked_for or is_now

    def failures(self, policy: str, steps: int, dropped: int, *, is_over: bool, has_syncs: bool) -> list[str]:
        """Return a phrase for each thing that lets a sync past the gate or keeps it out of the report."""
        failures = [*self._lifted]
        if self._recorder.policy is None and not is_over:
            failures.append("the policy failed and is off")
        if self._sensors.conditions.has_cuda and self._sensors.copies.gave_way and policy == "raise":
            failures.append("torch.compile is in use, and copies are no longer watched")
        warmup = self._settings.warmup_steps
        if is_over and steps < warmup and has_syncs:
            failures.append(
                f"the policy was never active: the first {warmup} steps pass (warmup_steps), and {steps} ended"
            )
        return failures + self.unseen(dropped)

    def unseen(self, dropped: int) -> list[str]:
        """Return a phrase for each thing that hides syncs from any gate, the process's or a region's."""
        failures = self._sensors.blind_spots()
        failures += [f"{part} failed" for part in gate.that_matter(self._faults.parts)]
        if dropped:
            failures.append(f"{dropped} syncs were dropped, and their sites may be missing here")
        return failures


def cannot_hold(policy: str, failures: list[str]) -> ConfigError:
    """Return the error for a gate that cannot be in force from its start."""
    return ConfigError(
        f"syncagent: setting policy is {policy!r}, but it cannot be in force here: {'; '.join(failures)}."
    )
