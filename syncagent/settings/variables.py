"""Variables of the environment that are named as settings are, and are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["unknown"]

_PREFIX = "SYNCAGENT"
_OTHERS = frozenset(
    {
        "SYNCAGENT",  # watch the process at all
        "SYNCAGENT_LOG_LEVEL",
        "SYNCAGENT_LOG_FORMAT",
        "SYNCAGENT_RUN",  # set by the agent: which run a process belongs to
        "SYNCAGENT_PHOENIX",  # of the servers in otel/local
    }
)


def unknown(settings: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that says nothing, with the one that was meant most likely."""
    known = _OTHERS | {f"{_PREFIX}_{name.upper()}" for name in settings}
    return [
        f"the variable {name} is no setting of syncagent{_meant(name, known)}"
        for name in sorted(environment)
        if name.upper().startswith(_PREFIX) and name not in known
    ]


def _meant(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""
