"""Judges each sync: before it waits, where it may raise with the op not yet run; after it, where its length counts.

The only stage that may raise into the program.
"""

from __future__ import annotations

import copy
import time
import warnings
from typing import TYPE_CHECKING

from syncagent.attribution.backward import owner_of_backward
from syncagent.attribution.callsite import SET_UP
from syncagent.errors import HostSyncError, HostSyncWarning
from syncagent.events import CallSite, Phase, SyncEvent, SyncKind
from syncagent.policy.allowances import Allowances, pack_for
from syncagent.policy.budgets import Budgets
from syncagent.policy.scopes import open_reason
from syncagent.support.printable import clean, has_controls

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from syncagent.attribution.callsite import Point, Where
    from syncagent.recording.recorder import Recorder
    from syncagent.recording.records import ThreadState
    from syncagent.settings.schema import PolicyName, Settings

__all__ = ["Policy"]

_CACHE_LIMIT = 50_000


class Policy:
    """The policy in force, and what it lets pass."""

    def __init__(self, settings: Settings, recorder: Recorder, current_step: Callable[[], int]) -> None:
        self.budgets = Budgets(settings)
        self._settings = settings
        self._allowances = Allowances(settings)
        self._warmup = settings.warmup_steps
        self._min_stall_ns = settings.min_stall_ms * 1e6
        self._every_thread = settings.judge_threads == "all"
        self._recorder = recorder
        self._step = self._steps_done = current_step
        self._warned: set[tuple[str, CallSite | None]] = set()
        self._listed: dict[tuple[object, ...], tuple[str | None, object]] = {}
        self.mode = settings.policy

    def for_region(self, mode: PolicyName, steps_done: Callable[[], int]) -> Policy:
        """Return such a policy for one more region.

        Its budgets are unspent, its warm-up counts by ``steps_done``, and it judges every thread that is covered.  What
        has been read (a baseline, packs) and which lines have been warned of is shared.
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
        """Whether only open ``allow`` blocks have to be asked about before a wait."""

    def judge(self, op: str, kind: SyncKind, frame: FrameType | None, state: ThreadState) -> str | None:
        """Return the reason why a sync is allowed, or ``None``; raise where the policy forbids it, before it waits."""
        reason = open_reason(self._recorder, state)
        if reason is not None:
            return reason
        allowances = self._allowances
        if allowances.kinds:
            reason = allowances.kind(kind)
            if reason is not None:
                return reason
        raises = self._raises_before
        if not allowances.by_site and not raises:
            return None
        where = state.where = self._recorder.locate(state, frame)
        if where.marks & SET_UP:
            return "torch sets itself up"
        if allowances.by_site:
            reason = self._reason_at(kind, where, frame, state)
            if reason is not None:
                return reason
        if raises and self._is_judged(state):
            broken: str | None = ""
            if self.budgets.set:
                broken = self.budgets.before(self._recorder.phase(where, kind), self._step())
            if broken is not None:
                raise self._error(op, kind, where, 0, state, broken, self._points(where, frame, state))
        return None

    def forbids(self, state: ThreadState, phase: Phase, stall_ns: int) -> str | None:
        """Judge a sync that nothing allows, now that its stall is known.

        ``None`` where it may pass; else what it broke: a budget, or, as an empty text, the policy itself.
        """
        if self.mode == "observe" or not self._is_judged(state):
            return None
        if self.budgets.set:
            return self.budgets.after(phase, self._step(), stall_ns)
        return None if stall_ns < self._min_stall_ns else ""

    def act(self, op: str, kind: SyncKind, where: Where | None, stall_ns: int, state: ThreadState, broken: str) -> None:
        """Warn of a sync that is forbidden, the first time at each line, or raise."""
        if self.mode == "raise":
            points = [point for point in (where.library, where.user) if point] if where is not None else []
            raise self._error(op, kind, where, stall_ns, state, broken, points)
        site = self._site(where)
        if (op, site) in self._warned:
            return
        place = (site.file, site.line) if site is not None else ("<unknown>", 0)
        text = _message(op, site, self._step(), stall_ns, broken, None)
        if site is not None and has_controls(site.file + site.source):
            place = (clean(site.file), 0)  # Python would print the line itself, escapes and all
        # Under -W error this raises, and goes on doing so: the line is not told of, but stopped at.
        warnings.warn_explicit(HostSyncWarning(text), HostSyncWarning, *place)
        self._warned.add((op, site))

    def _is_judged(self, state: ThreadState) -> bool:
        """Is it a thread that trains, after the warm-up?"""
        if self._steps_done() < self._warmup:
            return False
        if self._every_thread or state.trains:
            return True
        if self._recorder.internals.graph_task() == -1:
            return False
        owner = owner_of_backward(state, self._recorder.internals, self._recorder.states)
        return owner is None or owner.trains

    def _reason_at(self, kind: SyncKind, where: Where, frame: FrameType | None, state: ThreadState) -> str | None:
        """Look up what lists and the baseline say; the same lines are asked about once."""
        points = self._points(where, frame, state)
        baseline = self._allowances.baseline
        forward = self._recorder.forward_point(state) if baseline is not None else None
        key = (kind, *((id(code), offset) for code, offset in points), forward and (id(forward[0]), forward[1]))
        known = self._listed.get(key)
        if known is None:
            if len(self._listed) >= _CACHE_LIMIT:
                self._listed.clear()
            reason = self._allowances.sites(self._lines(points))
            if reason is None and baseline is not None:
                user, library = where.user or where.library, where.library if where.user else None
                if baseline.knows(kind, *map(self._with_code, (user, library, forward))):
                    reason = "baseline"
            # The points keep alive the code objects whose ids are in the key.
            known = self._listed[key] = (reason, (points, forward))
        return known[0]

    def _with_code(self, point: Point | None) -> tuple[CallSite, CodeType] | None:
        site = self._recorder.sites.resolve(point)
        return (site, point[0]) if point is not None and site is not None else None

    def _points(self, where: Where, frame: FrameType | None, state: ThreadState) -> list[Point]:
        """Return the lines from the sync out to the user's; in the backward pass the user's forward line as well."""
        points = self._recorder.sites.inside_user(frame)
        task = self._recorder.internals.graph_task()
        forward = self._recorder.site_in_backward(state, task) if task != -1 else None
        return [*points, *(point for point in (where.library, where.user, forward) if point is not None)]

    def _lines(self, points: list[Point]) -> list[CallSite]:
        return [site for site in map(self._recorder.sites.resolve, points) if site is not None]

    def _site(self, where: Where | None) -> CallSite | None:
        return self._recorder.sites.resolve(where.user or where.library) if where is not None else None

    def _error(
        self, op: str, kind: SyncKind, where: Where | None, stall_ns: int, state: ThreadState, broken: str,
        points: list[Point],
    ) -> HostSyncError:  # fmt: skip
        step = self._step()
        site = self._site(where)
        library = self._recorder.sites.resolve(where.library) if where is not None else None
        phase = self._recorder.phase(where, kind) if where is not None else Phase.OTHER
        event = SyncEvent(
            op, None, kind, time.time_ns() - stall_ns, stall_ns, site, phase, step, None, "cuda", 0, state.name,
            "policy", library_site=library,
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
