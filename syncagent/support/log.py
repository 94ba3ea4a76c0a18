"""The agent's own messages: a structlog logger to stderr that leaves the program's structlog configuration alone."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from syncagent.support import redaction, stderr
from syncagent.support.printable import clean

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from structlog.typing import FilteringBoundLogger, WrappedLogger

__all__ = ["get_logger", "log_once"]

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_FORMATS = ("text", "json")

_said: set[str] = set()
_said_lock = threading.RLock()  # a signal handler may come in the middle


def _forked() -> None:
    global _said_lock
    _said_lock = threading.RLock()  # a thread that is gone now may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@functools.cache
def get_logger() -> FilteringBoundLogger:
    """The one logger; ``SYNCAGENT_LOG_LEVEL`` and ``SYNCAGENT_LOG_FORMAT`` are read when it is first asked for."""
    from syncagent.support.private_structlog import structlog as load

    structlog = load()
    level, bad_level = _choice("SYNCAGENT_LOG_LEVEL", "info", tuple(_LEVELS))
    fmt, bad_format = _choice("SYNCAGENT_LOG_FORMAT", "text", _FORMATS)
    # Everything is given here: what wrap_logger is not given it would take from the program's global configuration.
    logger: FilteringBoundLogger = structlog.wrap_logger(
        _Stderr(),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _render_json if fmt == "json" else _render_text,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    for complaint in filter(None, (bad_level, bad_format)):
        logger.warning(complaint)
    return logger


def log_once(key: str, message: str, /, *, level: str = "warning", **values: object) -> bool:
    """Log unless something was logged under this key before in this process; say whether it was."""
    with _said_lock:
        if key in _said:
            return False
        _said.add(key)
    get_logger().log(_LEVELS[level], message, **values)
    return True


def _choice(variable: str, default: str, allowed: tuple[str, ...]) -> tuple[str, str | None]:
    """The variable's value, and a complaint if it is none of those allowed."""
    value = os.environ.get(variable, "").strip().lower()
    if not value:
        return default, None
    if value not in allowed:
        return default, f"{variable}={value!r} is not allowed, {default} is used; allowed: {', '.join(allowed)}"
    return value, None


class _Stderr:
    """Prints to what ``sys.stderr`` is at that moment, and never fails: a lost message must not stop a training job."""

    def msg(self, message: str) -> None:
        stderr.write(f"{message}\n")

    debug = info = warning = error = critical = msg


def _render_text(_logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> str:
    level, message, exception = event.pop("level"), event.pop("event"), event.pop("exception", None)
    values = "".join(f" {key}={_value(value)}" for key, value in event.items())
    text = f"[syncagent] {time.strftime('%H:%M:%S')} {level:<8} {_safe(message)}{values}"
    return text if exception is None else "\n".join((text, *map(_safe, str(exception).splitlines())))


def _render_json(_logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> str:
    head = {"logger": "syncagent", "time": time.time(), "pid": os.getpid(), "level": event.pop("level")}
    head["message"] = redaction.text(str(event.pop("event")))
    values = {
        key: value if isinstance(value, (bool, int, float, type(None))) else redaction.text(str(value))
        for key, value in event.items()
    }
    return clean(json.dumps(head | values))


def _value(value: object) -> str:
    """Bare where that can be read back, quoted otherwise."""
    text = redaction.text(str(value))
    return text if text and text.isprintable() and not set(' "=') & set(text) else clean(json.dumps(text))


def _safe(text: object) -> str:
    return clean(redaction.text(str(text)))
