"""Regions: a watch inside a watch, with a policy, allowances, budgets and a report of its own.

The sensors, and with them ``detail``, ``simulate`` and all else that decides what is seen, are those of the agent that
runs.  A region covers the thread or asyncio task that opened it and the backward passes called there, as ``allow``
does; other threads with ``judge_threads="all"``.

One policy judges a sync: that of the innermost region that covers it, with its allowances and budgets, and every report
shows that verdict.  All regions around it, and the agent, count the sync.  An ``allow`` block holds in the regions that
are opened inside it.  A region that is given no setting of the policy is judged by what is around it.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from syncagent.delivery.sink import Sink
from syncagent.errors import ConfigError
from syncagent.policy import Policy, gate, scopes
from syncagent.policy.reach import Reach, covering, innermost, open_reaches
from syncagent.report.model import Overhead
from syncagent.report.summary import Summary
from syncagent.settings import schema
from syncagent.support.log import log_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncagent.attribution.ranks import Rank
    from syncagent.attribution.steps import Steps
    from syncagent.events import StepRecord, SyncEvent
    from syncagent.report.model import Report
    from syncagent.runtime.agent import Agent
    from syncagent.settings.schema import PolicyName, Settings

__all__ = ["Region", "Regions"]

_SHARED = (
    "simulate", "stacks", "user_code", "cost", "cost_steps", "journal", "summary", "policy_file", "policy_signal",
)  # fmt: skip
"""Settings that a region takes from the agent, beside ``detail`` and, in part, ``copies``."""
_JUDGING = (
    "policy", "allow", "allow_kinds", "allow_packs", "baseline", "max_syncs_per_step", "max_stall_ms_per_step",
    "max_stall_share", "stall_share_window", "min_stall_ms", "warmup_steps", "judge_threads",
)  # fmt: skip
"""A region that is given one of these has a policy of its own."""


class Region(Reach):
    """What ``with syncagent.watch(...)`` gives inside another watch; it is asked as the agent is."""

    def __init__(self, agent: Agent, settings: Settings, outer: Reach | None, policy: Policy) -> None:
        given = {name for name, source in settings.sources.items() if source == "keyword"}
        super().__init__(
            outer,
            policy,
            judges=not given.isdisjoint(_JUDGING),
            every_thread=settings.judge_threads == "all",
        )
        self.settings = settings
        self._agent = agent
        self._policy = policy
        self._summary = Summary(newest=settings.max_events, scale=agent._weight)
        self._started = datetime.now(timezone.utc)
        self.began_ns = time.perf_counter_ns()
        self.ended_ns: int | None = None
        self._lost_before = agent._lost
        self._lost: int | None = None
        self._asks_for_copies: bool | None = settings.copies == "all" if "copies" in given else None
        self._all_copies_from_ns: int | None = None
        self._is_saved = "report" not in given  # the environment's report is the agent's
        self._was_gate = self.is_gate
        self.gaps: list[str] = []
        """What lets a sync pass that this region's policy is to stop."""
        self.notes: list[str] = ["this is the report of a region, a watch inside the one of the process"]

    # --- what a program sees

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.is_open

    @property
    def rank(self) -> Rank:
        """The rank of this process."""
        return self._agent.rank

    @property
    def steps(self) -> Steps:
        """The count of the process's steps."""
        return self._agent.steps

    @property
    def own_policy(self) -> Policy:
        """What judges in here, if this region judges."""
        return self._policy

    @property
    def policy(self) -> PolicyName:
        """What happens at a sync in here that nothing allows: ``observe``, ``warn`` or ``raise``; may be set."""
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
            self._agent.regions.look_after_copies(self)

    def events(self) -> tuple[SyncEvent, ...]:
        """Return the newest syncs inside (``max_events`` of them), oldest first."""
        self._agent._drain()
        none: tuple[SyncEvent, ...] = ()
        return self._agent.faults.guard("the newest syncs of a region", self._summary.newest, none)

    def report(self) -> Report:
        """Return what was seen inside so far: the steps that ended in here, their time, the sites, the sums."""
        from syncagent.runtime.agent import no_run

        self._agent._drain()
        empty = Summary().snapshot(no_run(self._policy.mode), notes=self.notes)
        return self._agent.faults.guard("the report of a region", self._report, empty)

    def _report(self) -> Report:
        agent = self._agent
        ended_ns = self.ended_ns if self.ended_ns is not None else time.perf_counter_ns()
        run = replace(
            agent._run_info(),
            started=self._started.isoformat(timespec="milliseconds"),
            duration_s=(ended_ns - self.began_ns) / 1e9,
            policy=self.policy,
        )
        sensors = agent._sensors_or_none()
        notes = [*self.notes, *agent._shared_notes(self.settings)]
        if self._all_copies_from_ns is not None and not agent._kernels.gave_way:
            detail = "copies: every one on the region's thread"
            sensors = tuple(replace(one, detail=detail) if one.name == "kernels" else one for one in sensors)
        dropped = (self._lost if self._lost is not None else agent._lost) - self._lost_before
        if self._was_gate:
            failures = [*self.gaps, *agent._watch_failures(dropped)]
            run = replace(run, gate=gate.FAILED if failures else gate.HELD)
            notes += [gate.NOTE + why for why in failures]
        return self._summary.snapshot(run, sensors, Overhead(None, None), dropped, (), notes)

    def stop(self) -> Report:
        """End the region, unless it has ended, and return its report."""
        self._agent.regions.end(self)
        return self.report()

    def save(self, report: Report) -> str | None:
        """Save a report where the setting ``report`` says and return where; a path that cannot be written is logged."""
        return self._agent.save(report, self.settings.report) if self.settings.report is not None else None

    def flush(self) -> None:
        """Deliver everything that was seen so far to every sink."""
        self._agent.flush()

    def measure_cost(self, steps: int = 5) -> None:
        """Price the syncs of the steps that follow, in the process's report: see :meth:`Agent.measure_cost`."""
        self._agent.measure_cost(steps)

    # --- while it is open

    def suspend(self) -> None:
        """Cover nothing here for a while: a generator hands over to its caller."""
        scopes.leave(self)

    def resume(self) -> None:
        """Cover this thread or task again."""
        if self.is_open:
            scopes.enter(self)

    def close(self) -> None:
        """End it where its block ends, and save its report if one was asked for."""
        scopes.leave(self)
        self._agent.regions.end(self)
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
        """Count a step that ended inside; of the one that was running at the start, only the rest."""
        self._summary.step(replace(record, start_ns=max(record.start_ns, began_ns)))

    def delivered(self) -> None:
        """All that was recorded in here has been delivered."""
        self._lost = self._agent._lost

    @property
    def wants_copies(self) -> bool:
        """Whether every copy is to be watched, as by gates and under budgets."""
        if self._asks_for_copies is not None:
            return self._asks_for_copies
        return self.judges and (self.is_gate or self._policy.budgets.set)

    @property
    def is_gate(self) -> bool:
        """Whether a sync that nothing allows has consequences: under ``raise``, and ``warn`` with a baseline."""
        mode = self._policy.mode
        return self.judges and (mode == "raise" or (mode == "warn" and self.settings.baseline is not None))

    def copies_watched(self) -> None:
        """From now on every copy of this thread is seen."""
        if self._all_copies_from_ns is None:
            self._all_copies_from_ns = time.perf_counter_ns()

    def saw_all_copies(self, moment_ns: int) -> bool:
        return self._all_copies_from_ns is not None and moment_ns >= self._all_copies_from_ns

    def step_ended(self, step: int, lasted_ns: int) -> None:
        """Move the window of ``max_stall_share`` on."""
        if self._policy.budgets.has_window:
            self._policy.budgets.step_ended(step, lasted_ns)


class Regions(Sink):
    """The regions of one agent; as a sink, it hands each of them what belongs to it."""

    name = "regions"

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._lock = threading.RLock()  # never taken where a sync is recorded
        self._known: dict[int, Region] = {}
        """Those that are open, and those that have ended and are owed syncs which are still to be delivered."""

    # --- opening and ending

    def open(self, settings: Settings, like: Policy | None = None) -> Region:
        """Begin a region here.

        ``like`` is the policy of an earlier region with the same settings, whose lists and baseline have been read.
        Raises :class:`~syncagent.ConfigError` for a pack or a baseline that cannot be read, and where a gate would have
        no sensor to go by.
        """
        agent = self._agent
        outer = innermost(scopes.open_scopes())
        given = settings.sources
        if given.get("warmup_steps") != "keyword":
            settings = replace(settings, warmup_steps=0)
        mode = settings.policy
        if given.get("policy") != "keyword":
            mode = outer.policy if isinstance(outer, Region) else agent.policy
            settings = replace(settings, policy=mode)
        if like is None:
            like = agent._new_policy(settings)
        begun = agent.steps.count
        region = Region(agent, settings, outer, like.for_region(mode, lambda: agent.steps.count - begun))
        self._refuse_a_gate_that_cannot_hold(region)
        self._say_what_is_shared(region)
        with self._lock:
            self._known[region.number] = region
            open_reaches.append(region)
        scopes.scopes_by_thread[-region.number] = (region,)  # no thread's number: allowances are asked about meanwhile
        scopes.enter(region)
        agent.faults.guard("the watch for copies", lambda: self.look_after_copies(region), None)
        self._say_what_it_cannot_see(region)
        return region

    def end(self, region: Region) -> None:
        """End a region, from any thread; what it is still owed is delivered later."""
        with self._lock:
            if not region.is_open:
                return
            region.is_open = False
            region.ended_ns = time.perf_counter_ns()
            if region in open_reaches:
                open_reaches.remove(region)
        scopes.forget(region)
        self._agent.faults.guard("the watch for copies", lambda: self.look_after_copies(region), None)
        self._say_what_it_cannot_see(region)  # torch.compile may have come into use

    def end_all(self) -> tuple[Region, ...]:
        """End all that are open, since the agent stops; return them, the innermost first."""
        regions = tuple(reach for reach in reversed(open_reaches) if isinstance(reach, Region))
        for region in regions:
            self.end(region)
        return regions

    def forget(self) -> None:
        """In a forked child: the regions are the parent's, and so are the locks that its threads held."""
        self._lock = threading.RLock()
        for region in self._known.values():
            region.forget()
            scopes.forget(region)
        self._known.clear()
        open_reaches.clear()

    def here(self) -> Region | None:
        """Return the innermost region that covers the caller."""
        if not open_reaches:
            return None
        own, others = covering(self._agent._recorder, self._agent._recorder.thread_state())
        return next((reach for reach in (own, *others) if isinstance(reach, Region)), None)

    def _refuse_a_gate_that_cannot_hold(self, region: Region) -> None:
        whys = "; ".join(self._agent._blind() if region.is_gate else ())
        if whys:
            raise ConfigError(
                f"syncagent: setting policy is {region.policy!r}, but it cannot be in force here: {whys}."
            )

    # --- what cannot change inside

    def _say_what_is_shared(self, region: Region) -> None:
        """Say which settings were asked for and are not applied."""
        asked, agent = region.settings, self._agent.settings
        wraps = "ops" if agent.wraps_every_op else "syncs"
        pairs: list[tuple[str, object, object]] = [("detail", asked.detail, wraps)]
        pairs += [(name, getattr(asked, name), getattr(agent, name)) for name in _SHARED]
        if agent.copies_timed == "off" or asked.copies != "all":  # sampled copies can all be watched in a region
            pairs.append(("copies", asked.copies, agent.copies_timed))
        theirs = agent.report and os.path.abspath(agent.report)
        if not region.saved and theirs == os.path.abspath(asked.report or ""):
            self._say(region, f"the report of a region goes to {theirs}, where that of the process will take its place")
        for name, wanted, shared in pairs:
            if asked.sources.get(name) == "keyword" and wanted != shared:
                self._say(
                    region,
                    f"setting {name} is {wanted!r} for a watch inside another, but it stays {shared!r}: "
                    "it is set where the outermost watch begins",
                )

    def _say_what_it_cannot_see(self, region: Region) -> None:
        """Say where the policy is blind: whoever relies on it has to know."""
        agent, policy = self._agent, region.policy
        if agent.settings.simulate or not agent._has_cuda or not region.judges:
            return
        if agent._kernels.live and region.wants_copies:
            copies, blind = agent.settings.copies_timed, f"policy {policy!r} of a region does not see copies"
            if copies == "off":
                self._say_gap(region, f'{blind}: setting copies is "off" for the process')
            elif copies == "sampled" and agent._kernels.gave_way:
                self._say_gap(region, f"{blind} since torch.compile is in use; SYNCAGENT_COPIES=all watches them")
            elif copies == "sampled" and region.every_thread:
                self._say_gap(region, f"{blind} on other threads than its own; SYNCAGENT_COPIES=all watches them")

    @staticmethod
    def _say_gap(region: Region, sentence: str) -> None:
        """Log what the policy does not see; the report says it as well."""
        gaps = region.gaps if region.is_gate else region.notes
        if sentence not in gaps:
            gaps.append(sentence)
            log_once(f"region-{sentence}", sentence)

    @staticmethod
    def _say(region: Region, sentence: str) -> None:
        """Put a sentence into the region's report and, the first time, into the log."""
        if sentence not in region.notes:
            region.notes.append(sentence)
            log_once(f"region-{sentence}", sentence)

    # --- copies

    def want_copies(self) -> bool:
        """Whether a region that is open on this thread wants every copy watched; from now on they are."""
        ident = threading.get_ident()
        wanting = [
            reach
            for reach in tuple(open_reaches)
            if isinstance(reach, Region) and reach.ident == ident and reach.wants_copies
        ]
        for region in wanting:
            region.copies_watched()
        return bool(wanting)

    def look_after_copies(self, region: Region) -> None:
        """Watch every copy of this thread where they are sampled otherwise, as long as a region wants that."""
        if self._agent._samples_copies and region.ident == threading.get_ident():
            self._agent._watch_copies()

    def saw_all_copies(self, event: SyncEvent) -> bool:
        """Whether a region that covers this sync saw all copies, so that this one stands for itself alone."""
        known = [region for number in event.regions if (region := self._known.get(number)) is not None]
        moment_ns = event.start_ns - self._agent._buffers.epoch_ns(0)
        return any(region.saw_all_copies(moment_ns) for region in known)

    # --- once a step, and on the agent's thread

    def step_ended(self, step: int, lasted_ns: int) -> None:
        """Tell the budgets of those that are open."""
        for reach in tuple(open_reaches):
            if isinstance(reach, Region):
                reach.step_ended(step, lasted_ns)

    def policy_of(self, numbers: Sequence[int]) -> str | None:
        """Return the policy that judged a sync, if it was a region's."""
        for number in reversed(numbers):
            region = self._known.get(number)
            if region is not None and region.judges:
                return region.policy
        return None

    def retire(self, drained_ns: int) -> None:
        """Let go of regions that have ended and been given all they are owed."""
        ended = [r for r in tuple(self._known.values()) if r.ended_ns is not None and r.ended_ns < drained_ns]
        if not ended:
            return
        for region in ended:
            region.delivered()
            self._known.pop(region.number, None)
        numbers = {region.number for region in ended}
        for state in self._agent._recorder.states:
            for key, tally in tuple(state.tallies.items()):
                if tally.count == tally.told_count and tally.last is not None and numbers & {*tally.last.regions}:
                    state.tallies.pop(key, None)
            for sum_key, tally in tuple(state.sums.items()):
                if tally.count == tally.told_count and tally.last is not None and numbers & {*tally.last.regions}:
                    state.sums.pop(sum_key, None)

    def events(self, batch: Sequence[SyncEvent]) -> None:
        shares: dict[int, list[SyncEvent]] = {}
        for event in batch:
            for number in event.regions:
                shares.setdefault(number, []).append(event)
        for number, events in shares.items():
            region = self._known.get(number)
            if region is not None:
                ended_ns = self._ended_ns(region)
                region.add(events if ended_ns is None else [event for event in events if event.start_ns <= ended_ns])

    def step(self, record: StepRecord) -> None:
        for region in tuple(self._known.values()):
            began_ns = self._agent._buffers.epoch_ns(region.began_ns)
            ended_ns = self._ended_ns(region)
            if record.end_ns >= began_ns and (ended_ns is None or record.end_ns <= ended_ns):
                region.step(record, began_ns)

    def _ended_ns(self, region: Region) -> int | None:
        return None if region.ended_ns is None else self._agent._buffers.epoch_ns(region.ended_ns)
