"""Explains what an exporter says of a failed export, in a sentence that a person can act on."""

from __future__ import annotations

import re

from syncagent.support import redaction
from syncagent.telemetry.attributes import AttributeSanitizer

__all__ = ["explain_error"]

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
    (r"RemoteDisconnected|ConnectionReset|Connection aborted|IncompleteRead", "it closes the connection"),
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
