"""Has something called on the main thread soon, between two instructions of whatever it runs.

``Py_AddPendingCall`` is what CPython has for this: the interpreter makes the call where it would call a signal's
handler, with the GIL held, on the main thread alone and never in the middle of C code.  Unlike a signal it interrupts
no system call and leaves the program's handlers alone.  A main thread that is in C code for long makes the call when it
comes back.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

from syncagent.support.compat import has_gil

_AGENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class MainThread:
    """Calls ``then`` there, once for each :meth:`ask`; what goes wrong in it is passed to ``failed``."""

    def __init__(self, then: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        self._then = then
        self._failed = failed
        self._is_asked = False
        self._is_on = True
        self._raised: type[BaseException] | None = None
        self.why_not = ""
        """Why it cannot be done in this interpreter; known once it was asked for."""
        self._add: Any = None
        # Called with the GIL held, unlike what CFUNCTYPE makes.  Kept for as long as the interpreter may call it.
        self._callback = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(self._called)

    def ask(self) -> bool:
        """Ask for a call, unless one is asked for or running already; return whether it can come.

        The running one has to be over first: in Python 3.11 a function that is traced, by a debugger or for coverage,
        never gets beyond its first instruction there once the interpreter has another call to make.
        """
        if self._add is None and not self.why_not:
            self._find()
        if self.why_not or not self._is_on:
            return False
        if not self._is_asked:
            self._is_asked = True
            if self._add(self._callback, None) != 0:  # the queue is full
                self._is_asked = False
        return True

    def deliver(self) -> None:
        """Raise on the main thread what a signal's handler has raised in one of the calls; not to be called there.

        The call itself cannot: what it raises is lost in ctypes, and what it has raised later it would get itself.
        """
        raised, self._raised = self._raised, None
        if raised is not None:
            raise_there(raised)

    def stop(self) -> None:
        """Call nothing any more; a call that was asked for comes and does nothing."""
        self._is_on = False
        if self._is_asked:
            _outstanding.append(self._callback)

    def _find(self) -> None:
        if not has_gil():
            self.why_not = "this interpreter runs without the GIL, which such a call leans on"
            return
        try:
            self._add = ctypes.pythonapi.Py_AddPendingCall
        except AttributeError:
            self.why_not = "this interpreter has no Py_AddPendingCall"

    def _called(self, _argument: object) -> int:
        try:
            if self._is_on and threading.get_ident() == threading.main_thread().ident:
                self._then()
        except BaseException as error:
            if isinstance(error, Exception) and is_own(error):
                self._failed(error)
            else:
                # A signal's handler has run in here and raised, as Ctrl-C does: the program has to get that.
                self._raised = type(error)
        finally:
            self._is_asked = False
        return 0


_outstanding: list[Any] = []
"""Callbacks that the interpreter still may call."""


def raise_there(raised: type[BaseException]) -> None:
    """Have an exception raised on the main thread; not to be called there."""
    ident = threading.main_thread().ident
    if ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(raised))


def is_own(error: BaseException) -> bool:
    """Whether this was raised in the agent's code, or below it in torch, and not in a handler of the program's."""
    entry = error.__traceback__
    files = []
    while entry is not None:
        files.append(entry.tb_frame.f_code.co_filename)
        entry = entry.tb_next
    return files[-1].startswith(_AGENT)
