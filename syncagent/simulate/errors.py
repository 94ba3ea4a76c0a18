"""What the simulated device says where it cannot follow a real one."""

from __future__ import annotations

from syncagent.errors import SyncAgentError

__all__ = ["SimulationError", "SimulationWarning"]


class SimulationError(SyncAgentError, RuntimeError):
    """The simulated device cannot do this.  It stops here instead of giving a wrong number.

    It is a ``RuntimeError`` too, as torch's own errors are, so that a program with a way out takes it.
    """


class SimulationWarning(UserWarning):
    """The simulated device goes on, but something that a program sees is not what a GPU would show."""
