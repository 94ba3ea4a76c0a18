"""What a Collector's responses say beyond success and failure, and what exporters say where there is none.

A response may say how long to wait for a retry, and what was rejected.  The SDK's exporters obey ``Retry-After`` within
one export, if that leaves the time; the next export does not know of it.  To them a partial success is a success.
"""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from syncagent.support import redaction
from syncagent.telemetry.attributes import AttributeSanitizer

if TYPE_CHECKING:
    import requests

_LATER = frozenset({429, 502, 503, 504})
"""Status codes after which OTLP has a client retry: https://opentelemetry.io/docs/specs/otlp/#otlphttp-throttling"""
_MOST_S = 300.0
"""The longest wait: one response must not end the telemetry of a job."""


class CollectorResponses:
    """Reads the responses on the thread that sends; over gRPC there is nothing to read."""

    def __init__(self) -> None:
        self._until = 0.0
        self._rejected = (0, "")

    def retry_after_s(self) -> float:
        """Return how many seconds to wait before anything is sent; 0 unless the Collector has asked for it."""
        return max(self._until - time.monotonic(), 0.0)

    def take_rejected(self) -> tuple[int, str]:
        """Return how many spans or data points of the latest request were rejected, and why; then forget it."""
        rejected, self._rejected = self._rejected, (0, "")
        return rejected

    def session(self) -> requests.Session:
        """Make a session for an exporter; all responses to it are read."""
        import requests

        class Session(requests.Session):
            def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
                # Else REQUESTS_CA_BUNDLE would replace the certificate that the exporter has set on the session:
                # https://github.com/psf/requests/issues/3829
                own = self.verify if verify is None else verify
                return super().merge_environment_settings(url, proxies, stream, own, cert)

        session = Session()
        session.hooks["response"].append(self._note)
        return session

    def _note(self, response: requests.Response, *_: Any, **__: Any) -> None:
        value = response.headers.get("Retry-After")
        if value is not None and response.status_code in _LATER:
            self._until = time.monotonic() + min(_seconds(value), _MOST_S)
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
    """Read it from a body, whose layout is the same for all signals.

    https://opentelemetry.io/docs/specs/otlp/#partial-success-1
    """
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        partial = ExportTraceServiceResponse.FromString(body).partial_success
    except Exception:  # a proxy's page, say
        return 0, ""
    return max(partial.rejected_spans, 0), partial.error_message


REASON_MAX = 300
"""Characters; exporters quote whole responses."""

_SENTENCES = (
    (r"BadStatusLine", "it does not speak HTTP/1; is that a gRPC port? (OTEL_EXPORTER_OTLP_PROTOCOL=grpc)"),
    (
        r"parsing HTTP/2|SETTINGS frame|Trying to connect an http1",
        "it does not speak gRPC; is that an HTTP port? (OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf)",
    ),
    (r"WRONG_VERSION_NUMBER", "it does not speak TLS; give its address as http://"),
    (
        r"(?i)certificate.?verify.?failed",
        "its certificate is not trusted; OTEL_EXPORTER_OTLP_CERTIFICATE may name the authority's",
    ),
    (
        # TLS 1.3 has a client find out after the handshake; gRPC only says that what came then cannot be read.
        r"(?i)alert certificate required|alert bad certificate|alert unknown ca|Unwrap failed",
        "it wants a client certificate: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, OTEL_EXPORTER_OTLP_CLIENT_KEY",
    ),
    (r"security handshaker", "TLS could not be set up with these certificates and keys"),
    (
        r"code: 40[13]\b|UNAUTHENTICATED|PERMISSION_DENIED",
        "it refuses these credentials (OTEL_EXPORTER_OTLP_HEADERS)",
    ),
    (r"code: 404\b|UNIMPLEMENTED", "there is no OTLP receiver at that address"),
    (r"header value|header name|metadata was invalid", "OTEL_EXPORTER_OTLP_HEADERS has what no header may contain"),
    (r"Failed to resolve|address lookup failed|Name or service not known", "the name of its host is not known"),
    (r"(?i)connection refused", "connection refused"),
    (r"DEADLINE_EXCEEDED|[Rr]ead timed out", "no answer in time"),
    (r"due to timeout, max retries", "it could not be reached in the time that OTEL_EXPORTER_OTLP_TIMEOUT allows"),
    (
        r"RemoteDisconnected|ConnectionReset|Connection aborted|IncompleteRead|SSLEOFError",
        "it closes the connection",
    ),
    # Before 1.43 the gRPC exporter says nothing else, whatever is wrong.
    (
        r"StatusCode\.UNAVAILABLE( encountered while exporting .*, retrying in [\d.]+s\.?)?$",
        "it cannot be reached over gRPC; is that an HTTP port? (OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf)",
    ),
)
_TRANSIENT = re.compile(
    r"^Transient error (?P<why>.*?) encountered while exporting .*?retrying in [\d.]+s\.?\s*", re.DOTALL
)


def explain_error(error: str) -> str:
    """Return one line of bounded length; header values, which may be secrets, are left out."""
    for pattern, sentence in _SENTENCES:
        if re.search(pattern, error):
            return sentence
    transient = _TRANSIENT.match(error)
    if transient is not None:
        error = " ".join((transient["why"], error[transient.end() :]))
    return AttributeSanitizer().clean_text(" ".join(redaction.text(error).split()), REASON_MAX)
