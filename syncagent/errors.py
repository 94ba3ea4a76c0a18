"""Every exception and warning that syncagent raises on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syncagent.events import SyncEvent


class SyncAgentError(Exception):
    """The root of all errors that syncagent raises on purpose."""


class ConfigError(SyncAgentError, ValueError):
    """A setting has a value that is not allowed; the message names the setting, the value and what is allowed."""


class HostSyncError(SyncAgentError, RuntimeError):
    """A host sync that the policy forbids.  It is raised in the frame that made the call and survives pickling."""

    def __init__(self, message: str, event: SyncEvent | None = None) -> None:
        super().__init__(message)
        self.event = event

    def __reduce__(self) -> tuple[type[HostSyncError], tuple[str, SyncEvent | None]]:
        return type(self), (str(self), self.event)


class HostSyncAssertionError(SyncAgentError, AssertionError):
    """More host syncs than an assertion allows; the message has each line, what waits there and what to do about it."""


class HostSyncWarning(UserWarning):
    """A host sync that the policy warns about; it points at the user's line.  A warning, hence not an error of ours."""


class SimulationError(SyncAgentError, RuntimeError):
    """The simulated device cannot do this.  It stops here instead of giving a wrong number.

    It is a ``RuntimeError`` too, as torch's own errors are, so that a program with a way out takes it.
    """


class SimulationWarning(UserWarning):
    """The simulated device goes on, but something that a program sees is not what a GPU would show."""
