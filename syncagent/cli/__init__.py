"""The command line, one file a verb; a verb imports what it works with only when it is called."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from syncagent._version import __version__
from syncagent.cli import check, compare, report, run
from syncagent.errors import SyncAgentError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_WRONG = 2
_BROKEN_PIPE = 128 + 13
"""What a shell shows for a program that SIGPIPE ended."""


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: the script's own for run; otherwise 0, 1 for a finding of check, 2 for wrong usage or input.",
)
@click.version_option(__version__, prog_name="syncagent", message="%(prog)s %(version)s")
@click.pass_context
def verbs(context: click.Context) -> None:
    """See every host sync of a PyTorch program: which op, which line, how long."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(_WRONG)


for _verb in (run.command, report.command, compare.command, check.command):
    verbs.add_command(_verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``syncagent`` command; returns its exit code: 0, 1 for a finding, 2 for wrong usage or input."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    verb = "syncagent"
    try:
        with verbs.make_context("syncagent", words) as context:
            if context.protected_args or context.args:
                verb = f"syncagent {context.invoked_subcommand or ''}".rstrip()
            outcome = verbs.invoke(context)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    return outcome


if __name__ == "__main__":
    raise SystemExit(main())
