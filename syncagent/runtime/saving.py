"""Saves the report of a run or a region where the settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncagent.errors import ConfigError
from syncagent.support.log import get_logger

if TYPE_CHECKING:
    from syncagent.report.model import Report

__all__ = ["save"]


def save(report: Report, path: str | None, mode: int) -> str | None:
    """Save a report with the file mode ``mode`` and return where; a path that cannot be written is logged."""
    if path is None:
        return None
    from syncagent.report import files

    try:
        run = report.run
        used_cuda = run.device is not None and not run.simulated  # the simulated device has no first use
        is_empty = run.rank is None and not (used_cuda or run.steps or report.sites)
        saved = files.save_beside(report, path, mode=mode, may_add=not is_empty)
        return None if saved is None else str(saved)
    except (ConfigError, OSError) as error:
        get_logger().error(str(error))
    except Exception as error:
        get_logger().error(f"syncagent: the report could not be saved at {path}: {error!r}")
    return None
