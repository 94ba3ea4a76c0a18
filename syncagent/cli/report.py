"""``syncagent report``: a saved report, shown or written in another format."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from syncagent.errors import ConfigError
from syncagent.support import report_formats


@click.command("report")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--format",
    "form",
    type=click.Choice(tuple(report_formats.SUFFIXES)),
    help="What to write; by default what the suffix of --output says, or text where there is none.",
)
@click.option("--output", metavar="FILE", help="Where to write it; by default standard output.")
def command(paths: tuple[str, ...], form: str | None, output: str | None) -> int:
    """Show a saved report, or those of several ranks of one run as one.

    Each PATH is a report's .json file, a capture (.jsonl), or a directory of them. Files that other processes of the
    same run saved beside it, with a number in the name, are included. What else is in a directory, such as a file that
    is cut or that is of an earlier run, is left out, and the report says so.
    """
    from syncagent.report import files
    from syncagent.report.formats import render, text
    from syncagent.settings import sources

    mode = sources.file_mode()
    form = form or (_format_of(output) if output else report_formats.TEXT)
    report = files.load_merged(paths, leave_out=True)
    if not output and form == report_formats.TEXT:
        text.emit(report, sys.stdout)
    elif not output:
        sys.stdout.write(render(report, form))
    else:
        files.write_to(Path(output), render(report, form), mode=mode)
    return 0


def _format_of(output: str) -> str:
    form = report_formats.format_of(output)
    if form is None:
        suffixes = f"{report_formats.SUFFIXES[report_formats.TEXT]}, {report_formats.saved_suffixes()}"
        raise ConfigError(
            f"the name {output!r} does not say which format to write: it has to end in {suffixes}, or --format has to "
            "say it"
        )
    return form
