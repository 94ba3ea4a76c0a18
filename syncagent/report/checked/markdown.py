"""The result of a check as Markdown, for the summary of a job or a comment: the verdict, then what has changed."""

from __future__ import annotations

from collections.abc import Sequence

from syncagent.report import wording
from syncagent.report.compare import Comparison
from syncagent.report.compared import markdown
from syncagent.report.markup import code, text
from syncagent.report.model import Report, SiteRow

_TITLE = "### Host syncs:"
_MOST = 50
"""How many sites are listed: the summary of a step has a mebibyte at most."""


def render(comparison: Comparison) -> str:
    """A title with the verdict, and the comparison below it."""
    return f"{_titled(len(comparison.findings()))}\n\n{markdown.render(comparison)}"


def by_policy(said: str, found: Sequence[SiteRow], report: Report) -> str:
    """The same of a run that its policy has judged: what the verdict says, and a table of the sites with findings."""
    parts = [_titled(len(found)), f"**{text(said)}**", _table(found[:_MOST], report) if found else ""]
    if len(found) > _MOST:
        parts.append(f"… and {wording.plural(len(found) - _MOST, 'more site')}")
    return "\n\n".join(filter(None, parts)) + "\n"


def _titled(findings: int) -> str:
    verdict = f"the check has failed, {wording.plural(findings, 'finding')}" if findings else "the check has passed"
    return f"{_TITLE} {verdict}"


def _table(sites: Sequence[SiteRow], report: Report) -> str:
    lines = ["| where | what waits | syncs | findings |", "|---|---|--:|--:|"]
    for site in sites:
        name = wording.function(site.function)
        where = code(wording.place(site.file, site.line, report.run.cwd)) + (f" in {code(name)}" if name else "")
        advice = text(f"→ {wording.clean(site.advice)}") if site.advice else ""
        what = [code(wording.clean(site.source)), code(wording.named(site.api, site.op)), advice]
        lines.append(f"| {where} | {'<br>'.join(filter(None, what))} | {site.count:,} | {site.violations:,} |")
    return "\n".join(lines)


def refusal(sentence: str) -> str:
    """What there is to say where nothing could be checked."""
    return f"{_TITLE} the check proves nothing\n\n{text(wording.clean(sentence))}\n"
