"""A report with one row a line, as people read it.

A site is of one kind, since policy, baselines and checks go by kinds: ``x[mask].max().item()`` is two sites.  Who reads
a table looks for lines.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

from syncagent.events import CallSite
from syncagent.report.merge import joined
from syncagent.report.model import OrderRow, RankShare, Report, SiteRow


def by_line(report: Report) -> Report:
    """Return the report with the sites of a line in one row: that of the worst, with the sums of all.

    Lines in a library and, in the backward pass, forward lines are told apart: each is a line of its own to look at.
    """
    groups: dict[Hashable, list[SiteRow]] = defaultdict(list)
    for site in report.sites:
        line = (site.file, site.line, _place(site.forward), _place(site.library))
        groups[line if site.file else site.id].append(site)
    if len(groups) == len(report.sites):
        return report
    cost, into = report.cost, {site.id: sites[0].id for sites in groups.values() for site in sites}
    return replace(
        report,
        sites=tuple(_one(sites) if len(sites) > 1 else sites[0] for sites in groups.values()),
        events=tuple(replace(event, site=into.get(event.site, event.site)) for event in report.events),
        cost=replace(cost, order=_order(cost.order, into)) if cost is not None else None,
    )


def _one(sites: Sequence[SiteRow]) -> SiteRow:
    """Return one row of several; fixing the line gains at least what fixing the best of them gains."""
    worst = sites[0]
    rates = [site.per_step for site in sites if site.per_step is not None]
    idle = [site.idle_ms for site in sites if site.idle_ms is not None]
    gains = [site.gain_ms for site in sites if site.gain_ms is not None]
    ranks: dict[int, RankShare] = {}
    rank_count = max(site.rank_count for site in sites)
    # Where there are shares of some ranks only, they are not of the same ranks: no rank's sum is known.
    for part in (part for site in sites for part in site.ranks if not rank_count):
        before = ranks.get(part.rank, RankShare(part.rank, 0, 0.0))
        ranks[part.rank] = RankShare(part.rank, before.count + part.count, before.stall_ms + part.stall_ms)
    return replace(
        joined(sites, worst),
        op=worst.op,
        api=worst.api,
        per_step=sum(rates) if len(rates) == len(sites) else None,
        idle_ms=sum(idle) if idle else None,
        gain_ms=max(gains, default=None),
        ranks=tuple(sorted(ranks.values(), key=lambda part: part.rank)),
        rank_count=rank_count,
        module=worst.module if len({site.module for site in sites}) == 1 else None,
        ranges=worst.ranges if len({site.ranges for site in sites}) == 1 else (),
        conditional=all(site.conditional for site in sites),
    )


def _order(order: Sequence[OrderRow], into: dict[int, int]) -> tuple[OrderRow, ...]:
    """Return the order of fixes by line; of two entries for one line that follow each other the second has both."""
    lines = [replace(entry, site=into.get(entry.site, entry.site)) for entry in order]
    later = [*(entry.site for entry in lines[1:]), None]
    return tuple(entry for entry, after in zip(lines, later, strict=True) if entry.site != after)


def _place(line: CallSite | None) -> Hashable:
    return line and (line.file, line.line)
