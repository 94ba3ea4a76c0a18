"""The command line, one file a verb; each verb says what it takes (``add_arguments``) and does it (``run``)."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from syncagent._version import __version__
from syncagent.errors import SyncAgentError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``syncagent`` command; returns 0, 1 for a finding, 2 for wrong usage, or the watched script's own code."""
    from syncagent.cli import check, compare, report, run

    parser = argparse.ArgumentParser(
        prog="syncagent", description="See every host sync of a PyTorch program: which op, which line, how long."
    )
    parser.add_argument("--version", action="version", version=f"syncagent {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, module in (("run", run), ("report", report), ("compare", compare), ("check", check)):
        summary = (module.__doc__ or "").strip().partition("\n")[0]
        verb = verbs.add_parser(name, help=summary.rstrip("."), description=summary)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    values = parser.parse_args(arguments)
    try:
        code: int = values.run(values)
    except SyncAgentError as error:
        print(error, file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    raise SystemExit(main())
