"""Where records go once the training thread is done with them; all of it runs on the agent's own thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncagent.events import StepRecord, SyncEvent

__all__ = ["Sink"]


class Sink(Protocol):
    """Takes finished records.  Called from one thread at a time; a sink that raises is switched off by the pipeline."""

    name: str

    def events(self, batch: Sequence[SyncEvent]) -> None:
        """Take some syncs, in the order in which each thread made them."""

    def step(self, record: StepRecord) -> None:
        """Take the end of a step; the syncs of that step have been delivered before."""

    def flush(self) -> None:
        """Pass on what is still held."""

    def close(self) -> None:
        """Flush and let go of everything; nothing is called after it."""
