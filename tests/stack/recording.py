"""Stands between a job and Phoenix: passes each OTLP/HTTP request on as it is, and keeps the spans that were in it."""

from __future__ import annotations

import gzip
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

DECODE = {None: bytes, "gzip": gzip.decompress}


class Recording:
    def __init__(self, to):
        self.spans = []
        kept = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                decoded = DECODE[self.headers["Content-Encoding"]](body)
                kept.extend(spans_of(ExportTraceServiceRequest.FromString(decoded)))
                names = ("Content-Type", "Content-Encoding")
                headers = {name: self.headers[name] for name in names if self.headers[name]}
                try:
                    answer = urllib.request.urlopen(urllib.request.Request(to + self.path, body, headers), timeout=30)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    said = answer.read()
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers.get("Content-Type", "application/x-protobuf"))
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def spans_of(request):
    return [
        {
            "name": span.name,
            "trace": span.trace_id.hex(),
            "id": span.span_id.hex(),
            "parent": span.parent_span_id.hex() or None,
            "start_ns": span.start_time_unix_nano,
            "end_ns": span.end_time_unix_nano,
            "attributes": {pair.key: plain(pair.value) for pair in span.attributes},
        }
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def plain(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind)
