"""A web server for one small page that costs its process next to nothing, whoever connects to it.

The servers of the standard library give each connection a thread, or wait for one as long as its client likes; and a
job that has no descriptor left cannot write its checkpoint.  Here there is one thread, and there are eight connections
at most.  One that sends nothing keeps no other out; those that send are served one after the other, within limits of
time and size.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from io import BytesIO

from syncagent.support import forks
from syncagent.support.log import log_once
from syncagent.support.threads import AgentThread

CONNECTIONS = 8
REQUEST_S = 1.0
"""From a request's first byte to the end of its head: Prometheus sends it at once."""
ANSWER_S = 5.0
"""For the client to take the answer."""
HEAD_BYTES = 8192
_BACKLOG = 64
"""They wait in the kernel and cost the process nothing."""
_PAUSE_S = 1.0
"""For how long nothing is accepted after the process had no descriptor left; and how often the thread looks up."""


class Request(BaseHTTPRequestHandler):
    """Answers a request without a body.  Its head is read whole, and its answer sent whole, within the limits."""

    def setup(self) -> None:
        ending, head = time.monotonic() + REQUEST_S, b""
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            self.request.settimeout(max(ending - time.monotonic(), 0.001))
            received = self.request.recv(HEAD_BYTES)
            head += received
            if not received or len(head) > HEAD_BYTES:
                raise ConnectionError("no whole request")
        self.rfile, self.wfile = BytesIO(head), BytesIO()

    def handle(self) -> None:
        try:
            super().handle()
        except Exception as error:
            log_once("page", "a page could not be made", error=repr(error))
            self.send_error(500)

    def finish(self) -> None:
        self.request.settimeout(ANSWER_S)  # for all of it
        self.request.sendall(self.wfile.getvalue())  # type: ignore[attr-defined]  # it is the BytesIO from above

    def log_message(self, *_args: object) -> None:
        """Write nothing to the program's stderr."""


class Server:
    """Has each connection answered by ``page``; raises ``OSError`` where it cannot listen.

    A forked child closes its copies of the sockets, so that the port is free once its parent has closed them.
    """

    def __init__(self, host: str, port: int, page: type[Request], name: str) -> None:
        if not hasattr(select, "poll"):
            raise OSError("this system has no poll()")
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        self._listener = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        self._listener.setblocking(False)
        self._page = page
        self._clients: list[socket.socket] = []
        self._is_closed = False
        forks.call_in_children(self.close_sockets)
        self._thread = AgentThread(target=self._serve, name=name)
        self._thread.start()

    def close(self) -> None:
        """Close the port and every connection; waits a bounded time for an answer that is being made."""
        self._is_closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join(ANSWER_S)
        self.close_sockets()

    def close_sockets(self) -> None:
        """Close the sockets of this process, and nothing else."""
        for one in (self._listener, *self._clients):
            one.close()

    # --- on the server's thread

    def _serve(self) -> None:
        while not self._is_closed:
            try:
                self._serve_ready()
            except Exception:
                time.sleep(_PAUSE_S)  # whatever it is, such as no descriptor left, it must not keep a core busy

    def _serve_ready(self) -> None:
        poll = select.poll()  # it has no descriptor of its own, and no limit on the numbers of others
        for one in (self._listener, *self._clients):
            poll.register(one, select.POLLIN)
        ready = {number for number, _ in poll.poll(_PAUSE_S * 1e3)}
        if self._is_closed:
            return
        for client in [one for one in self._clients if one.fileno() in ready]:
            with client, suppress(Exception):  # it sends too little, too late or too much, or takes nothing
                self._page(client, ("", 0), None)  # type: ignore[arg-type]  # it asks nothing of a server
            self._clients.remove(client)
        if self._listener.fileno() in ready:
            self._clients.append(self._listener.accept()[0])
            if len(self._clients) > CONNECTIONS:  # the oldest gives way: who means it has sent a request by now
                self._clients.pop(0).close()
