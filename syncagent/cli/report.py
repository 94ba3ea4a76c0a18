"""``syncagent report``: a saved report, shown or written in another format."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["command"]


@click.command("report")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "json", "html", "sarif", "trace")),
    help="What to write; by default what the suffix of --output says, else text.",
)
@click.option("--output", metavar="FILE", help="Where to write it; by default standard output.")
def command(paths: tuple[str, ...], form: str | None, output: str | None) -> int:
    """Show a saved report, or several ranks' reports as one.

    Each PATH is a report's .json file, or a directory of them.
    """
    from syncagent import config
    from syncagent.report import files, text

    mode = config.file_mode()
    report = files.load_merged(paths)
    form = form or (files.suffix_format(output) if output else None) or "text"
    if output:
        rendered = text.render(report, width=100) if form == "text" else files.render(report, form)
        files.write_atomically(Path(output), rendered, mode=mode)
    elif form == "text":
        text.emit(report, sys.stdout)
    else:
        sys.stdout.write(files.render(report, form))
    return 0
