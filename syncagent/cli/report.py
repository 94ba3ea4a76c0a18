"""Show a saved report, or several ranks' reports as one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from syncagent.errors import SyncAgentError
from syncagent.report import files, text

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]

FORMATS = ("text", "json", "html", "sarif", "trace")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a report's .json file, or a directory of them; several ranks merge"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="what to write (default: what --output's suffix says, else text)"
    )
    parser.add_argument("--output", metavar="FILE", help="where to write it (default: standard output)")


def run(args: argparse.Namespace) -> int:
    try:
        report = files.load_merged(args.paths)
        form = args.format or (files.suffix_format(args.output) if args.output else None) or "text"
        if args.output:
            rendered = text.render(report, width=100) if form == "text" else files.render(report, form)
            files.write_atomically(Path(args.output), rendered)
        elif form == "text":
            text.emit(report, sys.stdout)
        else:
            sys.stdout.write(files.render(report, form))
    except SyncAgentError as error:
        print(f"syncagent report: {error}", file=sys.stderr)
        return 2
    return 0
