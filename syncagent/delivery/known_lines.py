"""What the sampled steps say of a line, for waits of other steps that only the driver saw.

In a sampled step every sync is named: its op, its kind, its line.  In the steps between, the driver sensor gives exact
times and, by a look, the line.  Such a wait takes what is known of its line.  Waits too short to be looked at are known
by their sum; the lines share it as they share the short waits of the sampled steps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from syncagent.events import Phase, SyncKind
from syncagent.recording.waits import THRESHOLD_NS

if TYPE_CHECKING:
    from syncagent.events import CallSite, SyncEvent

_LINES = 4_096
_SHARING = 64
"""How many lines share the short waits of a delivery at most."""
_OF_THE_DRIVER = "driver"
_OF_OPS = "aten::"
_OWN_KINDS = (SyncKind.COLLECTIVE, SyncKind.ALLOCATOR)


@dataclass(slots=True)
class _Line:
    """A line as the sampled steps show it."""

    longest: SyncEvent
    """The named sync with the largest stall."""
    forwards: set[CallSite | None]
    phases: set[Phase]
    short_ns: int = 0
    """Time of its short waits."""
    functions: tuple[str, ...] = ()
    """Functions that a library has called there itself, in sampled steps too: those waits are not the named sync's."""

    @property
    def phase(self) -> Phase:
        """The phase of all named syncs there; ``other`` where they differ."""
        return next(iter(self.phases)) if len(self.phases) == 1 else Phase.OTHER


class KnownLines:
    """Learns from named syncs and gives what it knows to those that only the driver saw; one thread at a time."""

    def __init__(self, is_named: Callable[[SyncEvent], bool]) -> None:
        """``is_named`` says whether a wait is of a step that was watched whole: then nothing is to be added."""
        self._is_named = is_named
        self._lines: dict[Hashable, _Line] = {}
        self._unexplained: set[str] = set()
        """Functions in which steps that were watched whole have waited for no op."""

    def learn(self, event: SyncEvent) -> None:
        """Remember what a sync says of its line."""
        key = _key(event)
        if event.sensor == _OF_THE_DRIVER or event.site is None:
            return
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= _LINES:
                return
            line = self._lines[key] = _Line(event, set(), set())
        elif event.stall_ns > line.longest.stall_ns:
            line.longest = event
        line.phases.add(event.phase)
        if len(line.forwards) < 2:
            line.forwards.add(event.forward_site)
        if event.stall_ns < THRESHOLD_NS * event.repeats and event.op.startswith(_OF_OPS):
            line.short_ns += event.stall_ns  # calls that ask to wait are named in every step

    def known(self, event: SyncEvent, *, in_module: bool = False) -> SyncEvent:
        """Return a wait that only the driver saw with what is known of its line, which counts no sync a second time.

        Lines in a module may run in training and in evaluation: there the look alone may say which it was.
        """
        line = self._lines.get(_key(event)) if event.site is not None else None
        if self._is_named(event):
            self._unexplained.add(event.op)
            if line is not None and event.op not in line.functions:
                line.functions += (event.op,)
            return event
        if event.site is None and self._lines and self._is_of_an_op(event):
            return replace(event, repeats=0)
        if line is None or event.kind in _OWN_KINDS or event.op in line.functions:
            return event
        named = line.longest
        forward = next(iter(line.forwards)) if len(line.forwards) == 1 else None
        phase = line.phase if event.phase is Phase.OTHER and not in_module else event.phase
        return replace(
            event, op=named.op, api=named.api, kind=named.kind, phase=phase, module=named.module,
            forward_site=forward, repeats=0,
        )  # fmt: skip

    def _is_of_an_op(self, event: SyncEvent) -> bool:
        """Whether a wait without a line is one that an op makes: nothing else has, in steps that were watched whole.

        Such a sync is in the count of its line, which is scaled to all steps.
        """
        return event.kind not in (*_OWN_KINDS, SyncKind.EXPLICIT) and event.op not in self._unexplained

    def shares(self, event: SyncEvent) -> Iterator[SyncEvent]:
        """Divide short waits, whose sum ``event`` holds, among the lines that have such waits in sampled steps."""
        lines = sorted((line for line in self._lines.values() if line.short_ns), key=lambda line: -line.short_ns)
        lines = lines[:_SHARING]
        if not lines:
            yield event
            return
        whole, left = sum(line.short_ns for line in lines), event.stall_ns
        for line in lines:
            part = min(event.stall_ns * line.short_ns // whole, left)
            left -= part
            if line is lines[-1]:
                part += left
            yield replace(
                line.longest, start_ns=event.start_ns, step=event.step, stall_ns=part, sensor=event.sensor,
                phase=line.phase, longest_ns=0, repeats=0, estimated=True, violation=False, user_span=None,
                user_context=None,
            )  # fmt: skip


def _key(event: SyncEvent) -> Hashable:
    lines = tuple(site and (site.file, site.line) for site in (event.site, event.library_site))
    return (*lines, event.phase is Phase.BACKWARD)
