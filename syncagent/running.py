"""The few functions by which a program starts, finds and stops the agent of its process."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from typing import TYPE_CHECKING, Any

from syncagent import config
from syncagent.agent import Agent, no_run
from syncagent.errors import ConfigError
from syncagent.log import log_once
from syncagent.session import user_sinks
from syncagent.sinks.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from syncagent.report.model import Report
    from syncagent.sinks import Sink

__all__ = ["current", "launch", "release", "start", "step", "stop", "watch"]

_lock = threading.RLock()
_current: Agent | None = None


def current() -> Agent | None:
    """Return the agent that is running, or ``None``."""
    return _current


def start(**settings: Any) -> Agent:
    """Start watching this process and return the agent.

    While one is running it is returned as it is, and settings that differ from its own are not applied (said in the
    log).  Raises :class:`~syncagent.ConfigError` for a value that is not allowed, and where torch is not installed.
    """
    return launch(config.load(settings))


def launch(settings: config.Settings, sinks: tuple[Sink, ...] | None = None, *, modes: bool = True) -> Agent:
    """Start an agent with settled settings; without ``sinks``, spans go to the program's own tracer provider."""
    global _current
    with _lock:
        if _current is not None:
            if settings != _current.settings:
                log_once("second-start", "an agent is running already; the settings of the second are not applied")
            return _current
        try:
            import torch  # noqa: F401
        except ModuleNotFoundError:
            raise ConfigError("syncagent: torch is not installed in this environment; install it first.") from None
        if settings.simulate:
            from syncagent import simulate

            simulate.install()
        if sinks is None:
            sinks = user_sinks(settings)
        agent = Agent(settings, sinks)
        agent.start(modes=modes)
        _current = agent
        _register_fork_handler()
        return agent


def stop() -> Report:
    """Stop the running agent and return its report; without one, say so in the log and return an empty report."""
    agent = _current
    if agent is None:
        log_once("stop-without-start", "stop() was called, but no agent is running")
        return Summary().snapshot(no_run("observe"))
    report = release(agent)
    agent.save(report)
    return report


def release(agent: Agent) -> Report:
    """Stop this very agent, whether it is still the current one or not, and return its report."""
    global _current
    with _lock:
        if _current is agent:
            _current = None
    return agent.stop()


def step(n: int | None = None) -> None:
    """Mark by hand that a training step ends here and step ``n`` (by default the next number) begins.

    From the first call on, optimizers no longer mark steps.  Does nothing while no agent is running.
    """
    if _current is not None:
        _current.steps.mark(n)


class watch:  # noqa: N801 - reads as a verb: with syncagent.watch()
    """Watch what runs inside: ``with syncagent.watch() as agent:`` or ``@syncagent.watch()``.

    Takes every setting as a keyword.  Inside another watch, or in a process that is watched already, it joins the agent
    that is running, and leaving it ends nothing.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = config.load(settings)
        self._owned: list[bool] = []

    def __enter__(self) -> Agent:
        running = current()
        agent = launch(self._settings)
        self._owned.append(agent is not running)
        return agent

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owned.pop():
            stop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def watched_coroutine(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return watched_coroutine

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return watched


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
