"""Phoenix, whose gRPC port is open to loopback alone: it has a setting for the host of its HTTP port, not for this one."""

from __future__ import annotations

import grpc.aio._server as aio
from phoenix.server.main import main

listen = aio.Server.add_insecure_port


def add_insecure_port(server: aio.Server, address: str) -> int:
    return listen(server, address.replace("[::]", "127.0.0.1"))


aio.Server.add_insecure_port = add_insecure_port
main()
