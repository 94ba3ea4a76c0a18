"""The agent: settings → sensors → recorder → pipeline → sinks."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from syncagent.attribution import processes, ranks
from syncagent.attribution.ranges import Ranges
from syncagent.attribution.steps import Steps
from syncagent.cost.pricing import Pricing
from syncagent.delivery.buffers import BufferReader
from syncagent.delivery.pipeline import Pipeline
from syncagent.delivery.sink import Source
from syncagent.errors import ConfigError
from syncagent.policy import Policy, gate, packs
from syncagent.policy.reach import open_reaches
from syncagent.policy.remote import Remote
from syncagent.recording.recorder import Recorder
from syncagent.report.model import Overhead, Report, RunInfo, SensorStatus
from syncagent.report.summary import Facts, Summary
from syncagent.runtime.regions import Regions
from syncagent.runtime.sinks import all_sinks
from syncagent.sensors.sampling import CopySampling
from syncagent.settings import parsing, schema
from syncagent.sites import Home, home_of_process
from syncagent.support import redaction
from syncagent.support.faults import Faults
from syncagent.support.log import get_logger, log_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.delivery.sink import Sink
    from syncagent.events import OpCount, SyncEvent
    from syncagent.recording.records import ThreadState
    from syncagent.runtime.regions import Region
    from syncagent.settings.schema import PolicyName

__all__ = ["Agent", "no_run"]


class Agent:
    """Watches one process.  Made by :func:`syncagent.start` and :class:`syncagent.watch`; one runs at a time."""

    def __init__(self, settings: schema.Settings, sinks: tuple[Sink, ...] = ()) -> None:  # noqa: PLR0915 - the parts
        import torch

        from syncagent.sensors import calibration
        from syncagent.sensors.explicit import ExplicitSensor
        from syncagent.sensors.host_scalars import HostScalars
        from syncagent.sensors.kernels import KernelSensor
        from syncagent.sensors.modes import ModeSensor
        from syncagent.sensors.monitored import MonitoredSensor
        from syncagent.sensors.simulated import SimulatedSensor
        from syncagent.torchbridge.internals import UNKNOWN, look_up

        self.settings = settings
        self._faults = Faults()
        nobody = ranks.Rank(None, None, None)
        self.rank = self._faults.guard("the rank", ranks.read, nobody)
        self._seeks_rank = self.rank is not nobody
        self._rank_due_s = 0.0
        self._internals = self._faults.guard(
            "the look-up of torch's internals", lambda: look_up(simulated=settings.simulate), UNKNOWN
        )
        self.steps = Steps(self._step_ended, self._faults)
        self._recorder = Recorder(settings, self._internals, lambda: self.steps.current, self._faults)
        self._policy = self._new_policy(settings)
        self._recorder.crossing_ns = (calibration.kernel_ns, calibration.mode_ns)
        self._recorder.policy = self._policy
        self._ranges = Ranges(self._recorder)
        self._kernels = KernelSensor(self._recorder)
        self._explicit = ExplicitSensor(self._recorder)
        self._host_scalars = HostScalars()
        self._monitored = MonitoredSensor(self._recorder)
        self._modes = ModeSensor(self._recorder)
        self._simulated = SimulatedSensor(self._recorder)
        self._sampling = CopySampling(on=settings.copies_timed == "sampled")
        self._summary = Summary(newest=settings.max_events, scale=self._weight)
        self._remote = Remote(settings, lambda: self._policy.mode, self._change_policy)
        self.regions = Regions(self)
        """Those that are open: see :mod:`syncagent.runtime.regions`."""
        self._buffers = BufferReader(self._recorder, self.rank.rank, policy_of=self.regions.policy_of)
        taking = all_sinks(self._summary, self.regions, sinks)
        self._pipeline = Pipeline(self._buffers, taking, self._faults, self._each_round)
        self._pipeline.connect(Source(self._buffers.lost, self._weight, self._summary, self._facts))
        self._pricing = Pricing(settings, self._events_since, self._faults)
        self._has_cuda = getattr(torch.version, "cuda", None) is not None
        self._device: str | None = None
        self._began = time.perf_counter()
        self._started = datetime.now(timezone.utc)
        self._ended: float | None = None
        self._final_sensors: tuple[SensorStatus, ...] | None = None
        self._undo: list[tuple[str, Callable[[], None]]] = []
        self.give_device_back: Callable[[], None] | None = None
        """Takes the simulated device away, which was put in for this agent."""
        self._home = self._faults.guard("the project's folder", home_of_process, Home())
        self._is_gate, self._gave_way = settings.is_gate, False
        self._gate_lifted: list[str] = []
        self.notes: list[str] = list(settings.warnings)

    # --- what a program sees

    @property
    def running(self) -> bool:
        return self._ended is None

    @property
    def faults(self) -> Faults:
        """What of the agent itself has failed."""
        return self._faults

    def events(self) -> tuple[SyncEvent, ...]:
        """Return the newest syncs (``max_events`` of them, 10,000 by default), oldest first."""
        self._drain()
        none: tuple[SyncEvent, ...] = ()
        return self._faults.guard("the newest syncs", self._summary.newest, none)

    def report(self) -> Report:
        """Return what was seen so far."""
        self._drain()
        dropped = self._lost
        guard = self._faults.guard
        run = guard("the description of the run", self._run_info, no_run(self._policy.mode))
        sensors = self._sensors_or_none()
        overhead = guard("the measure of the agent's cost", self._overhead, Overhead(None, None))
        no_ops: tuple[OpCount, ...] = ()
        ops = guard("the count of ops", self._buffers.ops, no_ops)
        run, notes = self._with_gate(run, dropped)
        try:
            return self._pricing.applied(self._summary.snapshot(run, sensors, overhead, dropped, ops, notes))
        except Exception as error:
            self._faults.add("the report", error, "failed")
            run = replace(run, gate=gate.FAILED if self._is_gate else None)
            return Summary().snapshot(run, sensors, overhead, dropped, (), [*notes, self._faults.sentences[-1]])

    def _facts(self) -> Facts:
        """What the capture has besides the sums; without what takes long to find out."""
        dropped = self._lost
        run, notes = self._with_gate(self._run_info(), dropped)
        return Facts(run, self._sensor_statuses(), dropped, notes)

    def _with_gate(self, run: RunInfo, dropped: int) -> tuple[RunInfo, list[str]]:
        """Say whether the gate held so far, if there is one; return the notes as well."""
        notes = self._all_notes()
        if not self._is_gate:
            return run, notes
        failures = self._gate_failures(dropped)
        run = replace(run, gate=gate.FAILED if failures else gate.HELD)
        return run, [*notes, *(gate.NOTE + why for why in failures)]

    def _all_notes(self) -> list[str]:
        notes = self._shared_notes(self.settings)
        if self._kernels.left_in_place:
            notes.append(
                "the kernels are still on their ops and pass calls on: other threads compute, and torch cannot take a "
                "kernel off safely while they do"
            )
        if self._recorder.set_up:
            notes.append(f"left out: {self._recorder.set_up} waits of torch's own, as it compiled, tuned or captured")
        if self._buffers.lost:
            notes.append("dropped: " + ", ".join(f"{count} ({why})" for why, count in self._buffers.lost.items()))
        return notes

    def gate_cannot_hold(self) -> str | None:
        """Return why the gate that was asked for is not in force, now that the agent has started."""
        if not self.settings.is_gate:
            return None
        failures = self._gate_failures(0)
        if not failures:
            return None
        return (
            f"syncagent: setting policy is {self.settings.policy!r}, but it cannot be in force here: "
            f"{'; '.join(failures)}."
        )

    def _gate_failures(self, dropped: int) -> list[str]:
        """Return, a phrase each, what lets a sync pass that the gate is to stop, or keeps it out of the report."""
        failures = [*self._gate_lifted]
        if self._recorder.policy is None and self.running:
            failures.append("the policy failed and is off")
        if self._has_cuda and (self._gave_way or self._kernels.gave_way) and self._policy.mode == "raise":
            failures.append("torch.compile is in use, and copies are no longer watched")
        steps, warmup = self.steps.count, self.settings.warmup_steps
        if not self.running and steps < warmup and self._summary.recorded:
            failures.append(
                f"the policy slept all the time: the first {warmup} steps pass (warmup_steps), and {steps} ended"
            )
        return failures + self._watch_failures(dropped)

    def _watch_failures(self, dropped: int) -> list[str]:
        """Return what keeps any gate from its syncs, the process's or a region's."""
        failures = self._blind()
        failures += [f"{part} failed" for part in gate.that_matter(self._faults.parts)]
        if dropped:
            failures.append(f"{dropped} syncs were dropped, and their sites may be missing here")
        return failures

    def _blind(self) -> list[str]:
        """Return which sensors and hooks are missing that a gate needs."""
        failures = []
        if self.settings.simulate or self._has_cuda:
            needed = ("simulated",) if self.settings.simulate else ("kernels", "explicit")
            dead = [s.name for s in self._sensors_or_none() if s.name in needed and not s.live]
            failures += [f"the sensor {name} is not live" for name in dead]
            unhooked = () if self.settings.simulate else self._kernels.unhooked
            if unhooked:
                failures.append(f"not hooked: {', '.join(unhooked)}")
        return failures

    def _shared_notes(self, settings: schema.Settings) -> list[str]:
        nothing: list[str] = []
        gone = self._faults.guard(
            "the look-up of the packs' functions", lambda: packs.gone(settings.allow_packs), nothing
        )
        return [*self.notes, *self._internals.missing, *gone, *self._faults.sentences]

    @property
    def _lost(self) -> int:
        return sum(tuple(self._buffers.lost.values()))

    def _new_policy(self, settings: schema.Settings) -> Policy:
        return Policy(settings, self._recorder, lambda: self.steps.current)

    def measure_cost(self, steps: int = 5) -> None:
        """Price the syncs of the steps that follow: the report then has ``idle_ms``, ``gain_ms`` and ``advice``.

        Ten to sixty steps are timed, then ``steps`` and one more run under torch.profiler (CPU and CUDA activities).
        The report has the price of the window that was asked for last.
        Raises :class:`~syncagent.ConfigError` for a number of steps that is not allowed, or under ``detail="ops"``,
        which slows the very steps that are to be priced.
        """
        steps = schema.parse("cost_steps", steps)
        if self.settings.wraps_every_op:
            raise parsing.rejected("detail", "ops", '"syncs" where cost is measured: "ops" slows the host')
        self._pricing.ask(steps, begin=1)

    def _events_since(self, start_ns: int) -> tuple[tuple[SyncEvent, int], ...]:
        self._drain()
        return self._summary.since(start_ns)

    @property
    def policy(self) -> PolicyName:
        """What happens at a sync that nothing allows: ``observe``, ``warn`` or ``raise``.

        May be set while the job runs; a value that is not allowed raises :class:`~syncagent.ConfigError`.
        """
        return self._policy.mode

    @policy.setter
    def policy(self, value: PolicyName) -> None:
        self._change_policy(schema.parse("policy", value), "the program")

    def _change_policy(self, policy: PolicyName, by: str) -> None:
        before = self._policy.mode
        if policy == before:
            return
        self._policy.mode = policy
        is_gate = policy == "raise" or (policy == "warn" and self.settings.baseline is not None)
        if self._is_gate and not is_gate:
            self._gate_lifted.append(f"the policy was changed to {policy} by {by}")
        self._is_gate = self._is_gate or is_gate
        self._pipeline.policy_changed(policy)
        if self.settings.copies is None and self.settings.copies_timed == "sampled":
            # Under raise nothing that is forbidden may slip through unsampled.
            self._sampling.change(self.steps.current + 1, on=policy != "raise")  # seen to when the step ends
        get_logger().info("the policy has changed", policy=policy, before=before, by=by, step=self.steps.current)

    def _sensors_or_none(self) -> tuple[SensorStatus, ...]:
        none: tuple[SensorStatus, ...] = ()
        return self._faults.guard("the list of sensors", self._sensor_statuses, none)

    def _each_round(self) -> None:
        self._remote.poll()
        self.regions.retire(self._pipeline.drained_ns)
        if time.monotonic() >= self._rank_due_s:
            self._rank_due_s = time.monotonic() + _SELDOM_S
            self._seek_rank()

    def _seek_rank(self) -> None:
        """Ray Train, and process groups without a launcher, say it once the script runs."""
        if not self._seeks_rank or self.rank.rank is not None:
            return
        try:
            self.rank = _rank_by_now()
            self._buffers.rank = self.rank.rank
        except Exception as error:
            self._seeks_rank = False
            self._faults.add("the rank", error)

    def _drain(self) -> None:
        self._faults.guard("draining", self._pipeline.drain, None)

    # --- start and stop

    def start(self, *, modes: bool = True) -> None:
        """Turn everything on.  A part that cannot be turned on is off; the others watch all the same."""
        try:
            self._say_where_settings_are_from()
            if self.settings.simulate:
                self._on("the simulated device's sensor", self._simulated.start, self._simulated.stop)
            elif self._has_cuda:
                self._on("the sensor explicit", self._explicit.start, self._explicit.stop)
                self._on("the sensor monitored", self._monitored.start, self._monitored.stop)
                self._on("the way past item()", self._host_scalars.start, self._host_scalars.stop)
                hot = self.settings.copies_timed == "all"
                self._on("the sensor kernels", lambda: self._kernels.start(hot=hot), self._kernels.stop)
                if self.settings.copies_timed == "sampled":
                    self._recorder.thread_state().copies_armed = True
                    self._faults.guard("the watch for copies", self._kernels.arm_hot, None)
            if not self.settings.simulate:
                self._say_if_there_is_no_gpu()
            self._on("the watch for ranges", self._ranges.start, self._ranges.stop)
            self._on("the watch for steps", self.steps.start, self.steps.stop)
            self.notes += self.steps.without
            if modes:
                self.enter_modes()
            self._recorder.thread_state().trains = True
            self._on("the policy's remote control", self._remote.start, self._remote.stop)
            self.notes += self._remote.notes
            self._on("the pipeline", self._pipeline.start, self._pipeline.stop)
            if self.settings.cost:
                self._faults.guard("the cost window", lambda: self._pricing.ask(self.settings.cost_steps), None)
        except BaseException:
            self._turn_off()
            raise

    def _say_where_settings_are_from(self) -> None:
        """Once a job: the other ranks, and the processes that a rank makes, have the same files and variables."""
        multiprocessing = sys.modules.get("multiprocessing.process")
        if self.rank.rank not in (None, 0) or (multiprocessing and multiprocessing.parent_process() is not None):
            return
        if self.settings.file is not None:
            log_once("settings-file", f"settings are read from {self.settings.file}", level="info")
        for warning in self.settings.warnings:
            log_once(f"settings-{warning}", warning)

    def _say_if_there_is_no_gpu(self) -> None:
        # Nothing of CUDA's is asked: where that initialises the driver, the process could no longer fork.
        if self._has_cuda and (sys.platform != "linux" or any(map(os.path.exists, _DRIVER))):
            return
        why = "there is no NVIDIA driver here" if self._has_cuda else "this torch is built without CUDA"
        note = f"{why}, so there is no host sync to see; {_SIMULATION}"
        log_once("no-gpu", note)
        self.notes.append(note)

    def enter_modes(self) -> None:
        """Put both modes around the ops of this thread, if ``detail`` asks for them."""
        if self.settings.wraps_every_op:
            self._on("the sensor modes", self._modes.start, self._modes.stop)

    def stop(self) -> Report:
        """Turn everything off, deliver what is left and return the report."""
        if self._ended is None:
            self._ended = time.perf_counter()
            self._final_sensors = self._sensors_or_none()
            self._gave_way = self._faults.guard("the list of sensors", lambda: self._kernels.gave_way, True)
            self._faults.guard("the end of the cost window", self._pricing.end, None)
            none: tuple[Region, ...] = ()
            regions = self._faults.guard("the end of regions", self.regions.end_all, none)
            self._turn_off()
            for region in regions:
                self._faults.guard("the report of a region", region.save_once, None)
        return self.report()

    def conclude(self) -> Report:
        """Deliver what is left and return the report, where the process is about to die: the sensors stay on.

        May be called by a signal handler in the middle of anything, or on another thread while the main one is stuck.
        """
        from syncagent.sensors import calibration

        calibration.hurry()
        if self._ended is None:
            self._ended = time.perf_counter()
            self._final_sensors = self._sensors_or_none()
        none: tuple[Region, ...] = ()
        regions = self._faults.guard("the end of regions", self.regions.end_all, none)
        self._faults.guard("the pipeline", self._pipeline.stop, None)
        for region in regions:
            self._faults.guard("the report of a region", region.save_once, None)
        return self.report()

    def save(self, report: Report, path: str | None = None) -> str | None:
        """Save the report where the settings say and return where; a path that cannot be written is logged.

        ``path`` is where a region's report goes.  A process without a rank that never used CUDA, such as one that only
        starts others, saves nothing where one of the others has saved its own.
        """
        path = path or self.settings.report
        if path is None:
            return None
        from syncagent.report import files

        try:
            run = report.run
            used_cuda = run.device is not None and not run.simulated  # the simulated device has no first use
            is_empty = run.rank is None and not (used_cuda or run.steps or report.sites)
            saved = files.save_beside(report, path, mode=self.settings.file_mode, may_add=not is_empty)
            return None if saved is None else str(saved)
        except (ConfigError, OSError) as error:
            get_logger().error(str(error))
        except Exception as error:
            get_logger().error(f"syncagent: the report could not be saved at {path}: {error!r}")
        return None

    def flush(self) -> None:
        """Deliver everything that was seen so far to every sink."""
        self._pipeline.flush()

    def after_fork_in_child(self) -> None:
        """Fall silent in a forked child: what was seen, and the thread that delivers it, are the parent's."""
        self._recorder.forget_threads()
        self.give_device_back = None  # the child is in the midst of what its parent began
        self.regions.forget()
        self._pipeline.forget()
        self._turn_off()

    def _on(self, part: str, turn_on: Callable[[], None], turn_off: Callable[[], None]) -> None:
        self._undo.append((part, turn_off))
        try:
            turn_on()
        except Exception as error:
            self._faults.add(part, error, "could not be started and is off")
            self._faults.guard(part, turn_off, None)
            self._undo.remove((part, turn_off))

    def _turn_off(self) -> None:
        while self._undo:
            part, turn_off = self._undo.pop()
            try:
                turn_off()
            except Exception as error:
                self._faults.add(part, error, "could not be turned off")
        give_back, self.give_device_back = self.give_device_back, None
        if give_back is not None:
            self._faults.guard("the end of the simulated device", give_back, None)

    # --- steps, sampling

    def _step_ended(self, step: int, start_ns: int, end_ns: int) -> None:
        # Once a step all of this is cold: there are few calls here, and they are made only where they have work.
        try:
            state: ThreadState = self._recorder.local.state
        except AttributeError:
            state = self._recorder.thread_state()
        state.trains = True
        self._buffers.ended_steps.append((step, start_ns, end_ns, self._recorder.user_context()))
        budgets = self._policy.budgets
        if budgets.has_window:
            budgets.step_ended(step, end_ns - start_ns)
        if open_reaches:
            self.regions.step_ended(step, end_ns - start_ns)
        if self._pricing.window is not None:
            self._pricing.window.step_ended(self.steps.current)
        if self._sampling.has_work:
            self._see_to_copies(state)

    @property
    def _samples_copies(self) -> bool:
        return self._sampling.has_work and self._kernels.live

    def _watch_copies(self) -> None:
        """See to the copies of this thread as a region begins or ends on it."""
        self._see_to_copies(self._recorder.thread_state())

    def _see_to_copies(self, state: ThreadState) -> None:
        """Watch this thread's copies where this step is one of those that are sampled, or else somebody wants them."""
        sampled = state.trains and (self._sampling.watches(self.steps.current) or self._pricing.capturing)
        wanted = (bool(open_reaches) and self.regions.want_copies()) or sampled
        if wanted or state.copies_armed:
            state.copies_armed = wanted
            self._arm_copies(wanted=wanted)

    def _arm_copies(self, *, wanted: bool) -> None:
        if not self._kernels.live:
            return
        if wanted and not self._kernels.hot_armed:
            self._kernels.arm_hot()
        elif not wanted and self._kernels.hot_armed:
            self._kernels.disarm_hot()

    def _weight(self, event: SyncEvent) -> float:
        if event.op != "aten::copy_" or event.sensor != "kernels":
            return 1.0
        if event.regions and self.regions.saw_all_copies(event):
            return 1.0
        if not self._sampling.watches(event.step):
            return 1.0  # watched for the sake of a cost window, or of a region in another task of this thread
        return self._sampling.weight(event.step)

    # --- the report's parts

    def _run_info(self) -> RunInfo:
        import torch

        ended = self._ended if self._ended is not None else time.perf_counter()
        simulated = self.settings.simulate
        if self._device is None and simulated:
            from syncagent.simulate.cuda_api import NAME

            self._device = NAME  # the device itself may be gone by now
        elif self._device is None and self._has_cuda and torch.cuda.is_initialized():
            self._device = self._faults.guard("the device's name", torch.cuda.get_device_name, "unknown")
        self._seek_rank()
        return RunInfo(
            started=self._started.isoformat(timespec="milliseconds"),
            duration_s=ended - self._began,
            torch=torch.__version__,
            cuda=None if simulated else torch.version.cuda,
            device=self._device,
            host=platform.node(),
            rank=self.rank.rank,
            world_size=self.rank.world_size,
            steps=self.steps.count,
            policy=self._policy.mode,
            detail="ops" if self.settings.wraps_every_op else "syncs",
            simulated=simulated,
            script=_script(),
            argv=redaction.argv(sys.argv),
            cwd=_folder(),
            pid=os.getpid(),
            folder=self._home.folder,
            project=self._home.project,
            run_id=processes.run_id(),
            process=processes.process_id(),
            settings_file=self.settings.file,
        )

    def _sensor_statuses(self) -> tuple[SensorStatus, ...]:
        if self._final_sensors is not None:
            return self._final_sensors
        copies = self.settings.copies_timed
        detail = {
            "kernels": "copies: not watched since torch.compile is in use; SYNCAGENT_COPIES=all watches them"
            if self._kernels.gave_way
            else {
                "all": "copies: every one",
                "sampled": CopySampling.words,
                "off": "copies: not watched",
            }[copies],
            "modes": "" if self.settings.wraps_every_op else 'off: detail is "syncs"',
        }
        sensors = (
            (self._simulated,) if self.settings.simulate else (self._kernels, self._explicit, self._monitored)
        ) + (self._modes,)
        return tuple(SensorStatus(s.name, s.live, s.cannot_see, detail.get(s.name, "")) for s in sensors)

    def _overhead(self) -> Overhead:
        from syncagent.sensors.calibration import UnmeasuredError

        try:
            own_ns = max(self._recorder.own_cost_ns(self._kernels.elsewhere), 0)
        except UnmeasuredError:  # the process is being killed
            return Overhead(None, None)
        ended = self._ended if self._ended is not None else time.perf_counter()
        duration_s = ended - self._began
        return Overhead(
            agent_ms_per_step=own_ns / 1e6 / self.steps.count if self.steps.count else None,
            share=own_ns / 1e9 / duration_s if duration_s > 0 and math.isfinite(own_ns) else None,
        )


_SELDOM_S = 1.0
_DRIVER = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")
"""One of these is there where a driver is: natively, in a container, under WSL."""

_SIMULATION = "SYNCAGENT_SIMULATE=1 runs the script on a simulated device"


def no_run(policy: str) -> RunInfo:
    return RunInfo("", 0.0, None, None, None, platform.node(), None, None, 0, policy, "syncs", simulated=False)


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return ""


def _script() -> str:
    return os.path.basename(sys.argv[0] if sys.argv else "") or "python"


def _rank_by_now() -> ranks.Rank:
    rank = ranks.read()
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return rank
    return ranks.Rank(distributed.get_rank(), rank.local_rank, distributed.get_world_size())
