"""Two ranks on GPUs send to the Collector by ``otel/collector/config.yaml``: does it have what the reports say?

``python tests/gpu/pipeline.py --out FILE``; ``python otel/local/programs.py collector`` builds the Collector.  It tries
itself on the simulated device where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import datetime, timezone
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "otel" / "local"), str(ROOT / "tests" / "stack")]

import services
from jobs import spans_of

RANKS = 2
SERVICE = "masked_loss"


def collector(folder: Path) -> tuple[services.Service, services.Ports]:
    """It keeps every trace, and writes the spans that arrive and those that are kept to files."""
    ports = services.Ports()
    overrides = {
        "processors": {"tail_sampling": {"decision_wait": "5s"}},
        "connectors": {f"span_metrics/{which}": {"metrics_flush_interval": "1s"} for which in ("counted", "kept")},
        "exporters": {f"file/{which}": {"path": str(folder / f"{which}.jsonl")} for which in ("arrived", "kept")},
        "service": {
            "pipelines": {
                "traces/arrived": {"receivers": ["otlp"], "exporters": ["file/arrived"]},
                "traces/kept": {"exporters": ["file/kept", "forward/kept"]},
            }
        },
    }
    config = ROOT / "otel" / "collector" / "config.yaml"
    return services.collector(folder, config, ports, {"TRACE_PERCENT": "100"}, overrides), ports


def train(folder: Path, endpoint: str, steps: int) -> None:
    own = {
        "SYNCAGENT": "1",
        "SYNCAGENT_DETAIL": "syncs",
        "SYNCAGENT_SUMMARY": "off",
        "SYNCAGENT_REPORT": f"{folder}/report-{{rank}}.json",
        "OTEL_SERVICE_NAME": SERVICE,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "OMP_NUM_THREADS": "4",
    }
    size = ["--batch", "8"]
    if not torch.cuda.is_available():
        own["SYNCAGENT_SIMULATE"] = "1"
        size = ["--batch", "1", "--size", "96"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    script = ROOT / "examples" / "masked_loss" / "ranks.py"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SYNCAGENT"))}
    subprocess.run(
        [*torchrun, str(script), "--device", "cuda", "--steps", str(steps), *size], env=environ | own, check=True
    )


def samples(ports: services.Ports, metric: str) -> dict[str, float]:
    """The sums of a metric by rank, as Prometheus would scrape them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{ports.metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if line.startswith(f"{metric}{{"):
            rank = re.search(r'syncagent_rank="(\d+)"', line)
            found[rank[1]] = found.get(rank[1], 0) + float(line.split()[-1]) if rank else 0
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        service, ports = collector(folder)
        with service:
            train(folder, service.otlp, arguments.steps)
            reports = [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(RANKS)]
            time.sleep(10)  # sampling decides, and counts of spans are flushed
            spans, kept = (spans_of(folder / f"{which}.jsonl", SERVICE) for which in ("arrived", "kept"))
            rows = []
            for rank, report in enumerate(reports):
                of_rank = [span for span in spans.values() if span["resource"]["syncagent.rank"] == rank]
                rows.append(
                    {
                        "syncs_reported": report["totals"]["syncs"],
                        "syncs_counted": samples(ports, "syncagent_syncs_total")[str(rank)],
                        "stalls_counted": samples(ports, "syncagent_stall_duration_seconds_count")[str(rank)],
                        "syncs_with_span": sum("syncagent.op" in span["attributes"] for span in of_rank),
                        "syncs_without_span": samples(ports, "syncagent_spans_withheld_total")[str(rank)],
                        "spans_lost": samples(ports, "syncagent_spans_dropped_total")[str(rank)],
                        "span_metrics": samples(ports, "syncagent_spans_calls_total")[str(rank)],
                        "steps_reported": report["run"]["steps"],
                        "sensors": [one["name"] for one in report["sensors"] if one["live"]],
                    }
                )
    traces: dict[str, set[int]] = {}
    for span in spans.values():
        traces.setdefault(span["trace"], set()).add(span["resource"]["syncagent.rank"])
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none: simulated device",
        "gpus": torch.cuda.device_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": f"python tests/gpu/pipeline.py --steps {arguments.steps}",
        "ranks": rows,
        "spans_arrived": len(spans),
        "spans_kept": len(kept),
        "traces": len(traces),
        "traces_of_all_ranks": sum(ranks == set(range(RANKS)) for ranks in traces.values()),
    }
    holds = len(kept) == len(spans) and all(
        row["syncs_reported"] == row["syncs_counted"] == row["stalls_counted"]
        and row["syncs_with_span"] + row["syncs_without_span"] == row["syncs_reported"]
        and row["span_metrics"] == row["syncs_with_span"]
        and row["spans_lost"] == 0
        for row in rows
    )
    result["holds"] = holds
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
