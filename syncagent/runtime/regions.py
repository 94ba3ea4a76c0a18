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
from typing import TYPE_CHECKING

from syncagent.delivery.sink import Sink
from syncagent.policy import scopes
from syncagent.policy.scopes import covering, innermost, open_reaches
from syncagent.runtime.region import Region
from syncagent.runtime.verdict import cannot_hold
from syncagent.support.log import log_once

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from syncagent.events import StepRecord, SyncEvent
    from syncagent.policy import Policy
    from syncagent.recording.recorder import Recorder
    from syncagent.runtime.region import Host
    from syncagent.settings.schema import Settings

__all__ = ["Region", "Regions"]

_SHARED = (
    "simulate", "stacks", "user_code", "cost", "cost_steps", "journal", "summary", "policy_file", "policy_signal",
)  # fmt: skip
"""Settings that a region takes from the agent, beside ``detail`` and, in part, ``copies``."""


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

    def open(self, settings: Settings, like: Policy | None = None) -> Region:
        """Begin a region here.

        ``like`` is the policy of an earlier region with the same settings, whose lists and baseline are used again.
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
            like = agent.new_policy(settings)
        begun = agent.steps.count
        policy = like.for_region(settings.policy, lambda: agent.steps.count - begun)
        region = Region(agent, self, settings, outer, policy)
        self._refuse_a_gate_that_cannot_hold(region)
        self._note_shared_settings(region)
        with self._lock:
            self._known[region.number] = region
            open_reaches.append(region)
        scopes.scopes_by_thread[-region.number] = (region,)  # no thread's number: allowances are asked about meanwhile
        scopes.enter(region)
        agent.faults.guard("the watch for copies", lambda: self.update_copies(region), None)
        self._note_unseen_copies(region)
        return region

    def end(self, region: Region) -> None:
        """End a region, from any thread; its last syncs are delivered later."""
        with self._lock:
            if not region.is_open:
                return
            region.is_open = False
            region.ended_ns = time.perf_counter_ns()
            if region in open_reaches:
                open_reaches.remove(region)
        scopes.forget(region)
        self._agent.faults.guard("the watch for copies", lambda: self.update_copies(region), None)
        self._note_unseen_copies(region)  # torch.compile may have come into use

    def end_all(self, deliver: Callable[[], object]) -> None:
        """End all open regions, since the agent stops; save their reports once ``deliver`` has brought the rest."""
        ended: tuple[Region, ...] = self._agent.faults.guard("the end of regions", self._end_open, ())
        deliver()
        for region in ended:
            self._agent.faults.guard("the report of a region", region.save_once, None)

    def _end_open(self) -> tuple[Region, ...]:
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
        own, others = covering(self._recorder.locator, self._recorder.threads.current())
        return next((reach for reach in (own, *others) if isinstance(reach, Region)), None)

    def _refuse_a_gate_that_cannot_hold(self, region: Region) -> None:
        blind_spots = self._agent.sensors.blind_spots() if region.is_gate else []
        if blind_spots:
            raise cannot_hold(region.policy, blind_spots)

    # --- what cannot change inside

    def _note_shared_settings(self, region: Region) -> None:
        """Note which settings were asked for and are not applied."""
        asked, agent = region.settings, self._agent.settings
        wraps = "ops" if agent.wraps_every_op else "syncs"
        pairs: list[tuple[str, object, object]] = [("detail", asked.detail, wraps)]
        pairs += [(name, getattr(asked, name), getattr(agent, name)) for name in _SHARED]
        if agent.copies_timed == "off" or asked.copies != "all":  # sampled copies can all be watched in a region
            pairs.append(("copies", asked.copies, agent.copies_timed))
        theirs = agent.report and os.path.abspath(agent.report)
        if not region.saved and theirs == os.path.abspath(asked.report or ""):
            self._note(
                region, f"the report of a region goes to {theirs}, where that of the process will take its place"
            )
        for name, wanted, shared in pairs:
            if asked.sources.get(name) == "keyword" and wanted != shared:
                self._note(
                    region,
                    f"setting {name} is {wanted!r} for a watch inside another, but it stays {shared!r}: "
                    "it is set where the outermost watch begins",
                )

    def _note_unseen_copies(self, region: Region) -> None:
        """Note the copies that the policy does not see, for those who rely on it."""
        if region.judges and region.wants_copies:
            why = self._agent.sensors.copies.unseen(every_thread=region.every_thread)
            if why is not None:
                self._note_gap(region, f"policy {region.policy!r} of a region does not see copies{why}")

    @staticmethod
    def _note_gap(region: Region, sentence: str) -> None:
        """Log what the policy does not see and put it into the report."""
        gaps = region.gaps if region.is_gate else region.notes
        if sentence not in gaps:
            gaps.append(sentence)
            log_once(f"region-{sentence}", sentence)

    @staticmethod
    def _note(region: Region, sentence: str) -> None:
        """Put a sentence into the region's report and, once, into the log."""
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

    def update_copies(self, region: Region) -> None:
        """Watch every copy of this thread, where copies are sampled, for as long as a region wants that."""
        if self._agent.sensors.copies.can_change and region.ident == threading.get_ident():
            self._agent.watch_copies(self._recorder.threads.current())

    def saw_all_copies(self, event: SyncEvent) -> bool:
        """Whether a region that covers this sync saw all copies, so that this copy stands for no other one."""
        known = [region for number in event.regions if (region := self._known.get(number)) is not None]
        moment_ns = event.start_ns - self._agent.epoch_ns(0)
        return any(region.saw_all_copies(moment_ns) for region in known)

    # --- once a step, and on the agent's thread

    def step_ended(self, step: int, lasted_ns: int) -> None:
        """Move the budgets of the open regions on."""
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
        """Forget the regions that have ended and whose syncs have all been delivered."""
        ended = [r for r in tuple(self._known.values()) if r.ended_ns is not None and r.ended_ns < drained_ns]
        if not ended:
            return
        for region in ended:
            region.delivered()
            self._known.pop(region.number, None)
        numbers = {region.number for region in ended}
        for state in self._recorder.threads.all:
            for key, tally in tuple(state.tallies.items()):
                if tally.count == tally.delivered_count and tally.last is not None and numbers & {*tally.last.regions}:
                    state.tallies.pop(key, None)
            for sum_key, tally in tuple(state.sums.items()):
                if tally.count == tally.delivered_count and tally.last is not None and numbers & {*tally.last.regions}:
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
            began_ns = self._agent.epoch_ns(region.began_ns)
            ended_ns = self._ended_ns(region)
            if record.end_ns >= began_ns and (ended_ns is None or record.end_ns <= ended_ns):
                region.step(record, began_ns)

    def _ended_ns(self, region: Region) -> int | None:
        return None if region.ended_ns is None else self._agent.epoch_ns(region.ended_ns)
