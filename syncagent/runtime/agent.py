"""The agent of a process: settings → sensors → recorder → pipeline → sinks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from syncagent.attribution.ranges import Ranges
from syncagent.attribution.ranks import Rank
from syncagent.attribution.steps import Steps
from syncagent.cost.measurement import CostMeasurement
from syncagent.delivery.buffers import BufferReader
from syncagent.delivery.pipeline import Pipeline
from syncagent.delivery.sink import Sink, Source
from syncagent.events import OpCount, SyncEvent, Weight
from syncagent.policy import Policy, gate, packs
from syncagent.policy.remote import Remote
from syncagent.policy.scopes import open_reaches
from syncagent.recording.recorder import Recorder
from syncagent.recording.records import ThreadState
from syncagent.report.model import HostRow, Overhead, Report, RunInfo
from syncagent.report.summary import Changes, Facts, Since, Summary
from syncagent.runtime import table
from syncagent.runtime.handle import Agent
from syncagent.runtime.regions import Regions
from syncagent.runtime.report_signal import ReportSignal
from syncagent.runtime.run import Run, clock_of, log_settings_source, no_run, note_of_restarts, note_without_gpu
from syncagent.runtime.sinks import all_sinks
from syncagent.runtime.verdict import GateVerdict, cannot_hold
from syncagent.settings import parsing, schema
from syncagent.settings.schema import PolicyName
from syncagent.settings.sources import JUDGED
from syncagent.support.faults import Faults
from syncagent.support.log import get_logger
from syncagent.support.pace import yield_gil

_SAVE_TIMEOUT_S = 2.0
"""How long the end waits for the report of a signal that is being written."""
_MOST_BEFORE_DEATH_S = 5.0
"""How long delivery may take where a signal ends the process after 8 s: the report has to be saved as well."""


class ProcessAgent(Agent):
    """Watches this process; one runs at a time."""

    def __init__(self, settings: schema.Settings, sinks: tuple[Sink, ...] = ()) -> None:
        from syncagent.sensors.base import Conditions
        from syncagent.sensors.registry import SensorSet
        from syncagent.torchbridge import calibration, internals

        self.settings = settings
        self.faults = Faults()
        """Which parts of the agent have failed."""
        self.run = Run(settings, self.faults)
        self._internals = self.faults.guard(
            "the look-up of torch's internals",
            lambda: internals.look_up(simulated=settings.simulate),
            internals.UNKNOWN,
        )
        self.steps = Steps(self._step_ended, self.faults, clock_of(settings))
        self._recorder = Recorder(settings, self._internals, lambda: self.steps.current, self.faults)
        self.steps.stepped = self._recorder.optimizer_stepped
        self._policy = Policy(settings, self._recorder.locator, lambda: self.steps.current)
        self._recorder.crossing_ns = (calibration.kernel_ns, calibration.mode_ns)
        self._recorder.policy = self._policy
        self._ranges = Ranges(self._recorder.threads, self.faults)
        conditions = replace(Conditions.of(settings), several_ranks=(self.rank.world_size or 1) > 1)
        self.sensors = SensorSet(self._recorder, conditions)
        self._remote = Remote(settings, lambda: self._policy.mode, self._change_policy)
        self._report_signal = ReportSignal(
            settings, lambda: self.faults.guard("saving at a signal", self._write_so_far, None)
        )
        self._saving = threading.Lock()
        """Held while the report of a job that goes on is written: it must not replace the one of the end."""
        self._summary = Summary(
            newest=settings.max_events, scale=self.weight, sampled=lambda: self.sensors.sampled().numbers
        )
        self.regions = Regions(self, self._recorder)
        """The open ones: see :mod:`syncagent.runtime.regions`."""
        self._buffers = BufferReader(
            self._recorder,
            self.rank.rank,
            policy_of=self.regions.policy_of,
            is_named=self._is_named if self.sensors.sampling is not None else None,
        )
        self._pipeline = Pipeline(
            self._buffers, all_sinks(self._summary, self.regions, sinks), self.faults, self._each_round
        )
        self._pipeline.connect(Source(self._buffers.lost, self.weight, self._summary, self._facts))
        self._cost = CostMeasurement(settings, self._events_since, self.faults)
        self._parts: list[tuple[str, Callable[[], None]]] = []
        """What is on, and how each is turned off; the last one first."""
        self._verdict = GateVerdict(is_gate=settings.is_gate, is_judged=bool(os.environ.get(JUDGED)))
        self.remove_device: Callable[[], None] | None = None
        """Removes the simulated device, if that was installed for this agent alone."""
        self.is_kept = False
        """Whether it goes on where the program stops it: it watches for somebody else, such as pytest."""
        self.borrowers = 0
        """How many assertions need it, if the first of them has started it."""
        self.is_off = False
        """Whether it was stopped; a signal that ends the process leaves the sensors on."""
        restarted = self.faults.guard("the number of restarts", note_of_restarts, "")
        self.notes: list[str] = [*settings.warnings, *([restarted] if restarted else [])]

    # --- what a program sees

    @property
    def running(self) -> bool:
        return not self.run.is_over

    @property
    def rank(self) -> Rank:
        return self.run.rank

    @property
    def policy(self) -> PolicyName:
        return self._policy.mode

    @policy.setter
    def policy(self, value: PolicyName) -> None:
        self._change_policy(schema.parse("policy", value), "the program")

    def _change_policy(self, policy: PolicyName, by: str) -> None:
        before = self._policy.mode
        if policy == before:
            return
        self._policy.mode = policy
        self._verdict.policy_changed(policy, by, is_gate=schema.is_gate(policy, self.settings.baseline))
        self._pipeline.policy_changed(policy)
        self.sensors.partly.policy_changed(policy, self.steps.current + 1)
        get_logger().info("the policy has changed", policy=policy, before=before, by=by, step=self.steps.current)

    def events(self) -> tuple[SyncEvent, ...]:
        self.drain()
        return self.faults.guard("the newest syncs", self._summary.newest, ())

    def changes(self, since: Since) -> Changes:
        """Return the sums so far and the sites that are new since the last call: sooner made than a report."""
        self.drain()
        return self._summary.changes(since)

    def measure_cost(self, steps: int = 5) -> None:
        steps = schema.parse("cost_steps", steps)
        if self.settings.wraps_every_op:
            raise parsing.rejected("detail", "ops", '"syncs" where cost is measured: "ops" slows the host')
        self._cost.ask(steps, begin=1)

    def flush(self) -> None:
        self._pipeline.flush()

    # --- start and stop

    def start(self, *, modes: bool = True) -> None:
        """Turn everything on.  A part that cannot be turned on stays off, and the others work without it."""
        turn_on = self._turn_on
        try:
            log_settings_source(self.settings, self.rank.rank)
            self.sensors.start(turn_on)
            if not self.settings.simulate:
                note = note_without_gpu(has_cuda=self.sensors.conditions.has_cuda)
                self.notes += [note] if note else []
            turn_on("the watch for ranges", self._ranges.start, self._ranges.stop)
            turn_on("the watch for steps", self.steps.start, self.steps.stop)
            self.notes += self.steps.without
            if modes:
                self.enter_modes()
            self._recorder.threads.current().trains = True
            if (sampling := self.sensors.sampling) is not None:
                sampling.wants, sampling.barred = self._wants_all, lambda: self._cost.is_open
                sampling.policy_changed(self._policy.mode, 0)
                turn_on(sampling.part, partial(sampling.start, modes=modes), sampling.stop)
            turn_on("the policy's remote control", self._remote.start, self._remote.stop)
            self.notes += self._remote.notes
            turn_on("the signal for a report", self._report_signal.start, self._report_signal.stop)
            self.notes += self._report_signal.notes
            turn_on("the pipeline", self._pipeline.start, self._pipeline.stop)
            if self.settings.cost:
                self.faults.guard("the cost window", lambda: self._cost.ask(self.settings.cost_steps), None)
        except BaseException:
            self._turn_off()
            raise

    def enter_modes(self) -> None:
        """Start the sensors that watch one thread on this one, if ``detail`` asks for them."""
        self.sensors.start(self._turn_on, on_thread=True)

    def stop(self) -> Report:
        """Turn everything off, deliver what is left and return the report."""
        if not self.is_kept:
            self.close()
        return self.report()

    def close(self) -> None:
        """Turn everything off and deliver what is left."""
        if self.running:
            self._end()
            self.faults.guard("the end of the cost window", self._cost.end, None)
            self.regions.end_all(self._turn_off)
        self.is_off = True

    def conclude(self) -> Report:
        """Deliver what is left and return the report when a signal is about to end the process: the sensors stay on.

        May be called by a signal handler in the middle of anything, or on another thread while the main one is stuck.
        """
        from syncagent.torchbridge import calibration

        calibration.hurry()
        if self.running:
            self._end()
        stop = partial(self._pipeline.stop, most_s=_MOST_BEFORE_DEATH_S)
        self.regions.end_all(lambda: self.faults.guard("the pipeline", stop, None))
        return self.report()

    def _end(self) -> None:
        self.run.end()
        if self._saving.acquire(timeout=_SAVE_TIMEOUT_S):
            self._saving.release()
        self.sensors.conclude()

    def after_fork_in_child(self) -> None:
        """Stop everything in a forked child: the records, and the thread that delivers them, are the parent's."""
        from syncagent.torchbridge import calibration

        calibration.forget_thread()
        self._recorder.threads.forget()
        self.remove_device = None  # the child is in the middle of what its parent began
        self.regions.forget()
        self._pipeline.forget()
        self._turn_off()

    def _turn_on(self, part: str, start: Callable[[], None], stop: Callable[[], None]) -> None:
        """Start a part; ``stop`` undoes whatever ``start`` has done, however far it got."""
        self._parts.append((part, stop))
        try:
            start()
        except Exception as error:
            self.faults.add(part, error, "could not be started and is off")
            self.faults.guard(part, stop, None)
            self._parts.remove((part, stop))

    def _turn_off(self) -> None:
        while self._parts:
            part, stop = self._parts.pop()
            try:
                stop()
            except Exception as error:
                self.faults.add(part, error, "could not be turned off")
        remove_device, self.remove_device = self.remove_device, None
        if remove_device is not None:
            self.faults.guard("the end of the simulated device", remove_device, None)

    # --- the report

    def report(self) -> Report:
        self.drain()
        dropped = self.dropped
        guard = self.faults.guard
        run = guard("the description of the run", self.run_info, no_run(self._policy.mode))
        sensors = self.sensors.statuses()
        overhead = guard("the measure of the agent's cost", self._overhead, Overhead(None, None))
        ops: tuple[OpCount, ...] = guard("the count of ops", self._buffers.ops, ())
        run, problems = self._with_verdict(run, dropped)
        notes = self._notes()
        try:
            from syncagent.report.explaining import explained  # it parses source: not needed before there is a report

            host = self._host()
            report = self._summary.snapshot(run, sensors, overhead, dropped, ops, notes, problems, host)
            return self._cost.applied(self.faults.guard("advice", lambda: explained(report), report))
        except Exception as error:
            self.faults.add("the report", error, "failed")
            run = replace(run, gate=gate.FAILED if self._verdict.is_asked_for else None)
            problems.append(self.faults.sentences[-1])
            return Summary().snapshot(run, sensors, overhead, dropped, (), notes, problems)

    def _facts(self) -> Facts:
        """Return what a report has besides the sums, without what takes long to find out."""
        dropped = self.dropped
        run, problems = self._with_verdict(self.run_info(), dropped)
        return Facts(run, self.sensors.statuses(), dropped, [*problems, *self._notes()], self._host())

    def _host(self) -> tuple[HostRow, ...]:
        host = self.sensors.host
        return self.faults.guard("the sums of the host's time", host.rows, ()) if host is not None else ()

    def _with_verdict(self, run: RunInfo, dropped: int) -> tuple[RunInfo, list[str]]:
        """Return the run with the verdict on its gate, if it has one, and what did not work."""
        return self._verdict.on(run, self.shared_problems(self.settings), lambda: self._gate_failures(dropped))

    def _notes(self) -> list[str]:
        notes = list(self.sensors.notes)
        if self._recorder.set_up:
            notes.append(f"left out: {self._recorder.set_up} waits of torch while it compiled, tuned or captured")
        lost = self._lost()
        if lost:
            notes.append("dropped: " + ", ".join(f"{count} ({why})" for why, count in lost.items()))
        return notes

    def _gate_failures(self, dropped: int) -> list[str]:
        """Return a phrase for each thing that lets a sync past the gate or keeps it out of the report."""
        failures = []
        if self._recorder.policy is None and self.running:
            failures.append("the policy failed and is off")
        partly = self.sensors.partly
        if self.sensors.conditions.has_cuda and partly.gave_way and self._policy.mode == "raise":
            failures.append(f"torch.compile is in use, and {partly.thing} are no longer watched")
        if self.sensors.sampling is not None:
            failures.append("detail is auto, and syncs of ops are seen on the training thread alone")
        warmup, steps = self.settings.warmup_steps, self.steps.count
        if steps < warmup and self._summary.recorded and not self.running:
            failures.append(
                f"the policy was never active: the first {warmup} steps pass (warmup_steps), and {steps} ended"
            )
        return failures + self.unseen_by_gates(dropped)

    def unseen_by_gates(self, dropped: int) -> list[str]:
        """Return a phrase for each thing that hides syncs from any gate, the process's or a region's."""
        failures = self.sensors.blind_spots()
        failures += [f"{part} failed" for part in gate.that_matter(self.faults.parts)]
        if dropped:
            failures.append(f"{dropped} syncs were dropped, and their sites may be missing here")
        return failures

    def require_gate(self) -> None:
        """After the start, stop and raise :class:`~syncagent.ConfigError` if a gate was asked for and cannot hold."""
        failures = self._gate_failures(0) if self.settings.is_gate else []
        if failures:
            self.stop()
            raise cannot_hold(self.settings.policy, failures)

    def run_info(self) -> RunInfo:
        self._seek_rank(at_once=True)
        return self.run.info(self._policy.mode, self.steps.count, has_cuda=self.sensors.conditions.has_cuda)

    def shared_problems(self, settings: schema.Settings) -> list[str]:
        """Return what did not work, for the reports of the process and of its regions."""
        gone: list[str] = self.faults.guard(
            "the look-up of the packs' functions", lambda: packs.gone(settings.allow_packs), []
        )
        return [*self.notes, *self._internals.missing, *gone, *self.faults.sentences]

    def _overhead(self) -> Overhead:
        from syncagent.torchbridge.calibration import UnmeasuredError

        try:
            own_ns = max(self._recorder.own_cost_ns(self.sensors.passed_through) - self.sensors.first_ns, 0)
        except UnmeasuredError:  # the process is being killed
            return Overhead(None, None)
        budget = self.settings.overhead if self.sensors.sampling is not None else None
        return replace(self.run.overhead(own_ns, self.steps.count), budget=budget)

    def _write_so_far(self) -> None:
        """Save the report, or print it where it is saved nowhere, while the job goes on."""
        report = self.report()
        report = replace(report, notes=(*report.notes, "the report was asked for by a signal while the job went on"))
        with self._saving:
            if not self.running:
                return
            if self.settings.report is None:
                if not table.is_for(report):
                    get_logger().info("only rank 0 prints its report; the setting report has each rank save its own")
                    return
                get_logger().info("the report so far", step=self.steps.current)
                table.show(report, {}, verbose=self.settings.verbose)
            elif (saved := self.save(report)) is not None:
                get_logger().info("the report so far is saved", report=saved, step=self.steps.current)

    # --- what its parts and regions ask for

    @property
    def dropped(self) -> int:
        """How many syncs were dropped before they reached any sink."""
        return sum(self._lost().values())

    def _lost(self) -> dict[str, int]:
        undelivered = self._pipeline.undelivered
        return {**self._buffers.lost, **({"a sink hangs": undelivered} if undelivered else {})}

    def drain(self) -> None:
        """Deliver what the threads have left so far."""
        self.faults.guard("draining", self._pipeline.drain, None)

    def epoch_ns(self, moment_ns: int) -> int:
        """Return a moment of ``time.perf_counter_ns`` as nanoseconds since the epoch."""
        return self._buffers.epoch_ns(moment_ns)

    def weight(self, event: SyncEvent) -> Weight:
        """Return how many syncs a recorded one stands for."""
        weight = self.sensors.partly.weight(event, event.start_ns - self._buffers.epoch_ns(0))
        return Weight() if weight.syncs != 1.0 and event.regions and self.regions.saw_all_copies(event) else weight

    def _is_named(self, event: SyncEvent) -> bool:
        return self.sensors.is_named(event.start_ns - self._buffers.epoch_ns(0))

    def watch_copies(self, state: ThreadState) -> None:
        """Watch what this thread waits for in this step, if that is sampled or a region or a cost window wants it."""
        self.sensors.partly.update(state, self.steps.current, wanted=self._wants_all(state))

    def _wants_all(self, state: ThreadState) -> bool:
        return (bool(open_reaches) and self.regions.want_copies()) or (state.trains and self._cost.capturing)

    def _events_since(self, start_ns: int) -> tuple[tuple[SyncEvent, int], ...]:
        self.drain()
        return self._summary.since(start_ns)

    def _step_ended(self, step: int, start_ns: int, end_ns: int) -> None:
        # Once a step all of this is cold: there are few calls here, and they are made only where they have work.
        try:
            state: ThreadState = self._recorder.threads.local.state
        except AttributeError:
            state = self._recorder.threads.current()
        state.trains = True
        self._buffers.ended_steps.append((step, start_ns, end_ns, self._recorder.user_context()))
        self._recorder.waits.step_ended(step, end_ns)
        self.sensors.look_for_new_code(now=True)
        self.sensors.step_ended()
        budgets = self._policy.budgets
        if budgets.has_window:
            budgets.step_ended(step, end_ns - start_ns)
        if open_reaches:
            self.regions.step_ended(step, end_ns - start_ns)
        if self._cost.window is not None:
            self._cost.window.step_ended()
        if self.sensors.host is not None:
            self.sensors.host.step_ended(state, start_ns, end_ns)
        if self.sensors.sampling is not None:
            self.sensors.sampling.step_ended(state, end_ns - start_ns, self.steps.current)
        elif self.sensors.copies.has_work:
            self.watch_copies(state)

    def _each_round(self) -> None:
        self._remote.poll()
        self._report_signal.poll()
        yield_gil()
        self.sensors.look_for_new_code()
        yield_gil()
        self.sensors.take_waits_for_collectives()
        yield_gil()
        if self.sensors.sampling is not None:
            self.sensors.sampling.tick()
        self.regions.retire(self._pipeline.drained_ns)
        self._seek_rank()
        if self.running and (self.rank.world_size or 1) > 1:
            self.sensors.join_ranks(self._turn_on)

    def _seek_rank(self, *, at_once: bool = False) -> None:
        self.run.seek_rank(at_once=at_once)
        self._buffers.rank = self.rank.rank
