"""The contract of a sink: where finished records go, on the agent's own thread.

To write one, subclass :class:`Sink`, give it a ``name``, and override what it needs; the defaults do nothing.  Then add
a line to ``SINKS`` in :mod:`syncagent.runtime.sinks`, which says in which order sinks are served and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from syncagent.events import CollectiveRecord, StepRecord, SyncEvent, Weight
    from syncagent.report.summary import Facts, Summary


class Source(NamedTuple):
    """What the agent lets its sinks see, beside the records themselves."""

    lost: Mapping[str, int]
    """How many syncs were dropped before they reached any sink, by reason; grows while the agent runs."""
    scale: Callable[[SyncEvent], Weight]
    """What a record stands for where only some were recorded: multiply its ``repeats`` and its stall."""
    summary: Summary
    """The exact sums; every record has been added to them before any other sink gets it."""
    facts: Callable[[], Facts]
    """What a report has besides the sums, as of now."""


class Sink:
    """Takes finished records.

    **Threads.**  ``events``, ``step`` and ``flush`` are called by one thread at a time: the agent's, or one that asks
    for a report.  ``tick`` is called by the agent's thread, and may run while another thread delivers.  No call is made
    on the hot path; still, each competes with the training threads for the interpreter, so a sink that works for more
    than 0.2 ms at a stretch calls :func:`syncagent.support.pace.yield_gil` in between.

    **Errors.**  A sink may raise anything: it is then closed, never called again, and named in the report's notes.
    The other sinks and the program go on.

    **Order.**  Sinks get each batch one after another, in the order of ``SINKS``.  A sink that builds on another is
    given it when it is built, and stands behind it.
    """

    name: str = "sink"
    """How log and report call it where it fails: ``sink <name>``."""

    def connect(self, source: Source) -> None:
        """Take what is needed of the agent; called once per run, before anything is delivered."""

    def events(self, batch: Sequence[SyncEvent]) -> None:
        """Take a few syncs, in order of their start; those of a step come before its ``step``."""

    def step(self, record: StepRecord) -> None:
        """Take the end of a step."""

    def collectives(self, record: CollectiveRecord) -> None:
        """Take what is known now of a step's waits for collectives; its ``step`` came before."""

    def tick(self) -> None:
        """Do what is due by the clock; called about four times a second."""

    def policy_changed(self, policy: str) -> None:
        """From now on ``policy`` (``observe``, ``warn`` or ``raise``) is in force for the process."""

    def flush(self) -> None:
        """Pass on everything that is still held."""

    def close(self) -> None:
        """Flush, and release files, threads and ports; called once, and nothing is called after it."""
