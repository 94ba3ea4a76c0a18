"""What ``syncagent.watch(...)`` gives: one object that is a context manager and a decorator."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

from syncagent.errors import ConfigError
from syncagent.runtime import process
from syncagent.runtime.decorating import Opened, decorate

if TYPE_CHECKING:
    from types import TracebackType

    from syncagent.policy import Policy
    from syncagent.runtime.agent import ProcessAgent
    from syncagent.runtime.decorating import Given, Returned, Watched
    from syncagent.runtime.handle import Agent
    from syncagent.settings.schema import Settings


class Watch:
    """Begins an agent, or a region of the one that runs, and ends it; see :func:`syncagent.watch`."""

    asserts = False
    """Whether what waits inside is counted against a limit at the end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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

    def __call__(self, function: Callable[Given, Returned], /) -> Watched[Given, Returned]:
        return decorate(function, self._begin)

    def _begin(self) -> Opened:
        agent, is_new = process.launch_or_find(self._settings)
        if is_new:  # ended here, whoever has joined it meanwhile, unless it was stopped before
            return Opened(agent, partial(_end, agent))
        judged_for, judge = self._judged  # another thread may enter at the same time
        try:
            region = agent.regions.open(self._settings, judge if judged_for is agent else None, asserts=self.asserts)
        except ConfigError:
            raise
        except Exception as error:
            agent.faults.add("a watch inside another", error, "could not begin and is not judged by its own policy")
            return Opened(agent, lambda: None)
        self._judged = (agent, region.own_policy)
        give_back = process.borrow_device(agent)

        def close() -> None:
            try:
                region.close()
            finally:
                give_back()

        return Opened(region, close)


def _end(agent: ProcessAgent) -> None:
    if agent is process.running():
        agent.regions.cut_short()
        process.end(agent)


_ENTERED: ContextVar[tuple[Opened, ...]] = ContextVar("syncagent_entered", default=())
"""What the watches that were entered on this thread or in this task have begun."""
