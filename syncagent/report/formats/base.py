"""What a report format is, and how to write one.

A format is a module in this folder with one function, ``render``.  To add one, write the module and add its name and
suffix to :data:`syncagent.support.report_formats.SUFFIXES`: ``Report.save``, the setting ``report`` and the command
line know it from there.  A module is imported when its format is first used, so it may import what it likes.

What a format can rely on:

- ``report.sites`` is sorted, worst first.  Times are milliseconds, unless the name of the field says ``_ns`` or ``_s``.
- ``None`` stands for what was not measured; it is never the same as 0.
- Text comes from the watched program and may hold anything: control characters, markup, lone surrogates.
  :func:`syncagent.report.wording.clean` makes one printable line of it.
- ``report.events`` and ``report.step_times`` hold the newest few thousand only, and none in a report that was merged
  from such.

What is asked of it:

- It must be a pure function of the report: the same report gives the same text.
- The text should contain ``origins.of_run(report.run)`` as JSON under the key ``origins.KEY``: by this a process knows
  whether a file under its name is of another process of its run, which it must not overwrite.
- A report that lacks what the format shows raises :class:`~syncagent.errors.ConfigError` with one sentence.
"""

from __future__ import annotations

from typing import Protocol

from syncagent.report.model import Report


class Format(Protocol):
    """The interface of a format's module."""

    def render(self, report: Report) -> str:
        """The whole text of the file."""
        ...
