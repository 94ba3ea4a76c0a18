"""``syncagent report``: a saved report, shown or written in another format."""

from __future__ import annotations

import os
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
    help="What to write; by default what the suffix of --output says, or text where there is none.",
)
@click.option("--output", metavar="FILE", help="Where to write it; by default standard output.")
def command(paths: tuple[str, ...], form: str | None, output: str | None) -> int:
    """Show a saved report, or those of several ranks of one run as one.

    Each PATH is a report's .json file, a capture (.jsonl), or a directory of them. What other processes of the same run
    have saved beside a file, with a number in its name, belongs to it.
    """
    from syncagent.report import files
    from syncagent.report.formats import text
    from syncagent.settings import sources

    mode = sources.file_mode()
    form = form or (files.output_format(output) if output else "text")
    report = files.load_merged(paths)
    if output:
        rendered = text.render(report, width=100) if form == "text" else files.render(report, form)
        if os.path.exists(output) and not os.path.isfile(output):  # /dev/stdout, a pipe: no other file can replace it
            Path(output).write_text(rendered, encoding="utf-8", errors="backslashreplace")
        else:
            files.write_atomically(Path(output), rendered, mode=mode)
    elif form == "text":
        text.emit(report, sys.stdout)
    else:
        sys.stdout.write(files.render(report, form))
    return 0
