"""Fail if a report has sync sites that its baseline has not, or that sync more often a step."""

from __future__ import annotations

import argparse
import math
import sys

from syncagent.errors import SyncAgentError
from syncagent.report import changes, files, wording
from syncagent.report.compare import compare

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", help="the report to check: a .json file, or a directory of several ranks'"
    )
    parser.add_argument("--baseline", required=True, metavar="BASE", help="the report whose sites are known")
    parser.add_argument(
        "--tolerance",
        type=_share,
        default=0.1,
        metavar="SHARE",
        help="how much more often a step a site may sync, as a share of the baseline's rate (default: 0.1)",
    )


def run(args: argparse.Namespace) -> int:
    try:
        comparison = compare(
            files.load_merged([args.baseline]), files.load_merged([args.path]), tolerance=args.tolerance
        )
    except SyncAgentError as error:
        print(f"syncagent check: {error}", file=sys.stderr)
        return 2
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


def _share(value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a share: a number from 0 up, such as 0.1")
    return share
