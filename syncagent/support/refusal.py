"""How a process ends that was asked for something the agent cannot do: a gate, or the simulated device.

A gate that is not in force would let everything pass, and the job's exit code would say that all is well.
"""

from __future__ import annotations

# Imported where torch is being imported, in processes that may not go on: nothing heavy here.
import os
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import NoReturn

REFUSED = 2
"""The exit code of a process that does not start, or cannot go on as it was asked to."""


def refuse_to_start(sentence: str) -> NoReturn:
    """Print ``sentence`` to stderr and end this process with exit code 2, whatever the program would catch.

    An exception would not do: scripts and libraries import torch inside ``try``.  So neither ``finally`` blocks nor
    ``atexit`` functions run; what the program has printed so far is flushed.
    """
    if not sentence.startswith(("syncagent", "[syncagent]")):
        sentence = f"syncagent: {sentence}"
    with suppress(Exception):  # closed or taken away: the exit code says it all the same
        sys.stderr.write(f"{sentence.rstrip()} The process ends here, with exit code {REFUSED}.\n")
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(REFUSED)


def end_with_one_sentence(kind: type[BaseException]) -> None:
    """From now on let an error of this kind that nothing catches end the process with exit code 2.

    In place of a traceback there is one sentence, with the program's own line.  The process ends as usual otherwise:
    what was to run at its end runs.
    """
    others = sys.excepthook

    def hook(found: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(found, kind):
            others(found, error, trace)
            return
        said = " ".join(str(error).split()).rstrip(".")
        with suppress(Exception):
            # torch.distributed holds back what is written to stderr meanwhile, and loses it when this ends the process.
            stream = sys.__stderr__ or sys.stderr
            stream.write(
                f"syncagent: {_line_of_program(trace)}{said}. The process ends here, with exit code {REFUSED}.\n"
            )
            stream.flush()
        raise SystemExit(REFUSED)

    sys.excepthook = hook


def _line_of_program(trace: TracebackType | None) -> str:
    """Return ``file:line: `` of the last frame that is neither the agent's nor a library's."""
    own, last = "", ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        last = f"{file}:{trace.tb_lineno}: "
        is_library = "site-packages" in file or file.startswith((_PACKAGE, _STANDARD_LIBRARY, "<frozen"))
        own = own if is_library else last
        trace = trace.tb_next
    return own or last


_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_STANDARD_LIBRARY = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "")
