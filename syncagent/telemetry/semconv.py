"""Names of the spans, metrics, attributes and resource keys that leave the program."""

from __future__ import annotations

from typing import Final

INSTRUMENTATION: Final = "syncagent"
"""Name of the instrumentation scope."""

STEP_SPAN: Final = "train.step"

# OpenTelemetry's own names: https://opentelemetry.io/docs/specs/semconv/registry/attributes/
CODE: Final = ("code.file.path", "code.line.number", "code.function.name")
CODE_STACKTRACE: Final = "code.stacktrace"
THREAD_NAME: Final = "thread.name"
SERVICE_NAME: Final = "service.name"
HOST_NAME: Final = "host.name"
PROCESS_PID: Final = "process.pid"

# On every sync.
OP: Final = "syncagent.op"
API: Final = "syncagent.api"
KIND: Final = "syncagent.kind"
PHASE: Final = "syncagent.phase"
STEP: Final = "syncagent.step"
DEVICE: Final = "syncagent.device"
STREAM: Final = "syncagent.stream"
STALL_MS: Final = "syncagent.stall_ms"
RANK: Final = "syncagent.rank"
ALLOWED: Final = "syncagent.allowed"
POLICY: Final = "syncagent.policy"
SENSOR: Final = "syncagent.sensor"
SOURCE: Final = "syncagent.source"
SHAPES: Final = "syncagent.shapes"
RANGES: Final = "syncagent.ranges"
MODULE: Final = "syncagent.module"

# On every span and on the resource, beside RANK.
LOCAL_RANK: Final = "syncagent.local_rank"
WORLD_SIZE: Final = "syncagent.world_size"
JOB_ID: Final = "syncagent.job.id"
MODELLED: Final = "syncagent.modelled"

# The forward line behind a sync of the backward pass; the library's line where the user's is further out.
FORWARD: Final = ("syncagent.forward.file.path", "syncagent.forward.line.number", "syncagent.forward.function.name")
LIBRARY: Final = ("syncagent.library.file.path", "syncagent.library.line.number", "syncagent.library.function.name")

# On the step: all its syncs, those included that were too short for a span.
STEP_SYNCS: Final = "syncagent.step.syncs"
STEP_STALL_MS: Final = "syncagent.step.stall_ms"

# Metrics, and the attributes that only they have.  ALLOWED is a boolean there: a reason is text of any length.
SYNCS: Final = "syncagent.syncs"
STALL_DURATION: Final = "syncagent.stall.duration"
STEP_DURATION: Final = "syncagent.step.duration"
STEP_COLLECTIVE_WAIT: Final = "syncagent.step.collective_wait"
STEP_STALL_RATIO: Final = "syncagent.step.stall_ratio"
EVENTS_DROPPED: Final = "syncagent.events.dropped"
SERIES_FOLDED: Final = "syncagent.series.folded"
SPANS_DROPPED: Final = "syncagent.spans.dropped"
SPANS_WITHHELD: Final = "syncagent.spans.withheld"
ATTRIBUTES_CUT: Final = "syncagent.attributes.cut"
VIOLATION: Final = "syncagent.violation"
REASON: Final = "syncagent.reason"

# On a log record: how many syncs of that line there have been.
COUNT: Final = "syncagent.count"
