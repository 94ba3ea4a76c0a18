"""What the tests of reports put runs together with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_FILE = Path(__file__).parents[1] / "report" / "training_run.py"
_spec = importlib.util.spec_from_file_location("training_run_of_reports", _FILE)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
sync, whole_report, report_of = _module.sync, _module.whole_report, _module.report_of
