"""Which rewrite fits a site, as one sentence that quotes what it gains."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from syncagent.cost.rewrites import REWRITES
from syncagent.report import wording

if TYPE_CHECKING:
    from syncagent.cost.rewrites import Rewrite
    from syncagent.cost.sites import WaitSite

__all__ = ["advise", "find"]

_ALIKE = {"nonzero_numpy": "nonzero", "_index_put_impl_": "index_put_"}
"""Names under which ops of the table stand in traces."""


def find(site: WaitSite) -> Rewrite | None:
    """The row of the table whose op, kind and source pattern fit best; of equals the first, which is more special.

    Of a line that is not known (a trace without stacks) the op alone has to tell.
    """
    op = site.op.rpartition("::")[2].partition(".")[0]
    op = _ALIKE.get(op, op)
    if site.phase == "backward" and op == "index_put_":
        op = "index"  # whose backward it is
    text = f"{site.source}\n{site.function}"
    best: tuple[int, Rewrite] | None = None
    for rewrite in REWRITES:
        by_op, by_source = op in rewrite.ops, bool(rewrite.source and re.search(rewrite.source, text))
        guessed = bool(rewrite.source) and not site.source and rewrite.ops[:1] == (op,)
        if rewrite.source and not by_source and not guessed and not (rewrite.either and by_op):
            continue
        if rewrite.ops and not by_op and not (rewrite.either and by_source):
            continue
        if rewrite.kinds and site.kind not in rewrite.kinds:
            continue
        weight = 2 * by_source + (by_op and not guessed)
        if best is None or weight > best[0]:
            best = (weight, rewrite)
    return best[1] if best else None


def advise(site: WaitSite, gain_ms: float, step_ms: float) -> str:
    """What to write instead, and what a step gains without the wait: by the replay, 0 where it gains nothing."""
    rewrite = find(site)
    if gain_ms > 0.0:
        worth = f"not waiting here gains {wording.duration(gain_ms)} per step ({wording.share(gain_ms / step_ms)})"
        instead = "; instead: "
        other_work = "; that also changes the GPU's work, which this gain leaves out"
    else:
        worth = "not waiting here gains nothing: the GPU has work, or is not what the step waits for"
        instead = ". To be rid of the wait all the same: "
        other_work = "; the GPU's work changes with it, and only that can make the step faster (or slower)"
    if rewrite is None:
        return worth
    return f"{worth}{instead}{rewrite.say}{other_work if rewrite.changes_gpu_work else ''}"
