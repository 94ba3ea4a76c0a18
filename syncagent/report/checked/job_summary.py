"""The summary of a job on GitHub, which gets the result of a check: the file that ``GITHUB_STEP_SUMMARY`` names."""

from __future__ import annotations

import os

from syncagent.support import reading, stderr


def append(markdown: str, verb: str) -> None:
    """Add to it, if the variable is set.

    A summary that cannot be written is said on standard error, as of this verb, and changes no exit code.
    """
    file = os.environ.get("GITHUB_STEP_SUMMARY", "")
    if not file:
        return
    try:
        with open(file, "a", encoding="utf-8", errors="backslashreplace") as summary:
            summary.write(f"{markdown}\n")
    except OSError as error:
        stderr.write(f"syncagent {verb}: the summary was not written to {file!r}: {reading.reason(error)}\n")
    except ValueError as error:
        stderr.write(f"syncagent {verb}: the summary was not written to {file!r}: {error}\n")
