"""What each kind of setting accepts, and the sentence for what it does not.

Every parser takes the name that the message shows and the value, and returns the value in force.  It raises
:class:`~syncagent.ConfigError` for a value that is not allowed.  Its words for what it accepts stand in that message
and in docs/settings.md.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from syncagent.errors import ConfigError
from syncagent.events import Phase, SyncKind
from syncagent.support import report_formats

Limits = tuple[tuple[str, Any], ...]
Value = TypeVar("Value")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})
_LARGEST_COUNT = 1_000_000_000
_PHASES = ("total", *(phase.value for phase in Phase))
_KINDS = tuple(kind.value for kind in SyncKind)
_SIGNALS = tuple(name for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGWINCH", "SIGBREAK") if hasattr(signal, name))
_ALLOWED = ("package.module", "package.module:function", "path/file.py", "path/file.py:LINE")
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


class Parser(Generic[Value]):
    """Reads one kind of setting, and says in words what it accepts."""

    def __init__(
        self, read: Callable[[str, object], Value], accepts: str, metavar: str = "", words: Iterable[str] = ()
    ) -> None:
        self._read = read
        self.accepts = accepts
        """What a value must be: ``a whole number, 0 or more``."""
        self.metavar = metavar
        """What stands for the value in ``syncagent run --help``; empty for a flag, which has none."""
        self.words = tuple(words)
        """Those parts of ``accepts`` that are values themselves."""

    def __call__(self, name: str, value: object) -> Value:
        return self._read(name, value)


def _parser(
    accepts: str, metavar: str = "", words: Iterable[str] = ()
) -> Callable[[Callable[[str, object], Value]], Parser[Value]]:
    return lambda read: Parser(read, accepts, metavar, words)


class Choice(Parser[str]):
    """Accepts one of the words of a ``Literal``, in any case."""

    def __init__(self, literal: object) -> None:
        self.choices: tuple[str, ...] = get_args(literal)
        self._by_lower = {choice.lower(): choice for choice in self.choices}
        accepts = "one of " + ", ".join(self.choices)
        super().__init__(self._choose, accepts, f"[{'|'.join(self.choices)}]", self.choices)

    def _choose(self, name: str, value: object) -> str:
        found = self._by_lower.get(value.strip().lower()) if isinstance(value, str) else None
        if found is not None:
            return found
        raise rejected(name, value, self.accepts)


@_parser("a yes or no: 1, 0, true, false, on or off")
def flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUE | _FALSE:
        return value.strip().lower() in _TRUE
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise rejected(name, value, flag.accepts)


def count(least: int) -> Parser[int]:
    """Accept a whole number that is not below ``least``."""

    @_parser(f"a whole number, {least} or more", "N")
    def parse(name: str, value: object) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:  # more digits than int() reads, or none
            number = None
        if isinstance(number, int) and not isinstance(number, bool) and least <= number <= _LARGEST_COUNT:
            return number
        is_too_large = number is None or (isinstance(number, int) and number > _LARGEST_COUNT)
        most = f" and {_LARGEST_COUNT} at most" if is_too_large else ""
        raise rejected(name, value, f"{parse.accepts}{most}")

    return parse


def _number(most: float, accepts: str, metavar: str) -> Parser[float]:
    """Accept a number from 0 to ``most``."""

    @_parser(accepts, metavar)
    def parse(name: str, value: object) -> float:
        try:
            number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else -1.0
        except (ValueError, OverflowError):
            number = -1.0
        if 0.0 <= number <= most:
            return number
        raise rejected(name, value, accepts)

    return parse


@_parser("a number of seconds, 0 or more, or off", "SECONDS|off", ("off",))
def seconds_or_off(name: str, value: object) -> float:
    """Accept a time between two of something; 0 stands for never."""
    if value is False or (isinstance(value, str) and value.strip().lower() in _FALSE):
        return 0.0
    return _seconds(name, value)


_seconds = _number(sys.float_info.max, seconds_or_off.accepts, seconds_or_off.metavar)
milliseconds = _number(sys.float_info.max, "a number of milliseconds, 0 or more", "MS")
share = _number(1.0, "a share of the time from 0 to 1", "SHARE")


@_parser("a list of names, or one string with commas between them", "NAME,...")
def names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) and part.strip() for part in value):
        return tuple(part.strip() for part in value)
    raise rejected(name, value, names.accepts)


@_parser(f"one or more kinds of sync: {', '.join(_KINDS)}", "KIND,...", _KINDS)
def kinds(name: str, value: object) -> tuple[str, ...]:
    asked = tuple(kind.lower() for kind in names(name, value))
    for kind in asked:
        if kind not in _KINDS:
            raise rejected(name, kind, kinds.accepts)
    return asked


def per_phase(limit: Parser[Any]) -> Parser[Limits]:
    """Accept one limit for the whole step, or one per phase: ``5``, ``forward=2,backward=0``, or a mapping."""
    example = "forward=2,backward=0"
    phases = ", ".join(_PHASES)

    @_parser(
        f"{limit.accepts}, or such limits by phase, as in {example}; phases are {phases}",
        f"{limit.metavar}|PHASE={limit.metavar},...",
        (example, *_PHASES),
    )
    def parsed(name: str, value: object) -> Limits:
        if isinstance(value, str) and "=" in value:
            pairs: list[tuple[Any, Any]] = []
            for part in value.split(","):
                phase, _, most = part.partition("=")
                pairs.append((phase.strip(), most.strip()))
        elif isinstance(value, Mapping):
            pairs = list(value.items())
        elif isinstance(value, tuple):
            pairs = [pair if isinstance(pair, tuple) and len(pair) == 2 else (None, None) for pair in value]
        else:
            pairs = [("total", value)]
        try:
            limits = {phase: limit(name, most) for phase, most in pairs}
        except (ConfigError, TypeError):
            limits = {None: None}
        if set(limits) <= set(_PHASES):
            return tuple(limits.items())
        raise rejected(name, value, parsed.accepts)

    return parsed


@_parser(f"one of {', '.join(_SIGNALS)}", "SIGNAL", _SIGNALS)
def signal_name(name: str, value: object) -> str:
    """Accept a signal that is free for a program's own use: its name, with or without SIG, or its number."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = int(value)  # before Python 3.11 a member of signal.Signals is not written as its number
    text = str(value).strip().upper() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    text = text if text.startswith("SIG") else f"SIG{text}"
    for known in _SIGNALS:
        if text in (known, f"SIG{int(getattr(signal, known))}"):
            return known
    raise rejected(name, value, signal_name.accepts)


@_parser(f"one or more entries such as {', '.join(_ALLOWED[:-1])} or {_ALLOWED[-1]}", "NAME,...", _ALLOWED)
def allowances(name: str, value: object) -> tuple[str, ...]:
    entries = names(name, value)
    for entry in entries:
        if not _ALLOWANCE.fullmatch(entry):
            raise rejected(name, entry, allowances.accepts)
    return entries


@_parser("a path", "PATH")
def path(name: str, value: object) -> str:
    if isinstance(value, (str, Path)) and str(value).strip():
        return str(value)
    raise rejected(name, value, path.accepts)


def _report_paths() -> str:
    """What a report's path must be; asked anew, since a format may have been added."""
    return f"a path that ends in {report_formats.saved_suffixes()}, or a directory"


@_parser(_report_paths(), "PATH", report_formats.SUFFIXES.values())
def report_path(name: str, value: object) -> str:
    target = path(name, value)
    is_folder = target.endswith(("/", os.sep)) or os.path.isdir(target)
    if not is_folder and report_formats.saved_format_of(target) is None:
        raise rejected(name, target, _report_paths())
    return target


@_parser("a file's mode in octal from 0600 to 0666, such as 0640", "MODE", ("0600", "0666", "0640"))
def file_mode(name: str, value: object) -> int:
    """Accept permissions: a string is octal, as for chmod; a number is what ``os.open`` would take."""
    if isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{1,6}", value.strip()):
        mode = int(value, 8)
    else:
        mode = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if mode >= 0 and mode & 0o600 == 0o600 and not mode & ~0o666:
        return mode
    raise rejected(name, value, file_mode.accepts)
