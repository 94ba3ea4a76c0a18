"""A training job as the sinks see it: ``job.py STEPS CLOSE_TIMEOUT [hold]``; ends with exit code 7.

Prints the provider's account as JSON.  With ``hold`` it goes on after its steps, having said where their journal is.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from syncagent.delivery.folder import file_path
from syncagent.errors import ConfigError
from syncagent.events import CallSite, Phase, StepRecord, SyncEvent, SyncKind
from syncagent.support.log import get_logger
from syncagent.telemetry import semconv
from syncagent.telemetry.provider import build_resource, build_spans
from syncagent.telemetry.spans import SpanSink


def sync(step: int, start_ns: int, op: str, kind: SyncKind, line: int) -> SyncEvent:
    site = CallSite("/app/train.py", line, "loss", "mask = labels > 0")
    return SyncEvent(
        op, None, kind, start_ns, 2_000_000, site, Phase.FORWARD, step, 1, "cuda:0", 0, "MainThread", "kernels"
    )


def main(steps: str, close_timeout: str, hold: str = "") -> None:
    try:
        built, where = build_spans(build_resource({semconv.RANK: 1, semconv.WORLD_SIZE: 2}), file_path("journal"))
        assert built is not None
    except ConfigError as error:
        get_logger().error(str(error))
        sys.exit(7)
    provider, outbox = built
    sink = SpanSink(provider, policy="warn")
    start_ns = time.time_ns()
    for step in range(int(steps)):
        sink.events(
            [
                sync(step, start_ns + 1_000_000, "aten::nonzero", SyncKind.DYNAMIC_SHAPE, 12),
                sync(step, start_ns + 5_000_000, "aten::_local_scalar_dense", SyncKind.SCALAR_READ, 13),
            ]
        )
        sink.step(StepRecord(step, start_ns, start_ns + 10_000_000, 1))
        start_ns += 10_000_000
    if hold:
        while outbox.stats()["exported"] < 3 * int(steps):
            time.sleep(0.01)
        print(json.dumps({"journal": str(outbox.exporter.path)}), flush=True)
        for step in range(10**9):  # killed somewhere in here
            sink.step(StepRecord(step, start_ns, start_ns + 1, 1))
            if not step % 100:
                time.sleep(0.001)
    sink.close()
    outbox.close(float(close_timeout))
    threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
    path = getattr(outbox.exporter, "path", None)
    journal = path and os.fspath(path)
    print(json.dumps({"where": where, "journal": journal, "threads": threads} | outbox.stats()), flush=True)
    sys.exit(7)


if __name__ == "__main__":
    main(*sys.argv[1:])
