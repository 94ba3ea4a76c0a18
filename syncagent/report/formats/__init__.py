"""The formats of a report, one module each; :mod:`syncagent.report.formats.base` says how to write one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from syncagent.report.formats.base import Format
    from syncagent.report.model import Report

__all__ = ["render"]


def render(report: Report, name: str) -> str:
    """The text of a report's file in the format of that name in :mod:`syncagent.support.report_formats`.

    Raises :class:`~syncagent.errors.ConfigError` where the report lacks what the format shows.
    """
    return cast("Format", import_module(f"{__name__}.{name}")).render(report)
