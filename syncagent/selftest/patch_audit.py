"""What of torch an agent changes while it runs, as it is now: so that one can see whether all is put back."""

from __future__ import annotations

import threading
from collections import ChainMap
from typing import Any

__all__ = ["changed", "state"]


def state() -> dict[str, Any]:
    """Return everything that starting an agent touches in this process and on this thread, by name."""
    from syncagent.attribution import ranges, steps
    from syncagent.sensors.registry import SENSORS

    names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("syncagent"))
    footprints = [sensor.footprint() for sensor in SENSORS] + [ranges.footprint(), steps.footprint()]
    return {"threads": names, **ChainMap(*map(dict, footprints))}


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what differs."""
    return [name for name in before if before[name] != after[name]]
