"""The numbers that IPython gave to the cells of a notebook, by the file names that their code has."""

from __future__ import annotations

import re
import sys

_NUMBER = re.compile(r"\[(\d+)\]")


def number_of(file: str) -> int | None:
    """Return the number of the cell, the newest where the same text was run twice; ``None`` where IPython has none.

    IPython is asked only where the program has loaded it.  ``<ipython-input-3-...>`` has the number in it, but the
    files of ipykernel (``/tmp/ipykernel_PID/HASH.py``) do not exist, and their names are made from the text alone.
    """
    module = sys.modules.get("IPython.core.interactiveshell")
    try:
        shell = module and module.InteractiveShell
        if shell is None or not shell.initialized():
            return None
        named = shell.instance().compile.format_code_name(file)  # ("Cell", "In[3]"), as in IPython's own tracebacks
        found = named and _NUMBER.search(named[1])
    except Exception:  # an IPython that has no such thing
        return None
    return int(found[1]) if found else None
