"""An OTLP receiver in a process of its own: ``receiver.py MODE FILE [http|grpc [PORT]]``.

Prints the port it listens on, and appends each span it takes to FILE as a line of JSON, each data point of a metric to
FILE.metrics, each log record to FILE.logs, and the time of each request to FILE.requests.  Modes:

- ``ok``;
- ``500``, which answers that (gRPC: INTERNAL); ``401``, the same (UNAUTHENTICATED);
- ``hang``, which reads the request and never answers;
- ``flaky``, which answers 503 once (UNAVAILABLE); ``later:N``, which answers that with Retry-After: N once (RetryInfo);
- ``part``, which takes a request but for one span or data point of it, and says so;
- ``cut``, which takes half of the request and closes; ``short``, which takes all of it and closes within its answer;
- ``refuse``, which closes the port again and ends.
"""

from __future__ import annotations

import gzip
import json
import socket
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as otlp_logs
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
            "links": [{"trace": link.trace_id.hex(), "id": link.span_id.hex()} for link in span.links],
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
            {
                "count": point.count,
                "sum": point.sum,
                "buckets": list(point.bucket_counts),
                "exemplars": [[exemplar.trace_id.hex(), exemplar.span_id.hex()] for exemplar in point.exemplars],
            }
            if metric.WhichOneof("data") == "histogram"
            else {"value": getattr(point, point.WhichOneof("value"))}
        )
        for of_resource in request.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    ]


def records(request: otlp_logs.ExportLogsServiceRequest) -> list[dict]:
    return [
        {
            "body": record.body.string_value,
            "severity": record.severity_text,
            "trace": record.trace_id.hex(),
            "span": record.span_id.hex(),
            "attributes": {pair.key: plain(pair.value) for pair in record.attributes},
            "resource": {pair.key: plain(pair.value) for pair in of_resource.resource.attributes},
        }
        for of_resource in request.resource_logs
        for of_scope in of_resource.scope_logs
        for record in of_scope.log_records
    ]


TAKES = {
    "/v1/logs": (otlp_logs.ExportLogsServiceRequest, otlp_logs.ExportLogsServiceResponse, records, ".logs"),
    "/v1/traces": (otlp.ExportTraceServiceRequest, otlp.ExportTraceServiceResponse, rows, ""),
    "/v1/metrics": (
        otlp_metrics.ExportMetricsServiceRequest,
        otlp_metrics.ExportMetricsServiceResponse,
        points,
        ".metrics",
    ),
}


CODES = {"500": "INTERNAL", "401": "UNAUTHENTICATED", "flaky": "UNAVAILABLE", "later": "UNAVAILABLE"}


class Receiver:
    """What both protocols share: the mode it is in, and where it writes."""

    def __init__(self, mode: str, file: str) -> None:
        self._mode, _, after = mode.partition(":")
        self.after_s = int(after or 0)
        self._file = file
        self._lock = threading.Lock()

    def mode(self) -> str:
        """The mode for one more request."""
        with self._lock:
            mode = self._mode
            if mode in {"flaky", "later"}:
                self._mode = "ok"
            self._write(".requests", [{"at": time.time(), "mode": mode}])
            return mode

    def take(self, suffix: str, taken: list[dict]) -> None:
        with self._lock:
            self._write(suffix, taken)

    def _write(self, suffix: str, lines: list[dict]) -> None:
        with Path(self._file + suffix).open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


class Handler(BaseHTTPRequestHandler):
    receiver: Receiver

    def do_POST(self) -> None:
        mode = self.receiver.mode()
        length = int(self.headers["Content-Length"])
        if mode == "cut":
            self.rfile.read(length // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.rfile.read(length)
        if mode == "hang":
            threading.Event().wait()
        if mode == "short":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf of")
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if (
            mode not in {"ok", "part"}
            or self.path not in TAKES
            or self.headers["Content-Type"] != "application/x-protobuf"
        ):
            status = {"500": 500, "401": 401, "flaky": 503, "later": 503}.get(mode, 400)
            self.answer(status, b"", {"Retry-After": str(self.receiver.after_s)} if mode == "later" else {})
            return
        request, response, read, suffix = TAKES[self.path]
        taken, answer = read(request.FromString(DECODE[self.headers["Content-Encoding"]](body))), response()
        if mode == "part":
            del taken[0]
            answer.partial_success.error_message = "one is too old"
            field = "rejected_data_points" if suffix else "rejected_spans"
            setattr(answer.partial_success, field, 1)
        self.receiver.take(suffix, taken)
        self.answer(200, answer.SerializeToString())

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """The other side may have given up."""


def serve_grpc(receiver: Receiver, port: int) -> None:
    import grpc
    from google.protobuf.duration_pb2 import Duration
    from google.rpc.error_details_pb2 import RetryInfo
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

    def taker(path: str) -> Any:
        _, response, read, suffix = TAKES[path]

        def export(_self: object, request: Any, context: Any) -> Any:
            mode = receiver.mode()
            if mode == "hang":
                threading.Event().wait()
            if mode == "later":
                info = RetryInfo(retry_delay=Duration(seconds=receiver.after_s)).SerializeToString()
                context.set_trailing_metadata([("google.rpc.retryinfo-bin", info)])
            code = CODES.get(mode)
            if code is not None:
                context.abort(grpc.StatusCode[code], f"the receiver is in mode {mode}")
            receiver.take(suffix, read(request))
            return response()

        return export

    server = grpc.server(ThreadPoolExecutor(8))
    for module, name in (
        (trace_service_pb2_grpc, "Trace"),
        (metrics_service_pb2_grpc, "Metrics"),
        (logs_service_pb2_grpc, "Logs"),
    ):
        path = f"/v1/{name.lower()}".replace("trace", "traces")
        servicer = type(name, (getattr(module, f"{name}ServiceServicer"),), {"Export": taker(path)})
        getattr(module, f"add_{name}ServiceServicer_to_server")(servicer(), server)
    print(server.add_insecure_port(f"127.0.0.1:{port}"), flush=True)
    server.start()
    server.wait_for_termination()


def main(mode: str, file: str, protocol: str = "http", port: str = "0") -> None:
    if mode == "refuse":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            print(closed.getsockname()[1], flush=True)
        return
    receiver = Receiver(mode, file)
    if protocol == "grpc":
        serve_grpc(receiver, int(port))
        return
    Handler.receiver = receiver
    server = Server(("127.0.0.1", int(port)), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
