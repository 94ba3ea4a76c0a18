"""SIGTERM: what was seen is saved first, then the process ends as it would have without the agent.

The program does not see that the signal is caught.  It is shown SIG_DFL, so that it decides as it would without the
agent: it may install a handler where there is none, call the handler that it found, or restore that one and send itself
the signal again.

- While the default is in force, the report is saved on the main thread, and the signal then ends the process.  If the
  main thread does not return from C code within a moment, another thread saves instead.  Both have a deadline, since
  the interrupted code may hold any lock.
- While the program has a handler of its own installed, the report is saved on another thread as soon as the signal
  arrives; the handler decides whether and how the process ends.
- Process 1 of a container is not ended by a signal with the default action: the report is saved, and the watch goes on.
- In a forked child the default is in force again from the first moment on.

What cannot be done from Python: while the main thread runs C code *and* holds the GIL, none of this runs, and the
process ends once the GIL is released.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from syncagent.support import forks
from syncagent.support.arrivals import ShownAsNone
from syncagent.support.threads import AgentThread
from syncagent.torchbridge.patches import Patches

GRACE_S = 0.25
"""How long the main thread may take to return from C code before another thread takes over."""
DEADLINE_S = 8.0
"""How long the end may take altogether: the report, the table, and sending what is left."""
STUCK_DEADLINE_S = 3.0
"""The same where the main thread is stuck: without the agent the process would be gone at once."""

_TRIES = 3
_SIGTERM = getattr(signal, "SIGTERM", 15)
_DEFAULT = int(signal.SIG_DFL)  # what the C module takes
_raw: Any = importlib.import_module("_signal")
"""The C module: it shows and takes handlers as they are, while :mod:`signal` makes enum members of integers."""


class _Watch:
    """Catches SIGTERM in one process: by a handler on the main thread, and by a thread that is woken by each signal."""

    def __init__(self, end: Callable[[], None], save: Callable[[], None]) -> None:
        self.pid = os.getpid()
        self._end = end
        self._save = save
        self._die = _killer()
        self.handler = ShownAsNone(_DEFAULT)
        self.handler.called = self.on_main_thread
        self._claimed = threading.Lock()
        self._is_ending = False
        self._is_over = threading.Event()
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(True)
        self._sender.setblocking(False)
        if hasattr(socket, "SO_PASSCRED"):
            # A process that was forked without Python's knowledge would also write here; _receive filters by sender.
            self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.fd = self._sender.fileno()
        self.is_on = False

    def start(self) -> None:
        """Begin to catch the signal; raises, with everything unchanged, where that cannot be done."""
        before = _raw.set_wakeup_fd(self.fd, warn_on_full_buffer=False)
        try:
            if before != -1:
                raise OSError("the program has a wakeup file descriptor of its own")  # noqa: TRY301 - undone below
            AgentThread(target=self._listen, name="syncagent-signals").start()
        except (OSError, RuntimeError):
            _raw.set_wakeup_fd(before)
            self._close()
            raise
        self.is_on = True
        self.replace_default()

    def replace_default(self) -> None:
        """Take the place of SIG_DFL, if that is in force; only the main thread can."""
        if self.is_on and type(handler := _raw.getsignal(_SIGTERM)) is int and handler == _DEFAULT:
            _raw.signal(_SIGTERM, self.handler)
            if self.pid == 1:  # for that process the default is to ignore it: no call of the program's may fail
                signal.siginterrupt(_SIGTERM, False)

    def restore_default(self) -> None:
        """Put SIG_DFL back in force."""
        if self.is_installed():
            _raw.signal(_SIGTERM, _DEFAULT)

    def is_installed(self) -> bool:
        return _raw.getsignal(_SIGTERM) is self.handler

    def stop(self, *, is_child: bool = False) -> None:
        """Undo :meth:`start`; in a forked child, the thread is the parent's, and listens on the same sockets."""
        self.is_on = False
        self.restore_default()
        if (before := _raw.set_wakeup_fd(-1)) not in {-1, self.fd}:
            _raw.set_wakeup_fd(before)
        self._close(wakes_thread=not is_child)

    def _close(self, *, wakes_thread: bool = True) -> None:
        if wakes_thread:
            with suppress(OSError):
                self._receiver.shutdown(socket.SHUT_RDWR)
        self._receiver.close()
        self._sender.close()

    # --- when the signal comes

    def on_main_thread(self, number: int, _frame: FrameType | None) -> None:
        """Handle the signal; called by the interpreter between any two instructions of the main thread."""
        if os.getpid() == 1 or self._is_ending:
            return  # the other thread saves, or this is a second signal, before the first has been dealt with
        if self._claimed.acquire(blocking=False):
            self._is_ending = True
            self._finish()
        else:
            # Another thread is saving already, and it has a deadline.
            self._is_over.wait(DEADLINE_S)
        self._die(number)

    def _finish(self) -> None:
        try:
            with holding_interrupts():
                for _ in range(_TRIES):
                    with suppress(BaseException):  # the program's handler of yet another signal may raise
                        self._end()
                        break
        finally:
            self._is_over.set()

    def _listen(self) -> None:
        with suppress(OSError):
            while numbers := self._receive():
                for number in {*numbers}:
                    heard(number)
                if _SIGTERM in numbers:
                    with suppress(Exception):
                        self._on_arrival()

    def _receive(self) -> bytes:
        """Wait for the numbers of signals that were sent to this very process; empty once the sockets are closed."""
        if not hasattr(socket, "SO_PASSCRED"):
            return self._receiver.recv(256)
        while True:
            numbers, ancillary, _, _ = self._receiver.recvmsg(1, socket.CMSG_SPACE(struct.calcsize("3i")))
            senders = [
                struct.unpack("3i", data[:12])[0]
                for level, kind, data in ancillary
                if (level, kind) == (socket.SOL_SOCKET, getattr(socket, "SCM_CREDENTIALS", 2)) and len(data) >= 12
            ]
            if not numbers or not senders or senders[0] == os.getpid():
                return numbers

    def _on_arrival(self) -> None:
        if os.getpid() == 1 or not self.is_installed():
            self._save()
            return
        deadline_s = DEADLINE_S
        began = time.monotonic()
        while not self._is_ending and time.monotonic() - began < GRACE_S:
            time.sleep(0.01)
        if self._claimed.acquire(blocking=False):
            deadline_s = STUCK_DEADLINE_S
            try:
                AgentThread(target=self._finish, name="syncagent-end").start()
            except RuntimeError:
                deadline_s = 0.0
        if self._is_over.wait(deadline_s) and deadline_s == DEADLINE_S:
            time.sleep(GRACE_S)  # the main thread does the rest
        self._die(_SIGTERM)


_watch: _Watch | None = None
_others: dict[int, Callable[[], None]] = {}
"""What to call, on the thread that listens, when another signal arrives that has a handler."""


def catch_sigterm(end: Callable[[], None], save: Callable[[], None]) -> bool:
    """Have ``end`` called before SIGTERM ends this process, and ``save`` where the signal does not end it.

    Returns whether that is arranged.  Only the main thread can do so, to which other threads leave it, and only while
    the program has no wakeup file descriptor of its own.
    """
    global _watch
    if _watch is not None:
        return True
    if threading.current_thread() is not threading.main_thread():
        _call_on_main_thread(lambda: catch_sigterm(end, save))
        return False
    try:
        watch = _Watch(end, save)
        watch.start()
    except Exception:
        return False
    _watch = watch
    for number in _others:
        _let_calls_go_on(number)
    _wrap_signal_functions()
    forks.reset_in_children(_SIGTERM, functools.partial(_end_watch, is_child=True))
    return True


def listen_for(number: int, call: Callable[[], None]) -> None:
    """Have ``call`` made when a signal arrives, even while the main thread runs C code.

    Only while SIGTERM is caught, and for a signal that has a handler; that handler is called as well.
    """
    _others[number] = call
    if _watch is not None:
        _let_calls_go_on(number)


def _let_calls_go_on(number: int) -> None:
    """Have a signal interrupt no call of the program's: the thread that listens hears of it without that."""
    signal.siginterrupt(number, False)


def heard(number: int) -> None:
    """Call who listens for this signal, on the thread that hears of it."""
    call = _others.get(number)
    if call is not None:
        with suppress(Exception):
            call()


def stop_listening_for(number: int) -> None:
    """Undo :func:`listen_for`."""
    _others.pop(number, None)


def _call_on_main_thread(call: Callable[[], object]) -> None:
    """Have the interpreter make a call on the main thread, as soon as that executes Python code."""
    import ctypes

    def on_main_thread(_: object) -> int:
        with suppress(Exception):  # it runs in the middle of the program's code, which must not see this
            call()
        return 0

    pending = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(on_main_thread)
    _pending.append(pending)  # kept alive
    ctypes.pythonapi.Py_AddPendingCall(pending, None)


_pending: list[Any] = []


def release_sigterm() -> None:
    """Undo :func:`catch_sigterm`; only the main thread can, and on any other the signal stays caught."""
    if threading.current_thread() is threading.main_thread():
        forks.keep_in_children(_SIGTERM)
        _end_watch()


def _end_watch(*, is_child: bool = False) -> None:
    global _watch
    watch, _watch = _watch, None
    if watch is not None:
        watch.stop(is_child=is_child)


def _killer() -> Callable[[int], None]:
    """Return a function that ends this process by a signal's default action, on any thread.

    ``signal.signal`` works on the main thread only.
    """
    import ctypes

    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p

    def die(number: int) -> None:
        set_handler(number, None)
        os.kill(os.getpid(), number)
        time.sleep(1.0)
        os._exit(128 + number)  # the signal did not arrive: the exit code that a shell would report

    return die


# --- the program's view of its signals


_between = Patches()
"""Stays for good: handlers that it has passed on may be in force for as long as the process lives."""


def _wrap_signal_functions() -> None:
    """Catch the signal again when a program restores the default; step back when it sets a wakeup file descriptor."""
    if _between.are_owned:
        return
    set_handler, set_wakeup_fd = signal.signal, signal.set_wakeup_fd

    @functools.wraps(set_handler)
    def program_signal(signalnum: Any, handler: Any) -> Any:
        before = set_handler(signalnum, handler)
        if _watch is not None and signalnum == _SIGTERM:
            _watch.replace_default()
        return before

    @functools.wraps(set_wakeup_fd)
    def program_set_wakeup_fd(fd: Any, /, **options: Any) -> Any:
        before = set_wakeup_fd(fd, **options)
        watch = _watch
        if watch is None:
            return before
        if before == watch.fd:
            before = -1
        if fd == -1:
            set_wakeup_fd(watch.fd, warn_on_full_buffer=False)
            watch.is_on = True
            watch.replace_default()
        elif fd != watch.fd:
            # asyncio and others.  Without our thread, a main thread that is stuck in C code would never end.
            watch.is_on = False
            watch.restore_default()
        return before

    _between.put(signal, "signal", program_signal)
    _between.put(signal, "set_wakeup_fd", program_set_wakeup_fd)


# --- Ctrl-C


class holding_interrupts:  # noqa: N801 - reads as a verb: with holding_interrupts()
    """Count a Ctrl-C that arrives inside, where Python's own handler would raise.

    It is used for the short time in which the report is made and shown at the end of the run: people press Ctrl-C
    repeatedly when a process does not end at once.  After a while it raises again, in case something hangs.
    """

    def __init__(self) -> None:
        self.count = 0
        self._holds = False
        self._began_s = time.monotonic()

    def __enter__(self) -> holding_interrupts:  # noqa: PYI034 - Self is new in Python 3.11
        if threading.current_thread() is threading.main_thread():
            self._holds = _raw.getsignal(signal.SIGINT) is signal.default_int_handler
            if self._holds:
                _raw.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *_: object) -> None:
        if self._holds and _raw.getsignal(signal.SIGINT) == self._interrupted:
            _raw.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if time.monotonic() - self._began_s > DEADLINE_S:
            signal.default_int_handler(number, frame)
