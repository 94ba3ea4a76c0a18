"""What each kind of setting accepts, and the sentence for what it does not.

Every parser takes the name that the message shows and the value, and returns the value in force.  It raises
:class:`~syncagent.ConfigError` for a value that is not allowed.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from syncagent.errors import ConfigError
from syncagent.events import Phase, SyncKind
from syncagent.support import report_formats

Limits = tuple[tuple[str, Any], ...]

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})
_LARGEST_COUNT = 1_000_000_000
_PHASES = ("total", *(phase.value for phase in Phase))
_SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGWINCH", "SIGBREAK")
_LONGEST_VALUE = 200  # characters of a rejected value that a message shows
_ALLOWANCE = re.compile(
    r"""
    [^:]+\.py (:[1-9]\d{{0,8}})?                                # path/file.py, path/file.py:LINE
    | (?!.*\.py\b) {name} (\.{name})* (: {part} (\.{part})*)?  # package.module, package.module:function
    """.format(name=r"[^\W\d]\w*", part=r"([^\W\d]\w*|<\w+>)"),
    re.VERBOSE,
)


def rejected(setting: str, value: object, allowed: str) -> ConfigError:
    """Make the one sentence, on one line, for a value that is not allowed."""
    name = " ".join(setting.split()) if setting.isprintable() else repr(setting)
    return ConfigError(f"syncagent: setting {name} is {_shown(value)}, but it must be {allowed}.")


def _shown(value: object) -> str:
    from syncagent.support import redaction

    try:
        text = redaction.text(" ".join(repr(value).splitlines()))
    except Exception:  # a number of thousands of digits, or an object that fails
        return f"of type {type(value).__name__} and cannot be shown"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


class Choice:
    """Accepts one of the words of a ``Literal``, in any case."""

    def __init__(self, literal: object) -> None:
        self.choices: tuple[str, ...] = get_args(literal)
        self._by_lower = {choice.lower(): choice for choice in self.choices}

    def __call__(self, name: str, value: object) -> str:
        found = self._by_lower.get(value.strip().lower()) if isinstance(value, str) else None
        if found is not None:
            return found
        raise rejected(name, value, "one of " + ", ".join(self.choices))


def flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUE | _FALSE:
        return value.strip().lower() in _TRUE
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise rejected(name, value, "a yes or no: 1, 0, true, false, on or off")


def count(least: int) -> Callable[[str, object], int]:
    """Accept a whole number that is not below ``least``."""

    def parse(name: str, value: object) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:  # more digits than int() reads, or none
            number = None
        if isinstance(number, int) and not isinstance(number, bool) and least <= number <= _LARGEST_COUNT:
            return number
        is_too_large = number is None or (isinstance(number, int) and number > _LARGEST_COUNT)
        most = f" and {_LARGEST_COUNT} at most" if is_too_large else ""
        raise rejected(name, value, f"a whole number, {least} or more{most}")

    return parse


def _number(most: float, allowed: str) -> Callable[[str, object], float]:
    """Accept a number from 0 to ``most``."""

    def parse(name: str, value: object) -> float:
        try:
            number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else -1.0
        except (ValueError, OverflowError):
            number = -1.0
        if 0.0 <= number <= most:
            return number
        raise rejected(name, value, allowed)

    return parse


milliseconds = _number(sys.float_info.max, "a number of milliseconds, 0 or more")
share = _number(1.0, "a share of the time from 0 to 1")


def names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) and part.strip() for part in value):
        return tuple(part.strip() for part in value)
    raise rejected(name, value, "a list of names, or one string with commas between them")


def kinds(name: str, value: object) -> tuple[str, ...]:
    asked = tuple(kind.lower() for kind in names(name, value))
    known = tuple(kind.value for kind in SyncKind)
    for kind in asked:
        if kind not in known:
            raise rejected(name, kind, "a kind of sync: " + ", ".join(known) + ", each")
    return asked


def per_phase(parse: Callable[[str, object], Any], allowed: str) -> Callable[[str, object], Limits]:
    """Accept one limit for the whole step, or one per phase: ``5``, ``forward=2,backward=0``, or a mapping."""

    def parsed(name: str, value: object) -> Limits:
        if isinstance(value, str) and "=" in value:
            pairs: list[tuple[Any, Any]] = []
            for part in value.split(","):
                phase, _, limit = part.partition("=")
                pairs.append((phase.strip(), limit.strip()))
        elif isinstance(value, Mapping):
            pairs = list(value.items())
        elif isinstance(value, tuple):
            pairs = [pair if isinstance(pair, tuple) and len(pair) == 2 else (None, None) for pair in value]
        else:
            pairs = [("total", value)]
        try:
            limits = {phase: parse(name, limit) for phase, limit in pairs}
        except (ConfigError, TypeError):
            limits = {None: None}
        if set(limits) <= set(_PHASES):
            return tuple(limits.items())
        phases = ", ".join(_PHASES)
        raise rejected(
            name, value, f"{allowed}, or such limits by phase, as in forward=2,backward=0; phases are {phases}"
        )

    return parsed


def signal_name(name: str, value: object) -> str:
    """Accept the name of a signal that is free for a program's own use, with or without SIG."""
    text = value.strip().upper() if isinstance(value, str) else ""
    text = text if text.startswith("SIG") else f"SIG{text}"
    if text in _SIGNALS and hasattr(signal, text):
        return text
    raise rejected(name, value, "one of " + ", ".join(found for found in _SIGNALS if hasattr(signal, found)))


def allowances(name: str, value: object) -> tuple[str, ...]:
    entries = names(name, value)
    for entry in entries:
        if not _ALLOWANCE.fullmatch(entry):
            raise rejected(
                name, entry, "package.module, package.module:function, path/file.py or path/file.py:LINE, each"
            )
    return entries


def path(name: str, value: object) -> str:
    if isinstance(value, (str, Path)) and str(value).strip():
        return str(value)
    raise rejected(name, value, "a path")


def report_path(name: str, value: object) -> str:
    target = path(name, value)
    is_folder = target.endswith(("/", os.sep)) or os.path.isdir(target)
    if not is_folder and report_formats.saved_format_of(target) is None:
        raise rejected(name, target, f"a path that ends in {report_formats.saved_suffixes()}, or a directory")
    return target


def file_mode(name: str, value: object) -> int:
    """Accept permissions: a string is octal, as for chmod; a number is what ``os.open`` would take."""
    if isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{1,6}", value.strip()):
        mode = int(value, 8)
    else:
        mode = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if mode >= 0 and mode & 0o600 == 0o600 and not mode & ~0o666:
        return mode
    raise rejected(name, value, "a file's mode in octal from 0600 to 0666, such as 0640")
