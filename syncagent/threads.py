"""The agent's own threads."""

from __future__ import annotations

import threading

__all__ = ["AgentThread"]


class AgentThread(threading.Thread):
    """A daemon thread that may have been started before gevent took the place of threads.

    It is then registered under another identity than the one it has at its end.
    """

    def __init__(self, *, target: object, name: str, args: tuple[object, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=args, daemon=True)  # type: ignore[arg-type]

    def _delete(self) -> None:
        try:
            super()._delete()  # type: ignore[misc]
        except KeyError:
            registered = getattr(threading, "_active", {})
            for ident, thread in list(registered.items()):
                if thread is self:
                    registered.pop(ident, None)
