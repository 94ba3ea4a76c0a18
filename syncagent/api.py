"""The few functions by which a program starts, finds and stops the agent of its process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from syncagent.policy import allow
from syncagent.runtime import process
from syncagent.runtime.watching import Watch
from syncagent.settings import sources

if TYPE_CHECKING:
    from typing_extensions import Unpack  # mypy's own copy: nothing is installed for it

    from syncagent.report.model import Report
    from syncagent.runtime.asserting import SyncAssertion
    from syncagent.runtime.decorating import Given, Returned, Watched
    from syncagent.runtime.handle import Agent
    from syncagent.settings.schema import Keywords

__all__ = ["allow", "assert_max_syncs", "assert_no_syncs", "current", "start", "step", "stop", "watch"]


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


@overload
def watch(function: Callable[Given, Returned], /) -> Watched[Given, Returned]: ...
@overload
def watch(**settings: Unpack[Keywords]) -> Watch: ...
def watch(function: Callable[..., Any] | None = None, /, **settings: Unpack[Keywords]) -> Any:
    """Watch what runs inside: ``with syncagent.watch() as agent:``, ``@syncagent.watch`` or ``@syncagent.watch()``.

    Takes every setting as a keyword.  Decorates functions, methods, coroutines, generators and asynchronous generators:
    each call is watched, and ``train.report()`` is the report of the newest call of ``train``, ``train.agent`` its
    agent.  Inside another watch, or in a process that is watched already, it is a *region*: policy, allowances, budgets
    and report are its own, the sensors are those of the agent that runs.  See :mod:`syncagent.runtime.regions`.
    """
    watching = Watch(sources.load(settings))
    return watching if function is None else watching(function)


@overload
def assert_no_syncs(function: Callable[Given, Returned], /) -> Watched[Given, Returned]: ...
@overload
def assert_no_syncs(**settings: Unpack[Keywords]) -> SyncAssertion: ...
def assert_no_syncs(function: Callable[..., Any] | None = None, /, **settings: Unpack[Keywords]) -> Any:
    """Raise :class:`~syncagent.HostSyncAssertionError` at the end if anything inside has waited for the GPU.

    See :func:`assert_max_syncs`, of which this is the case of 0; as a decorator it needs no parentheses.
    """
    assertion = assert_max_syncs(0, **settings)
    return assertion if function is None else assertion(function)


def assert_max_syncs(n: int, /, **settings: Unpack[Keywords]) -> SyncAssertion:
    """Raise :class:`~syncagent.HostSyncAssertionError` at the end if there were more than ``n`` host syncs inside.

    A context manager, ``with syncagent.assert_max_syncs(1):``, and a decorator of whatever :func:`watch` decorates,
    each call by itself.  It covers what ``watch`` covers, without a warm-up.  What ``syncagent.allow`` or the settings
    ``allow``, ``allow_kinds`` and ``allow_packs`` allow does not count, nor do kinds that are judged only if
    ``judge_kinds`` names them.  An error of the program's own goes first.  Takes settings as keywords.

    Raises :class:`~syncagent.ConfigError` for a number or a setting that is not allowed, and where syncs would be
    missed.
    """
    from syncagent.runtime.asserting import SyncAssertion, a_number

    return SyncAssertion(a_number(n), settings)
