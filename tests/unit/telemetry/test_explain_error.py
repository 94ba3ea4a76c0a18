"""What exporters say, in words a person can act on."""

from __future__ import annotations

import pytest

from syncagent.telemetry.responses import REASON_MAX, explain_error

# As said by the exporters of 1.45.2 to a port that speaks something else, or that is not there.
SAID = {
    "Transient error ('Connection aborted.', BadStatusLine('\\x00\\x00')) encountered while exporting spans batch, "
    "retrying in 0.83s.": "gRPC port",
    "Transient error StatusCode.UNAVAILABLE encountered while exporting traces to 127.0.0.1:1, retrying in 0.92s. "
    "Error details: failed to connect to all addresses; last error: UNAVAILABLE: "
    "ipv4:127.0.0.1:1: Failed parsing HTTP/2 "
    "(Expected SETTINGS frame as the first frame, got frame type 79)": "HTTP port",
    "SSLError(1, '[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)')": "http://",
    "SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed')": "trusted",
    "SSLError(1, '[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required')": "CLIENT_KEY",
    "Transient error StatusCode.UNAVAILABLE encountered while exporting traces to 127.0.0.1:1, retrying in 0.92s. "
    "Error details: failed to connect to all addresses; last error: UNAVAILABLE: "
    "ipv4:127.0.0.1:1: Unwrap failed (TSI_DATA_CORRUPTED)": "CLIENT_KEY",
    "Failed to export spans batch code: 401, reason: Unauthorized": "credentials",
    "Failed to export spans batch code: 404, reason: Not Found": "no OTLP receiver",
    "Failed to resolve 'nowhere.invalid' ([Errno -2] Name or service not known)": "name of its host",
    # All that the gRPC exporter says before 1.43, whatever is wrong.
    "Transient error StatusCode.UNAVAILABLE encountered while exporting traces to 127.0.0.1:1, retrying in 1.03s.": (
        "cannot be reached over gRPC"
    ),
    "Failed to export traces to 127.0.0.1:1, error code: StatusCode.UNAVAILABLE": "cannot be reached over gRPC",
    "Transient error StatusCode.UNAVAILABLE encountered while exporting traces to 127.0.0.1:1, retrying in 1.03s. "
    "Error details: no healthy upstream": "no healthy upstream",
    "Failed to export spans batch due to timeout, max retries or shutdown.": "OTEL_EXPORTER_OTLP_TIMEOUT",
    "SSLError(SSLEOFError(8, 'EOF occurred in violation of protocol (_ssl.c:2427)'))": "closes the connection",
    "NewConnectionError('...: [Errno 111] Connection refused')": "connection refused",
}


@pytest.mark.parametrize("said", SAID)
def test_the_usual_ones_have_a_sentence(said):
    assert SAID[said] in explain_error(said)


def test_a_header_that_may_be_a_secret_is_not_shown():
    said = "Invalid leading whitespace, reserved character(s), or return character(s) in header value: 'Bearer abc\\n'"
    assert "Bearer" not in explain_error(said)


def test_the_rest_is_one_bounded_line_without_what_the_exporter_is_about_to_do():
    said = "Transient error Internal\nServer Error encountered while exporting spans batch, retrying in 0.97s."
    assert explain_error(said) == "Internal Server Error"
    assert len(explain_error("<html>\x00" * 100_000)) <= REASON_MAX + 3 * REASON_MAX
    assert "\x00" not in explain_error("<html>\x00")
