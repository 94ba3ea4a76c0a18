"""``syncagent cost``: what the syncs in a trace, or in a report, cost."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from syncagent.errors import SyncAgentError
from syncagent.support.reading import TooLargeError

_GIB = 1024**3


@click.command("cost", short_help="Say what the syncs in a trace cost.")
@click.argument("path", metavar="TRACE_OR_REPORT")
@click.option(
    "--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True, help="What to write."
)
@click.option(
    "--step-ms",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="MS",
    help="Step time without the profiler; host times are scaled to match it.",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0.1, max=1024.0),
    default=4.0,
    show_default=True,
    metavar="GIB",
    help="Memory limit; the unpacked trace may take a quarter of it.",
)
def command(path: str, form: str, step_ms: float | None, memory: float) -> int:
    """Replay a torch.profiler trace without one, several and all of its syncs, and report the gain per step.

    The trace is Kineto's (.json or .json.gz, with CPU and CUDA activities). Functions are known if it was made with
    with_stack=True, and lines if their source is on this machine. Of a report made with SYNCAGENT_COST=1, the cost that
    it holds is shown.
    """
    advice = "allow more with --memory GIB"
    try:
        with _at_most(round(memory * _GIB), advice):
            return _cost(path, form, step_ms, round(memory * _GIB / 4))
    except TooLargeError as error:
        raise SyncAgentError(f"cannot read {path!r}: {error}; {advice}") from None


@contextmanager
def _at_most(size: int, advice: str) -> Iterator[None]:
    """Let what runs inside take ``size`` bytes more than the process has; more is one sentence, with ``advice``.

    The limit is the process's, by address space.  Where the system has no such limit, nothing is bounded.
    """
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as stream:
            taken = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        before = resource.getrlimit(resource.RLIMIT_AS)
        limit = min([taken + size, *(bound for bound in before if bound != resource.RLIM_INFINITY)])
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    except MemoryError:
        raise SyncAgentError(f"that takes more than {size / _GIB:g} GiB of memory; {advice}") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _cost(path: str, form: str, step_ms: float | None, most: int) -> int:
    from syncagent.cost import sites, terminal, trace
    from syncagent.cost.estimate import estimate

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
    from syncagent.report.decode import encode
    from syncagent.report.formats import text
    from syncagent.report.model import Report

    report = Report.from_dict(values, name=repr(path))
    if report.cost is None:
        raise SyncAgentError(f"{path!r} has no cost: run it with SYNCAGENT_COST=1")
    if form == "text":
        text.emit(report, sys.stdout)
        return 0
    sites = [site for site in report.sites if site.idle_ms is not None or site.gain_ms is not None]
    index_of = {site.id: index for index, site in enumerate(sites)}
    order = [
        {"site": index, "where": f"{site.file}:{site.line}", "op": site.op, "gain_ms": entry.gain_ms}
        for entry in report.cost.order
        if (index := index_of.get(entry.site)) is not None
        for site in (sites[index],)
    ]
    print(json.dumps({**encode(report.cost), "order": order, "sites": [encode(site) for site in sites]}, indent=1))
    return 0
