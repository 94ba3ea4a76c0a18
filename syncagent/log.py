"""The agent's own messages, on stderr.

No logging library: those that would do import much more (rich, pygments), and rich draws from the program's random
generator when it is loaded.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from typing import Any

from syncagent import stderr

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


class Logger:
    """Prints what is at least as grave as its level: ``logger.warning("no GPU", device="cuda:0")``."""

    def __init__(self, level: str, fmt: str) -> None:
        self._level = _LEVELS[level]
        self._render = _render_json if fmt == "json" else _render_text

    def log(self, level: int, message: str, /, **values: object) -> None:
        if level >= self._level:
            name = next((name for name, number in _LEVELS.items() if number >= level), "critical")
            stderr.write(f"{self._render(name, message, values)}\n")

    def debug(self, message: str, /, **values: object) -> None:
        self.log(_LEVELS["debug"], message, **values)

    def info(self, message: str, /, **values: object) -> None:
        self.log(_LEVELS["info"], message, **values)

    def warning(self, message: str, /, **values: object) -> None:
        self.log(_LEVELS["warning"], message, **values)

    def error(self, message: str, /, **values: object) -> None:
        self.log(_LEVELS["error"], message, **values)

    def critical(self, message: str, /, **values: object) -> None:
        self.log(_LEVELS["critical"], message, **values)

    def exception(self, message: str, /, **values: object) -> None:
        """Print an error together with the traceback of the exception that is being handled."""
        import traceback

        self.log(_LEVELS["error"], message, **values, exception=traceback.format_exc().rstrip())


@functools.cache
def get_logger() -> Logger:
    """The one logger; ``SYNCAGENT_LOG_LEVEL`` and ``SYNCAGENT_LOG_FORMAT`` are read when it is first asked for."""
    level, bad_level = _choice("SYNCAGENT_LOG_LEVEL", "info", tuple(_LEVELS))
    fmt, bad_format = _choice("SYNCAGENT_LOG_FORMAT", "text", _FORMATS)
    logger = Logger(level, fmt)
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


def _render_text(level: str, message: str, values: dict[str, Any]) -> str:
    exception = values.pop("exception", None)
    shown = "".join(f" {key}={_value(value)}" for key, value in values.items())
    text = f"[syncagent] {time.strftime('%H:%M:%S')} {level:<8} {message}{shown}"
    return text if exception is None else f"{text}\n{exception}"


def _render_json(level: str, message: str, values: dict[str, Any]) -> str:
    head = {"logger": "syncagent", "time": time.time(), "pid": os.getpid(), "level": level, "message": message}
    return json.dumps(head | values, default=str)


def _value(value: object) -> str:
    """Bare where that can be read back, quoted otherwise."""
    text = str(value)
    return text if text and text.isprintable() and not set(' "=') & set(text) else json.dumps(text)
