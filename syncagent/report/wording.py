"""How durations, counts and places are written for people."""

from __future__ import annotations

import os
from pathlib import PurePath

from syncagent.support.printable import clean

__all__ = ["DASH", "clean", "count", "duration", "per_step", "place", "plural", "share", "short_path"]

DASH = "\N{EN DASH}"
"""Stands for a number that is not known."""

_PACKAGES = ("site-packages", "dist-packages")


def duration(ms: float) -> str:
    """``350 ns``, ``41 µs``, ``41.0 ms``, ``4.10 s``, ``2 min 3 s``."""
    if ms <= 0:
        return "0"
    if ms < 0.0009995:
        return f"{ms * 1e6:.0f} ns"
    if ms < 0.9995:
        return f"{ms * 1e3:.0f} µs"
    if ms < 999.5:
        return f"{ms:.3g} ms" if ms >= 99.95 else f"{ms:.1f} ms"
    if ms < 59_995:
        return f"{ms / 1e3:.2f} s"
    minutes, seconds = divmod(round(ms / 1e3), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def share(part: float) -> str:
    """``12.3 %``; what is there but too little for a tenth of a percent is ``<0.1 %``."""
    if 0 < part < 0.0005:
        return "<0.1 %"
    return f"{part * 100:.1f} %"


def count(number: int) -> str:
    return f"{number:,}"


def per_step(rate: float | None) -> str:
    """``2``, ``0.25``; a dash where no step was marked."""
    if rate is None:
        return DASH
    if 0 < rate < 0.01:
        return "<0.01"
    return f"{rate:,.2f}".rstrip("0").rstrip(".") if rate < 100 else f"{rate:,.0f}"


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short_path(file: str, cwd: str = "") -> str:
    """A file as people know it: from its package for installed code, from ``cwd`` below that, else as it is.

    It is also the same on another machine, as long as the project's layout is.
    """
    parts = PurePath(file).parts
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] in _PACKAGES:
            return "/".join(parts[index + 1 :])
    base = cwd or _folder()
    return file.removeprefix(base.rstrip("/") + "/") if base else file


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return ""


def place(file: str, line: int, cwd: str = "") -> str:
    """``loss.py:41``."""
    if not file:
        return "(line unknown)"
    name = clean(short_path(file, cwd))
    return f"{name}:{line}" if line else name
