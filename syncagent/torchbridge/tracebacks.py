"""Tracebacks of what the program's ops raise, without the agent's frames that the error came through."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from syncagent.torchbridge.stand_ins import is_stand_in

if TYPE_CHECKING:
    from types import CodeType

__all__ = ["leave_out_own_frames"]

_CAN_LEAVE_ITSELF_OUT = sys.version_info >= (3, 11)
_AGENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def leave_out_own_frames(error: BaseException) -> None:
    """Take the agent's frames out of an error's traceback.

    To be called where the error is raised again at once, by a bare ``raise``: that adds no entry for its own frame.  In
    Python 3.10 the entry that is there already stays; below a mode, the stand-in's is kept behind it, so that the last
    line is the program's all the same.
    """
    first = last = None
    entry = error.__traceback__
    while entry is not None:
        inner = entry.tb_next
        if not _is_own(entry.tb_frame.f_code):
            if last is None:
                first = entry
            else:
                last.tb_next = entry
            last = entry
        entry = inner
    if last is not None:
        last.tb_next = None
    error.__traceback__ = first


def _is_own(code: CodeType) -> bool:
    return code.co_filename.startswith(_AGENT) or (_CAN_LEAVE_ITSELF_OUT and is_stand_in(code))
