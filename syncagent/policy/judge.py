"""Judges each sync: before the wait, where it may raise with the op not yet run, and after it, when the stall is known.

This is the only stage that may raise into the program.
"""

from __future__ import annotations

import copy
import time
import warnings
from typing import TYPE_CHECKING, Any, Protocol

from syncagent.attribution.callsite import SET_UP
from syncagent.errors import HostSyncError, HostSyncWarning
from syncagent.events import CallSite, SyncEvent, SyncKind, is_judged
from syncagent.policy.allowances import Allowances, pack_for
from syncagent.policy.budgets import Budgets
from syncagent.policy.messages import Violation, message
from syncagent.policy.scopes import open_reason
from syncagent.report.baseline import BY_BASELINE
from syncagent.support.printable import clean, has_controls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from syncagent.attribution.callsite import Point, Where
    from syncagent.attribution.locator import Locator
    from syncagent.attribution.threads import WatchedThread
    from syncagent.events import Phase
    from syncagent.settings.schema import PolicyName, Settings

_CACHE_LIMIT = 50_000


class Ended(Protocol):
    """What is known of a wait that is over."""

    @property
    def where(self) -> Where: ...
    @property
    def allowed(self) -> str | None: ...
    @property
    def library(self) -> tuple[Point, ...]: ...


class Policy:
    """A policy, and what it allows."""

    def __init__(self, settings: Settings, locator: Locator, current_step: Callable[[], int]) -> None:
        self.budgets = Budgets(settings)
        self._settings = settings
        self._allowances = Allowances(settings)
        self._warmup = settings.warmup_steps
        self._min_stall_ns = settings.min_stall_ms * 1e6
        self._every_thread = settings.judge_threads == "all"
        self._locator = locator
        self._resolve = locator.sites.resolve
        self._step = self._steps_done = current_step
        self._warned: set[tuple[CallSite | None, CallSite | None]] = set()
        self._listed: dict[tuple[object, ...], tuple[str | None, object]] = {}
        self.mode = settings.policy

    def for_region(self, mode: PolicyName, steps_done: Callable[[], int]) -> Policy:
        """Return a copy of this policy for one more region.

        Its budgets are unspent, its warm-up counts by ``steps_done``, and it judges every thread that the region
        covers.  The copy shares what has been read (baseline, packs) and which lines have been warned of.
        """
        policy = copy.copy(self)
        policy.budgets = Budgets(self._settings)
        policy._steps_done = steps_done
        policy._every_thread = True
        policy.mode = mode
        return policy

    @property
    def mode(self) -> PolicyName:
        """``observe``, ``warn`` or ``raise``; may be changed at any time."""
        return self._mode

    @mode.setter
    def mode(self, value: PolicyName) -> None:
        self._mode = value
        self._raises_before = value == "raise" and not self._min_stall_ns
        allowances = self._allowances
        self.is_passive = not (self._raises_before or allowances.by_site or allowances.kinds)
        """Whether only open ``allow`` blocks matter before a wait."""

    def judge(
        self, op: str, kind: SyncKind, frame: FrameType | None, thread: WatchedThread, args: Sequence[Any] = ()
    ) -> str | None:
        """Return the reason why a sync is allowed, or ``None``; raise where the policy forbids it, before it waits."""
        reason = open_reason(self._locator, thread)
        if reason is not None:
            return reason
        allowances = self._allowances
        if allowances.kinds and kind.value in allowances.kinds:
            return f"allow_kinds: {kind.value}"
        raises = self._raises_before
        if not allowances.by_site and not raises:
            return None
        where = thread.where = self._locator.locate(thread, frame)
        if where.marks & SET_UP:
            return "torch sets itself up"
        if allowances.by_site:
            reason = self._reason_at(kind, where, frame, thread)
            if reason is not None:
                return reason
        if raises and self._is_judged(thread):
            broken: str | None = ""
            phase = self._locator.phase(thread, where.marks, kind, frame, args)
            if self.budgets.set:
                broken = self.budgets.before(phase, self._step())
            if broken is not None:
                raise self._error(op, kind, where, 0, thread, broken, self._points(where, frame, thread), phase)
        return None

    def forbids(self, thread: WatchedThread, phase: Phase, stall_ns: int) -> str | None:
        """Judge a sync that nothing allows, now that its stall is known.

        Return ``None`` if it may pass, else what it violates: a budget's text, or an empty one for the policy itself.
        """
        if self.mode == "observe" or not self._is_judged(thread):
            return None
        if self.budgets.set:
            return self.budgets.after(phase, self._step(), stall_ns)
        return None if stall_ns < self._min_stall_ns else ""

    def act(
        self, op: str, kind: SyncKind, where: Where, stall_ns: int, thread: WatchedThread, broken: str, phase: Phase
    ) -> None:
        """Raise for a forbidden sync, or warn of it, once per line."""
        if self.mode == "raise":
            points = [point for point in (where.library, where.user) if point]
            raise self._error(op, kind, where, stall_ns, thread, broken, points, phase)
        self._warn(op, kind, where, stall_ns, broken)

    def _warn(self, op: str, kind: SyncKind, where: Where, stall_ns: int, broken: str) -> None:
        """Warn of a line, once."""
        site, library = self._resolve(where.user or where.library), self._resolve(where.library)
        if (site, library) in self._warned:
            return
        place = (site.file, site.line) if site is not None else ("<unknown>", 0)
        text = message(Violation(op, kind, site, library, self._step(), stall_ns, broken))
        if site is not None and has_controls(site.file + site.source):
            place = (clean(site.file), 0)  # Python would print the line itself, escapes and all
        # Under -W error this raises, every time: the line has not been warned of, but stopped.
        warnings.warn_explicit(HostSyncWarning(text), HostSyncWarning, *place)
        self._warned.add((site, library))

    def judge_ended(
        self, op: str, kind: SyncKind, look: Ended, stall_ns: int, thread: WatchedThread | None, *, is_copy: bool
    ) -> tuple[str | None, bool]:
        """Judge a wait that was seen only when it was over: why it is allowed, or whether it was warned of.

        Never raises: the line has gone on.  Copies, collectives and the allocator are warned of only where
        ``judge_kinds`` names them.
        """
        reason = look.allowed or self._reason_of_ended(kind, look)
        asked = self._settings.judge_kinds
        judged_kind = is_judged(kind.value, asked) and (not is_copy or kind.value in asked)
        if reason is not None or self.mode == "observe" or not judged_kind or stall_ns < self._min_stall_ns:
            return reason, False
        trains = thread is not None and thread.trains
        if self.budgets.set or self._steps_done() < self._warmup or not (trains or self._every_thread):
            return None, False
        try:
            self._warn(op, kind, look.where, stall_ns, "")
        except Warning:
            pass  # a filter made an error of it, which would reach the agent's own thread alone
        return None, True

    def _reason_of_ended(self, kind: SyncKind, look: Ended) -> str | None:
        allowances, where = self._allowances, look.where
        if kind.value in allowances.kinds:
            return f"allow_kinds: {kind.value}"
        if not allowances.by_site:
            return None
        points = [*look.library, *(point for point in (where.library, where.user) if point is not None)]
        reason = allowances.sites(self._lines(points))
        baseline = allowances.baseline
        if reason is None and baseline is not None:
            shown, library = where.user or where.library, where.library if where.user else None
            reason = BY_BASELINE if baseline.knows(kind, (shown, library, None), self._resolve) else None
        return reason

    def _is_judged(self, thread: WatchedThread) -> bool:
        """Return whether this is a thread that trains, after the warm-up."""
        if self._steps_done() < self._warmup:
            return False
        if self._every_thread or thread.trains:
            return True
        if self._locator.internals.graph_task() == -1:
            return False
        owner = self._locator.owner_of_backward(thread)
        return owner is None or owner.trains

    def _reason_at(self, kind: SyncKind, where: Where, frame: FrameType | None, thread: WatchedThread) -> str | None:
        """Return the reason that the allow-lists or the baseline give; each set of lines is looked up once."""
        points = self._points(where, frame, thread)
        baseline = self._allowances.baseline
        forward = self._locator.forward_line(thread) if baseline is not None else None
        key = (kind, *((id(code), offset) for code, offset in points), forward and (id(forward[0]), forward[1]))
        known = self._listed.get(key)
        if known is None:
            if len(self._listed) >= _CACHE_LIMIT:
                self._listed.clear()
            reason = self._allowances.sites(self._lines(points))
            if reason is None and baseline is not None:
                shown, library = where.user or where.library, where.library if where.user else None
                if baseline.knows(kind, (shown, library, forward), self._resolve):
                    reason = BY_BASELINE
            # The points keep the code objects alive whose ids are in the key.
            known = self._listed[key] = (reason, (points, forward))
        return known[0]

    def _points(self, where: Where, frame: FrameType | None, thread: WatchedThread) -> list[Point]:
        """Return the lines from the sync out to the user's; in the backward pass also the user's forward line."""
        points = self._locator.sites.inside_user(frame)
        task = self._locator.internals.graph_task()
        forward = self._locator.node_line(thread, task) if task != -1 else None
        return [*points, *(point for point in (where.library, where.user, forward) if point is not None)]

    def _lines(self, points: list[Point]) -> list[CallSite]:
        return [site for site in map(self._resolve, points) if site is not None]

    def _error(
        self, op: str, kind: SyncKind, where: Where, stall_ns: int, thread: WatchedThread, broken: str,
        points: list[Point], phase: Phase,
    ) -> HostSyncError:  # fmt: skip
        step = self._step()
        site = self._resolve(where.user or where.library)
        event = SyncEvent(
            op, None, kind, time.time_ns() - stall_ns, stall_ns, site, phase, step, None,
            "cuda", 0, thread.name, "policy", library_site=self._resolve(where.library),
        )  # fmt: skip
        pack = pack_for(self._lines(points))
        violation = Violation(op, kind, site, event.library_site, step, stall_ns, broken, pack)
        return HostSyncError(message(violation), event)
