"""See every host sync of a PyTorch training job: which op, which line, how long the CPU waited for the GPU.

Importing this package imports neither torch nor opentelemetry; what needs them loads at first use.

PYTEST_DONT_REWRITE: pytest would warn that it cannot, where the process was watched before pytest began.
"""

from __future__ import annotations

from syncagent._version import __version__

TYPE_CHECKING = False  # typing is not imported at the start of every interpreter
if TYPE_CHECKING:
    from syncagent.api import allow, assert_max_syncs, assert_no_syncs, current, start, step, stop, watch
    from syncagent.errors import ConfigError, HostSyncAssertionError, HostSyncError, HostSyncWarning, SyncAgentError
    from syncagent.events import CallSite, Phase, SyncEvent, SyncKind
    from syncagent.report.model import Report
    from syncagent.runtime.handle import Agent
    from syncagent.settings.schema import Settings

__all__ = [
    "Agent", "CallSite", "ConfigError", "HostSyncAssertionError", "HostSyncError", "HostSyncWarning", "Phase", "Report",
    "Settings", "SyncAgentError", "SyncEvent", "SyncKind", "__version__", "allow", "assert_max_syncs",
    "assert_no_syncs", "current", "start", "step", "stop", "watch",
]  # fmt: skip

_HOME = {
    "Agent": "syncagent.runtime.handle",
    **dict.fromkeys(
        ("assert_max_syncs", "assert_no_syncs", "current", "start", "step", "stop", "watch"), "syncagent.api"
    ),
    **dict.fromkeys(
        ("ConfigError", "HostSyncAssertionError", "HostSyncError", "HostSyncWarning", "SyncAgentError"),
        "syncagent.errors",
    ),
    **dict.fromkeys(("CallSite", "Phase", "SyncEvent", "SyncKind"), "syncagent.events"),
    "allow": "syncagent.policy",
    "Report": "syncagent.report.model",
    "Settings": "syncagent.settings.schema",
    **dict.fromkeys(("load_ipython_extension", "unload_ipython_extension"), "syncagent.integrations.ipython"),
}


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'syncagent' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
