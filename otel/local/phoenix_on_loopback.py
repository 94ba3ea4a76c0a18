"""Phoenix with its gRPC port open to loopback alone: of its settings, PHOENIX_HOST is for the HTTP port only."""

from __future__ import annotations

import grpc.aio._server as aio
from phoenix.server.main import main

listen = aio.Server.add_insecure_port


def add_insecure_port(server: aio.Server, address: str) -> int:
    return listen(server, address.replace("[::]", "127.0.0.1"))


aio.Server.add_insecure_port = add_insecure_port
main()
