"""Whether a gate, a policy with consequences, could do what it was asked for, and if not, why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from syncagent.errors import ConfigError
from syncagent.policy import gate
from syncagent.report.model import RunInfo


class GateVerdict:
    """Judges the gate of the process or of one region."""

    def __init__(self, *, is_gate: bool, is_judged: bool = False) -> None:
        """``is_judged`` says that `syncagent run --fail-on` judges the run by its policy."""
        self._is_judged = is_judged
        self.is_asked_for = is_gate
        """Whether there is a gate, or was one earlier in the run."""
        self.gaps: list[str] = []
        """A phrase for each thing that has let syncs past it."""

    def policy_changed(self, policy: str, by: str, *, is_gate: bool) -> None:
        """Note that ``by`` has changed the policy: a gate that is lifted meanwhile did not hold.

        Nor did the policy of a run that is judged, if it only observes for a while: what waits then is no finding.
        """
        if self._is_judged:
            self.is_asked_for, is_gate = True, policy != "observe"
        gap = f"the policy was changed to {policy} by {by}"
        if self.is_asked_for and not is_gate and gap not in self.gaps:
            self.gaps.append(gap)
        self.is_asked_for = self.is_asked_for or is_gate

    def on(self, run: RunInfo, problems: list[str], others: Callable[[], list[str]]) -> tuple[RunInfo, list[str]]:
        """Return run and problems with the verdict, where there is a gate; ``others`` finds the gaps not yet known."""
        if not self.is_asked_for:
            return run, problems
        gaps = [*self.gaps, *others()]
        run = replace(run, gate=gate.FAILED if gaps else gate.HELD)
        return run, [*problems, *(gate.NOTE + why for why in gaps)]


def cannot_hold(policy: str, failures: list[str]) -> ConfigError:
    """Return the error for a gate that cannot be in force from its start."""
    return ConfigError(
        f"syncagent: setting policy is {policy!r}, but it cannot be in force here: {'; '.join(failures)}."
    )


def cannot_count(failures: list[str]) -> ConfigError:
    """Return the error for an assertion that would miss host syncs."""
    return ConfigError(f"syncagent: host syncs cannot be counted here: {'; '.join(failures)}.")
