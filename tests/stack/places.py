"""Where the files are that these tests run; makes what is in ``otel/local`` and ``docs/dashboard`` importable."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OTEL = ROOT / "otel"
TRAIN = ROOT / "tests" / "stack" / "train.py"

sys.path[:0] = [str(OTEL / "local"), str(ROOT / "docs" / "dashboard")]
