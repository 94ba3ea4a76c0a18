"""Two levels of Collectors: those of nodes, with ``otel/collector/node.yaml``, and a gateway, with ``config.yaml``.

Other than there, the gateway keeps all traces, in a file, since no Tempo is here.  By default it is quick: it decides
on a trace after a second, and counts from spans each second.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from counting import summed
from places import OTEL, ROOT

import keeping  # isort: skip - places has made services importable
import services  # isort: skip


class Levels:
    """All of them on loopback; each may be ended, and begun again at the same ports with what it has on disk."""

    def __init__(self, folder, nodes, *, decides_after_s=1):
        self._folder, self._decides_after_s = folder, decides_after_s
        self._gateway_ports, self._node_ports = services.Ports(), [services.Ports() for _ in range(nodes)]
        self._lives = []
        self._read, self._ids = {}, set()
        self._running = {}
        self.begin_gateway()
        for node in range(nodes):
            self.begin_node(node)

    def begin_gateway(self):
        self._lives.append(self._folder / f"gateway{len(self._lives)}")
        exporters = {"file/kept": {"path": str(self._lives[-1] / "kept.jsonl"), "rotation": {"max_megabytes": 1000}}}
        overrides = {
            "processors": {"tail_sampling": {"decision_wait": f"{self._decides_after_s}s"}},
            "exporters": exporters,
            "service": {"pipelines": {"traces/kept": {"exporters": ["file/kept", "forward/kept"]}}},
        }
        if self._decides_after_s == 1:
            overrides["processors"]["batch"] = {"timeout": "200ms"}
            flush = {"metrics_flush_interval": "1s"}
            overrides["connectors"] = {"span_metrics/counted": flush, "span_metrics/kept": flush}
        self._begin("gateway", self._lives[-1], "config.yaml", self._gateway_ports, {"TRACE_PERCENT": "100"}, overrides)

    def begin_node(self, node):
        folder = self._folder / f"node{node}"
        environ = {
            "GATEWAY_ENDPOINT": f"http://127.0.0.1:{self._gateway_ports.grpc}",
            "QUEUE_DIRECTORY": str(folder / "queue"),
        }
        self._begin(node, folder, "node.yaml", self._node_ports[node], environ)

    def _begin(self, name, folder, config, ports, environ, overrides=None):
        config = OTEL / "collector" / config
        self._running[name] = services.collector(folder, config, ports, environ, overrides)

    def end(self, name, how):
        """Send a signal to ``gateway`` or to the node of that number, and wait until it is gone."""
        process = self._running[name].process
        process.send_signal(how)
        process.wait(30)

    def stop(self):
        for service in self._running.values():
            service.stop()

    def endpoint(self, node):
        return self._running[node].otlp

    def come(self):
        """How many spans the gateway has kept, over all of its lives; one that is there twice counts once."""
        for life in self._lives:
            if (file := life / "kept.jsonl").exists():
                with file.open("rb") as kept:
                    kept.seek(self._read.get(life, 0))
                    lines = kept.read().rpartition(b"\n")
                self._read[life] = self._read.get(life, 0) + len(lines[0]) + len(lines[1])
                self._ids.update(re.findall(rb'"spanId":"(\w+)"', lines[0]))
        return len(self._ids)

    def spans(self):
        """The same spans, with all that they say, as often as they are there."""
        requests = [one for life in self._lives for one in keeping.whole_lines(life / "kept.jsonl")]
        return [span for request in requests for span in keeping.spans_of(request)]

    def counted(self, name, *labels):
        """The newest values that the gateway serves to Prometheus, summed by these labels."""
        return summed(self._gateway_ports.metrics, name, labels)

    def page(self):
        """How many bytes and lines the gateway serves to Prometheus at once."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._gateway_ports.metrics}/metrics", timeout=60) as answer:
            text = answer.read()
        return len(text), text.count(b"\n")

    def queue_file(self, node):
        """Where the spans of a node wait."""
        return self._folder / f"node{node}" / "queue" / "exporter_otlp_grpc_gateway_traces"

    def own(self, level, name, *labels):
        """What the gateway, or the node of that number, says of itself."""
        ports = self._gateway_ports if level == "gateway" else self._node_ports[level]
        return summed(ports.own, f"otelcol_{name}", labels)

    def queued(self, node, signal):
        """How many bytes of ``traces`` or ``metrics`` wait on a node."""
        return self.own(node, "exporter_queue_size", "data_type").get((signal,), 0.0)


class Node:
    """The ranks of a node, which do as they are told: see ``node_ranks.py``."""

    def __init__(self, number, ranks, endpoint, environ, folder):
        own = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "fan-in"}
        often = {"OTEL_METRIC_EXPORT_INTERVAL": "2000", "OTEL_BSP_SCHEDULE_DELAY": "200"}
        self._log = folder / f"ranks-of-node{number}.log"
        script = Path(__file__).with_name("node_ranks.py")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(script), str(number), *map(str, ranks)],
                env=environ | own | often | {"PYTHONPATH": os.fspath(ROOT)}, cwd=folder,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def tell(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        assert line, self._log.read_text()
        return json.loads(line)

    def stop(self):
        self.process.kill()
        self.process.communicate()


def all_do(nodes, line):
    """Tell the ranks of all nodes to do that, and return their answers once all are there."""
    for node in nodes:
        node.tell(line)
    return [node.answer() for node in nodes]
