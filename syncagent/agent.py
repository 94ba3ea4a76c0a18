"""The agent: settings → sensors → recorder → pipeline → sinks."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from syncagent import config
from syncagent.attribution import ranks
from syncagent.attribution.ranges import Ranges
from syncagent.attribution.steps import Steps
from syncagent.cost.pricing import Pricing
from syncagent.errors import ConfigError
from syncagent.faults import Faults
from syncagent.log import get_logger, log_once
from syncagent.pipeline import Pipeline
from syncagent.policy import Policy, packs
from syncagent.policy.remote import Remote
from syncagent.recorder import Recorder
from syncagent.report.model import Overhead, Report, RunInfo, SensorStatus
from syncagent.sampling import CopySampling
from syncagent.sinks.log import ViolationLog
from syncagent.sinks.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncagent.event import OpCount, SyncEvent
    from syncagent.records import ThreadState
    from syncagent.sinks import Sink

__all__ = ["Agent", "no_run"]


class Agent:
    """Watches one process.  Made by :func:`syncagent.start` and :class:`syncagent.watch`; one runs at a time."""

    def __init__(self, settings: config.Settings, sinks: tuple[Sink, ...] = ()) -> None:
        import torch

        from syncagent.sensors import calibration
        from syncagent.sensors.explicit import ExplicitSensor
        from syncagent.sensors.host_scalars import HostScalars
        from syncagent.sensors.internals import UNKNOWN, look_up
        from syncagent.sensors.kernels import KernelSensor
        from syncagent.sensors.modes import ModeSensor
        from syncagent.sensors.monitored import MonitoredSensor
        from syncagent.sensors.simulated import SimulatedSensor

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
        self._policy = Policy(settings, self._recorder, lambda: self.steps.current)
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
        if not any(isinstance(sink, ViolationLog) for sink in sinks):
            sinks = (*sinks, ViolationLog())  # behind the spans, whose ids it names
        self._pipeline = Pipeline(self._recorder, (self._summary, *sinks), self.rank.rank, each_round=self._each_round)
        spans = next((sink for sink in sinks if hasattr(sink, "span_of")), None)
        for sink in sinks:
            if hasattr(sink, "lost") and hasattr(sink, "scale"):
                sink.lost, sink.scale = self._pipeline.lost, self._weight
            if hasattr(sink, "spans"):
                sink.spans = spans
        self._pricing = Pricing(settings, self._events_since, self._faults)
        self._has_cuda = getattr(torch.version, "cuda", None) is not None
        self._began = time.perf_counter()
        self._started = datetime.now(timezone.utc)
        self._ended: float | None = None
        self._final_sensors: tuple[SensorStatus, ...] | None = None
        self._undo: list[tuple[str, Callable[[], None]]] = []
        self.notes: list[str] = []

    # --- what a program sees

    @property
    def running(self) -> bool:
        return self._ended is None

    def events(self) -> tuple[SyncEvent, ...]:
        """Return the newest syncs (``max_events`` of them, 10,000 by default), oldest first."""
        self._drain()
        none: tuple[SyncEvent, ...] = ()
        return self._faults.guard("the newest syncs", self._summary.newest, none)

    def report(self) -> Report:
        """Return what was seen so far."""
        self._drain()
        dropped = sum(self._pipeline.lost.values())
        guard = self._faults.guard
        run = guard("the description of the run", self._run_info, no_run(self._policy.mode))
        sensors = self._sensors_or_none()
        overhead = guard("the measure of the agent's cost", self._overhead, Overhead(None, None))
        no_ops: tuple[OpCount, ...] = ()
        ops = guard("the count of ops", self._pipeline.ops, no_ops)
        nothing: list[str] = []
        gone = guard("the look-up of the packs' functions", lambda: packs.gone(self.settings.allow_packs), nothing)
        notes = [*self.notes, *self._internals.missing, *gone, *self._faults.sentences]
        if self._kernels.left_in_place:
            notes.append(
                "the kernels are still on their ops and pass calls on: other threads compute, and torch cannot take a "
                "kernel off safely while they do"
            )
        if self._recorder.set_up:
            notes.append(f"left out: {self._recorder.set_up} waits of torch's own, as it compiled, tuned or captured")
        if self._pipeline.lost:
            notes.append("dropped: " + ", ".join(f"{count} ({why})" for why, count in self._pipeline.lost.items()))
        try:
            return self._pricing.applied(self._summary.snapshot(run, sensors, overhead, dropped, ops, notes))
        except Exception as error:
            self._faults.add("the report", error, "failed")
            return Summary().snapshot(run, sensors, overhead, dropped, (), [*notes, self._faults.sentences[-1]])

    def measure_cost(self, steps: int = 5) -> None:
        """Price the syncs of the steps that follow: the report then has ``idle_ms``, ``gain_ms`` and ``advice``.

        Ten to sixty steps are timed, then ``steps`` and one more run under torch.profiler (CPU and CUDA activities).
        The report has the price of the window that was asked for last.
        Raises :class:`~syncagent.ConfigError` for a number of steps that is not allowed, or under ``detail="ops"``,
        which slows the very steps that are to be priced.
        """
        steps = config.settle("cost_steps", steps)
        if self.settings.wraps_every_op:
            raise config.rejected("detail", "ops", '"syncs" where cost is measured: "ops" slows the host')
        self._pricing.ask(steps, begin=1)

    def _events_since(self, start_ns: int) -> tuple[tuple[SyncEvent, int], ...]:
        self._drain()
        return self._summary.since(start_ns)

    @property
    def policy(self) -> str:
        """What happens at a sync that nothing allows: ``observe``, ``warn`` or ``raise``.

        May be set while the job runs; a value that is not allowed raises :class:`~syncagent.ConfigError`.
        """
        return self._policy.mode

    @policy.setter
    def policy(self, value: str) -> None:
        self._change_policy(config.settle("policy", value), "the program")

    def _change_policy(self, policy: str, by: str) -> None:
        before = self._policy.mode
        if policy == before:
            return
        self._policy.mode = policy
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
        if time.monotonic() >= self._rank_due_s:
            self._rank_due_s = time.monotonic() + _SELDOM_S
            self._seek_rank()

    def _seek_rank(self) -> None:
        """Ray Train, and process groups without a launcher, say it once the script runs."""
        if not self._seeks_rank or self.rank.rank is not None:
            return
        try:
            self.rank = _rank_by_now()
            self._pipeline.rank = self.rank.rank
        except Exception as error:
            self._seeks_rank = False
            self._faults.add("the rank", error)

    def _drain(self) -> None:
        self._faults.guard("draining", self._pipeline.drain, None)

    # --- start and stop

    def start(self, *, modes: bool = True) -> None:
        """Turn everything on.  A part that cannot be turned on is off; the others watch all the same."""
        try:
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
            self._faults.guard("the end of the cost window", self._pricing.end, None)
            self._turn_off()
        return self.report()

    def save(self, report: Report) -> str | None:
        """Save the report where the settings say and return where; a path that cannot be written is logged."""
        if self.settings.report is None:
            return None
        try:
            return str(report.save(self.settings.report))
        except (ConfigError, OSError) as error:
            get_logger().error(str(error))
        except Exception as error:
            get_logger().error(f"syncagent: the report could not be saved at {self.settings.report}: {error!r}")
        return None

    def flush(self) -> None:
        """Deliver everything that was seen so far to every sink."""
        self._pipeline.flush()

    def after_fork_in_child(self) -> None:
        """Fall silent in a forked child: what was seen, and the thread that delivers it, are the parent's."""
        self._recorder.forget_threads()
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

    # --- steps, sampling

    def _step_ended(self, step: int, start_ns: int, end_ns: int) -> None:
        # Once a step all of this is cold: there are few calls here, and they are made only where they have work.
        try:
            state: ThreadState = self._recorder.local.state
        except AttributeError:
            state = self._recorder.thread_state()
        state.trains = True
        self._pipeline.steps.append((step, start_ns, end_ns, self._recorder.user_context()))
        budgets = self._policy.budgets
        if budgets.has_window:
            budgets.step_ended(step, end_ns - start_ns)
        if self._pricing.window is not None:
            self._pricing.window.step_ended(self.steps.current)
        if self._sampling.has_work:
            wanted = self._sampling.watches(self.steps.current) or self._pricing.capturing
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
        if self._pricing.captured(event.step) and not self._sampling.watches(event.step):
            return 1.0  # watched for the window's sake
        return self._sampling.weight(event.step)

    # --- the report's parts

    def _run_info(self) -> RunInfo:
        import torch

        ended = self._ended if self._ended is not None else time.perf_counter()
        simulated = self.settings.simulate
        device = None
        if simulated or (self._has_cuda and torch.cuda.is_initialized()):
            device = self._faults.guard("the device's name", torch.cuda.get_device_name, "unknown")
        self._seek_rank()
        return RunInfo(
            started=self._started.isoformat(timespec="milliseconds"),
            duration_s=ended - self._began,
            torch=torch.__version__,
            cuda=None if simulated else torch.version.cuda,
            device=device,
            host=platform.node(),
            rank=self.rank.rank,
            world_size=self.rank.world_size,
            steps=self.steps.count,
            policy=self._policy.mode,
            detail="ops" if self.settings.wraps_every_op else "syncs",
            simulated=simulated,
            script=_script(),
            argv=tuple(sys.argv),
            cwd=_folder(),
            pid=os.getpid(),
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
        own_ns = max(self._recorder.own_cost_ns(self._kernels.elsewhere), 0)
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
