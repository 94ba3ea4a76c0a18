"""``syncagent cost``: what the syncs in a trace, or in a report, cost."""

from __future__ import annotations

import json
import sys

import click

__all__ = ["command"]


@click.command("cost", short_help="Say what the syncs in a trace cost.")
@click.argument("path", metavar="TRACE_OR_REPORT")
@click.option(
    "--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True, help="What to write."
)
@click.option(
    "--step-ms",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="MS",
    help="A step's time without the profiler, to which the host's times are then scaled.",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0.1, max=1024.0),
    default=4.0,
    show_default=True,
    metavar="GIB",
    help="How much memory it may take; the trace may be a quarter of that once it is unpacked.",
)
def command(path: str, form: str, step_ms: float | None, memory: float) -> int:
    """Replay a trace of torch.profiler without its syncs, one, several and all, and say what a step gains.

    The trace is Kineto's (.json or .json.gz, CPU and CUDA activities); functions are known where it was made with
    with_stack=True, and lines where their source is here. A report that was made with SYNCAGENT_COST=1 has its
    cost already, which is shown.
    """
    from syncagent.cli.memory import GIB, at_most
    from syncagent.errors import SyncAgentError
    from syncagent.support.reading import TooLargeError

    advice = "allow more with --memory GIB"
    try:
        with at_most(round(memory * GIB), advice):
            return _cost(path, form, step_ms, round(memory * GIB / 4))
    except TooLargeError as error:
        raise SyncAgentError(f"cannot read {path!r}: {error}; {advice}") from None


def _cost(path: str, form: str, step_ms: float | None, most: int) -> int:
    from syncagent.cost import sites, terminal, trace
    from syncagent.cost.estimate import estimate
    from syncagent.errors import SyncAgentError

    values = trace.load(path, most)
    if isinstance(values, dict) and "schema" in values and "traceEvents" not in values:
        return _of_report(path, values, form)
    try:
        found = estimate(trace.from_values(values, path), sites.from_trace, measured_ms=step_ms)
    except ZeroDivisionError:
        raise SyncAgentError(f"{path!r} has steps that take no time") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SyncAgentError(f"{path!r} is not a trace that torch.profiler wrote: {error}") from None
    if form == "json":
        print(json.dumps(found.to_dict(), indent=1))
    else:
        sys.stdout.write(terminal.render(found))
    return 0


def _of_report(path: str, values: dict[str, object], form: str) -> int:
    from syncagent.errors import SyncAgentError
    from syncagent.report.decode import encode
    from syncagent.report.formats import text
    from syncagent.report.model import Report

    report = Report.from_dict(values, name=repr(path))
    if report.cost is None:
        raise SyncAgentError(f"{path!r} has no cost: run it with SYNCAGENT_COST=1")
    if form == "text":
        text.emit(report, sys.stdout)
        return 0
    whole = encode(report.cost)
    priced = [site for site in report.sites if site.idle_ms is not None or site.gain_ms is not None]
    numbers = {site.id: number for number, site in enumerate(priced)}
    order = [
        {"site": number, "where": f"{site.file}:{site.line}", "op": site.op, "gain_ms": entry.gain_ms}
        for entry in report.cost.order
        if (number := numbers.get(entry.site)) is not None
        for site in (priced[number],)
    ]
    print(json.dumps({**whole, "order": order, "sites": [encode(site) for site in priced]}, indent=1))
    return 0
