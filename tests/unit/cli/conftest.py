from __future__ import annotations

import dataclasses

import pytest

from syncagent.cli import main
from syncagent.events import CallSite, Phase, StepRecord, SyncEvent, SyncKind
from syncagent.report.model import RunInfo, SensorStatus
from syncagent.report.summary import Summary


@pytest.fixture
def saved(tmp_path):
    """Save a report of a run in which each of these source lines synced that often in its one step."""

    known = {field.name for field in dataclasses.fields(RunInfo)}

    def save(name, rank=None, **lines):
        run_fields = {name: lines.pop(name) for name in known & lines.keys()}
        summary = Summary()
        for number, (source, times) in enumerate(lines.items(), 1):
            site = CallSite("/proj/train.py", number, "main", source)
            kind, phase = SyncKind.SCALAR_READ, Phase.FORWARD
            event = SyncEvent(
                "aten::item", None, kind, number, 2_000_000, site, phase, 0, rank, "cuda:0", 0, "MainThread", "kernels"
            )
            summary.events([event] * times)
        summary.step(StepRecord(0, 0, 10_000_000))
        run = RunInfo(
            "2025-11-23T02:50:00Z", 1.0, None, None, "GPU", "h", rank, None, 1, "observe", "syncs", False, cwd="/proj"
        )
        run = dataclasses.replace(run, **run_fields)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        summary.snapshot(run, [SensorStatus("kernels", True, "")]).save(path)
        return str(path)

    return save


@pytest.fixture
def verb():
    """Run a verb as the program does; the result is its exit code."""

    def run(*words):
        return main(words)

    return run
