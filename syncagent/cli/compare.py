"""Say which sync sites came, went, grew and shrank between two reports."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from syncagent.errors import SyncAgentError
from syncagent.report import changes, files
from syncagent.report.compare import compare

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", metavar="OLD", help="the earlier report: a .json file, or a directory of several ranks'")
    parser.add_argument("new", metavar="NEW", help="the later one")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")


def run(args: argparse.Namespace) -> int:
    try:
        comparison = compare(files.load_merged([args.old]), files.load_merged([args.new]))
    except SyncAgentError as error:
        print(f"syncagent compare: {error}", file=sys.stderr)
        return 2
    if args.format == "json":
        print(json.dumps(comparison.to_dict(), indent=1))
    else:
        sys.stdout.write(changes.render(comparison))
    return 0
