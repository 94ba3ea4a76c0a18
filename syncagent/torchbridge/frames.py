"""Keeps the agent's frames out of what the program sees: of stacks, by standing in for a frame, and of tracebacks.

torch's warnings, Python's ``stacklevel`` and the lines in a traced graph go by the innermost frame.  A frame that has
to be there carries the file, line, function and globals of the one that made the call: so a warning names the program's
line, is filtered by its module and shown as often as without.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Any

Call = Callable[..., Any]

_AGENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_CAN_LEAVE_ITSELF_OUT = sys.version_info >= (3, 11)
_LIMIT = 10_000
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


def leave_out_own_frames(error: BaseException) -> None:
    """Take the agent's frames out of an error's traceback.

    To be called where the error is raised again at once, by a bare ``raise``: that adds no entry for its own frame.  In
    Python 3.10 the entry that is there already stays; below a mode, the stand-in's is kept behind it, so that the last
    line is the program's all the same.
    """
    entry, inner = error.__traceback__, None
    kept = []
    while entry is not None:
        if not _is_own(entry.tb_frame.f_code):
            kept.append(entry)
        entry = entry.tb_next
    for entry in reversed(kept):
        entry.tb_next, inner = inner, entry
    error.__traceback__ = inner


def _is_own(code: CodeType) -> bool:
    return code.co_filename.startswith(_AGENT) or (_CAN_LEAVE_ITSELF_OUT and is_stand_in(code))
