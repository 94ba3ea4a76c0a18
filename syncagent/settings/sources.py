"""Where the settings in force come from.

A keyword beats the environment (``SYNCAGENT_*``), which beats ``[tool.syncagent]`` in the nearest ``pyproject.toml``,
which beats the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from syncagent.errors import ConfigError
from syncagent.settings import parsing, project_file
from syncagent.settings.schema import DEFAULTS, PARSERS, Settings
from syncagent.support import start_folder
from syncagent.support.storage import DEFAULT_MODE

_PREFIX = "SYNCAGENT"
JUDGED = "SYNCAGENT_JUDGED"
"""The variable that names the folder where each process leaves the report that `syncagent run --fail-on` judges."""
OTHER_VARIABLES = {
    "SYNCAGENT": "`1`: the process is watched, from before its script's first line",
    "SYNCAGENT_LOG_LEVEL": "the least serious of the agent's own messages that are printed: `debug`, `info` (the "
    "default), `warning`, `error` or `critical`",
    "SYNCAGENT_LOG_FORMAT": "how they are printed: `text` (the default) or `json`, one object a line",
    "SYNCAGENT_RUN": "set by the agent: which run a process belongs to",
    JUDGED: "set by `syncagent run --fail-on`: where each process leaves the report that is judged",
    "SYNCAGENT_NATIVE": "read when the package is built: `0` leaves the native library out, and `1` fails without it",
    "SYNCAGENT_PHOENIX": "the virtual environment of Phoenix, for the servers in `otel/local`",
}
"""Variables that begin like a setting's and are none, and what docs/settings.md says of each."""


def file_mode(environment: Mapping[str, str] | None = None) -> int:
    """Return the mode for files that are written where no settings are in force: the one that the environment gives."""
    text = (os.environ if environment is None else environment).get("SYNCAGENT_FILE_MODE", "")
    return parsing.file_mode("SYNCAGENT_FILE_MODE", text) if text.strip() else DEFAULT_MODE


_FILES = frozenset({"report", "baseline", "policy_file"})
"""Settings that are paths and nothing else, which may be used long after the start."""


def load(
    keywords: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    script: str | None = None,
) -> Settings:
    """Return the settings in force; ``script`` is the file that will run, where that is not this process's own.

    An empty variable clears a list or an optional setting, whatever pyproject.toml says; for a setting that always has
    a value it counts as not set.

    Raises :class:`~syncagent.ConfigError` with one sentence for the first value that is not allowed, or a name that is
    not known.
    """

    def refuse(error: ConfigError) -> None:
        raise error

    return _settings(keywords or {}, os.environ if environment is None else environment, script, refuse)


def survey(environment: Mapping[str, str] | None = None) -> tuple[Settings, list[str]]:
    """Return the settings in force if what is not allowed were left out, and a sentence for each such thing."""
    wrong: list[str] = []
    found = _settings(
        {}, os.environ if environment is None else environment, None, lambda error: wrong.append(str(error))
    )
    return found, wrong


def _settings(
    keywords: Mapping[str, object],
    environment: Mapping[str, str],
    script: str | None,
    refuse: Callable[[ConfigError], None],
) -> Settings:
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def take(name: str, shown: str, value: object, source: str) -> None:
        try:
            found = PARSERS[name](shown, value)
            # A program that changes its directory, as Hydra does, still has its report where it was started.
            values[name] = start_folder.absolute(found, now=source == "keyword") if name in _FILES else found
            sources[name] = source
        except ConfigError as error:
            refuse(error)

    project = project_file.find(script)
    known = "one of " + ", ".join(sorted(PARSERS))
    for key, value in project.table.items():
        name, shown = key.replace("-", "_"), f"[tool.syncagent] {key} in {project.file}"
        if name in PARSERS:
            take(name, shown, value, str(project.file))
        else:
            refuse(parsing.rejected(shown, value, known))
    for name in PARSERS:
        variable = f"SYNCAGENT_{name.upper()}"
        text = environment.get(variable)
        if text is not None and text.strip():
            take(name, variable, text, "environment")
        elif text is not None and DEFAULTS[name] in (None, ()):
            values[name] = DEFAULTS[name]
            sources[name] = "environment"
    for name, value in keywords.items():
        if name not in PARSERS:
            refuse(parsing.rejected(name, value, known))
        elif value is not None:
            take(name, name, value, "keyword")
    gpu = values.get("simulate_gpu")
    if gpu is not None and not values.get("simulate") and sources["simulate_gpu"] in {"keyword", "environment"}:
        refuse(parsing.rejected("simulate_gpu", gpu, "left out where the device is not simulated (setting simulate)"))
    asked = values.get("report_signal")
    if asked is not None and asked == values.get("policy_signal"):
        refuse(parsing.rejected("report_signal", asked, "another signal than that of the setting policy_signal"))
        del values["report_signal"], sources["report_signal"]
    warnings = filter(None, (project.ignored, *unknown_variables(environment)))
    file = str(project.file) if project.table else None
    return Settings(**values, sources=sources, file=file, warnings=tuple(warnings))


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that is named like a setting and is none, with the one probably meant."""
    known = OTHER_VARIABLES.keys() | {f"{_PREFIX}_{name.upper()}" for name in PARSERS}
    return [
        f"the variable {name} is not a setting of syncagent{_meant(name, known)}"
        for name in sorted(environment)
        if name.upper().startswith(_PREFIX) and name not in known
    ]


def _meant(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def wants_gate(keywords: Mapping[str, object] | None = None, environment: Mapping[str, str] | None = None) -> bool:
    """Whether a gate was asked for, where the settings cannot be loaded; an unknown policy counts as one."""
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
