"""Reports each wait of the host for the device, and counts those that only the simulation needs."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from syncagent.simulate import modelled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from syncagent.events import SyncKind

T = TypeVar("T")


class WaitObserver(Protocol):
    """Called for each wait that a GPU would have caused too."""

    def before(self, op: str, kind: SyncKind, args: Sequence[object]) -> object:
        """Called on the waiting thread, before the op runs; it may raise.  Returns a token for :meth:`after`."""

    def after(self, token: object, start_ns: int, end_ns: int) -> None:
        """Called when the wait is over, with its start and end by ``time.perf_counter_ns``."""


_observer: WaitObserver | None = None
_internal: Counter[str] = Counter()


def observe(observer: WaitObserver | None) -> None:
    """Report waits to this observer from now on, and to no other."""
    global _observer
    _observer = observer


def current_observer() -> WaitObserver | None:
    """Return the one that waits are reported to now."""
    return _observer


class JoinObserver(Protocol):
    """Called where a device's default stream has waited for a collective."""

    def __call__(
        self, *, moment_ns: int, waited_ns: int, caught_up: bool, host_waited: bool, behind_ns: int | None
    ) -> None:
        """Called on any thread with the moment at which the host has queued that (``time.perf_counter_ns``).

        ``caught_up``: the stream had passed the one before by then; ``host_waited``: the host has waited since that;
        ``behind_ns``: how much later the stream got there, ``None`` where the collective was over before.
        """


_of_joins: JoinObserver | None = None


def observe_joins(observer: JoinObserver | None) -> None:
    """Report waits of default streams for collectives to this observer from now on, and to no other."""
    global _of_joins
    _of_joins = observer


class Join(NamedTuple):
    """A place at which a default stream waits for a collective, as it is queued."""

    moment_ns: int
    caught_up: bool
    host_waited: bool


_queued, _passed, _host_waits = itertools.count(1), itertools.count(1), itertools.count(1)
_last_queued = _last_passed = _last_host_wait = _host_waits_before = 0


def host_waits() -> None:
    """Note that the host waits for the device."""
    global _last_host_wait
    _last_host_wait = next(_host_waits)


def join() -> Join:
    """Return one that is being queued now."""
    global _last_queued, _host_waits_before
    caught_up, host_waited = _last_passed >= _last_queued, _last_host_wait > _host_waits_before
    _last_queued, _host_waits_before = next(_queued), _last_host_wait
    return Join(time.perf_counter_ns(), caught_up, host_waited)


def joined(join: Join, began_ns: int | None) -> None:
    """Report one that has been passed, at which the stream stood still from that moment on, or not at all."""
    global _last_passed
    _last_passed = next(_passed)
    observer = _of_joins
    if observer is not None:
        observer(
            moment_ns=join.moment_ns, caught_up=join.caught_up, host_waited=join.host_waited,
            waited_ns=0 if began_ns is None else time.perf_counter_ns() - began_ns,
            behind_ns=None if began_ns is None else began_ns - join.moment_ns,
        )  # fmt: skip


def reported(
    op: str, kind: SyncKind | None, args: Sequence[object], wait: Callable[[], T], *, is_idle: bool = False
) -> T:
    """Wait as CUDA would, and report it.  The wait includes the op itself, which runs on the device.

    Without a kind there is nothing to report.  ``is_idle`` says that there is nothing left to wait for: the reported
    wait is then 0 ns long.
    """
    observer = _observer
    if observer is None or kind is None:
        return wait()
    token = observer.before(op, kind, args)
    clock = modelled.clock
    if clock is not None:
        stalled_ns = clock.stalled_ns
        try:
            return wait()
        finally:
            end = clock.now()
            observer.after(token, end - (clock.stalled_ns - stalled_ns), end)
    start = time.perf_counter_ns()
    try:
        return wait()
    finally:
        observer.after(token, start, start if is_idle else time.perf_counter_ns())


REPORTED = reported.__code__
"""What a thread is in while it waits as on a GPU."""


def reported_late(op: str, kind: SyncKind, args: Sequence[object], started_ns: int, returned_ns: int) -> None:
    """Report a wait that only the op's results have revealed; the op's next wait will be known beforehand."""
    observer = _observer
    if observer is not None:
        observer.after(observer.before(op, kind, args), started_ns, returned_ns)


def internal(reason: str) -> None:
    """Count a wait that only the simulation needs: CUDA would not wait, so it is not reported."""
    _internal[reason] += 1


def internal_waits() -> Counter[str]:
    """Return how often the simulation had to wait where CUDA would not, by reason."""
    return _internal.copy()
