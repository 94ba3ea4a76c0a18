"""A resource detector for the program's own OpenTelemetry: which rank of which job this is.

``OTEL_EXPERIMENTAL_RESOURCE_DETECTORS=otel,syncagent`` turns it on.
"""

from __future__ import annotations

from opentelemetry.sdk.resources import Resource, ResourceDetector

from syncagent.attribution import ranks
from syncagent.telemetry import semconv
from syncagent.telemetry.step_ids import process_identity

__all__ = ["RankDetector"]


class RankDetector(ResourceDetector):
    """Finds what the agent's own resource has: rank, local rank, world size, host and job."""

    def detect(self) -> Resource:
        rank = ranks.read().rank
        return Resource({**({} if rank is None else {semconv.RANK: rank}), **process_identity().attributes})
