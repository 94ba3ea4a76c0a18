"""The file by which ``SYNCAGENT=1`` works: each fresh interpreter reads it at its start."""

from __future__ import annotations

import site
import sysconfig
from pathlib import Path

NAME = "syncagent_autostart.pth"


def find() -> Path | None:
    """Return where it is installed; ``None`` where it is not, as in a checkout on PYTHONPATH."""
    folders = [*site.getsitepackages(), sysconfig.get_path("purelib")]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return next((path for folder in folders if (path := Path(folder, NAME)).exists()), None)
