"""The agent's own threads."""

from __future__ import annotations

import signal
import threading

__all__ = ["AgentThread"]


_FAULTS = {signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, getattr(signal, "SIGBUS", signal.SIGSEGV)}


class AgentThread(threading.Thread):
    """A daemon thread that may have been started before gevent took the place of threads.

    It is then registered under another identity than the one it has at its end.  Signals are the program's threads' to
    take: those that block one, to wait for it, find it as they would without the agent.
    """

    def __init__(self, *, target: object, name: str, args: tuple[object, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=args, daemon=True)  # type: ignore[arg-type]  # it is a callable

    def start(self) -> None:
        if not hasattr(signal, "pthread_sigmask"):
            super().start()
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)  # a new thread inherits it
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _delete(self) -> None:
        try:
            super()._delete()  # type: ignore[misc]  # private in threading
        except KeyError:
            registered = getattr(threading, "_active", {})
            for ident, thread in list(registered.items()):
                if thread is self:
                    registered.pop(ident, None)
