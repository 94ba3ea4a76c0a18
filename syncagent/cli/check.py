"""``syncagent check``: a report against its baseline, for CI."""

from __future__ import annotations

import math

import click

from syncagent.errors import SyncAgentError

__all__ = ["command"]


def _share(_context: click.Context, _option: click.Parameter, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise click.BadParameter(f"{value!r} is not a share: a number from 0 up, such as 0.1")
    return share


@click.command("check", short_help="Fail if a report has sync sites that its baseline has not.")
@click.argument("path", metavar="PATH")
@click.option("--baseline", required=True, metavar="BASE", help="The report whose sites are known.")
@click.option(
    "--tolerance",
    callback=_share,
    default="0.1",
    show_default=True,
    metavar="SHARE",
    help="How much more often a step a site may sync, as a share of the baseline's rate.",
)
def command(path: str, baseline: str, tolerance: float) -> int:
    """Fail if a report has sync sites that its baseline has not, or that sync more often a step.

    PATH is a report's .json file, or a directory of several ranks'. The exit code is 1 where there is such a site.
    """
    from syncagent.report import changes, files, wording
    from syncagent.report.compare import compare

    known, report = files.load_merged([baseline]), files.load_merged([path])
    if not report.run.ended:
        raise SyncAgentError(
            f"{path!r} is the capture of a process that did not end by itself; what it did not reach cannot be checked"
        )
    comparison = compare(known, report, tolerance=tolerance)
    findings = comparison.findings()
    for note in comparison.notes:
        print(f"note: {wording.clean(note)}")
    if not findings:
        print(f"No new or grown sites; {wording.plural(len(comparison.of('same')), 'known site')} unchanged.")
        return 0
    for verdict in ("new", "grown"):
        some = [change for change in findings if change.verdict == verdict]
        if some:
            print(f"{wording.plural(len(some), 'site')} {verdict}\n{changes.render_changes(some)}")
    return 1
