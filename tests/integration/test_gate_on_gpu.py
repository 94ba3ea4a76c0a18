"""``tests/gpu/gate.py``, rehearsed on the simulated device: one of its parts, and the file that it writes."""

from __future__ import annotations

import json

from tests import processes


def test_a_part_is_rehearsed_and_its_checks_are_written(tmp_path):
    script = processes.ROOT / "tests" / "gpu" / "gate.py"
    done = processes.run(script, "--simulate", "--match", "assert_no_syncs", "--out", "gate.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "gate.json").read_text(encoding="utf-8"))
    assert result["simulated"] is True
    assert {check["page"] for check in result["checks"]} == {"docs/testing.md"}
    assert len(result["checks"]) == 10
    assert all(check["ok"] for check in result["checks"])
