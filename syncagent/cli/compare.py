"""``syncagent compare``: what changed between two reports."""

from __future__ import annotations

import json
import sys

import click


@click.command("compare", short_help="Say what changed between two reports.")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option(
    "--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True, help="What to write."
)
def command(old: str, new: str, form: str) -> int:
    """Say which sync sites are new, gone, grown and shrunk between two reports.

    OLD and NEW are reports' .json files, or directories with those of several ranks.
    """
    from syncagent.report import changes, files
    from syncagent.report.compare import compare

    comparison = compare(files.load_merged([old]), files.load_merged([new]))
    if form == "json":
        print(json.dumps(comparison.to_dict(), indent=1))
    else:
        sys.stdout.write(changes.render(comparison))
    return 0
