"""Judges each sync: before the wait, where it may raise with the op not yet run, and after it, when the stall is known.

This is the only stage that may raise into the program.
"""

from __future__ import annotations

import copy
import time
import warnings
from typing import TYPE_CHECKING

from syncagent.attribution.callsite import SET_UP
from syncagent.errors import HostSyncError, HostSyncWarning
from syncagent.events import CallSite, SyncEvent, SyncKind
from syncagent.policy.allowances import Allowances, pack_for
from syncagent.policy.budgets import Budgets
from syncagent.policy.scopes import open_reason
from syncagent.support.printable import clean, has_controls

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from syncagent.attribution.callsite import Point, Where
    from syncagent.attribution.locator import Locator
    from syncagent.attribution.threads import WatchedThread
    from syncagent.events import Phase
    from syncagent.settings.schema import PolicyName, Settings

_CACHE_LIMIT = 50_000


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
        self._warned: set[tuple[str, CallSite | None]] = set()
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

    def judge(self, op: str, kind: SyncKind, frame: FrameType | None, thread: WatchedThread) -> str | None:
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
            if self.budgets.set:
                broken = self.budgets.before(self._locator.phase(where, kind), self._step())
            if broken is not None:
                raise self._error(op, kind, where, 0, thread, broken, self._points(where, frame, thread))
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

    def act(self, op: str, kind: SyncKind, where: Where, stall_ns: int, thread: WatchedThread, broken: str) -> None:
        """Raise for a forbidden sync, or warn of it, once per line."""
        if self.mode == "raise":
            points = [point for point in (where.library, where.user) if point]
            raise self._error(op, kind, where, stall_ns, thread, broken, points)
        site = self._resolve(where.user or where.library)
        if (op, site) in self._warned:
            return
        place = (site.file, site.line) if site is not None else ("<unknown>", 0)
        text = _message(op, site, self._step(), stall_ns, broken, None)
        if site is not None and has_controls(site.file + site.source):
            place = (clean(site.file), 0)  # Python would print the line itself, escapes and all
        # Under -W error this raises, every time: the line has not been warned of, but stopped.
        warnings.warn_explicit(HostSyncWarning(text), HostSyncWarning, *place)
        self._warned.add((op, site))

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
                    reason = "baseline"
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
        points: list[Point],
    ) -> HostSyncError:  # fmt: skip
        step = self._step()
        site = self._resolve(where.user or where.library)
        event = SyncEvent(
            op, None, kind, time.time_ns() - stall_ns, stall_ns, site, self._locator.phase(where, kind), step, None,
            "cuda", 0, thread.name, "policy", library_site=self._resolve(where.library),
        )  # fmt: skip
        pack = pack_for(self._lines(points))
        return HostSyncError(_message(op, site, step, stall_ns, broken, pack), event)


def _message(op: str, site: CallSite | None, step: int, stall_ns: int, broken: str, pack: str | None) -> str:
    where = f"{site.file}:{site.line} ({site.source or site.function})" if site is not None else "an unknown line"
    to_allow = f"SYNCAGENT_ALLOW={site.file}:{site.line}" if site is not None else "SYNCAGENT_ALLOW"
    did = f"made the host wait {stall_ns / 1e6:.3g} ms for the GPU" if stall_ns else "makes the host wait for the GPU"
    return clean(
        f"{op} {did} in step {step} at {where}{f': {broken}' if broken else ''}. "
        f'If it is wanted, allow it with `with syncagent.allow("reason"):` around the line'
        f"{f', SYNCAGENT_ALLOW_PACKS={pack}' if pack else ''} or {to_allow}."
    )
