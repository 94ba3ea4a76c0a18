"""What a Collector rejects although it answers that all is well, and what exporters say where all is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from syncagent.support import redaction
from syncagent.telemetry.attributes import AttributeSanitizer

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests


def session(see: Callable[..., None]) -> requests.Session:
    """Return a session for an exporter; ``see`` is called with each response."""
    import requests

    class Session(requests.Session):
        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            # Else REQUESTS_CA_BUNDLE would replace the certificate that the exporter has set on the session:
            # https://github.com/psf/requests/issues/3829
            own = self.verify if verify is None else verify
            return super().merge_environment_settings(url, proxies, stream, own, cert)

    made = Session()
    made.hooks["response"].append(see)
    return made


def rejected(response: requests.Response) -> tuple[int, str]:
    """Return how many spans, points or records a partial success rejects, and why; to the SDK it is a success.

    https://opentelemetry.io/docs/specs/otlp/#partial-success-1
    """
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:  # the layout is the same for all signals
        partial = ExportTraceServiceResponse.FromString(response.content if response.ok else b"").partial_success
    except Exception:  # a proxy's page, say
        return 0, ""
    return max(partial.rejected_spans, 0), partial.error_message


REASON_MAX = 300
"""Characters; exporters quote whole responses."""

_SENTENCES = {
    r"BadStatusLine": "it does not speak HTTP/1; is that a gRPC port? (OTEL_EXPORTER_OTLP_PROTOCOL=grpc)",
    r"parsing HTTP/2|SETTINGS frame|connect an http1": "it does not speak gRPC; is that an HTTP port? "
    "(OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf)",
    r"WRONG_VERSION_NUMBER": "it does not speak TLS; give its address as http://",
    r"(?i)certificate.?verify.?failed": "its certificate is not trusted; OTEL_EXPORTER_OTLP_CERTIFICATE may name the "
    "authority's",
    # TLS 1.3 has a client find out after the handshake; gRPC only says that what came then cannot be read.
    r"(?i)alert certificate required|alert bad certificate|alert unknown ca|Unwrap failed": "it wants a client "
    "certificate: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, OTEL_EXPORTER_OTLP_CLIENT_KEY",
    r"security handshaker": "TLS could not be set up with these certificates and keys",
    r"code: 40[13]\b|UNAUTHENTICATED|PERMISSION_DENIED": "it refuses these credentials (OTEL_EXPORTER_OTLP_HEADERS)",
    r"code: 404\b|UNIMPLEMENTED": "there is no OTLP receiver at that address",
    r"header value|header name|metadata was invalid": "OTEL_EXPORTER_OTLP_HEADERS has what no header may contain",
    r"Failed to resolve|address lookup failed|Name or service not known": "the name of its host is not known",
    r"(?i)connection refused": "connection refused",
    r"DEADLINE_EXCEEDED|[Rr]ead timed out": "no answer in time",
    r"due to timeout, max retries": "it could not be reached in the time that OTEL_EXPORTER_OTLP_TIMEOUT allows",
    r"RemoteDisconnected|ConnectionReset|Connection aborted|IncompleteRead|SSLEOFError": "it closes the connection",
    # Before 1.43 the gRPC exporter says nothing else, whatever is wrong.
    r"StatusCode\.UNAVAILABLE( encountered while exporting .*, retrying in [\d.]+s\.?)?$": "it cannot be reached over "
    "gRPC; is that an HTTP port? (OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf)",
}
_RETRYING = re.compile(r"(?s)^Transient error (.*?) encountered while exporting .*?retrying in [\d.]+s\.?")


def explain_error(error: str) -> str:
    """Return one line of bounded length; header values, which may be secrets, are left out."""
    for pattern, sentence in _SENTENCES.items():
        if re.search(pattern, error):
            return sentence
    plain = redaction.text(_RETRYING.sub(r"\1", error))
    return AttributeSanitizer().clean_text(" ".join(plain.split()), REASON_MAX)
