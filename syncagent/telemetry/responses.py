"""What a collector's answers say beside yes and no: that it wants to be left alone, and what it did not take.

The SDK's exporters wait for ``Retry-After`` within one export, if that has the time; the next export knows nothing of
it.  A partial success is a success to them.
"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests

__all__ = ["CollectorResponses"]

_LATER = frozenset({429, 502, 503, 504})
"""Those after which OTLP has a client try again: https://opentelemetry.io/docs/specs/otlp/#otlphttp-throttling"""
_MOST_S = 300.0
"""So long at most: an answer must not end the telemetry of a job."""


class CollectorResponses:
    """Heard on the thread that sends; asked there, too.  Over gRPC nothing is heard."""

    def __init__(self) -> None:
        self._until = 0.0
        self._rejected = (0, "")

    def retry_after_s(self) -> float:
        """Return for how long it is to be left alone; 0 where it is not."""
        return max(self._until - time.monotonic(), 0.0)

    def take_rejected(self) -> tuple[int, str]:
        """Return how many spans or data points of the latest request it did not take, and why; then forget it."""
        rejected, self._rejected = self._rejected, (0, "")
        return rejected

    def session(self) -> requests.Session:
        """Make a session for an exporter, all of whose answers are heard."""
        import requests

        session = requests.Session()
        session.hooks["response"].append(self._note)
        return session

    def _note(self, response: requests.Response, *_: Any, **__: Any) -> None:
        said = response.headers.get("Retry-After")
        if said is not None and response.status_code in _LATER:
            self._until = time.monotonic() + min(_seconds(said), _MOST_S)
        elif response.ok:
            self._until = 0.0
            self._rejected = _partial_success(response.content) if response.content else (0, "")


def _seconds(text: str) -> float:
    """A number of seconds or a date: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after; 0 for anything else."""
    if text.strip().isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _partial_success(body: bytes) -> tuple[int, str]:
    """https://opentelemetry.io/docs/specs/otlp/#partial-success-1; the answers of all signals have the same layout."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        partial = ExportTraceServiceResponse.FromString(body).partial_success
    except Exception:  # a proxy's page, say
        return 0, ""
    return max(partial.rejected_spans, 0), partial.error_message
