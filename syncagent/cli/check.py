"""``syncagent check``: a report against its baseline, for CI."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from syncagent.errors import SyncAgentError
from syncagent.policy import checking

if TYPE_CHECKING:
    from syncagent.report.compare import Comparison
    from syncagent.report.model import Report

_SUFFIXES = {".md": "markdown", ".sarif": "sarif", ".xml": "junit"}


def _share(_context: click.Context, _option: click.Parameter, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise click.BadParameter(f"{value!r} is not a fraction: a number from 0 up, such as 0.1")
    return share


@click.command("check", short_help="Fail if a report has sync sites that its baseline does not have.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--baseline", required=True, metavar="BASE", help="The report whose sites are known.")
@click.option("--update", is_flag=True, help="Write BASE from the report instead of comparing with it.")
@click.option(
    "--tolerance",
    callback=_share,
    default="0.1",
    show_default=True,
    metavar="SHARE",
    help="How much more often per step a site may sync, as a fraction of the baseline's rate.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "markdown", "sarif", "junit")),
    help="What to write; by default what the suffix of --output says (.md, .sarif or .xml), else text.",
)
@click.option(
    "--output",
    metavar="FILE",
    help="Where to write it; standard output then has the text. By default standard output has it.",
)
def command(
    paths: tuple[str, ...], baseline: str, tolerance: float, form: str | None, output: str | None, *, update: bool
) -> int:
    """Fail if a report has sync sites that its baseline does not have, or that sync more often per step.

    PATH is a report's .json file, or a directory with those of several ranks. The exit code is 1 if there is such a
    site, and 2 if the report proves nothing: its gate failed, syncs are missing, the run saw no CUDA device, or the
    baseline is of another program. A line that was reformatted, or whose text has changed a little, is the same site.

    Where the variable GITHUB_STEP_SUMMARY names a file, the result is also appended there, as Markdown.
    """
    from syncagent.report import files
    from syncagent.report.checked import job_summary, markdown, text

    if update:
        if form is not None or output is not None:
            raise click.UsageError("--update writes the baseline and compares nothing: leave out --format and --output")
        return _update(paths, Path(baseline))
    try:
        known, report = files.load_merged([baseline]), files.load_merged(paths)
        comparison = checking.check(known, report, tolerance=tolerance, baseline=baseline, name=", ".join(paths))
    except SyncAgentError as error:
        job_summary.append(markdown.refusal(str(error)), "check")
        raise
    form = form or _SUFFIXES.get(os.path.splitext(output or "")[1], "text")
    if output is not None:
        files.write_to(Path(output), _rendered(comparison, report, form), mode=_file_mode())
    sys.stdout.write(text.render(comparison) if output is not None else _rendered(comparison, report, form))
    job_summary.append(markdown.render(comparison), "check")
    return 1 if comparison.findings() else 0


def _rendered(comparison: Comparison, report: Report, form: str) -> str:
    from syncagent.report.checked import junit, markdown, sarif, text

    if form == "sarif":
        return sarif.render(comparison, report)
    renderers = {"junit": junit.render, "markdown": markdown.render, "text": text.render}
    return renderers[form](comparison)


def _update(paths: tuple[str, ...], baseline: Path) -> int:
    """Write the baseline, and say in a sentence how it differs from the one before."""
    from syncagent.report import baseline as baselines
    from syncagent.report import files, wording
    from syncagent.report.compare import compare

    name = str(baseline)
    if baseline.is_dir():
        raise SyncAgentError(f"the baseline {name!r} is a directory; --update writes it into one file")
    known = files.load_merged([baseline]) if os.path.lexists(baseline) else None
    report = files.load_merged(paths)
    checking.must_be_fit(report, ", ".join(paths))
    content = baselines.render(report)
    files.write_to(baseline, content, mode=_file_mode())
    written = files.load(baseline)
    has = f"{wording.clean(name)} now has {wording.plural(len(written.sites), 'site')}"
    if report.run.detail == "auto":
        print("note: the counts are estimates, since steps were sampled; a run with --detail syncs counts each sync")
    if known is None:
        print(f"{has}; there was no baseline before.")
        return 0
    changes = compare(known, written)
    counts = {
        "added": len(changes.of("new")),
        "removed": len(changes.of("gone")),
        "changed": len(changes.of("changed", "grown", "shrunk")),
    }
    said = [f"{number:,} {what}" for what, number in counts.items() if number or what != "changed"]
    print(f"{has}: {', '.join(said)}.")
    return 0


def _file_mode() -> int:
    from syncagent.settings import sources

    return sources.file_mode()
