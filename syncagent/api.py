"""The few functions by which a program starts, finds and stops the agent of its process."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast

from syncagent.errors import ConfigError
from syncagent.policy import allow
from syncagent.runtime import process
from syncagent.runtime.decorating import Opened, decorate
from syncagent.settings import sources

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Unpack  # mypy's own copy: nothing is installed for it

    from syncagent.policy import Policy
    from syncagent.report.model import Report
    from syncagent.runtime.agent import ProcessAgent
    from syncagent.runtime.handle import Agent
    from syncagent.settings.schema import Keywords

__all__ = ["allow", "current", "start", "step", "stop", "watch"]

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def current() -> Agent | None:
    """Return the innermost region that covers the caller, else the agent that is running, or ``None``."""
    agent = process.running()
    return None if agent is None else agent.regions.here() or agent


def start(**settings: Unpack[Keywords]) -> Agent:
    """Start watching this process and return the agent.

    While one is running it is returned as it is, and settings that differ from its own are not applied (the log says
    which).  Raises :class:`~syncagent.ConfigError` for a value that is not allowed, where torch is not installed, and
    where ``policy="raise"``, or ``"warn"`` with a baseline, cannot be in force, also because another agent is running.
    """
    return process.join(sources.load(settings))


def stop() -> Report:
    """Stop the running agent, with the regions that are open, and return its report.

    Where ``start()`` has joined an agent that was running already, as under ``SYNCAGENT=1``, that one goes on, and its
    report so far is returned.  Without an agent, say so in the log and return an empty report.
    """
    return process.leave()


def step(n: int | None = None) -> None:
    """Mark by hand that a training step ends here and step ``n`` (by default the next number) begins.

    From the first call on, optimizers no longer mark steps.  Does nothing while no agent is running.
    """
    agent = process.running()
    if agent is not None:
        agent.steps.mark(n)


class watch:  # noqa: N801 - reads as a verb: with syncagent.watch()
    """Watch what runs inside: ``with syncagent.watch() as agent:`` or ``@syncagent.watch()``.

    Takes every setting as a keyword.  Decorates functions, coroutines, generators and asynchronous generators.  Inside
    another watch, or in a process that is watched already, it is a *region*: policy, allowances, budgets and report are
    its own, the sensors are those of the agent that runs.  See :mod:`syncagent.runtime.regions`.
    """

    def __init__(self, **settings: Unpack[Keywords]) -> None:
        self._settings = sources.load(settings)
        self._open: list[Opened] = []
        self._judged: tuple[ProcessAgent | None, Policy | None] = (None, None)
        """The policy of this watch's last region, and the agent that it belonged to."""

    def __enter__(self) -> Agent:
        opened = self._begin()
        self._open.append(opened)
        _ENTERED.set((*_ENTERED.get(), opened))
        return opened.handle

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        here = [opened for opened in _ENTERED.get() if opened in self._open]
        # Entered elsewhere, as by an ExitStack that was handed over to another thread, it is the newest of all.
        last = (here or self._open)[-1]
        self._open.remove(last)
        _ENTERED.set(tuple(opened for opened in _ENTERED.get() if opened is not last))
        last.close()

    def __call__(self, function: _Function) -> _Function:
        return cast("_Function", decorate(function, self._begin))

    def _begin(self) -> Opened:
        agent, is_new = process.launch_or_find(self._settings)
        if is_new:  # ended here, whoever has joined it meanwhile, unless it was stopped before
            return Opened(agent, lambda: process.end(agent) if agent is process.running() else None)
        judged_for, judge = self._judged  # another thread may enter at the same time
        try:
            region = agent.regions.open(self._settings, judge if judged_for is agent else None)
        except ConfigError:
            raise
        except Exception as error:
            agent.faults.add("a watch inside another", error, "could not begin and is not judged by its own policy")
            return Opened(agent, lambda: None)
        self._judged = (agent, region.own_policy)
        return Opened(region, region.close)


_ENTERED: ContextVar[tuple[Opened, ...]] = ContextVar("syncagent_entered", default=())
"""What the watches that were entered on this thread or in this task have begun."""
