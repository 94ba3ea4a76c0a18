"""The formats of a report, one module each; :mod:`syncagent.report.formats.base` says how to write one."""

from __future__ import annotations

import random
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncagent.report.model import Report

__all__ = ["load", "render"]


def load(name: str) -> Any:
    """The module of that name in this folder: a format, or ``notebook``, which no file is saved in."""
    module = f"{__name__}.{name}"
    if module in sys.modules:  # the program may be drawing on another thread
        return import_module(module)
    drawn = random.getstate()
    try:
        return import_module(module)
    finally:
        random.setstate(drawn)  # rich draws from the program's generator when it is loaded


def render(report: Report, name: str) -> str:
    """The text of a report's file in the format of that name in :mod:`syncagent.support.report_formats`.

    Raises :class:`~syncagent.errors.ConfigError` where the report lacks what the format shows.
    """
    text: str = load(name).render(report)
    return text
