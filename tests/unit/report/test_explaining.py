from __future__ import annotations

import subprocess
import sys


def test_a_report_without_a_site_loads_no_advice_nor_does_counting_load_comparisons():
    code = (
        "import sys\n"
        "from syncagent.report.explaining import explained\n"
        "from syncagent.report.findings import counted\n"
        "from syncagent.report.summary import Summary\n"
        "from syncagent.runtime.run import no_run\n"
        "report = explained(Summary().snapshot(no_run('observe')))\n"
        "assert counted(report) == ()\n"
        "print([name for name in sys.modules if name.startswith(('syncagent.advice', 'syncagent.report.compare'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
