"""An OTLP/HTTP receiver in a process of its own: ``receiver.py MODE FILE``.

Prints the port it listens on, and appends each span it takes to FILE as a line of JSON, and each data point of a metric
to FILE.metrics.  Modes: ``ok``; ``500``, which
answers that; ``hang``, which reads the request and never answers; ``flaky``, which answers 503 once; ``refuse``, which
closes the port again and ends.
"""

from __future__ import annotations

import gzip
import json
import socket
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as otlp_metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp

DECODE = {None: bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}


def plain(value: Any) -> object:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [plain(item) for item in value.array_value.values]
        case kind:
            return getattr(value, kind)


def rows(request: otlp.ExportTraceServiceRequest) -> list[dict]:
    return [
        {
            "name": span.name,
            "trace": span.trace_id.hex(),
            "id": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "start": span.start_time_unix_nano,
            "end": span.end_time_unix_nano,
            "attributes": {pair.key: plain(pair.value) for pair in span.attributes},
            "resource": {pair.key: plain(pair.value) for pair in of_resource.resource.attributes},
            "scope": of_scope.scope.name,
        }
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def points(request: otlp_metrics.ExportMetricsServiceRequest) -> list[dict]:
    return [
        {
            "name": metric.name,
            "unit": metric.unit,
            "type": metric.WhichOneof("data"),
            "attributes": {pair.key: plain(pair.value) for pair in point.attributes},
            "resource": {pair.key: plain(pair.value) for pair in of_resource.resource.attributes},
            "scope": of_scope.scope.name,
            "start": point.start_time_unix_nano,
            "time": point.time_unix_nano,
        }
        | (
            {"count": point.count, "sum": point.sum, "buckets": list(point.bucket_counts)}
            if metric.WhichOneof("data") == "histogram"
            else {"value": getattr(point, point.WhichOneof("value"))}
        )
        for of_resource in request.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    ]


TAKES = {
    "/v1/traces": (otlp.ExportTraceServiceRequest, otlp.ExportTraceServiceResponse, rows, ""),
    "/v1/metrics": (
        otlp_metrics.ExportMetricsServiceRequest,
        otlp_metrics.ExportMetricsServiceResponse,
        points,
        ".metrics",
    ),
}


class Handler(BaseHTTPRequestHandler):
    mode = "ok"
    file = ""
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with Handler.lock:
            mode = Handler.mode
            if mode == "flaky":
                Handler.mode = "ok"
        if mode == "hang":
            threading.Event().wait()
        if mode != "ok" or self.path not in TAKES or self.headers["Content-Type"] != "application/x-protobuf":
            self.answer({"500": 500, "flaky": 503}.get(mode, 400), b"")
            return
        request, response, read, suffix = TAKES[self.path]
        taken = read(request.FromString(DECODE[self.headers["Content-Encoding"]](body)))
        with Handler.lock, Path(Handler.file + suffix).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in taken)
        self.answer(200, response().SerializeToString())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


def main(mode: str, file: str) -> None:
    if mode == "refuse":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            print(closed.getsockname()[1], flush=True)
        return
    Handler.mode, Handler.file = mode, file
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
