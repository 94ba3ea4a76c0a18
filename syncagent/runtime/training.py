"""What the callbacks of trainers share: they watch a training run and hand its figures to the run's own logger."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from syncagent.errors import ConfigError
from syncagent.report import wording
from syncagent.report.summary import Changes, Since
from syncagent.runtime import autostart, process
from syncagent.settings import sources
from syncagent.support.log import log_once

if TYPE_CHECKING:
    from syncagent.report.model import SiteRow
    from syncagent.runtime.agent import ProcessAgent
    from syncagent.settings.schema import Settings

SYNCS = "syncs/step"
"""Host syncs per training step."""
STALL = "stall_ms/step"
"""Milliseconds per training step for which the CPU waited for the GPU."""
EVAL_SYNCS = "syncagent/eval/syncs"
"""Host syncs of one evaluation."""
EVAL_STALL = "syncagent/eval/stall_ms"
"""Milliseconds for which the CPU waited for the GPU in one evaluation."""
WORST = "worst_sync_site"
"""The line that stalled the steps longest, as text."""


_STALLS = " stalls "

T = TypeVar("T")


class Figures(NamedTuple):
    """What the training steps since the last figures came to."""

    metrics: dict[str, float]
    """By name: :data:`SYNCS` and :data:`STALL`."""
    worst: str | None
    """The line that stalled them longest; ``None`` where none did."""


class TrainingRun:
    """Watches a training run on behalf of a trainer's callback, which stops nothing.

    The agent starts with the run, unless one is running already, as under ``SYNCAGENT=1``: that one is joined and goes
    on afterwards.  The trainer says where steps end and where an evaluation does; an evaluation is in no step.  A fault
    in here is logged once and ends the watch of this callback, not the training.
    """

    def __init__(self, callback: str, settings: Mapping[str, Any]) -> None:
        """``callback`` is how messages call it; raises :class:`~syncagent.ConfigError` for a setting not allowed."""
        self._callback = callback
        self._given = dict(settings)
        self._settings: Settings = sources.load(settings)
        self._agent: ProcessAgent | None = None
        self._was_by_hand = False
        self._is_off = False
        self._figures = _Differences()
        self._before_evaluation: tuple[float, float] | None = None
        """The sums of all syncs and stalls where an evaluation that has not ended began."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Trainers hand callbacks to the processes that they start, where the run begins anew."""
        return TrainingRun, (self._callback, self._given)

    @property
    def is_running(self) -> bool:
        """Whether it watches: it has begun, and the agent is still the one that it began with."""
        return self._agent is not None and self._agent is process.running()

    def begin(self, step: int | None = None) -> None:
        """Begin to watch, with step ``step`` as the next one; without it optimizers mark the steps.

        Raises :class:`~syncagent.ConfigError` where a policy was asked for that cannot be in force.
        """
        if self._is_off or autostart.is_turned_off():
            return
        if not self.is_running:
            try:
                self._agent = process.join(self._settings)
                self._was_by_hand = self._agent.steps.by_hand
                self._agent.steps.choose_anew()
                self._figures = _Differences()
                self._figures.since_last(self._agent)  # an agent that is joined may have seen steps of other runs
                atexit.register(self.end)  # after an error the trainer may not say that its run has ended
            except ConfigError:
                raise
            except Exception as error:
                self._failed(error)
                return
        if step is not None:
            self.steps_follow(step)

    @property
    def agent(self) -> ProcessAgent | None:
        """The agent, while it watches."""
        return self._agent if self.is_running else None

    def steps_follow(self, step: int | None = None) -> None:
        """Say that training goes on: what ran since the last step, as an evaluation did, is in none.

        With a number the next step has that one, and :meth:`step_ended` ends it; otherwise an optimizer does.
        """
        with self.guarded() as agent:
            if agent is not None:
                agent.steps.begin(step)

    def step_ended(self, following: int) -> bool:
        """Say that step ``following`` begins now, unless it is running already; return whether a step has ended."""
        with self.guarded() as agent:
            if agent is not None and following != agent.steps.current:
                agent.steps.mark(following)
                return True
        return False

    def log(self, write: Callable[[Figures], None]) -> None:
        """Hand ``write`` the figures of the steps since the last call, if there are any."""
        with self.guarded() as agent:
            if agent is not None:
                figures = self._figures.since_last(agent)
                if figures is not None:
                    write(figures)

    def evaluation_begins(self) -> None:
        """Say that an evaluation begins now."""
        with self.guarded() as agent:
            self._before_evaluation = None if agent is None else _sums(agent)

    def evaluation_ends(self, write: Callable[[dict[str, float]], None]) -> None:
        """Hand ``write`` what the evaluation that ends now came to, if its beginning was said.

        Where steps are sampled, few syncs of an evaluation are named, and its stall is known only where a sensor
        measures all waits.
        """
        with self.guarded() as agent:
            before, self._before_evaluation = self._before_evaluation, None
            if agent is None or before is None:
                return
            syncs, stall_ms = _sums(agent)
            sampling, metrics = agent.sensors.sampling, {}
            if sampling is None:
                metrics[EVAL_SYNCS] = syncs - before[0]
            if sampling is None or sampling.exact_stalls():
                metrics[EVAL_STALL] = stall_ms - before[1]
            if metrics:
                write(metrics)

    def end(self) -> None:
        """End the watch; an agent that was joined goes on."""
        with self.guarded() as agent:
            self._agent = None
            atexit.unregister(self.end)
            if agent is not None:
                if not self._was_by_hand:
                    agent.steps.follow_optimizers()
                process.leave()

    def say_worst(self, worst: str) -> None:
        """Put the worst line into the agent's log, once, for a logger that takes no text."""
        line = worst.rpartition(_STALLS)[0]
        log_once(f"{WORST}-{line}", f"{WORST}: {worst}", level="info")

    @contextmanager
    def guarded(self) -> Iterator[ProcessAgent | None]:
        """Give the agent, if it is watching; a fault inside ends the watch."""
        try:
            yield self.agent
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._is_off = True
        log_once(f"fault-{self._callback}", f"{self._callback} failed and is off; training goes on", error=repr(error))
        self.end()


class _Differences:
    """What the steps between two logs came to, from sums that only grow."""

    def __init__(self) -> None:
        self._since = Since()
        self._stalls: dict[int, float] = {}
        """By site, what it had stalled the steps by the last call, in ms."""
        self._last: Changes | None = None

    def since_last(self, agent: ProcessAgent) -> Figures | None:
        """Return the figures of the steps since the last call; ``None`` where no step that is timed has ended.

        Where syncs are named in some steps only (``detail="auto"``), few steps may have none of those: syncs per step
        are then those of the run so far, and so is the stall where no sensor measures all waits.
        """
        last, now = self._last, agent.changes(self._since)
        stalls = {site.id: (site, site.step_stall_ms or 0.0) for site in now.sites}
        grown = [(ms - self._stalls.get(number, 0.0), site) for number, (site, ms) in stalls.items()]
        self._stalls.update((number, ms) for number, (_, ms) in stalls.items())
        if _timed(now) == (0 if last is None else _timed(last)):
            return None
        self._last = now
        sampling = agent.sensors.sampling
        metrics = {SYNCS: _rate(now, last if sampling is None else None, _syncs)}
        if now.step_stall_ms is not None:
            metrics[STALL] = _rate(now, last if sampling is None or sampling.exact_stalls() else None, _stall_ms)
        worst = max(grown, key=lambda pair: pair[0], default=None)
        if worst is None or worst[0] <= 0:
            return Figures(metrics, None)
        stall_ms, site = worst
        steps = _timed(now) - (0 if last is None else _timed(last))
        return Figures(metrics, _told(site, stall_ms / steps, simulated=agent.settings.simulate))


def _sums(agent: ProcessAgent) -> tuple[float, float]:
    """Return how many syncs there were so far, and for how long they have stalled, in ms."""
    sites = agent.changes(Since()).sites
    return float(sum(site.count for site in sites)), sum(site.stall_ms for site in sites)


def _timed(changes: Changes) -> int:
    """Return how many steps are timed: all but the first."""
    return max(changes.steps - 1, 0)


def _syncs(changes: Changes) -> float:
    return changes.step_syncs


def _stall_ms(changes: Changes) -> float:
    return changes.step_stall_ms or 0.0


def _rate(now: Changes, before: Changes | None, what: Callable[[Changes], float]) -> float:
    """Return what one step had of it on average, of the steps between the two."""
    steps = _timed(now) - (0 if before is None else _timed(before))
    return (what(now) - (0.0 if before is None else what(before))) / steps


def _told(site: SiteRow, ms_per_step: float, *, simulated: bool) -> str:
    """``train.py:41: loss.item() stalls a step for 1.3 ms``; the library's line is named, too, where that waits."""
    line = site.forward or site
    source = wording.clean(line.source).removesuffix(":") or wording.named(site.api, site.op)
    told = f"{wording.place(line.file, line.line)}: {source}"
    if site.library is not None and site.forward is None:
        told += f", in {wording.place(site.library.file, site.library.line)},"
    told += f"{_STALLS}a step for {wording.duration(ms_per_step)}"
    return f"{told} (simulated device)" if simulated else told


def caller(kind: type[T]) -> T | None:
    """Return the object of this kind whose method has called us; ``None`` where there is none.

    Neither transformers nor accelerate tells a callback or a tracker which trainer it belongs to, nor so which loggers
    there are beside it.
    """
    frame = sys._getframe(1)
    for _ in range(12):
        found = frame.f_locals.get("self")
        if isinstance(found, kind):
            return found
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def tag_mlflow(worst: str) -> None:
    """Set a tag of MLflow's active run, whose metrics are numbers alone."""
    mlflow: Any = sys.modules.get("mlflow")
    if mlflow is not None and mlflow.active_run() is not None:
        mlflow.set_tag(WORST, worst)
