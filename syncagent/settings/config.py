"""Every setting, once: its name, type, default, what is allowed, and where the value in force came from.

A keyword beats the environment (``SYNCAGENT_*``), which beats ``[tool.syncagent]`` in the nearest ``pyproject.toml``,
which beats the default.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncagent.errors import ConfigError
from syncagent.events import Phase, SyncKind
from syncagent.settings import project_file, variables
from syncagent.support.storage import DEFAULT_MODE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Settings", "file_mode", "load", "rejected", "settle", "wants_gate"]

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})


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
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


_LONGEST = 200


_MOST = 1_000_000_000


class _Choice:
    """Takes one of a few words, in any case."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __call__(self, name: str, value: object) -> str:
        if isinstance(value, str) and value.strip().lower() in self.choices:
            return value.strip().lower()
        raise rejected(name, value, "one of " + ", ".join(self.choices))


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUE | _FALSE:
        return value.strip().lower() in _TRUE
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise rejected(name, value, "a yes or no: 1, 0, true, false, on or off")


def _count(least: int) -> Callable[[str, object], int]:
    def parse(name: str, value: object) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, int) and not isinstance(number, bool) and least <= number <= _MOST:
            return number
        most = f" and {_MOST} at most" if number is None or (isinstance(number, int) and number > _MOST) else ""
        raise rejected(name, value, f"a whole number, {least} or more{most}")

    return parse


def _milliseconds(name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        number = -1.0
    if 0.0 <= number < float("inf"):
        return number
    raise rejected(name, value, "a number of milliseconds, 0 or more")


def _names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) and part.strip() for part in value):
        return tuple(part.strip() for part in value)
    raise rejected(name, value, "a list of names, or one string with commas between them")


def _kinds(name: str, value: object) -> tuple[str, ...]:
    kinds = tuple(str(kind).lower() for kind in _names(name, value))
    known = tuple(kind.value for kind in SyncKind)
    for kind in kinds:
        if kind not in known:
            raise rejected(name, kind, "a kind of sync: " + ", ".join(known) + ", each")
    return kinds


def _share(name: str, value: object) -> float:
    try:
        share = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        share = -1.0
    if 0.0 <= share <= 1.0:
        return share
    raise rejected(name, value, "a share of the time from 0 to 1")


_Limits = tuple[tuple[str, Any], ...]
_PHASES = ("total", *(phase.value for phase in Phase))


def _per_phase(parse: Callable[[str, object], Any], allowed: str) -> Callable[[str, object], _Limits]:
    """One limit for the whole step, or one for each phase: ``5``, ``forward=2,backward=0``, or a mapping."""

    def parsed(name: str, value: object) -> _Limits:
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


def _signal(name: str, value: object) -> str:
    """The name of a signal that a program may use as it likes, without or with SIG."""
    text = value.strip().upper() if isinstance(value, str) else ""
    text = text if text.startswith("SIG") else f"SIG{text}"
    if text in _SIGNALS and hasattr(signal, text):
        return text
    raise rejected(name, value, "one of " + ", ".join(found for found in _SIGNALS if hasattr(signal, found)))


_SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGWINCH", "SIGBREAK")


def _allowances(name: str, value: object) -> tuple[str, ...]:
    entries = _names(name, value)
    for entry in entries:
        if not _ALLOWANCE.fullmatch(entry):
            raise rejected(
                name, entry, "package.module, package.module:function, path/file.py or path/file.py:LINE, each"
            )
    return entries


def _path(name: str, value: object) -> str:
    if isinstance(value, (str, Path)) and str(value).strip():
        return str(value)
    raise rejected(name, value, "a path")


def _report(name: str, value: object) -> str:
    path = _path(name, value)
    is_folder = path.endswith(("/", os.sep)) or os.path.isdir(path)
    if not is_folder and not re.search(r"[^/\\]\.(json|html|sarif)$", path):
        raise rejected(name, path, "a path that ends in .json, .html, .sarif or .trace.json, or a directory")
    return path


def _mode(name: str, value: object) -> int:
    """Permissions: a string is octal, as for chmod; a number is what ``os.open`` would take."""
    if isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{1,6}", value.strip()):
        mode = int(value, 8)
    else:
        mode = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if mode >= 0 and mode & 0o600 == 0o600 and not mode & ~0o666:
        return mode
    raise rejected(name, value, "a file's mode in octal from 0600 to 0666, such as 0640")


def _setting(default: Any, parse: Callable[[str, object], Any], doc: str) -> Any:
    return field(default=default, metadata={"parse": parse, "doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings in force.  The environment name of each is its own in capitals with ``SYNCAGENT_`` before it."""

    policy: str = _setting("observe", _Choice("observe", "warn", "raise"), "what happens at a sync that is not allowed")
    detail: str | None = _setting(
        None,
        _Choice("ops", "syncs"),
        "wrap every op, or only what may block; by default ops under observe without cost",
    )
    report: str | None = _setting(None, _report, "save the report there at exit")
    min_stall_ms: float = _setting(0.0, _milliseconds, "shorter stalls are counted, but get no span and no warning")
    warmup_steps: int = _setting(3, _count(0), "the policy sleeps for that many steps")
    allow: tuple[str, ...] = _setting((), _allowances, "where syncs are wanted")
    allow_kinds: tuple[str, ...] = _setting((), _kinds, "kinds of sync that are wanted wherever they are")
    allow_packs: tuple[str, ...] = _setting((), _names, "libraries whose own syncs are wanted: torch, lightning, ...")
    max_syncs_per_step: tuple[tuple[str, int], ...] = _setting(
        (), _per_phase(_count(0), "a whole number, 0 or more"), "so many syncs are fine in a step, or in each phase"
    )
    max_stall_ms_per_step: tuple[tuple[str, float], ...] = _setting(
        (), _per_phase(_milliseconds, "a number of milliseconds"), "so much stall is fine in a step, or in each phase"
    )
    max_stall_share: float | None = _setting(None, _share, "such a share of the time may be stall, over the window")
    stall_share_window: int = _setting(20, _count(1), "how many steps the window of max_stall_share has")
    judge_threads: str = _setting(
        "training", _Choice("training", "all"), "whether the policy acts in threads that do not train, too"
    )
    policy_file: str | None = _setting(None, _path, "the policy is read from there, each second, while the job runs")
    policy_signal: str | None = _setting(None, _signal, "that signal turns the policy from observe to warn, and back")
    baseline: str | None = _setting(None, _path, "a report whose sites are known; the policy acts on new ones only")
    simulate: bool = _setting(default=False, parse=_flag, doc="the simulated device stands in for CUDA")
    stacks: bool = _setting(default=False, parse=_flag, doc="keep the whole stack of each sync")
    user_code: tuple[str, ...] = _setting(
        (), _names, "packages or paths that count as the user's code though they are installed"
    )
    copies: str | None = _setting(
        None,
        _Choice("all", "sampled", "off"),
        "which copies detail=syncs times; by default all in a gate, else one step in 16, later in 64",
    )
    cost: bool = _setting(
        default=False, parse=_flag, doc="price each sync: a few steps are profiled and replayed without it"
    )
    cost_steps: int = _setting(5, _count(1), "how many steps the window of cost has")
    max_events: int = _setting(10_000, _count(1), "how many of the newest syncs are kept whole")
    journal: str | None = _setting(None, _path, "where spans go when no endpoint is set; off for nowhere")
    capture: str | None = _setting(
        None,
        _path,
        "where what was seen is kept each second, for `syncagent report` of a killed process; off for nowhere",
    )
    file_mode: int = _setting(
        DEFAULT_MODE, _mode, "who may read the reports, journals and captures that are written: a mode in octal"
    )
    summary: bool | None = _setting(None, _flag, "print the table at the end; by default for scripts, not for watch()")

    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    """For each setting that is not at its default: keyword, environment or pyproject.toml."""
    file: str | None = field(default=None, compare=False)
    """The pyproject.toml whose table was read."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What stands where settings do and had no effect, a sentence each."""

    @property
    def wraps_every_op(self) -> bool:
        """Whether ``detail`` asks for both modes around every op."""
        plain = self.policy == "observe" and not self.cost
        return (self.detail or ("ops" if plain else "syncs")) == "ops"

    @property
    def is_gate(self) -> bool:
        """Whether a sync that is not allowed has consequences: under ``raise``, and ``warn`` with a baseline."""
        return self.policy == "raise" or (self.policy == "warn" and self.baseline is not None)

    @property
    def copies_timed(self) -> str:
        """Which copies are timed: ``all``, ``sampled`` or ``off``."""
        if self.copies is not None:
            return self.copies
        return "all" if self.wraps_every_op or self.is_gate or self.counts_by_step else "sampled"

    @property
    def counts_by_step(self) -> bool:
        """Whether a budget is set."""
        return bool(self.max_syncs_per_step or self.max_stall_ms_per_step) or self.max_stall_share is not None


_PARSERS: dict[str, Callable[[str, object], Any]] = {
    f.name: f.metadata["parse"] for f in fields(Settings) if "parse" in f.metadata
}
_DEFAULTS = {f.name: f.default for f in fields(Settings)}


def settle(name: str, value: object) -> Any:
    """Return one setting's value as it is to be used.  Raises :class:`ConfigError` if it is not allowed."""
    return _PARSERS[name](name, value)


def file_mode(environment: Mapping[str, str] | None = None) -> int:
    """Return the mode for files that are written where no settings are in force: what the environment says of it."""
    text = (os.environ if environment is None else environment).get("SYNCAGENT_FILE_MODE", "")
    return _mode("SYNCAGENT_FILE_MODE", text) if text.strip() else DEFAULT_MODE


def load(
    keywords: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    script: str | None = None,
) -> Settings:
    """Settle every setting; ``script`` is the file that will run, where that is not this process's own.

    An empty variable says that a list or what may be missing is empty, whatever pyproject.toml says; for a setting that
    always has a value it is as good as none.

    Raises :class:`ConfigError` with one sentence at the first value that is not allowed or a name that is not known.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def take(name: str, shown: str, value: object, source: str) -> None:
        values[name] = _PARSERS[name](shown, value)
        sources[name] = source

    project = project_file.find(script)
    for key, value in project.table.items():
        name = key.replace("-", "_")
        if name not in _PARSERS:
            raise rejected(f"[tool.syncagent] {key} in {project.file}", value, "one of " + ", ".join(sorted(_PARSERS)))
        take(name, f"[tool.syncagent] {key} in {project.file}", value, str(project.file))
    for name in _PARSERS:
        variable = f"SYNCAGENT_{name.upper()}"
        text = environment.get(variable)
        if text is not None and text.strip():
            take(name, variable, text, "environment")
        elif text is not None and _DEFAULTS[name] in (None, ()):
            values[name] = _DEFAULTS[name]
            sources[name] = "environment"
    for name, value in (keywords or {}).items():
        if name not in _PARSERS:
            raise rejected(name, value, "one of " + ", ".join(sorted(_PARSERS)))
        if value is not None:
            take(name, name, value, "keyword")
    warnings = filter(None, (project.ignored, *variables.unknown(_PARSERS, environment)))
    file = str(project.file) if project.table else None
    return Settings(**values, sources=sources, file=file, warnings=tuple(warnings))


def wants_gate(keywords: Mapping[str, object] | None = None, environment: Mapping[str, str] | None = None) -> bool:
    """Tell whether a gate was asked for where the settings cannot be settled; a policy that is none counts as one."""
    environment = os.environ if environment is None else environment

    def asked(name: str) -> object:
        for value in ((keywords or {}).get(name), environment.get(f"SYNCAGENT_{name.upper()}"), table.get(name)):
            if value is not None and str(value).strip():
                return value
        return None

    try:
        table = project_file.find().table
    except Exception:  # whatever is wrong with it has been said
        table = {}
    policy = asked("policy")
    word = "observe" if policy is None else str(policy).strip().lower()
    return word != "observe" and (word != "warn" or asked("baseline") is not None)
