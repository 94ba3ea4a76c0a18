"""The result of a check as Markdown, for the summary of a job or a comment: the verdict, then what has changed."""

from __future__ import annotations

from syncagent.report import wording
from syncagent.report.compare import Comparison
from syncagent.report.compared import markdown
from syncagent.report.markup import text

_TITLE = "### Host syncs:"


def render(comparison: Comparison) -> str:
    """A title with the verdict, and the comparison below it."""
    findings = len(comparison.findings())
    verdict = f"the check has failed, {wording.plural(findings, 'finding')}" if findings else "the check has passed"
    return f"{_TITLE} {verdict}\n\n{markdown.render(comparison)}"


def refusal(sentence: str) -> str:
    """What there is to say where nothing could be checked."""
    return f"{_TITLE} the check proves nothing\n\n{text(wording.clean(sentence))}\n"
