"""What happens at a sync that is not allowed: nothing, a warning, or an error at the user's line.

The only stage that may raise into the program, and it raises before the wait: the op has not run yet.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import time
import warnings
from contextlib import ContextDecorator
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

from syncagent.attribution.autograd import owner_of_backward
from syncagent.errors import ConfigError, HostSyncError, HostSyncWarning
from syncagent.event import CallSite, Phase, SyncEvent, SyncKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from typing_extensions import Self  # mypy's own copy: nothing is installed for it

    from syncagent.attribution.callsite import Where
    from syncagent.config import Settings
    from syncagent.recorder import Recorder, ThreadState

__all__ = ["Policy", "allow"]

_ALLOWED: ContextVar[tuple[str, ...]] = ContextVar("syncagent_allowed", default=())
"""Reasons of the allowances that are open, outermost first."""
_BY_THREAD: dict[int, tuple[str, ...]] = {}
"""The same by thread, for autograd's threads under a torch (2.11) that does not hand them the caller's context."""


class allow(ContextDecorator):  # noqa: N801 - reads as a verb: with syncagent.allow("reason")
    """Syncs inside are wanted: they are recorded with the reason and never warned of or raised.

    A context manager and a decorator, of coroutines too; it holds for this thread or asyncio task, and for the autograd
    threads of a ``backward()`` inside it.  One object may be open several times.
    """

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason or "allowed"

    def __enter__(self) -> Self:
        _set_allowed((*_ALLOWED.get(), self.reason))
        return self

    def __exit__(self, *_error: object) -> None:
        _set_allowed(_ALLOWED.get()[:-1])

    def __call__(self, function: Any) -> Any:
        if not inspect.iscoroutinefunction(function):
            return super().__call__(function)

        @functools.wraps(function)
        async def allowed(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await function(*args, **kwargs)

        return allowed


def _set_allowed(reasons: tuple[str, ...]) -> None:
    _ALLOWED.set(reasons)
    if reasons:
        _BY_THREAD[get_ident()] = reasons
    else:
        _BY_THREAD.pop(get_ident(), None)


class _Entry(NamedTuple):
    """One parsed entry of the ``allow`` setting."""

    text: str
    file: str | None = None
    line: int | None = None
    module: str | None = None
    function: str | None = None

    @classmethod
    def parse(cls, text: str) -> _Entry:
        head, _, tail = text.rpartition(":")
        if tail.isdigit() and head.endswith(".py"):
            return cls(text, file=head, line=int(tail))
        if text.endswith(".py"):
            return cls(text, file=text)
        return cls(text, module=head, function=tail) if head else cls(text, module=tail)

    def covers(self, site: CallSite) -> bool:
        path = site.file.replace(os.sep, "/")
        if self.file is not None:
            same = path == self.file or path.endswith("/" + self.file.lstrip("./"))
            return same and self.line in (None, site.line)
        inside = "/" + (self.module or "").replace(".", "/")
        in_module = path.endswith((inside + ".py", inside + "/__init__.py")) or (inside + "/") in path
        return in_module and (self.function is None or site.function == self.function)


class Policy:
    """Judges each sync: before it waits, where it may raise; after, where the length of the stall counts."""

    def __init__(self, settings: Settings, recorder: Recorder, current_step: Callable[[], int]) -> None:
        self.mode = settings.policy
        self._warmup = settings.warmup_steps
        self._min_stall_ns = settings.min_stall_ms * 1e6
        self._entries = tuple(_Entry.parse(text) for text in settings.allow)
        self._known = _baseline(settings.baseline) if settings.baseline else frozenset()
        self._recorder = recorder
        self._step = current_step
        self._warned: set[tuple[str, CallSite | None]] = set()

    def judge(self, op: str, kind: SyncKind, frame: FrameType | None, state: ThreadState) -> str | None:
        """Return the reason why a sync is allowed, or ``None``; raise where the policy forbids it, before it waits."""
        reason = self._reason(state)
        if reason is not None:
            return reason
        raises = self.mode == "raise" and not self._min_stall_ns
        if not self._entries and not self._known and not raises:
            return None
        where = self._recorder.locate(state, frame)
        site = self._site(where)
        reason = self._listed(op, site)
        if reason is None and raises and self._step() >= self._warmup:
            raise self._error(op, kind, site, 0, state)
        return reason

    def after(self, op: str, kind: SyncKind, where: Where | None, stall_ns: int, state: ThreadState) -> None:
        """Warn of a sync that nothing allows, or raise, now that its stall is known."""
        if self.mode == "observe" or stall_ns < self._min_stall_ns or self._step() < self._warmup:
            return
        site = self._site(where) if where is not None else None
        if self.mode == "raise":
            if self._min_stall_ns:
                raise self._error(op, kind, site, stall_ns, state)
        elif (op, site) not in self._warned:
            self._warned.add((op, site))
            place = (site.file, site.line) if site is not None else ("<unknown>", 0)
            message = _message(op, site, self._step(), stall_ns)
            warnings.warn_explicit(HostSyncWarning(message), HostSyncWarning, *place)

    def _site(self, where: Where) -> CallSite | None:
        return self._recorder.sites.resolve(where.user or where.library)

    def _listed(self, op: str, site: CallSite | None) -> str | None:
        if site is None:
            return None
        for entry in self._entries:
            if entry.covers(site):
                return f"allow: {entry.text}"
        known = (op, _place(site.file), site.function, site.source) in self._known
        return "baseline" if known else None

    def _error(
        self, op: str, kind: SyncKind, site: CallSite | None, stall_ns: int, state: ThreadState
    ) -> HostSyncError:
        step = self._step()
        event = SyncEvent(
            op, None, kind, time.time_ns() - stall_ns, stall_ns, site, Phase.OTHER, step, None, "cuda", 0, state.name,
            "policy",
        )  # fmt: skip
        return HostSyncError(_message(op, site, step, stall_ns), event)

    def _reason(self, state: ThreadState) -> str | None:
        reasons = _ALLOWED.get()
        if not reasons and _BY_THREAD:
            reasons = self._reasons_of_backward(state)
        return reasons[-1] if reasons else None

    def _reasons_of_backward(self, state: ThreadState) -> tuple[str, ...]:
        """On an autograd thread: the allowances that are open where ``backward()`` was called."""
        internals = self._recorder.internals
        if internals.graph_task() == -1:
            return ()
        context: Any = internals.backward_context()
        if context is not None:
            reasons: tuple[str, ...] = context.get(_ALLOWED, ())
            return reasons
        owner = owner_of_backward(state, internals, self._recorder.states)
        return _BY_THREAD.get(owner.ident, ()) if owner is not None else ()


def _message(op: str, site: CallSite | None, step: int, stall_ns: int) -> str:
    where = f"{site.file}:{site.line} ({site.source or site.function})" if site is not None else "an unknown line"
    to_allow = f"SYNCAGENT_ALLOW={site.file}:{site.line}" if site is not None else "SYNCAGENT_ALLOW"
    did = f"made the host wait {stall_ns / 1e6:.3g} ms for the GPU" if stall_ns else "makes the host wait for the GPU"
    return (
        f"{op} {did} in step {step} at {where}. "
        f'If it is wanted, allow it with `with syncagent.allow("reason"):` around the line or {to_allow}.'
    )


def _place(file: str) -> str:
    return os.path.basename(file)


def _baseline(path: str) -> frozenset[tuple[str, str, str, str]]:
    """Read the sites of an earlier report; line numbers move, so a site is known by file, function and text."""
    try:
        with open(path, encoding="utf-8") as stream:
            sites = json.load(stream)["sites"]
        return frozenset((s["op"], _place(s["file"]), s["function"], s["source"]) for s in sites)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"syncagent: setting baseline is {path!r}, but it must be a report that syncagent saved as JSON ({error})."
        ) from None
