"""The registry of report formats.

It is below the settings, which check the names of reports by it.  The format itself is the module of that name in
:mod:`syncagent.report.formats`; see :mod:`syncagent.report.formats.base` for how to write one.
"""

from __future__ import annotations

import os

TEXT = "text"
"""The only format that a run cannot be told to save: the file does not say which process wrote it, so the processes of
one run would overwrite each other's."""

SUFFIXES = {
    TEXT: ".txt",
    "json": ".json",
    "html": ".html",
    "markdown": ".md",
    "sarif": ".sarif",
    "trace": ".trace.json",
}
"""The suffix of each format's files."""


def format_of(path: str) -> str | None:
    """The format that a file's name asks for: of two suffixes that fit, the longer one; ``None`` where none fits."""
    name = os.path.basename(path)
    fitting = [form for form, suffix in SUFFIXES.items() if name.endswith(suffix) and name != suffix]
    return max(fitting, key=lambda form: len(SUFFIXES[form]), default=None)


def saved_format_of(path: str) -> str | None:
    """As :func:`format_of`, for a report that a run is to save."""
    form = format_of(path)
    return None if form == TEXT else form


def saved_suffixes() -> str:
    """The suffixes that the name of a saved report may have, as people list them."""
    *others, last = (suffix for form, suffix in SUFFIXES.items() if form != TEXT)
    return f"{', '.join(others)} or {last}"
