"""One region: a watch inside a watch, with a policy, allowances, budgets and a report of its own."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Protocol

from syncagent.policy import gate, scopes
from syncagent.policy.scopes import Reach
from syncagent.report.model import Overhead
from syncagent.report.summary import Summary
from syncagent.runtime.handle import Agent
from syncagent.runtime.run import no_run
from syncagent.settings import schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncagent.attribution.ranks import Rank
    from syncagent.attribution.steps import Steps
    from syncagent.events import StepRecord, SyncEvent
    from syncagent.policy import Policy
    from syncagent.recording.records import ThreadState
    from syncagent.report.model import Report, RunInfo
    from syncagent.runtime.verdict import GateVerdict
    from syncagent.sensors.registry import SensorSet
    from syncagent.settings.schema import PolicyName, Settings
    from syncagent.support.faults import Faults

__all__ = ["Host", "Region", "Registry"]

_JUDGING = (
    "policy", "allow", "allow_kinds", "allow_packs", "baseline", "max_syncs_per_step", "max_stall_ms_per_step",
    "max_stall_share", "stall_share_window", "min_stall_ms", "warmup_steps", "judge_threads",
)  # fmt: skip
"""A region that is given one of these has a policy of its own."""


class Host(Protocol):
    """What regions need of the agent of the process."""

    settings: Settings
    faults: Faults
    steps: Steps
    sensors: SensorSet
    verdict: GateVerdict

    @property
    def rank(self) -> Rank: ...
    @property
    def policy(self) -> PolicyName: ...
    @property
    def dropped(self) -> int: ...
    def drain(self) -> None: ...
    def flush(self) -> None: ...
    def epoch_ns(self, moment_ns: int) -> int: ...
    def weight(self, event: SyncEvent) -> float: ...
    def new_policy(self, settings: Settings) -> Policy: ...
    def watch_copies(self, state: ThreadState) -> None: ...
    def run_info(self) -> RunInfo: ...
    def shared_notes(self, settings: Settings) -> list[str]: ...
    def measure_cost(self, steps: int = 5) -> None: ...


class Registry(Protocol):
    """What a region needs of the list of regions that it is on."""

    def end(self, region: Region) -> None: ...
    def update_copies(self, region: Region) -> None: ...


class Region(Reach, Agent):
    """What ``with syncagent.watch(...)`` gives inside another watch."""

    def __init__(
        self, agent: Host, registry: Registry, settings: Settings, outer: Reach | None, policy: Policy
    ) -> None:
        given = {name for name, source in settings.sources.items() if source == "keyword"}
        super().__init__(
            outer,
            policy,
            judges=not given.isdisjoint(_JUDGING),
            every_thread=settings.judge_threads == "all",
        )
        self.settings = settings
        self._agent = agent
        self._registry = registry
        self._policy = policy
        self._summary = Summary(newest=settings.max_events, scale=agent.weight)
        self._started = datetime.now(timezone.utc)
        self.began_ns = time.perf_counter_ns()
        self.ended_ns: int | None = None
        self._lost_before = agent.dropped
        self._lost: int | None = None
        self._asks_for_copies: bool | None = settings.copies == "all" if "copies" in given else None
        self._all_copies_from_ns: int | None = None
        self._is_saved = "report" not in given  # the environment's report is the agent's
        self._was_gate = self.is_gate
        self.gaps: list[str] = []
        """A phrase for each thing that lets a sync past this region's gate."""
        self.notes: list[str] = ["this is the report of a region, a watch inside the one of the process"]

    # --- what a program sees

    @property
    def running(self) -> bool:
        return self.is_open

    @property
    def rank(self) -> Rank:
        return self._agent.rank

    @property
    def steps(self) -> Steps:
        """The steps of the process."""
        return self._agent.steps

    @property
    def own_policy(self) -> Policy:
        """What judges in here, if this region judges."""
        return self._policy

    @property
    def policy(self) -> PolicyName:
        if self.judges:
            return self._policy.mode
        return self.outer.policy if isinstance(self.outer, Region) else self._agent.policy

    @policy.setter
    def policy(self, value: PolicyName) -> None:
        self._policy.mode = schema.parse("policy", value)
        self.judges = True
        if self._was_gate and not self.is_gate:
            self.gaps.append(f"the policy was changed to {self._policy.mode} by the program")
        self._was_gate = self._was_gate or self.is_gate
        if self.is_open:
            self._registry.update_copies(self)

    def events(self) -> tuple[SyncEvent, ...]:
        self._agent.drain()
        return self._agent.faults.guard("the newest syncs of a region", self._summary.newest, ())

    def report(self) -> Report:
        self._agent.drain()
        empty = Summary().snapshot(no_run(self._policy.mode), notes=self.notes)
        return self._agent.faults.guard("the report of a region", self._report, empty)

    def _report(self) -> Report:
        agent = self._agent
        ended_ns = self.ended_ns if self.ended_ns is not None else time.perf_counter_ns()
        run = replace(
            agent.run_info(),
            started=self._started.isoformat(timespec="milliseconds"),
            duration_s=(ended_ns - self.began_ns) / 1e9,
            policy=self.policy,
        )
        sensors = agent.sensors.statuses()
        notes = [*self.notes, *agent.shared_notes(self.settings)]
        if self._all_copies_from_ns is not None and not agent.sensors.copies.gave_way:
            detail = "copies: every one on the region's thread"
            sensors = tuple(replace(one, detail=detail) if one.name == "kernels" else one for one in sensors)
        dropped = (self._lost if self._lost is not None else agent.dropped) - self._lost_before
        if self._was_gate:
            failures = [*self.gaps, *agent.verdict.unseen(dropped)]
            run = replace(run, gate=gate.FAILED if failures else gate.HELD)
            notes += [gate.NOTE + why for why in failures]
        return self._summary.snapshot(run, sensors, Overhead(None, None), dropped, (), notes)

    def stop(self) -> Report:
        self._registry.end(self)
        return self.report()

    def flush(self) -> None:
        self._agent.flush()

    def measure_cost(self, steps: int = 5) -> None:
        self._agent.measure_cost(steps)

    # --- while it is open

    def suspend(self) -> None:
        """Stop covering this thread or task for a while, as a generator does while its caller runs."""
        scopes.leave(self)

    def resume(self) -> None:
        """Cover this thread or task again."""
        if self.is_open:
            scopes.enter(self)

    def close(self) -> None:
        """End the region where its block ends, and save its report if that was asked for."""
        scopes.leave(self)
        self._registry.end(self)
        self.save_once()

    @property
    def saved(self) -> bool:
        """Whether its report is saved already, or was not asked for."""
        return self._is_saved

    def save_once(self) -> None:
        """Save the report that was asked for, unless that has been done."""
        if not self._is_saved:
            self._is_saved = True
            self.save(self.report())

    def forget(self) -> None:
        """In a forked child: the region and its report are the parent's."""
        self.is_open, self._is_saved = False, True

    # --- on the agent's thread, and once a step

    def add(self, events: Sequence[SyncEvent]) -> None:
        """Count some syncs."""
        self._summary.events(events)

    def step(self, record: StepRecord, began_ns: int) -> None:
        """Count a step that ended inside; of a step that began before the region, only the rest."""
        self._summary.step(replace(record, start_ns=max(record.start_ns, began_ns)))

    def delivered(self) -> None:
        """Note that all syncs of the region have been delivered."""
        self._lost = self._agent.dropped

    @property
    def wants_copies(self) -> bool:
        """Whether every copy is to be watched, as by gates and under budgets."""
        if self._asks_for_copies is not None:
            return self._asks_for_copies
        return self.judges and (self.is_gate or self._policy.budgets.set)

    @property
    def is_gate(self) -> bool:
        """Whether a sync that is not allowed in here has consequences."""
        return self.judges and schema.is_gate(self._policy.mode, self.settings.baseline)

    def copies_watched(self) -> None:
        """Note that every copy of this thread is seen from now on."""
        if self._all_copies_from_ns is None:
            self._all_copies_from_ns = time.perf_counter_ns()

    def saw_all_copies(self, moment_ns: int) -> bool:
        return self._all_copies_from_ns is not None and moment_ns >= self._all_copies_from_ns

    def step_ended(self, step: int, lasted_ns: int) -> None:
        """Move the window of ``max_stall_share`` on."""
        if self._policy.budgets.has_window:
            self._policy.budgets.step_ended(step, lasted_ns)
