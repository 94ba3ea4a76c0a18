"""Keeps the agent's frames out of what the program sees: of stacks, by standing in for a frame, and of tracebacks.

torch's warnings, Python's ``stacklevel`` and the lines in a traced graph go by the innermost frame.  A frame that has
to be there carries the file, line, function and globals of the one that made the call: so a warning names the program's
line, is filtered by its module and shown as often as without.
"""

from __future__ import annotations

import dis
import functools
import os
import re
import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import Any

Call = Callable[..., Any]

_AGENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_CAN_LEAVE_ITSELF_OUT = sys.version_info >= (3, 11)
_LIMIT = 10_000
_RAISE = dis.opmap["RAISE_VARARGS"]
_LEAVES = frozenset({"leave_out_own_frames", "leave_simulation"})
_NO_COLUMNS = 13
"""The kind of entry in a table of lines that says nothing of columns (Objects/locations.md in CPython)."""


class StandIns(dict[tuple[int, int], "Call"]):
    """By a frame's code and instruction, what calls ``function(*args, **kwargs)`` in its name."""

    def of(self, frame: FrameType) -> Call:
        """Make the one for where a frame stands, the first time."""
        code = frame.f_code
        if len(self) >= _LIMIT:  # a program that makes code without end
            self.clear()
        made = FunctionType(_placed(code, frame.f_lineno), frame.f_globals, code.co_name)
        made.__dict__["stands_for"] = code  # kept alive: its id is the key
        self[id(code), frame.f_lasti] = made
        return made

    def call(self, function: Call, args: Any, kwargs: Any) -> Any:
        """Call a function in the name of the innermost frame that is not the agent's."""
        frame = sys._getframe().f_back
        while frame is not None and frame.f_code.co_filename.startswith(_AGENT):
            frame = frame.f_back
        if frame is None:  # on a thread of autograd's
            return function(*args, **kwargs)
        try:
            made = self[id(frame.f_code), frame.f_lasti]
        except KeyError:
            made = self.of(frame)
        return made(function, args, kwargs)


def ops_warn_at_once() -> bool:
    """Whether calling an op of the dispatcher from Python shows the op's warnings there and then.

    Up to torch 2.14 they are kept for the function by which the program has entered C++.
    """
    import torch

    release = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return release is not None and (int(release[1]), int(release[2])) >= (2, 15)


def _call(_syncagent_stand_in: Call, args: Any, kwargs: Any) -> Any:
    return _syncagent_stand_in(*args, **kwargs)


_FIRST = _call.__code__.co_varnames[:1]


def is_stand_in(code: CodeType) -> bool:
    """Whether this code was made here: the name of its first variable says so."""
    return code.co_varnames[:1] == _FIRST


def _placed(code: CodeType, line: int | None) -> CodeType:
    """The code of :func:`_call`, all of it on one line of another function."""
    lines: dict[str, Any] = {"co_firstlineno": line or code.co_firstlineno}
    size = len(_call.__code__.co_code)
    if sys.version_info >= (3, 11):
        lines["co_qualname"] = code.co_qualname
        units = [min(8, size // 2 - start) for start in range(0, size // 2, 8)]
        lines["co_linetable"] = b"".join(bytes((0x80 | _NO_COLUMNS << 3 | count - 1, 0)) for count in units)
    else:
        lines["co_linetable"] = b"".join(bytes((min(254, size - start), 0)) for start in range(0, size, 254))
    return _call.__code__.replace(co_filename=code.co_filename, co_name=code.co_name, **lines)


def leave_out_own_frames(error: BaseException, *, and_torchs: bool = False) -> None:
    """Take the agent's frames out of an error's traceback; with ``and_torchs`` torch's, too, that it has called.

    To be called where the error is raised again at once, by a bare ``raise``: that adds no entry for its own frame.  In
    Python 3.10 the entry that is there already stays; below a mode, the stand-in's is kept behind it, so that the last
    line is the program's all the same.  A mistake of the agent's own keeps its traceback, which says where it is.
    """
    first = error.__traceback__
    if is_own_fault(error):
        return
    entry, inner = first, None
    kept: list[TracebackType] = []
    called: list[TracebackType] = []
    """Frames of torch's that the agent has called: kept only where they lead to the program's own code."""
    is_called = False
    while entry is not None:
        code = entry.tb_frame.f_code
        if is_agents(code):
            called, is_called = [], and_torchs
        elif is_called and code.co_filename.startswith(_torch_folder()):
            called.append(entry)
        else:
            kept += [*called, entry]
            called, is_called = [], False
        entry = entry.tb_next
    for entry in reversed(kept):
        entry.tb_next, inner = inner, entry
    if not _CAN_LEAVE_ITSELF_OUT and first is not None and first is not inner:
        first.tb_next, inner = inner, first
    error.__traceback__ = inner


def is_own_fault(error: BaseException) -> bool:
    """Whether the agent has made a mistake: an error of a kind that programs do not get from torch, and not on purpose.

    Its traceback ends in the agent, at no ``raise``.
    """
    if not isinstance(error, (AttributeError, NameError, AssertionError, KeyError, ImportError)):
        return False
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not is_agents(last.tb_frame.f_code):
        return False
    if not _CAN_LEAVE_ITSELF_OUT and not _LEAVES.isdisjoint(last.tb_frame.f_code.co_names):
        return False  # the entry that stays: this has been looked at before
    return last.tb_frame.f_code.co_code[last.tb_lasti] != _RAISE


@functools.cache
def _torch_folder() -> str:
    file = getattr(sys.modules.get("torch"), "__file__", None)
    return os.path.dirname(os.path.abspath(file)) + os.sep if file else "\0"


def is_agents(code: CodeType) -> bool:
    """Whether this is the agent's code."""
    return code.co_filename.startswith(_AGENT) or (_CAN_LEAVE_ITSELF_OUT and is_stand_in(code))
