"""What happens at a sync that is not allowed: nothing, a warning, or an error at the user's line.

The only stage that may raise into the program, and it raises before the wait: the op has not run yet.
"""

from __future__ import annotations

import json
import os
import warnings
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

from syncagent.attribution.autograd import owner_of_backward
from syncagent.errors import ConfigError, HostSyncError, HostSyncWarning
from syncagent.event import CallSite, Phase, SyncEvent, SyncKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from typing_extensions import Self  # mypy's own copy: nothing is installed for it

    from syncagent.config import Settings
    from syncagent.recorder import Recorder, ThreadState

__all__ = ["Policy", "allow"]

_ALLOWED: ContextVar[str | None] = ContextVar("syncagent_allowed", default=None)
_BY_THREAD: dict[int, str | None] = {}
"""The same by thread, for autograd's threads under a torch (2.11) that does not hand them the caller's context."""


class allow(ContextDecorator):  # noqa: N801 - reads as a verb: with syncagent.allow("reason")
    """Syncs inside are wanted: they are recorded with the reason and never warned of or raised.

    A context manager and a decorator; it holds for this thread or asyncio task, and for the autograd threads of a
    ``backward()`` inside it.
    """

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason or "allowed"
        self._tokens: list[Token[str | None]] = []

    def _recreate_cm(self) -> allow:
        return allow(self.reason)

    def __enter__(self) -> Self:
        self._tokens.append(_ALLOWED.set(self.reason))
        _BY_THREAD[get_ident()] = self.reason
        return self

    def __exit__(self, *_error: object) -> None:
        _ALLOWED.reset(self._tokens.pop())
        outer = _ALLOWED.get()
        if outer is None:
            _BY_THREAD.pop(get_ident(), None)
        else:
            _BY_THREAD[get_ident()] = outer


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
    """Judges each sync right before it waits."""

    def __init__(self, settings: Settings, recorder: Recorder, current_step: Callable[[], int]) -> None:
        self.mode = settings.policy
        self._warmup = settings.warmup_steps
        self._entries = tuple(_Entry.parse(text) for text in settings.allow)
        self._known = _baseline(settings.baseline) if settings.baseline else frozenset()
        self._recorder = recorder
        self._step = current_step
        self._warned: set[tuple[str, CallSite | None]] = set()

    def judge(self, op: str, kind: SyncKind, frame: FrameType | None, state: ThreadState) -> str | None:
        """Return the reason why a sync is allowed, ``None`` if it is not and may pass; raise or warn otherwise."""
        reason = self._reason(state)
        if reason is not None:
            return reason
        if self.mode == "observe" and not self._entries:
            return None
        recorder = self._recorder
        where = recorder.locate(state, frame)
        site = recorder.sites.resolve(where.user or where.library)
        if site is not None:
            for entry in self._entries:
                if entry.covers(site):
                    return f"allow: {entry.text}"
        if site is not None and (op, _place(site.file), site.function, site.source) in self._known:
            return "baseline"
        if self.mode == "observe" or self._step() < self._warmup:
            return None
        message = _message(op, site, self._step())
        if self.mode == "raise":
            event = SyncEvent(
                op, None, kind, 0, 0, site, Phase.OTHER, self._step(), None, "cuda", 0, str(state.native_id), "policy"
            )
            raise HostSyncError(message, event)
        if (op, site) not in self._warned:
            self._warned.add((op, site))
            place = (site.file, site.line) if site is not None else ("<unknown>", 0)
            warnings.warn_explicit(HostSyncWarning(message), None, *place)
        return None

    def _reason(self, state: ThreadState) -> str | None:
        reason = _ALLOWED.get()
        if reason is not None or not _BY_THREAD:
            return reason
        internals = self._recorder.internals
        if internals.graph_task() == -1:
            return None
        context: Any = internals.backward_context()
        if context is not None:
            return context.get(_ALLOWED)  # type: ignore[no-any-return]
        owner = owner_of_backward(state, internals, self._recorder.states)
        return _BY_THREAD.get(owner.ident) if owner is not None else None


def _message(op: str, site: CallSite | None, step: int) -> str:
    where = f"{site.file}:{site.line} ({site.source or site.function})" if site is not None else "an unknown line"
    to_allow = f"SYNCAGENT_ALLOW={site.file}:{site.line}" if site is not None else "SYNCAGENT_ALLOW"
    return (
        f"{op} makes the host wait for the GPU in step {step} at {where}. "
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
