"""Errors as CUDA shows them: at the program's line, and one for a queued op that fails, whatever depends on it.

An op that CUDA refuses at once raises in the program's line.  One that fails in its queue is remembered as a
:class:`Failure`: the memory that it should have written has it, and so has the memory of whatever would have read
that.  The host gets it where it next waits, with a note that says where the op was queued.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch

from syncagent.attribution.callsite import CallSites, Point
from syncagent.errors import SimulationError
from syncagent.torchbridge.frames import is_own_fault, leave_out_own_frames

_ASSERTED = re.compile(r"out of (bounds|range)|should be between|probability tensor|Expected p_in")
"""What the CPU's kernels say where CUDA's check the numbers on the device, with an assertion."""

_HAS_NOTES = sys.version_info >= (3, 11)
Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")


@functools.cache
def _sites() -> CallSites:
    return CallSites()


def program_line() -> Point | None:
    """Where the program stands now: its code object and instruction, which keep nothing of the frame alive."""
    return _sites().innermost(sys._getframe(1))


class OpFailed(Exception):  # noqa: N818 - it never leaves the simulation
    """Raised on a worker: an op has failed, or one that it depends on."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class Failure:
    """What a queued op has raised, for everything that depends on it; it holds no frame and so no tensor."""

    __slots__ = ("_error", "_name", "_point", "is_reported")

    def __init__(self, error: BaseException, name: str = "", point: Point | None = None) -> None:
        if not is_own_fault(error):
            error.__traceback__ = error.__context__ = error.__cause__ = None
        self._error = error
        self._name = name
        self._point = point
        self.is_reported = False
        """Whether the host has had it: waiting again does not raise it again, but reading what depends on it does."""

    def reach_host(self, *, at_once: bool = False) -> NoReturn:
        """Raise it on the thread that waits; ``at_once`` where that is the line that queued the op."""
        self.is_reported = True
        error = self._error
        if not isinstance(error, Exception):
            raise error
        raise self._as_device_error(self._origin() if not at_once else "") from (error if error.__traceback__ else None)

    def _as_device_error(self, origin: str) -> Exception:
        """What the waiting thread gets: a new one each time, since each has a traceback of its own."""
        error, said = self._error, str(self._error)
        made: Exception
        if isinstance(error, SimulationError):
            made = SimulationError(said)
        elif is_out_of_memory(error):
            made = out_of_memory(error)
        else:
            kind = type(error).__name__
            if isinstance(error, IndexError) or _ASSERTED.search(said):
                said = f"CUDA error: device-side assert triggered\n{kind} in an asynchronous kernel: {said}"
            else:
                said = f"CUDA error: {kind} in an asynchronous kernel: {said}"
            made = torch.AcceleratorError(said + _ASYNCHRONOUS)
        if not origin:
            return made
        if _HAS_NOTES:
            made.add_note(origin)  # type: ignore[attr-defined, unused-ignore]  # of 3.11
            return made
        return type(made)(f"{made}\n{origin}")

    def _origin(self) -> str:
        site = _sites().resolve(self._point)
        if site is None:
            return ""
        line = f"\n    {site.source}" if site.source else ""
        place = f'  File "{site.file}", line {site.line}, in {site.function}'
        return f"The error is of {self._name}, which was queued here:\n{place}{line}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host, whose memory stands in for the device's, could not give a kernel what it needs."""
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def out_of_memory(error: BaseException) -> Exception:
    """What CUDA raises then."""
    return torch.OutOfMemoryError(
        f"CUDA out of memory. The memory of a simulated device is the host's, which has no room: {error}"
    )


_ASYNCHRONOUS = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)


def failure_of(error: BaseException, name: str = "", point: Point | None = None) -> Failure:
    """The failure that an error on a worker stands for: that of another op, or a new one."""
    return error.failure if isinstance(error, OpFailed) else Failure(error, name, point)


def attempt(call: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """Return what a call without effects returns, or the error of its own that it raises.

    While Python code runs, a signal's handler may raise in the middle of it, and another thread may send it an
    exception.  Those are the program's, and are raised.  An error of the call's own comes again with the next call.
    """
    try:
        return call(), None
    except Exception as error:
        first = error
    if isinstance(first, Warning):  # torch gives some of its warnings only once
        return None, first
    try:
        call()
    except Exception as error:
        if type(error) is type(first):
            return None, first
        second = error
    else:
        raise first
    try:
        call()
    except Exception as error:
        if type(error) is type(first):
            raise second from None
    raise first


# --- tracebacks ----------------------------------------------------------------------------------------------


def leave_simulation(error: BaseException) -> None:
    """Make an error look raised by the program's line; a bare ``raise`` has to follow.

    What led to it inside is left out.  What the program was handling itself, when it made the call, stays its context.
    """
    if is_own_fault(error):
        return
    leave_out_own_frames(error, and_torchs=True)
    inner = error.__traceback__
    if inner is None or (inner.tb_next is None and inner.tb_frame is sys._getframe(1)):
        if error.__cause__ is not None and is_own_fault(error.__cause__):
            return
        error.__context__ = _handled_outside(error)
        error.__cause__ = None
        error.__suppress_context__ = False


def _handled_outside(error: BaseException) -> BaseException | None:
    """The error that a frame further out is handling: the frame that caught it is still running."""
    running = set()
    frame = sys._getframe(2).f_back
    while frame is not None:
        running.add(frame)
        frame = frame.f_back
    context, seen = error.__context__, {id(error)}
    while context is not None and id(context) not in seen:
        if context.__traceback__ is not None and context.__traceback__.tb_frame in running:
            return context
        seen.add(id(context))
        context = context.__context__
    return None


def for_program(function: Function) -> Function:
    """A function that programs call: its errors come as if C++ had raised them."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            leave_simulation(error)
            raise

    mark_as_for_program(called)
    return called  # type: ignore[return-value]  # it has the signature of the function


_MARK = "_syncagent_for_program"


def mark_as_for_program(function: Any) -> None:
    """Say of a function that it keeps the simulation out of its errors by itself."""
    function.__dict__[_MARK] = function.__code__


def is_for_program(value: Any) -> bool:
    """Whether :func:`for_program`, or what does the same, has made this, and not one that has only copied the mark."""
    return getattr(value, _MARK, None) is getattr(value, "__code__", value)


_QUIET = {
    "__hash__", "__eq__", "__dict__", "__torch_dispatch__", "data_ptr", "get_device", "record_stream", "query",
}  # fmt: skip
"""Methods that raise nothing, or that see to it themselves."""


def all_for_program(cls: type) -> type:
    """Do as :func:`for_program` with the methods of a class, as a decorator."""
    for name, value in list(vars(cls).items()):
        if name in _QUIET:
            continue
        if inspect.isfunction(value) and not is_for_program(value):
            setattr(cls, name, for_program(value))
        elif isinstance(value, property) and value.fget is not None:
            setattr(cls, name, property(for_program(value.fget), value.fset, value.fdel, value.__doc__))
    return cls
