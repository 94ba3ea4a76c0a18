"""What a line's waits are in each rank: of many ranks those that waited longest, and a sentence about the others."""

from __future__ import annotations

from collections.abc import Sequence

from syncagent.report import wording
from syncagent.report.model import RankShare, SiteRow

MOST = 16
"""So many ranks are all shown, by their numbers; of more those that waited longest."""


def shown(site: SiteRow, ranks: Sequence[int], mark: str) -> tuple[Sequence[RankShare], str]:
    """The ranks to show, and what to say about the rest of ``ranks``, which are all that the report is of.

    Nothing where the line waited in fewer than two of them.  ``mark`` follows each time.
    """
    parts, number = site.ranks, site.rank_count or len(site.ranks)
    if number < 2:
        return (), ""
    said = []
    if len(parts) > MOST:
        ordered = sorted(parts, key=lambda part: (-part.stall_ms, part.rank))
        parts = tuple(ordered[:MOST])
        least, most = (wording.duration(part.stall_ms) + mark for part in (ordered[-1], ordered[MOST]))
        said.append(
            f"These {MOST} of {number:,} ranks waited longest. "
            f"The {number - MOST:,} others waited from {least} to {most}."
        )
    without = len(set(ranks)) - number
    if without:
        said.append(f"In {without:,} of the {len(ranks):,} ranks the line did not wait.")
    return parts, " ".join(said)
