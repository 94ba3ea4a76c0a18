"""The end of a script's run: what its user is shown, and what becomes of the last spans."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from syncagent.runtime import table
from syncagent.settings.sources import JUDGED
from syncagent.support import stderr
from syncagent.support.log import log_once

if TYPE_CHECKING:
    from syncagent.report.model import Report
    from syncagent.runtime.handle import Agent
    from syncagent.runtime.sinks import Outputs

_UNKNOWN = "it is not known whether the last spans arrived"


class Shown(NamedTuple):
    """What the user has seen of the report before the last spans are sent."""

    report: Report
    saved: str | None
    """Where it was saved."""
    has_table: bool


def show(agent: Agent, report: Report, outputs: Outputs, *, quiet: bool = False) -> Shown:
    """Save the report, then show the table: on rank 0, and only where CUDA was used.

    A ``quiet`` process says nothing where there is nothing to show: children did not ask to be watched.
    """
    saved = agent.save(report)
    if folder := os.environ.get(JUDGED):
        agent.save_at(report, os.path.join(folder, ""))
    wanted = agent.settings.summary
    if wanted is None:
        wanted = outputs.is_script  # an instrumented program did not ask for a table
    if not wanted or not table.is_for(report):
        return Shown(report, saved, has_table=False)
    if report.run.device is None and not report.sites:
        if not quiet and not report.notes:  # the log has said at the start if this torch has no CUDA
            stderr.write(f"[syncagent] no host syncs: the script did not use CUDA{_saved_by_others(agent, report)}\n")
        return Shown(report, saved, has_table=False)
    capture = outputs.capture.path if outputs.capture is not None else None
    where = {"capture": str(capture or ""), "report": saved}
    return Shown(report, saved, table.show(report, where, verbose=agent.settings.verbose))


def _saved_by_others(agent: Agent, report: Report) -> str:
    """Say where the processes that this one has started have saved what they saw."""
    if agent.settings.report is None:
        return ""
    from syncagent.report import files

    try:
        found = files.saved_by_others(report, agent.settings.report)
    except Exception:  # the log has said that the path is wrong
        return ""
    return f" itself; other processes of this run saved {', '.join(map(str, found))}" if found else ""


def send(agent: Agent, shown: Shown, outputs: Outputs, *, is_interrupted: bool = False) -> None:
    """Send what is left, and say what became of it below the table; spans that are lost are noted in the report, too.

    This may take seconds, and comes last: a Ctrl-C cuts it short and loses nothing else.
    """
    try:
        if not is_interrupted:
            outputs.close()
        where, lost = _where_spans_are(outputs, is_interrupted=is_interrupted)
    except KeyboardInterrupt:
        where, lost = _where_spans_are(outputs, is_interrupted=True)
    except Exception as error:
        log_once("spans", _UNKNOWN, error=repr(error))
        where, lost = outputs.spans_to, _UNKNOWN
    if lost and shown.saved is not None:
        agent.save(replace(shown.report, notes=(*shown.report.notes, lost)))
    if shown.has_table:
        from syncagent.report import wording

        note = f"! {wording.clean(lost)}\n" if lost else ""
        spans = f"spans: {wording.clean(where)}\n" if agent.settings.verbose else ""
        stderr.write(spans + note)


def _where_spans_are(outputs: Outputs, *, is_interrupted: bool) -> tuple[str, str]:
    """Return where the spans are, and a note on those that are lost, if any are.

    Where the user has interrupted the sending, some may still arrive.
    """
    outbox = outputs.outbox
    if outbox is None:
        return outputs.spans_to, ""
    from syncagent.telemetry.journal import JournalExporter  # not when the interpreter starts

    journal = outbox.exporter if isinstance(outbox.exporter, JournalExporter) else None
    # The journal may not be where it was wanted.
    target = outputs.spans_to if journal is None or journal.path is None else f"journal {journal.path}"
    stats = outbox.stats()
    exported = f"{stats['exported']:,}"
    if is_interrupted:
        note = f"sending spans was interrupted: {exported} were sent"
        return f"{target} ({exported} sent, the rest given up)", note
    lost, overwritten = stats["failed"] + stats["dropped"], 0 if journal is None else journal.overwritten
    where = f"{target} ({exported} sent"
    where += f", {lost:,} lost" if lost else ""
    where += f", the oldest {overwritten:,} overwritten)" if overwritten else ")"
    without = outputs.spans.without_span() if outputs.spans is not None else {}
    if any(without.values()):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in without.items() if count)
        where += f"; {sum(without.values()):,} syncs have no span of their own ({reasons})"
    return where, f"{lost:,} spans were lost on the way to {outputs.spans_to}" if lost else ""
