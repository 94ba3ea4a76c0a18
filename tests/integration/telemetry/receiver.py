"""An OTLP/HTTP receiver in a process of its own: ``receiver.py MODE FILE``.

Prints the port it listens on, and appends each span it takes to FILE as a line of JSON.  Modes: ``ok``; ``500``, which
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
        if mode != "ok" or self.path != "/v1/traces" or self.headers["Content-Type"] != "application/x-protobuf":
            self.answer({"500": 500, "flaky": 503}.get(mode, 400), b"")
            return
        request = otlp.ExportTraceServiceRequest.FromString(DECODE[self.headers["Content-Encoding"]](body))
        with Handler.lock, Path(Handler.file).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(request))
        self.answer(200, otlp.ExportTraceServiceResponse().SerializeToString())

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
