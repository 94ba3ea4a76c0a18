"""The Collector as ``otel/collector/config.yaml`` has it, and what it says that it has counted and taken.

Other than there, kept traces go to a file, since no Tempo is here, and what is counted from spans is passed on each
second and not every 15, so that it can be asked for at the end.
"""

from __future__ import annotations

import urllib.request
from collections import defaultdict

from places import OTEL
from prometheus_client.parser import text_string_to_metric_families

import services  # isort: skip


class CountingCollector:
    def __init__(self, folder):
        """Raises ``services.NotHereError`` where the Collector is not built."""
        folder.mkdir(parents=True, exist_ok=True)
        self.kept = folder / "kept.jsonl"
        self._ports = services.Ports()
        overrides = {
            "connectors": {"span_metrics/counted": {"metrics_flush_interval": "1s"}},
            "exporters": {"file/kept": {"path": str(self.kept), "rotation": {"max_megabytes": 1000}}},
            "service": {"pipelines": {"traces/kept": {"exporters": ["file/kept", "forward/kept"]}}},
        }
        config = OTEL / "collector" / "config.yaml"
        self._service = services.collector(folder, config, self._ports, overrides=overrides)
        self.endpoint, self.grpc = self._service.otlp, self._service.grpc

    def stop(self):
        self._service.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.stop()

    def counted(self, name, *labels):
        """The newest values of a series that its Prometheus endpoint serves, summed by these labels."""
        return summed(self._ports.metrics, name, labels)

    def own(self, name, *labels):
        """The same of the Collector's own metrics."""
        return summed(self._ports.own, f"otelcol_{name}", labels)

    def version(self):
        (told,) = (sample for sample in samples(self._ports.own) if sample.name == "target_info")
        return told.labels["service_version"]

    def figures(self):
        """How large it is in MB, how many seconds of CPU time it has used, and what became of what came."""
        one = defaultdict(float)
        for sample in samples(self._ports.own):
            one[sample.name.removeprefix("otelcol_").removesuffix("_total")] += sample.value
        return {
            "rss_mb": round(one["process_memory_rss"] / 1e6, 1),
            "cpu_s": round(one["process_cpu_seconds"], 1),
            **{
                f"{fate} {what}": round(one[f"receiver_{fate}_{what.replace(' ', '_')}"])
                for fate in ("accepted", "refused", "failed")
                for what in ("spans", "metric points")
            },
        }


def summed(port, name, labels):
    """The values of a series that a port serves, summed by these labels."""
    found = defaultdict(float)
    for sample in samples(port, name):
        if sample.name == name:
            found[tuple(sample.labels.get(label, "") for label in labels)] += sample.value
    return dict(found)


def samples(port, beginning=""):
    """What a port serves to Prometheus: the series whose names begin like that."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = [line for line in answer.read().decode().splitlines(keepends=True) if line.startswith(beginning)]
    return [sample for family in text_string_to_metric_families("".join(lines)) for sample in family.samples]
