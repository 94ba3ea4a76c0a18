"""A price in a report: the columns of its sites, and what is said of the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from syncagent.report.model import CostRow, OrderRow

if TYPE_CHECKING:
    from syncagent.cost.price import Price, SitePrice
    from syncagent.report.model import Report, SiteRow

__all__ = ["abstained", "priced"]


def abstained(report: Report, why: str) -> Report:
    """The report of a run whose price could not be found."""
    return replace(report, cost=CostRow(0, None, None, None, why))


def priced(report: Report, price: Price) -> Report:
    """The report with ``idle_ms``, ``gain_ms`` and ``advice`` at its sites, and the order in which to mend them."""
    by_row = {site.place.row: site for site in price.sites if site.place.row is not None}
    sites = tuple(_priced(site, by_row.get(site.id)) for site in report.sites)
    order = tuple(
        OrderRow(row, removal.gain_ms)
        for removal in price.order
        if (row := price.sites[removal.site].place.row) is not None
    )
    notes = list(price.notes)
    if price.untied:
        notes.append(f"{price.untied} waits of the window found nothing to wait for, or no sensor saw them")
    cost = CostRow(
        price.steps, price.step_ms, price.measured_step_ms, price.gain_all_ms, price.abstained, order, tuple(notes)
    )
    return replace(report, sites=sites, cost=cost)


def _priced(site: SiteRow, price: SitePrice | None) -> SiteRow:
    if price is None:
        return site
    advice = f"{price.reason}; {price.advice}" if price.reason and price.advice else price.advice
    return replace(site, idle_ms=price.idle_ms, gain_ms=price.gain_ms, advice=advice or None)
