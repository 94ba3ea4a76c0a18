"""The agent of this process, of which there is one at most: how it starts, who has joined it, how it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace

from syncagent.delivery.sink import Sink
from syncagent.errors import ConfigError
from syncagent.policy import gate
from syncagent.report.model import Report
from syncagent.report.summary import Summary
from syncagent.runtime import table
from syncagent.runtime.agent import ProcessAgent
from syncagent.runtime.handle import Agent
from syncagent.runtime.run import no_run
from syncagent.runtime.sinks import build
from syncagent.settings.schema import Settings, parse
from syncagent.support.log import log_once

_lock = threading.RLock()
_running: ProcessAgent | None = None
_joined = 0
"""How often :func:`join` has found an agent that was running already: as many :func:`leave` end nothing."""


def running() -> ProcessAgent | None:
    """Return the agent that is running; one that was stopped by its own ``stop()`` is none."""
    return None if _running is None or _running.is_off else _running


def launch(settings: Settings, sinks: tuple[Sink, ...] | None = None, *, modes: bool = True) -> ProcessAgent:
    """Start an agent; without ``sinks``, spans go to the program's own tracer provider.

    One that is running already is returned as it is, and the log says which settings are not applied.  Raises
    :class:`~syncagent.ConfigError` where torch is not installed and where the policy cannot be in force.
    """
    global _running, _joined
    with _lock:
        if (found := running()) is not None:
            _log_differences(settings, found.settings)
            return found
        try:
            import torch  # noqa: F401 - is it there?
        except ModuleNotFoundError:
            raise ConfigError("syncagent: torch is not installed in this environment; install it first.") from None
        gate.check_detail(settings)
        settings = _with_device(settings)
        remove_device = _install_device(settings) if settings.simulate else None
        try:
            agent = ProcessAgent(settings, build(settings, {}).sinks if sinks is None else sinks)
        except BaseException:
            if remove_device is not None:
                remove_device()
            raise
        agent.remove_device = remove_device
        agent.start(modes=modes)
        agent.require_gate()
        _running, _joined = agent, 0
        return agent


def launch_or_find(settings: Settings) -> tuple[ProcessAgent, bool]:
    """Return the agent that is running, or a new one; and whether it is new."""
    with _lock:
        return (launch(settings), True) if (found := running()) is None else (found, False)


def lend(settings: Settings) -> Callable[[], None]:
    """Start an agent if none is running; return what gives it back.

    While it runs, others borrow it, and the last one to give it back ends it.  An agent that the program has started
    is nobody's to end.
    """
    with _lock:
        agent, is_new = launch_or_find(settings)
        if not is_new and not agent.borrowers:
            return lambda: None
        agent.borrowers += 1

    def give_back() -> None:
        with _lock:  # to the end, or the next agent starts while this one takes its sensors out
            agent.borrowers -= 1
            if not agent.borrowers and agent is running():
                agent.regions.cut_short()
                end(agent)

    return give_back


def join(settings: Settings) -> ProcessAgent:
    """Start the agent or join the one that is running.

    Raises :class:`~syncagent.ConfigError` as :func:`launch` does, and for a gate that was asked for by keyword where an
    agent with another policy is running.
    """
    global _joined
    with _lock:
        found = running()
        asks_for_gate = settings.sources.get("policy") == "keyword" and settings.is_gate
        if (
            found is not None
            and asks_for_gate
            and (settings.policy, settings.baseline) != (found.policy, found.settings.baseline)
        ):
            raise ConfigError(
                f"syncagent: setting policy is {settings.policy!r}, but this process is watched already, under "
                f"{found.policy!r}; `with syncagent.watch(...)` has a policy of its own there."
            )
        agent = launch(settings)
        _joined += found is not None
    return agent


def leave() -> Report:
    """Undo one :func:`join`: stop the agent, unless that call had found it running, and return the report."""
    global _joined
    agent = _running
    if agent is None:
        log_once("stop-without-start", "stop() was called, but no agent is running")
        return Summary().snapshot(no_run("observe"))
    if _joined or agent.is_kept:
        _joined = max(_joined - 1, 0)
        return agent.report()
    return end(agent)


def end(agent: Agent) -> Report:
    """Stop this agent, save its report where the settings say, and print the table if they ask for it."""
    report = release(agent)
    saved = agent.save(report)
    if agent.settings.summary:
        table.show(report, {"report": saved}, verbose=agent.settings.verbose)
    return report


def release(agent: Agent) -> Report:
    """Stop this very agent, whether it is still the one of the process or not, and return its report."""
    _forget(agent)
    return agent.stop()


def close(agent: ProcessAgent) -> None:
    """Stop this very agent where nobody reads its report."""
    _forget(agent)
    agent.close()


def _forget(agent: Agent) -> None:
    global _running, _joined
    with _lock:
        if _running is agent:
            _running = None
            _joined = 0


def _with_device(settings: Settings) -> Settings:
    """Return the settings for the device that there is: one that was put in before is simulated, whoever did it."""
    from syncagent import simulate

    return replace(settings, simulate=True) if simulate.installed() else settings


def _install_device(settings: Settings) -> Callable[[], None] | None:
    """Put the simulated device in; return what removes it, if it is for this agent alone and not for the process."""
    from syncagent import simulate

    is_for_process = parse("simulate", os.environ.get("SYNCAGENT_SIMULATE", ""))
    if is_for_process or settings.sources.get("simulate", "keyword") != "keyword":
        simulate.install(gpu=settings.modelled_gpu)
        return None
    return simulate.borrow(gpu=settings.modelled_gpu)


def borrow_device(agent: ProcessAgent) -> Callable[[], None]:
    """Keep the simulated device of an agent that has one for itself until what this returns is called.

    A watch in another thread or in a generator may end later than the one that began the agent.
    """
    from syncagent import simulate

    gpu = agent.settings.modelled_gpu
    return simulate.borrow(gpu=gpu) if agent.remove_device is not None else lambda: None


def _log_differences(asked: Settings, in_force: Settings) -> None:
    differing = {
        name: f"{value!r}, but {getattr(in_force, name)!r} is in force"
        for name in asked.sources
        if (value := getattr(asked, name)) != getattr(in_force, name)
    }
    if differing:
        log_once(
            f"second-start-{differing}",
            "an agent is running already; the settings of the second are not applied",
            **differing,
        )


def _forget_in_child() -> None:
    global _running, _lock
    _lock = threading.RLock()  # a thread that does not exist in the child may have held it
    agent, _running = _running, None
    if agent is not None:
        try:
            agent.after_fork_in_child()
        except Exception as error:
            log_once("fork", "the agent could not be switched off in a forked child", error=repr(error))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
