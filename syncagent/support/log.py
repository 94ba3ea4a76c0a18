"""The agent's own messages: a structlog logger to stderr that leaves the program's structlog configuration alone.

structlog loads rich where it is installed, and rich draws from the global ``random`` when it is loaded: a program that
has set a seed would draw other numbers than without the agent.  So structlog is loaded without rich here, and the
program's own ``import structlog`` finds neither.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from syncagent.support import redaction, stderr
from syncagent.support.printable import clean

if TYPE_CHECKING:
    from collections.abc import Collection, MutableMapping, Sequence
    from types import ModuleType

    from structlog.typing import FilteringBoundLogger, WrappedLogger

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
    structlog = private_structlog()
    complaints: list[str] = []
    level = _choice("SYNCAGENT_LOG_LEVEL", "info", _LEVELS, complaints)
    fmt = _format(complaints)
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
    for complaint in complaints:
        logger.warning(complaint)
    return logger


def _format(complaints: list[str]) -> str:
    return _choice("SYNCAGENT_LOG_FORMAT", "text", _FORMATS, complaints)


@functools.cache
def is_for_programs() -> bool:
    """Whether lines are JSON, for a program to read: it has to find each fact there, those people see elsewhere too."""
    return _format([]) == "json"


def log_once(key: str, message: str, /, *, level: str = "warning", **values: object) -> bool:
    """Log unless something was logged under this key before in this process; say whether it was."""
    with _said_lock:
        if key in _said:
            return False
        _said.add(key)
    get_logger().log(_LEVELS[level], message, **values)
    return True


def _choice(variable: str, default: str, allowed: Collection[str], complaints: list[str]) -> str:
    """The variable's value; the default, and a complaint, if it is none of those allowed."""
    value = os.environ.get(variable, "").strip().lower() or default
    if value in allowed:
        return value
    complaints.append(f"{variable}={value!r} is not allowed, {default} is used; allowed: {', '.join(allowed)}")
    return default


@functools.cache
def private_structlog() -> Any:
    """Return structlog's package: the program's, if the program has loaded it, or else one that only the agent has."""
    if "structlog" in sys.modules:
        return importlib.import_module("structlog")
    hidden = _HiddenRich()
    sys.meta_path.insert(0, hidden)
    try:
        return importlib.import_module("structlog")
    finally:
        sys.meta_path.remove(hidden)
        for name in list(sys.modules):  # a copy, made in one piece: other threads import meanwhile
            if name.partition(".")[0] == "structlog":
                sys.modules.pop(name, None)


class _HiddenRich:
    """A finder that keeps rich from being loaded by the thread that made it."""

    def __init__(self) -> None:
        self._ident = threading.get_ident()

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None) -> None:
        if name.partition(".")[0] == "rich" and threading.get_ident() == self._ident:
            raise ModuleNotFoundError(f"{name} is not loaded for the agent's log", name=name)


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
