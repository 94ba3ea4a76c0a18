"""The result of a check as lines of text: the findings, and known sites that have changed."""

from __future__ import annotations

from syncagent.report import wording
from syncagent.report.compare import Comparison
from syncagent.report.compared import text


def render(comparison: Comparison) -> str:
    """What is worse than the baseline, with advice, and why other sites that are worse are no findings."""
    findings = comparison.findings()
    blocks = [f"note: {wording.clean(note)}" for note in comparison.notes]
    if not findings:
        known = wording.plural(len(comparison.of("same")), "known site")
        blocks.append(f"No new or grown sites; {known} unchanged.")
    for verdict in ("new", "grown"):
        some = [change for change in findings if change.verdict == verdict]
        if some:
            shown = text.render_changes(some, comparison.simulated)
            blocks.append(f"{wording.plural(len(some), 'site')} {verdict}\n{shown}")
    changed = comparison.of("changed")
    if changed:
        shown = text.render_changes(changed, comparison.simulated)
        blocks.append(f"{wording.plural(len(changed), 'known site')} changed a little\n{shown}")
    return "\n".join(blocks) + "\n"
