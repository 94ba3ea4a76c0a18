"""The table at the end of a run, a watch or a region: on the program's stderr, on rank 0 alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from syncagent.support import stderr

if TYPE_CHECKING:
    from syncagent.report.model import Report

_MORE = "SYNCAGENT_VERBOSE=1"
"""What shows the rest of a table that is in no file, however the agent was started."""


def is_for(report: Report) -> bool:
    """Whether this process is the one of its job that shows the table."""
    return report.run.rank in (None, 0)


def show(report: Report, where: Mapping[str, str | None], *, verbose: bool) -> bool:
    """Print the table, where this process is to; say whether that was done.  Never raises.

    Without ``verbose`` it is an answer of a few lines.

    ``where`` says where things went, such as ``{"report": "x.json"}``; ``None`` stands for nowhere.
    """
    if not is_for(report):
        return False
    try:
        from syncagent.report import formats

        kept = {name: path for name, path in where.items() if path}
        formats.load("text").emit(report, where=kept, verbose=verbose, more=_MORE)
    except Exception as error:
        stderr.write(f"syncagent: the table could not be shown: {error!r}\n")
        return False
    return True
