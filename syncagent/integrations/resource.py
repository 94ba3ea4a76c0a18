"""OpenTelemetry's resource: which rank of which job this process is, for the program's own SDK.

``OTEL_EXPERIMENTAL_RESOURCE_DETECTORS=otel,syncagent`` turns it on.
"""

from __future__ import annotations

from opentelemetry.sdk.resources import Resource, ResourceDetector

from syncagent.attribution import ranks
from syncagent.integrations.base import Integration
from syncagent.telemetry import semconv
from syncagent.telemetry.step_ids import process_identity


class RankDetector(Integration, ResourceDetector):
    """Finds what the agent's own resource has: rank, local rank, world size, host and job."""

    entry_point_group = "opentelemetry_resource_detector"

    def detect(self) -> Resource:
        rank = ranks.read().rank
        return Resource({**({} if rank is None else {semconv.RANK: rank}), **process_identity().attributes})
