"""The contract of an integration: what another tool loads so that syncagent takes part in its runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from syncagent.runtime import autostart


class Integration:
    """A class with another tool's interface; that tool makes it and calls it.

    To write one, add one file to this folder, named after the tool:

    - It has one class, which inherits from this one and from the tool's own base class.  It may import the tool at its
      top, since nothing in syncagent imports the file.  What it needs beyond torch is an extra in pyproject.toml.
    - Where the tool begins to run a program, call :meth:`watch_process`; where it ends, :meth:`unwatch_process`.  An
      integration that only answers questions, as a resource detector does, calls neither.
    - It never raises into the tool, reads no setting by itself, and changes nothing that the tool did not hand to it.

    It is registered by one line in pyproject.toml, ``syncagent = "syncagent.integrations.tool:Class"`` under the entry
    point group that the tool reads.  Where a tool has no such group, users import the class by hand.
    """

    entry_point_group: ClassVar[str | None] = None
    """The group of entry points in which the tool finds the class; ``None`` where users import it by hand."""

    def watch_process(self, settings: Mapping[str, object], providers: Mapping[str, object] | None = None) -> None:
        """Watch this process from the moment torch is imported; a setting that is not allowed is logged.

        ``providers`` may have a ``tracer_provider`` and a ``meter_provider`` of OpenTelemetry; the program's global
        ones are used for those that are missing.  ``SYNCAGENT=0`` turns this off.  Never raises, except that a process
        that was asked for a policy which cannot be in force must not run: it ends with an error message.
        """
        autostart.instrument(providers or {}, settings)

    def unwatch_process(self) -> None:
        """Stop watching, if :meth:`watch_process` has begun it, and save and show the report.  Never raises."""
        autostart.uninstrument()
