"""A soak of telemetry: how many ranks send how much for how long, and the processes that do.

``SOAK_RANKS``, ``SOAK_RATE`` (syncs a second, of each rank) and ``SOAK_SECONDS`` make it longer than it is among the
other tests; ``SOAK_RESULT=FILE.json`` keeps its figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from tests.processes import ROOT

RANKS = int(os.environ.get("SOAK_RANKS", "2"))
RATE = float(os.environ.get("SOAK_RATE", "300"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "8"))
TIMEOUT_S = SECONDS + 150 + 15 * RANKS

_RANK = ROOT / "tests" / "integration" / "telemetry" / "rank.py"


def run(endpoint, environ, folder, *, meanwhile=None):
    """Run all ranks, which send to that endpoint; returns what each says that it did, in their order.

    ``meanwhile`` is called again and again until they have ended.
    """
    own = {
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "TORCHELASTIC_RUN_ID": "soak",
        "OMP_NUM_THREADS": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(_RANK), str(RATE), str(SECONDS)],
            env=environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    try:
        while meanwhile is not None and any(process.poll() is None for process in processes):
            meanwhile()
        outputs = [process.communicate(timeout=SECONDS + 100 + 10 * RANKS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * RANKS, outputs
    assert [errors for _, errors in outputs] == [""] * RANKS
    return [json.loads(output) for output, _ in outputs]


def keep(case, result):
    """Write the figures where ``SOAK_RESULT`` asks for them, with what they were got with."""
    if path := os.environ.get("SOAK_RESULT"):
        from tests.benchmarks.per_sync import write

        told = {
            "cpus": len(os.sched_getaffinity(0)),
            "opentelemetry": metadata.version("opentelemetry-sdk"),
            "cases": {case: result},
        }
        write(Path(path).absolute(), "cpu", told)
