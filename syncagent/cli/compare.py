"""``syncagent compare``: what changed between two reports."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from syncagent.report.model import Report

_SUFFIXES = {".json": "json", ".html": "html", ".md": "markdown"}


@click.command("compare", short_help="Say what changed between two reports.")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "json", "html", "markdown")),
    help="What to write; by default what the suffix of --output says (.json, .html or .md), else text.",
)
@click.option("--output", metavar="FILE", help="Where to write it; by default standard output.")
def command(old: str, new: str, form: str | None, output: str | None) -> int:
    """Say which sync sites are new, gone, grown and shrunk between two reports.

    OLD and NEW are reports' .json files, or directories with those of several ranks.
    """
    from syncagent.report import files
    from syncagent.settings import sources

    mode = sources.file_mode()
    form = form or _SUFFIXES.get(os.path.splitext(output or "")[1], "text")
    text = _rendered(files.load_merged([old]), files.load_merged([new]), form)
    if not output:
        sys.stdout.write(text)
    else:
        files.write_to(Path(output), text, mode=mode)
    return 0


def _rendered(old: Report, new: Report, form: str) -> str:
    from syncagent.report.compare import compare

    comparison = compare(old, new)
    if form == "json":
        return json.dumps(comparison.to_dict(), indent=1) + "\n"
    if form == "html":
        from syncagent.report.compared import page

        return page.render(comparison, old, new)
    if form == "markdown":
        from syncagent.report.compared import markdown

        return markdown.render(comparison)
    from syncagent.report.compared import text

    return text.render(comparison)
