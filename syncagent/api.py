"""The few functions by which a program starts, finds and stops the agent of its process."""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from syncagent.errors import ConfigError
from syncagent.report.summary import Summary
from syncagent.runtime.agent import Agent, no_run
from syncagent.runtime.autostart import simulates_throughout
from syncagent.runtime.decorating import decorate
from syncagent.runtime.regions import Region
from syncagent.runtime.sinks import of_program
from syncagent.settings import schema, sources
from syncagent.support.log import log_once

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from syncagent.delivery.sink import Sink
    from syncagent.policy import Policy
    from syncagent.report.model import Report

__all__ = ["current", "launch", "release", "start", "step", "stop", "watch"]

_lock = threading.RLock()
_current: Agent | None = None
_joined = 0
"""How often start() has joined an agent that was running already: so many stop() end nothing."""


def current() -> Agent | Region | None:
    """Return the innermost region that covers the caller, else the agent that is running, or ``None``."""
    agent = _current
    return None if agent is None else agent.regions.here() or agent


def start(**settings: Any) -> Agent:
    """Start watching this process and return the agent.

    While one is running it is returned as it is, and settings that differ from its own are not applied (the log says
    which).  Raises :class:`~syncagent.ConfigError` for a value that is not allowed, where torch is not installed, and
    where ``policy="raise"``, or ``"warn"`` with a baseline, cannot be in force: also since another agent is running.
    """
    global _joined
    settled = sources.load(settings)
    with _lock:
        running = _current
        if running is not None and settled.sources.get("policy") == "keyword" and settled.is_gate:
            same = (settled.policy, settled.baseline) == (running.policy, running.settings.baseline)
            if not same:
                raise ConfigError(
                    f"syncagent: setting policy is {settled.policy!r}, but this process is watched already, under "
                    f"{running.policy!r}; `with syncagent.watch(...)` has a policy of its own there."
                )
        agent = launch(settled)
        _joined += running is not None
    return agent


def launch(settings: schema.Settings, sinks: tuple[Sink, ...] | None = None, *, modes: bool = True) -> Agent:
    """Start an agent with settled settings; without ``sinks``, spans go to the program's own tracer provider."""
    global _current
    with _lock:
        if _current is not None:
            _say_what_differs(settings, _current.settings)
            return _current
        try:
            import torch  # noqa: F401
        except ModuleNotFoundError:
            raise ConfigError("syncagent: torch is not installed in this environment; install it first.") from None
        give_back = _device(settings) if settings.simulate else None
        try:
            if sinks is None:
                sinks = of_program(settings).sinks
            agent = Agent(settings, sinks)
        except BaseException:
            if give_back is not None:
                give_back()
            raise
        agent.give_device_back = give_back
        agent.start(modes=modes)
        why_not = agent.gate_cannot_hold()
        if why_not is not None:
            agent.stop()
            raise ConfigError(why_not)
        _current = agent
        _register_fork_handler()
        return agent


def _device(settings: schema.Settings) -> Callable[[], None] | None:
    """Put the simulated device in; return what takes it away again, if it is for this watch alone."""
    from syncagent import simulate

    if settings.sources.get("simulate", "keyword") != "keyword" or simulates_throughout():
        simulate.install()
        return None
    return simulate.borrow()


def _say_what_differs(asked: schema.Settings, in_force: schema.Settings) -> None:
    differing = {
        name: f"{value!r}, but {getattr(in_force, name)!r} is in force"
        for name in asked.sources
        if (value := getattr(asked, name)) != getattr(in_force, name)
    }
    if differing:
        log_once(
            f"second-start-{differing}", "an agent is running already; the settings of the second are not applied",
            **differing,
        )  # fmt: skip


def stop() -> Report:
    """Stop the running agent, with the regions that are open, and return its report.

    Where ``start()`` has joined an agent that was running already, as under ``SYNCAGENT=1``, that one goes on, and its
    report so far is returned.  Without an agent, say so in the log and return an empty report.
    """
    global _joined
    agent = _current
    if agent is not None and _joined:
        _joined -= 1
        return agent.report()
    if agent is None:
        log_once("stop-without-start", "stop() was called, but no agent is running")
        return Summary().snapshot(no_run("observe"))
    return _end(agent)


def _end(agent: Agent) -> Report:
    report = release(agent)
    agent.save(report)
    return report


def release(agent: Agent | Region) -> Report:
    """Stop this very agent or region, whether it is still the current one or not, and return its report."""
    global _current, _joined
    with _lock:
        if _current is agent:
            _current = None
            _joined = 0
    return agent.stop()


def step(n: int | None = None) -> None:
    """Mark by hand that a training step ends here and step ``n`` (by default the next number) begins.

    From the first call on, optimizers no longer mark steps.  Does nothing while no agent is running.
    """
    if _current is not None:
        _current.steps.mark(n)


class watch:  # noqa: N801 - reads as a verb: with syncagent.watch()
    """Watch what runs inside: ``with syncagent.watch() as agent:`` or ``@syncagent.watch()``.

    Takes every setting as a keyword.  Decorates functions, coroutines, generators and asynchronous generators.  Inside
    another watch, or in a process that is watched already, it is a *region*: policy, allowances, budgets and report are
    its own, the sensors are those of the agent that runs.  See :mod:`syncagent.runtime.regions`.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = sources.load(settings)
        self._open: list[_Opened] = []
        self._judged: tuple[Agent, Policy] | None = None
        """The policy of this watch's last region, and the agent that it belonged to."""

    def __enter__(self) -> Agent | Region:
        opened = self._begin()
        self._open.append(opened)
        _ENTERED.set((*_ENTERED.get(), (self, opened)))
        return opened.what

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered = _ENTERED.get()
        place = next((place for place in reversed(range(len(entered))) if entered[place][0] is self), None)
        if place is None:  # entered elsewhere, as by an ExitStack that was handed over to another thread
            opened = self._open.pop()
        else:
            opened = entered[place][1]
            _ENTERED.set(entered[:place] + entered[place + 1 :])
            self._open.remove(opened)
        opened.close()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return decorate(function, self._begin)

    def _begin(self) -> _Opened:
        with _lock:
            agent = _current
            if agent is None:
                return _Opened(launch(self._settings), ends=True)
        judged = self._judged  # another thread may enter at the same time
        try:
            region = agent.regions.open(
                self._settings, judged[1] if judged is not None and judged[0] is agent else None
            )
        except ConfigError:
            raise
        except Exception as error:
            agent.faults.add("a watch inside another", error, "could not begin and is not judged by its own policy")
            return _Opened(agent, ends=False)
        self._judged = (agent, region.own_policy)
        return _Opened(region, ends=True)


class _Opened:
    """What a watch has begun: the agent, or a region of the one that was running."""

    def __init__(self, what: Agent | Region, *, ends: bool) -> None:
        self.what = what
        self._ends = ends

    def suspend(self) -> None:
        """Cover nothing for a while, if it is a region."""
        if isinstance(self.what, Region):
            self.what.suspend()

    def resume(self) -> None:
        """Cover this thread or task again."""
        if isinstance(self.what, Region):
            self.what.resume()

    def close(self) -> None:
        """End it, unless it was stopped before."""
        if isinstance(self.what, Region):
            self.what.close()
        elif self._ends and self.what is _current:
            _end(self.what)  # whoever has joined it meanwhile


_ENTERED: ContextVar[tuple[tuple[watch, _Opened], ...]] = ContextVar("syncagent_entered", default=())
"""The watches that were entered on this thread or in this task, and what each of them has begun."""

_fork_handler = False


def _register_fork_handler() -> None:
    global _fork_handler
    if not _fork_handler and hasattr(os, "register_at_fork"):
        _fork_handler = True
        os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    global _current, _lock
    _lock = threading.RLock()  # a thread that is gone now may have held it
    agent, _current = _current, None
    if agent is not None:
        try:
            agent.after_fork_in_child()
        except Exception as error:
            log_once("fork", "the agent could not fall silent in a forked child", error=repr(error))
