"""Ids of traces that the ranks of a job agree on without a word: each step's is a hash of the job and the step."""

from __future__ import annotations

import secrets
import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from syncagent.attribution import ranks
from syncagent.support.log import log_once
from syncagent.telemetry import semconv

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.util.types import AttributeValue

__all__ = ["PresetIdGenerator", "ProcessIdentity", "StepIds", "process_identity"]

_FRESH_S = 1.0
_NAMELESS = (
    "the ranks have no traces in common, since nothing names their job; torchrun --rdzv-id does, or "
    "OTEL_RESOURCE_ATTRIBUTES=syncagent.job.id=NAME"
)


class ProcessIdentity(NamedTuple):
    """Whose spans these are: what stands on each of them, and what the ids of their traces are made from."""

    attributes: Mapping[str, AttributeValue]
    key: str | None


def process_identity() -> ProcessIdentity:
    """Read it from the environment, where some launchers (Ray Train, Lightning) write it once the script runs."""
    import platform

    rank, job = ranks.read(), ranks.job()
    if job.key is None and rank.rank == 0 and (rank.world_size or 1) > 1:
        log_once("no-job", _NAMELESS, level="info")
    attributes: dict[str, AttributeValue | None] = {
        semconv.LOCAL_RANK: rank.local_rank,
        semconv.WORLD_SIZE: rank.world_size,
        semconv.HOST_NAME: platform.node(),
        semconv.JOB_ID: job.id,
    }
    return ProcessIdentity({key: value for key, value in attributes.items() if value is not None}, job.key)


class StepIds:
    """The trace id of each step: the first 16 bytes of ``BLAKE2b(key / lap / step)``.

    Hashed bits are as good as random ones to a sampler that goes by a ratio of ids, so all ranks of a step make the
    same choice.  A program that counts its steps anew for each epoch is on its next lap.  Without a job's key the
    process has one of its own.
    """

    def __init__(self, ask: Callable[[], ProcessIdentity] | None = None) -> None:
        self._ask = ask
        self._own_key = secrets.token_hex(16)
        self._identity = ProcessIdentity({}, None)
        self._due = 0.0
        self._lap = 0
        self._last = -1

    def identity(self) -> ProcessIdentity:
        """Whose spans these are, asked for again each second."""
        if self._ask is not None and (now := time.monotonic()) >= self._due:
            self._due = now + _FRESH_S
            self._identity = self._ask()
        return self._identity

    def ended(self, step: int) -> None:
        """A step has ended.  Told of each, in order: all ranks go on to the next lap at the same step."""
        if step <= self._last:
            self._lap += 1
        self._last = step

    def lap(self, step: int) -> int:
        """On which lap a step is that runs or ends now."""
        return self._lap + (step <= self._last)

    def trace_id(self, step: int, lap: int | None = None) -> int:
        """The id of a step's trace, by default of one that runs or ends now; never 0."""
        lap = self.lap(step) if lap is None else lap
        key = self.identity().key or self._own_key
        digest = blake2b(f"{key}/{lap}/{step}".encode("utf-8", "backslashreplace"), digest_size=16).digest()
        return int.from_bytes(digest, "big") or 1


class PresetIdGenerator:
    """A tracer's generator of ids: those that are laid out for the next span, or else random ones.

    The generator that it replaces is not asked for them: the SDK's draws from Python's global :mod:`random`, which the
    program may have seeded.

    Stands in a tracer of our own: no span of the program's is made with it.
    """

    def __init__(self, own: Any) -> None:
        self._own = own
        self.trace_id = self.span_id = 0

    def generate_trace_id(self) -> int:
        laid, self.trace_id = self.trace_id, 0
        return laid or secrets.randbits(128) or 1

    def generate_span_id(self) -> int:
        laid, self.span_id = self.span_id, 0
        return laid or secrets.randbits(64) or 1

    def is_trace_id_random(self) -> bool:
        """Hashed bits serve all that the flag promises."""
        asked = getattr(self._own, "is_trace_id_random", None)
        return asked is not None and bool(asked())
