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
    from typing import NoReturn

REFUSED = 2
"""The exit code of a process that does not start."""


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
