"""``syncagent check``: a report against its baseline, for CI."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from syncagent.errors import SyncAgentError
from syncagent.policy import gate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from syncagent.report.model import Report


def _share(_context: click.Context, _option: click.Parameter, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise click.BadParameter(f"{value!r} is not a fraction: a number from 0 up, such as 0.1")
    return share


@click.command("check", short_help="Fail if a report has sync sites that its baseline does not have.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--baseline", required=True, metavar="BASE", help="The report whose sites are known.")
@click.option(
    "--tolerance",
    callback=_share,
    default="0.1",
    show_default=True,
    metavar="SHARE",
    help="How much more often per step a site may sync, as a fraction of the baseline's rate.",
)
def command(paths: tuple[str, ...], baseline: str, tolerance: float) -> int:
    """Fail if a report has sync sites that its baseline does not have, or that sync more often per step.

    PATH is a report's .json file, or a directory with those of several ranks. The exit code is 1 if there is such a
    site, and 2 if the report proves nothing: its gate failed, syncs are missing, or the run saw no CUDA device. A line
    that was reformatted, or whose text has changed a little, is the same site.
    """
    from syncagent.report import files, wording
    from syncagent.report.compare import compare
    from syncagent.report.compared import text

    known, report = files.load_merged([baseline]), files.load_merged(paths)
    for reason in _unfit(report):
        raise SyncAgentError(f"{', '.join(paths)} cannot be checked: {wording.clean(reason)}")
    comparison = compare(known, report, tolerance=tolerance)
    findings = comparison.findings()
    for note in comparison.notes:
        print(f"note: {wording.clean(note)}")
    if not findings:
        print(f"No new or grown sites; {wording.plural(len(comparison.of('same')), 'known site')} unchanged.")
    for verdict in ("new", "grown"):
        some = [change for change in findings if change.verdict == verdict]
        if some:
            shown = text.render_changes(some, comparison.simulated)
            print(f"{wording.plural(len(some), 'site')} {verdict}\n{shown}")
    changed = comparison.of("changed")
    if changed:
        shown = text.render_changes(changed, comparison.simulated)
        print(f"{wording.plural(len(changed), 'known site')} changed a little\n{shown}")
    return 1 if findings else 0


def _unfit(report: Report) -> Iterator[str]:
    """The reasons why this report would prove nothing even without a finding."""
    from syncagent.report import wording

    if not report.run.ended:
        yield "it is the capture of a process that did not end by itself; what it did not reach cannot be checked"
    if report.run.gate not in {None, gate.HELD}:
        whys = [note.removeprefix(gate.NOTE) for note in report.notes if note.startswith(gate.NOTE)]
        yield f"the gate of its run did not hold ({'; '.join(whys) or 'for a reason that is not known'})"
    if report.run.device is None:
        yield "its run saw no CUDA device, so there was no host sync to see"
    for sensor in report.sensors:
        if sensor.name in {"kernels", "simulated"} and not sensor.live:
            yield f"the sensor {sensor.name} was not live in its run"
    if report.dropped:
        yield f"{wording.plural(report.dropped, 'sync')} were dropped in its run, and their sites may be missing"
