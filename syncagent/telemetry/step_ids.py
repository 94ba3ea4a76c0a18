"""Trace ids that the ranks of a job agree on without communicating: each step's is a hash of the job and the step."""

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

_FRESH_S = 1.0
_NAMELESS = (
    "the ranks have no traces in common, since nothing names their job; torchrun --rdzv-id does, or "
    "OTEL_RESOURCE_ATTRIBUTES=syncagent.job.id=NAME"
)


class ProcessIdentity(NamedTuple):
    """Which process of which job sends the spans."""

    attributes: Mapping[str, AttributeValue | None]
    """Set on every span, where they are known."""
    key: str | None
    """Names the job; trace ids are made from it."""


def process_identity(modelled: str | None = None) -> ProcessIdentity:
    """Read it from the environment, into which some launchers (Ray Train, Lightning) write it while the script runs.

    ``modelled`` is the GPU that all times were modelled for, if none was measured.
    """
    import platform

    rank, job = ranks.read(), ranks.job()
    if job.key is None and rank.rank == 0 and (rank.world_size or 1) > 1:
        log_once("no-job", _NAMELESS, level="info")
    attributes = {
        semconv.LOCAL_RANK: rank.local_rank,
        semconv.WORLD_SIZE: rank.world_size,
        semconv.HOST_NAME: platform.node(),
        semconv.JOB_ID: job.id,
        **({semconv.MODELLED: modelled} if modelled else {}),
    }
    return ProcessIdentity(attributes, job.key)


class StepIds:
    """The trace id of each step: the first 16 bytes of ``BLAKE2b(key / lap / step)``.

    To a sampler that takes a ratio of all ids hashed bits are as good as random ones, so all ranks of a step make the
    same choice.  A program that starts counting its steps again, each epoch say, is on its next lap.  Without a job's
    key the process makes one of its own.
    """

    def __init__(self, ask: Callable[[], ProcessIdentity] | None = None) -> None:
        self._ask = ask
        self._own_key = secrets.token_hex(16)
        self._identity = ProcessIdentity({}, None)
        self._due = 0.0
        self._lap = 0
        self._last = -1

    def identity(self) -> ProcessIdentity:
        """Return which process this is, read again every second."""
        if self._ask is not None and (now := time.monotonic()) >= self._due:
            self._due = now + _FRESH_S
            self._identity = self._ask()
        return self._identity

    def ended(self, step: int) -> None:
        """Note that a step has ended; called for each in order, so that all ranks start a lap at the same step."""
        if step <= self._last:
            self._lap += 1
        self._last = step

    def trace_id(self, step: int) -> int:
        """Return the trace id of a step that runs or ends now; never 0."""
        lap = self._lap + (step <= self._last)
        key = self.identity().key or self._own_key
        digest = blake2b(f"{key}/{lap}/{step}".encode("utf-8", "backslashreplace"), digest_size=16).digest()
        return int.from_bytes(digest, "big") or 1


class PresetIdGenerator:
    """A tracer's generator of ids: gives the next span the ids that were set for it, else random ones.

    Random ids come from the system and not from the generator that this one replaces: the SDK's draws from Python's
    global :mod:`random`, which the program may have seeded.  Only the agent's own tracer has one.
    """

    def __init__(self, replaced: Any = None) -> None:
        self._replaced = replaced
        self.trace_id = self.span_id = 0

    def generate_trace_id(self) -> int:
        preset, self.trace_id = self.trace_id, 0
        return preset or secrets.randbits(128) or 1

    def generate_span_id(self) -> int:
        preset, self.span_id = self.span_id, 0
        return preset or secrets.randbits(64) or 1

    def is_trace_id_random(self) -> bool:
        """Say what the replaced generator says; hashed bits are as good as random ones for this flag."""
        return self._replaced is None or bool(getattr(self._replaced, "is_trace_id_random", lambda: False)())
