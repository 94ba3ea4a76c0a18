"""Until when a collector has asked to be left alone, by the ``Retry-After`` of its answers.

The SDK's exporters wait for as long within one export, if that has the time; the next export knows nothing of it.
"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests

__all__ = ["RetryAfter"]

_STATUSES = frozenset({429, 502, 503, 504})
"""Those after which OTLP has a client try again: https://opentelemetry.io/docs/specs/otlp/#otlphttp-throttling"""
_MOST_S = 300.0
"""So long at most: an answer must not end the telemetry of a job."""


class RetryAfter:
    """Heard on the thread that sends; asked there, too."""

    def __init__(self) -> None:
        self._until = 0.0

    def left_s(self) -> float:
        """Return for how long it is to be left alone; 0 where it is not."""
        return max(self._until - time.monotonic(), 0.0)

    def session(self) -> requests.Session:
        """Make a session for an exporter, all of whose answers are heard."""
        import requests

        session = requests.Session()
        session.hooks["response"].append(self._hear)
        return session

    def _hear(self, response: requests.Response, *_: Any, **__: Any) -> None:
        said = response.headers.get("Retry-After")
        if said is not None and response.status_code in _STATUSES:
            self._until = time.monotonic() + min(_seconds(said), _MOST_S)
        elif response.ok:
            self._until = 0.0


def _seconds(text: str) -> float:
    """A number of seconds or a date: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after; 0 for anything else."""
    if text.strip().isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return 0.0
