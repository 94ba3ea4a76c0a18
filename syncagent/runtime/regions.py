"""Regions: a watch inside a watch, with a policy, allowances, budgets and a report of its own.

The sensors, and with them ``detail``, ``simulate`` and all else that decides what is seen, are those of the agent that
runs.  A region covers the thread or asyncio task that opened it and the backward passes called there, as ``allow``
does; other threads with ``judge_threads="all"``.

One policy judges a sync: that of the innermost region that covers it, with its allowances and budgets, and every report
shows that verdict.  All regions around it, and the agent, count the sync.  An ``allow`` block holds in the regions that
are opened inside it.  A region that is given no setting of the policy is judged by what is around it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from syncagent.delivery.sink import Sink
from syncagent.policy import Policy, scopes
from syncagent.policy.scopes import Reach, covering, innermost, open_reaches
from syncagent.report.model import Overhead
from syncagent.report.summary import Summary
from syncagent.runtime import table
from syncagent.runtime.handle import Agent
from syncagent.runtime.run import RunTime, no_run
from syncagent.runtime.verdict import GateVerdict, cannot_count, cannot_hold
from syncagent.settings import schema
from syncagent.support.log import log_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from syncagent.attribution.ranks import Rank
    from syncagent.attribution.steps import Steps
    from syncagent.events import CollectiveRecord, StepRecord, SyncEvent, Weight
    from syncagent.recording.recorder import Recorder
    from syncagent.recording.records import ThreadState
    from syncagent.report.model import Report, RunInfo
    from syncagent.sensors.registry import SensorSet
    from syncagent.sensors.sampled_steps import Sampled
    from syncagent.settings.schema import PolicyName, Settings
    from syncagent.support.faults import Faults

_JUDGING = (
    "policy", "allow", "allow_kinds", "allow_packs", "baseline", "max_syncs_per_step", "max_stall_ms_per_step",
    "max_stall_share", "stall_share_window", "min_stall_ms", "warmup_steps", "judge_threads",
)  # fmt: skip
"""A region that is given one of these has a policy of its own."""
_SHARED = (
    "overhead", "simulate", "simulate_gpu", "stacks", "user_code", "cost", "cost_steps", "journal", "policy_file",
    "policy_signal", "report_signal", "progress",
)  # fmt: skip
"""Settings that a region takes from the agent, beside ``detail`` and, in part, ``copies``."""
_STOPPED = "the program stopped the agent, or this region, before the block ended"
_CUT_SHORT = (
    "the watch that had begun first has ended before this one, and the sensors with it: what waited after that is not "
    "in this report; begin both inside a third, or call syncagent.start() before them"
)


class Host(Protocol):
    """What regions need of the agent of the process."""

    settings: Settings
    faults: Faults
    steps: Steps
    sensors: SensorSet
    policy: PolicyName

    @property
    def rank(self) -> Rank: ...
    @property
    def dropped(self) -> int: ...
    def drain(self) -> None: ...
    def flush(self) -> None: ...
    def epoch_ns(self, moment_ns: int) -> int: ...
    def weight(self, event: SyncEvent) -> Weight: ...
    def watch_copies(self, state: ThreadState) -> None: ...
    def run_info(self) -> RunInfo: ...
    def shared_problems(self, settings: Settings) -> list[str]: ...
    def unseen_by_gates(self, dropped: int) -> list[str]: ...
    def measure_cost(self, steps: int = 5) -> None: ...


class Region(Reach, Agent):
    """What ``with syncagent.watch(...)`` gives inside another watch."""

    def __init__(
        self,
        agent: Host,
        regions: Regions,
        settings: Settings,
        outer: Reach | None,
        policy: Policy,
        *,
        asserts: bool = False,
    ) -> None:
        given = {name for name, source in settings.sources.items() if source == "keyword"}
        super().__init__(
            outer,
            policy,
            judges=not given.isdisjoint(_JUDGING),
            every_thread=settings.judge_threads == "all",
        )
        self.settings = settings
        self.asserts = asserts
        """Whether its syncs are counted against a limit when it ends."""
        self.steps = agent.steps
        self.own_policy = policy
        """What judges in here, if this region judges."""
        self.summary = Summary(newest=settings.max_events, scale=agent.weight, sampled=self._sampled)
        self.time = RunTime(agent.settings)
        self.over_ns = math.inf
        """When it ended, by ``perf_counter_ns``."""
        self.all_copies_from_ns = math.inf
        """From when on every copy of this thread is seen."""
        self.dropped_by_end: int | None = None
        """How many syncs the agent had dropped when the last of this region's was delivered."""
        self.is_saved = "report" not in given  # the environment's report is the agent's
        """Whether the report is saved already, or was not asked for."""
        self.is_shown = not (settings.summary and "summary" in given)  # the environment's table is the agent's, too
        """Whether the table is printed already, or was not asked for."""
        self.notes: list[str] = ["this is the report of a region, a watch inside the one of the process"]
        self._agent = agent
        self._regions = regions
        self._sampled_before = agent.sensors.sampled()
        self._sampled_by_end: Sampled | None = None
        self._started = datetime.now(timezone.utc)
        self._dropped_before = agent.dropped
        self._asks_for_copies: bool | None = settings.copies == "all" if "copies" in given else None
        self.verdict = GateVerdict(is_gate=self.is_gate)

    # --- what a program sees

    @property
    def running(self) -> bool:
        return self.is_open

    @property
    def rank(self) -> Rank:
        return self._agent.rank

    @property
    def policy(self) -> PolicyName:
        if self.judges:
            return self.own_policy.mode
        return self.outer.policy if isinstance(self.outer, Region) else self._agent.policy

    @policy.setter
    def policy(self, value: PolicyName) -> None:
        self.own_policy.mode = schema.parse("policy", value)
        self.judges = True
        self.verdict.policy_changed(self.own_policy.mode, "the program", is_gate=self.is_gate)
        if self.is_open:
            self._regions.update_copies(self)

    def events(self) -> tuple[SyncEvent, ...]:
        self._agent.drain()
        return self._agent.faults.guard("the newest syncs of a region", self.summary.newest, ())

    def report(self) -> Report:
        self._agent.drain()
        empty = Summary().snapshot(no_run(self.own_policy.mode), notes=self.notes)
        return self._agent.faults.guard("the report of a region", self._report, empty)

    def _report(self) -> Report:
        agent = self._agent
        run = replace(
            agent.run_info(),
            started=self._started.isoformat(timespec="milliseconds"),
            duration_s=self.time.duration_s,
            gpu_busy_s=self.time.gpu_busy_s,
            policy=self.policy,
        )
        sensors = agent.sensors.statuses()
        if self.all_copies_from_ns < math.inf and not agent.sensors.partly.gave_way:
            detail = agent.sensors.partly.whole
            sensors = tuple(replace(one, detail=detail) if one.name == "kernels" else one for one in sensors)
        dropped = (agent.dropped if self.dropped_by_end is None else self.dropped_by_end) - self._dropped_before
        problems = agent.shared_problems(self.settings)
        run, problems = self.verdict.on(run, problems, lambda: agent.unseen_by_gates(dropped))
        from syncagent.report.explaining import explained  # see ProcessAgent.report

        report = self.summary.snapshot(run, sensors, Overhead(None, None), dropped, (), self.notes, problems)
        return agent.faults.guard("advice", lambda: explained(report), report)

    def stop(self) -> Report:
        self._regions.stop(self)
        return self.report()

    def flush(self) -> None:
        self._agent.flush()

    def measure_cost(self, steps: int = 5) -> None:
        self._agent.measure_cost(steps)

    # --- while it is open

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Do not cover this thread or task meanwhile, as a generator does not while its caller runs."""
        scopes.leave(self)
        try:
            yield
        finally:
            if self.is_open:
                scopes.enter(self)

    def close(self) -> None:
        """End the region where its block ends; save its report and print its table if that was asked for."""
        scopes.leave(self)
        self._regions.end(self)
        self.deliver_once()

    def deliver_once(self) -> None:
        """Save the report and print the table that were asked for, unless that has been done."""
        if self.is_saved and self.is_shown:
            return
        report = self.report()
        is_saved, self.is_saved = self.is_saved, True
        saved = None if is_saved else self.save(report)
        is_shown, self.is_shown = self.is_shown, True
        if not is_shown:
            table.show(report, {"report": saved}, verbose=self.settings.verbose)

    def _sampled(self) -> Counter[int]:
        """Return how many sampled steps it has had, by how many each of them stands for."""
        by_now = self._agent.sensors.sampled() if self._sampled_by_end is None else self._sampled_by_end
        return by_now.since(self._sampled_before)

    def stop_sampling(self) -> None:
        """Count no further sampled steps: it has ended."""
        self._sampled_by_end = self._agent.sensors.sampled()

    @property
    def wants_copies(self) -> bool:
        """Whether every copy is to be watched, as by gates and under budgets; or every sync, under ``auto``."""
        if self.asserts:
            return True
        if self._agent.sensors.sampling is not None:
            return self.judges and (self.own_policy.mode != "observe" or self.own_policy.budgets.set)
        if self._asks_for_copies is not None:
            return self._asks_for_copies
        return self.judges and (self.is_gate or self.own_policy.budgets.set)

    @property
    def is_gate(self) -> bool:
        """Whether a sync that is not allowed in here has consequences."""
        return self.asserts or (self.judges and schema.is_gate(self.own_policy.mode, self.settings.baseline))

    def note(self, sentence: str, *, is_gap: bool = False) -> None:
        """Put a sentence into the report and, once, into the log; a gap lets syncs past the region's gate."""
        notes = self.verdict.gaps if is_gap and self.is_gate else self.notes
        if sentence not in notes:
            notes.append(sentence)
            log_once(f"region-{sentence}", sentence)


def _open_regions() -> list[Region]:
    return [reach for reach in tuple(open_reaches) if isinstance(reach, Region)]  # other threads open and close them


class Regions(Sink):
    """The regions of one agent; as a sink, it hands each of them what belongs to it."""

    name = "regions"

    def __init__(self, agent: Host, recorder: Recorder) -> None:
        self._agent = agent
        self._recorder = recorder
        self._lock = threading.RLock()  # never taken where a sync is recorded
        self._known: dict[int, Region] = {}
        """Those that are open, and those that have ended while some of their syncs are still to be delivered."""

    # --- opening and ending

    def open(self, settings: Settings, like: Policy | None = None, *, asserts: bool = False) -> Region:
        """Begin a region here.

        ``like`` is the policy of an earlier region with the same settings, whose lists and baseline are used again.
        ``asserts``: its syncs are counted against a limit when it ends, so that it has to see all of them.
        Raises :class:`~syncagent.ConfigError` for a pack or a baseline that cannot be read, and where a gate would have
        no sensor to go by.
        """
        agent = self._agent
        outer = innermost(scopes.open_scopes())
        given = settings.sources
        if given.get("warmup_steps") != "keyword":
            settings = replace(settings, warmup_steps=0)
        if given.get("policy") != "keyword":
            settings = replace(settings, policy=outer.policy if isinstance(outer, Region) else agent.policy)
        if like is None:
            like = Policy(settings, self._recorder.locator, lambda: agent.steps.current)
        begun = agent.steps.count
        policy = like.for_region(settings.policy, lambda: agent.steps.count - begun)
        region = Region(agent, self, settings, outer, policy, asserts=asserts)
        if region.is_gate and (blind_spots := agent.sensors.blind_spots()):
            raise cannot_count(blind_spots) if asserts else cannot_hold(region.policy, blind_spots)
        self._note_shared_settings(region)
        with self._lock:
            self._known[region.number] = region
            open_reaches.append(region)
        scopes.scopes_by_thread[-region.number] = (region,)  # no thread's number: allowances are asked about meanwhile
        scopes.enter(region)
        self._copies_changed(region)
        return region

    def end(self, region: Region) -> None:
        """End a region, from any thread; its last syncs are delivered later."""
        with self._lock:
            if not region.is_open:
                return
            region.is_open = False
            region.over_ns = time.perf_counter_ns()
            region.time.end()
            region.stop_sampling()
            if region in open_reaches:
                open_reaches.remove(region)
        scopes.forget(region)
        self._copies_changed(region)  # torch.compile may have come into use

    def stop(self, region: Region) -> None:
        """End a region before its block ends."""
        if region.asserts and region.is_open:
            region.note(_STOPPED, is_gap=True)
        self.end(region)

    def cut_short(self) -> None:
        """Note in the open regions that the program goes on in them while the agent ends."""
        for region in _open_regions():
            region.note(_CUT_SHORT, is_gap=True)

    def end_all(self, deliver: Callable[[], object]) -> None:
        """End all open regions, since the agent stops; save their reports once ``deliver`` has brought the rest."""
        guard = self._agent.faults.guard
        ended = _open_regions()[::-1]
        for region in ended:
            guard("the end of regions", partial(self.stop, region), None)
        deliver()
        for region in ended:
            guard("the report of a region", region.deliver_once, None)

    def forget(self) -> None:
        """In a forked child: the regions are the parent's, and so are their reports and the locks of its threads."""
        self._lock = threading.RLock()
        for region in self._known.values():
            region.is_open, region.is_saved, region.is_shown = False, True, True
            scopes.forget(region)
        self._known.clear()
        open_reaches.clear()

    def here(self) -> Region | None:
        """Return the innermost region that covers the caller."""
        if not open_reaches:
            return None
        own, others = covering(self._recorder.locator, self._recorder.threads.current())
        return next((reach for reach in (own, *others) if isinstance(reach, Region)), None)

    # --- what cannot change inside

    def _note_shared_settings(self, region: Region) -> None:
        """Note which settings were asked for and are not applied."""
        asked, agent = region.settings, self._agent.settings
        pairs: list[tuple[str, object, object]] = [("detail", asked.detail, agent.detail_in_force)]
        pairs += [(name, getattr(asked, name), getattr(agent, name)) for name in _SHARED]
        if (
            agent.samples_steps or agent.copies_timed == "off" or asked.copies != "all"
        ):  # sampled copies can all be watched in a region
            pairs.append(("copies", asked.copies, agent.copies_timed))
        theirs = agent.report and os.path.abspath(agent.report)
        if not region.is_saved and theirs == os.path.abspath(asked.report or ""):
            region.note(f"the report of a region goes to {theirs}, where that of the process will take its place")
        for name, wanted, shared in pairs:
            if asked.sources.get(name) == "keyword" and wanted != shared:
                region.note(
                    f"setting {name} is {wanted!r} for a watch inside another, but it stays {shared!r}: "
                    "it is set where the outermost watch begins"
                )

    # --- copies

    def _copies_changed(self, region: Region) -> None:
        """Watch the copies that are wanted now, and note those that the policy does not see, for who relies on it."""
        self._agent.faults.guard("the watch for copies", lambda: self.update_copies(region), None)
        if region.judges and region.wants_copies:
            partly = self._agent.sensors.partly
            why = partly.unseen(every_thread=region.every_thread)
            if why is not None:
                region.note(f"policy {region.policy!r} of a region does not see {partly.thing}{why}", is_gap=True)

    def want_copies(self) -> bool:
        """Whether a region that is open on this thread wants every copy watched; from now on they are."""
        ident = threading.get_ident()
        wanting = [region for region in _open_regions() if region.ident == ident and region.wants_copies]
        for region in wanting:
            region.all_copies_from_ns = min(region.all_copies_from_ns, time.perf_counter_ns())
        return bool(wanting)

    def update_copies(self, region: Region) -> None:
        """Watch every copy of this thread, where copies are sampled, for as long as a region wants that."""
        if self._agent.sensors.partly.can_change and region.ident == threading.get_ident():
            self._agent.watch_copies(self._recorder.threads.current())

    def saw_all_copies(self, event: SyncEvent) -> bool:
        """Whether a region that covers this sync saw all copies, so that this copy stands for no other one."""
        moment_ns = event.start_ns - self._agent.epoch_ns(0)
        return any(moment_ns >= region.all_copies_from_ns for region in self._of(event.regions))

    def _of(self, numbers: Sequence[int]) -> Iterator[Region]:
        """Return the regions with these numbers, but for those that have been retired."""
        return (region for number in numbers if (region := self._known.get(number)) is not None)

    # --- once a step, and on the agent's thread

    def step_ended(self, step: int, lasted_ns: int) -> None:
        """Move the window of ``max_stall_share`` on in the open regions."""
        for region in _open_regions():
            budgets = region.own_policy.budgets
            if budgets.has_window:
                budgets.step_ended(step, lasted_ns)

    def policy_of(self, numbers: Sequence[int]) -> str | None:
        """Return the policy that judged a sync, if it was a region's."""
        return next((region.policy for region in self._of(numbers[::-1]) if region.judges), None)

    def retire(self, drained_ns: int) -> None:
        """Forget the regions that have ended and whose syncs have all been delivered."""
        ended = {region.number: region for region in tuple(self._known.values()) if region.over_ns < drained_ns}
        if not ended:
            return
        for number, region in ended.items():
            region.dropped_by_end = self._agent.dropped
            self._known.pop(number, None)
        for state in self._recorder.threads.all:
            kept: tuple[dict[Any, Any], ...] = (state.tallies, state.sums)
            for tallies in kept:
                for key, tally in tuple(tallies.items()):
                    is_delivered = tally.count == tally.delivered_count and tally.last is not None
                    if is_delivered and not ended.keys().isdisjoint(tally.last.regions):
                        tallies.pop(key, None)

    def events(self, batch: Sequence[SyncEvent]) -> None:
        offset_ns = self._agent.epoch_ns(0)
        shares: dict[Region, list[SyncEvent]] = {}
        for event in batch:
            for region in self._of(event.regions) if event.regions else ():
                if event.start_ns - offset_ns <= region.time.ended_ns:
                    shares.setdefault(region, []).append(event)
        for region, events in shares.items():
            region.summary.events(events)

    def collectives(self, record: CollectiveRecord) -> None:
        """Add it to the step in all regions that have it."""
        for region in tuple(self._known.values()):
            region.summary.collectives(record)

    def step(self, record: StepRecord) -> None:
        """Count a step for each region that it ended in; of one that began before the region, only the rest."""
        offset_ns = self._agent.epoch_ns(0)
        for region in tuple(self._known.values()):
            began_ns = region.time.began_ns + offset_ns
            if began_ns <= record.end_ns <= region.time.ended_ns + offset_ns:
                region.summary.step(replace(record, start_ns=max(record.start_ns, began_ns)))
