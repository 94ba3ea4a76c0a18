"""Writes spans to a file as OTLP JSON, one request per line, as the Collector's ``otlpjsonfile`` receiver reads it.

The lines are made by hand.  opentelemetry-exporter-otlp-json-file pins one version of the SDK with each release.  The
OTLP exporter's ``encode_spans`` with protobuf's ``json_format`` takes 300 µs a span where this takes 60, 2.4 ms under
the GIL for one line of eight; its import takes 25 ms and 3 MB (protobuf 7.36, Python 3.11).
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncagent.delivery.folder import make_directory
from syncagent.support.log import log_once
from syncagent.support.pace import yield_gil
from syncagent.support.storage import DEFAULT_MODE, append_alone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.trace import SpanContext

MAX_BYTES = 64 * 1024 * 1024
_FEW = 8
"""Spans per line: about as many as are encoded without a pause."""


class JournalExporter:
    """What an Outbox needs of a ``SpanExporter``, whose import fails where an OTEL_* variable is malformed.

    Each line is appended in one write, so that the process may be killed at any time.

    The file and its directory are made with the first batch.  If they cannot be made, the file goes to a new temporary
    directory; if another process is writing that very file, the name gets a number (``NAME-2.jsonl``).  ``path`` says
    where the journal really is.  A full file is renamed to ``NAME.1.jsonl`` and replaces the one before it;
    ``overwritten`` counts the spans that are lost with that.  Errors are logged once and lose the batch, nothing else.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, mode: int = DEFAULT_MODE) -> None:
        self._wanted = path
        self._mode = mode
        self._max_bytes = max_bytes
        self._file: int | None = None
        self._size = 0
        self._is_torn = False
        self._is_shut = False
        self.path: Path | None = None
        """The file in use; ``None`` until something is written."""
        self.overwritten = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        from opentelemetry.sdk.trace.export import SpanExportResult

        if self._is_shut:
            return SpanExportResult.FAILURE
        try:
            for first in range(0, len(spans), _FEW):
                few = spans[first : first + _FEW]
                self._write(json.dumps(encode(few), separators=(",", ":"), allow_nan=False).encode() + b"\n")
                yield_gil()
        except Exception as error:
            log_once("journal", "the journal lacks spans", path=self.path or self._wanted, reason=error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._is_shut = True
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, line: bytes) -> None:
        file = self._open(self.path or self._wanted) if self._file is None else self._file
        if self._size and self._size + len(line) > self._max_bytes:
            file = self._rotate(file)
        rest = memoryview(b"\n" + line if self._is_torn else line)
        self._is_torn = True  # until the last byte is written
        while rest:
            written = os.write(file, rest)
            self._size += written
            rest = rest[written:]
        self._is_torn = False

    def _open(self, wanted: Path) -> int:
        """Open it for this process alone: two writers would rotate it under each other, and lose spans uncounted."""
        try:
            make_directory(wanted.parent)
            self._file, self.path = append_alone(wanted, mode=self._mode)
        except OSError as error:
            elsewhere = Path(tempfile.mkdtemp(prefix="syncagent-")) / wanted.name
            log_once("journal-moved", "the journal is elsewhere", path=elsewhere, wanted=wanted, reason=error)
            self._file, self.path = append_alone(elsewhere, mode=self._mode)
        if self.path.name != wanted.name:
            log_once(
                "journal-name",
                "the journal has another name: another process writes the one that was asked for",
                level="info",
                journal=self.path,
                wanted=wanted,
            )
        self._size = os.fstat(self._file).st_size
        self._is_torn = self._size > 0 and not _ends_a_line(self.path)
        return self._file

    def _rotate(self, full: int) -> int:
        assert self.path is not None
        before = self.path
        older = before.with_name(f"{before.stem}.1{before.suffix}")
        gone = _count_spans(older) if older.exists() else 0
        before.replace(older)
        self._file = None
        os.close(full)  # it was this process's until it had its new name
        if gone:
            self.overwritten += gone
            log_once("journal-full", "the journal is full and loses its oldest spans", path=before)
        return self._open(before)


def encode(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """Return an ``ExportTraceServiceRequest`` in OTLP's dialect of JSON: ids in hexadecimal, 64-bit integers as text.

    https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding

    The spans are the agent's own: all of one resource and scope, without events, and with a status that is unset. They
    stand before what many lines have in common: the Collector's receiver tells files apart by their first
    thousand bytes, which a resource may fill, and would take both files of a rotated journal for one.
    """
    resource, scope = spans[0].resource, spans[0].instrumentation_scope
    of_scope = {
        "spans": [_span(span) for span in spans],
        "scope": scope and _filled(name=scope.name, version=scope.version),
    }
    about = {"attributes": _pairs(resource.attributes)}
    return {"resourceSpans": [_filled(scopeSpans=[of_scope], resource=about, schemaUrl=resource.schema_url)]}


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None
    return _filled(
        **_ids(context),
        parentSpanId=span.parent and f"{span.parent.span_id:016x}",
        name=span.name,
        kind=span.kind.value + 1,  # the API counts from 0, the protocol has 0 for unspecified
        startTimeUnixNano=str(span.start_time or 0),
        endTimeUnixNano=str(span.end_time or 0),
        attributes=_pairs(span.attributes or {}),
        droppedAttributesCount=span.dropped_attributes,
        links=[
            _filled(**_ids(link.context), attributes=_pairs(link.attributes or {}), flags=_flags(link.context))
            for link in span.links
        ],
        droppedLinksCount=span.dropped_links,
        flags=_flags(span.parent),
    ) | {"status": {}}


def _ids(context: SpanContext) -> dict[str, str]:
    return {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "traceState": context.trace_state.to_header(),
    }


def _flags(context: SpanContext | None) -> int:
    """Return bit 0x100, which says that bit 0x200 is valid, and that bit if the span is another process's."""
    return 0x300 if context is not None and context.is_remote else 0x100


def _pairs(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: object) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value if math.isfinite(value) else json.dumps(value)}
        case tuple() | list():
            return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}


def _filled(**fields: object) -> dict[str, Any]:
    """Return the fields that do not have their default."""
    return {name: value for name, value in fields.items() if value}


def _ends_a_line(path: Path) -> bool:
    """Return whether the file ends with a whole line; a killed process may have left half a line."""
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"


def _count_spans(path: Path) -> int:
    """Count the spans in a file, which another process may have written; quotes in their texts are escaped."""
    with path.open("rb") as stream:
        count = 0
        for line in stream:
            count += line.count(b'"startTimeUnixNano":')
            yield_gil()
    return count
