"""What a line's waits are in each rank: of many ranks those that waited longest, and a sentence about the others."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from syncagent.report import wording
from syncagent.report.model import RankShare, SiteRow

MOST = 16
"""So many ranks are all shown, by their numbers; of more those that waited longest."""


def shown(site: SiteRow, ranks: Sequence[int], mark: str) -> tuple[Sequence[RankShare], str]:
    """The ranks to show, and what to say about the rest of ``ranks``, which are all that the report is of.

    Nothing where the line waited in fewer than two of them.  ``mark`` follows each time.
    """
    parts = site.ranks
    if len(parts) < 2:
        return (), ""
    said = []
    if len(parts) > MOST:
        ordered = sorted(parts, key=lambda part: (-part.stall_ms, part.rank))
        parts, others = tuple(ordered[:MOST]), [part.stall_ms for part in ordered[MOST:]]
        least, middle, most = (wording.duration(ms) + mark for ms in (others[-1], statistics.median(others), others[0]))
        said.append(
            f"These {MOST} of {len(ordered):,} ranks waited longest. The {len(others):,} others waited from {least} "
            f"to {most}, half of them {middle} or less."
        )
    without = len(set(ranks) - {part.rank for part in site.ranks})
    if without:
        said.append(f"In {without:,} of the {len(ranks):,} ranks the line did not wait.")
    return parts, " ".join(said)
