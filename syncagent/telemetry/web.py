"""A web server for one small page that costs its process next to nothing, whoever connects to it.

It has one thread, a few connections, and limits on the size and the time of each request.  The servers of the standard
library give each connection a thread and a file descriptor for as long as the client likes, and a job that has no
descriptor left cannot write its checkpoint.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from syncagent.support import forks

Application = Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]

CONNECTIONS = 8
REQUEST_S = 5.0
"""From the connection to the end of the request's head: Prometheus sends it at once."""
ANSWER_S = 10.0
"""For the client to take the answer, as long as a scrape may take by default."""
HEAD_BYTES = 8192
_BACKLOG = 64
"""They wait in the kernel and cost the process nothing."""
_PAUSE_S = 1.0
"""For how long no connection is accepted after the process had no descriptor left."""
_CLOSE_S = 5.0
_NOTHING = memoryview(b"")


@dataclass(slots=True, eq=False)
class _Connection:
    """One client: its request comes in, then its answer goes out, then it is closed."""

    client: socket.socket
    head: bytes = b""
    answer: memoryview = _NOTHING
    ending: float = field(default_factory=lambda: time.monotonic() + REQUEST_S)


class Server:
    """Serves what a WSGI application answers to requests without a body; raises ``OSError`` where it cannot listen.

    A forked child closes its copies of the sockets, so that the port is free once its parent has closed them.
    """

    def __init__(self, host: str, port: int, application: Application, name: str) -> None:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]  # fmt: skip
        self._application = application
        self._connections: dict[int, _Connection] = {}
        # Poll has no descriptor of its own that a forked child could share, and no limit on the numbers of descriptors.
        self._selector: selectors.BaseSelector = getattr(selectors, "PollSelector", selectors.DefaultSelector)()
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._paused_until: float | None = None
        self._is_closed = False
        try:
            if os.name == "posix":
                self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(address)
            self._listener.listen(_BACKLOG)
            self._listener.setblocking(False)
            self._wake, self._woken = socket.socketpair()
        except BaseException:
            self._listener.close()
            raise
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        # Children inherit the sockets: one that outlives its parent would keep the port and never answer.
        forks.call_in_children(self.close_sockets)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port and every connection; waits a bounded time for an answer that is being made."""
        self._is_closed = True
        with suppress(OSError):
            self._wake.send(b".")
        self._thread.join(_CLOSE_S)
        self.close_sockets()

    def close_sockets(self) -> None:
        """Close the sockets of this process, and nothing else."""
        for one in (self._listener, self._wake, self._woken, *(c.client for c in list(self._connections.values()))):
            with suppress(OSError):
                one.close()

    # --- on the server's thread

    def _serve(self) -> None:
        while True:
            try:
                endings = [connection.ending for connection in self._connections.values()]
                endings += [] if self._paused_until is None else [self._paused_until]
                ready = self._selector.select(max(min(endings) - time.monotonic(), 0.0) if endings else None)
                if self._is_closed:
                    return
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.data, _Connection):
                        self._serve_ready(key.data)
                self._drop_overdue()
            except Exception:
                time.sleep(_PAUSE_S)  # whatever it is, it must not keep a core busy

    def _drop_overdue(self) -> None:
        now = time.monotonic()
        for connection in [one for one in self._connections.values() if one.ending <= now]:
            self._drop(connection)
        if self._paused_until is not None and self._paused_until <= now:
            self._paused_until = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError:  # the process has no descriptor left, and whoever waits would be announced again and again
            self._selector.unregister(self._listener)
            self._paused_until = time.monotonic() + _PAUSE_S
            return
        try:
            accepted.setblocking(False)
            if len(self._connections) >= CONNECTIONS:
                # The oldest gives way: a client that means it has sent its request by now.
                self._drop(min(self._connections.values(), key=lambda one: (bool(one.answer), one.ending)))
            connection = _Connection(accepted)
            self._selector.register(accepted, selectors.EVENT_READ, connection)
        except BaseException:
            accepted.close()
            raise
        self._connections[accepted.fileno()] = connection

    def _serve_ready(self, connection: _Connection) -> None:
        """Receive what has come, or send what can be sent."""
        if self._connections.get(connection.client.fileno()) is not connection:
            return  # dropped in this very round
        try:
            if connection.answer:
                connection.answer = connection.answer[connection.client.send(connection.answer) :]
            else:
                self._receive(connection)
            if not connection.answer and _is_whole(connection.head):
                self._drop(connection)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._drop(connection)

    def _receive(self, connection: _Connection) -> None:
        received = connection.client.recv(HEAD_BYTES)
        connection.head += received
        if not received or (len(connection.head) > HEAD_BYTES and not _is_whole(connection.head)):
            self._drop(connection)
        elif _is_whole(connection.head):
            connection.answer = memoryview(_answer(connection.head, self._application))
            connection.ending = time.monotonic() + ANSWER_S
            self._selector.modify(connection.client, selectors.EVENT_WRITE, connection)

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.client.fileno(), None)
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection.client)
        connection.client.close()


def _is_whole(head: bytes) -> bool:
    return b"\r\n\r\n" in head or b"\n\n" in head


def _answer(head: bytes, application: Application) -> bytes:
    """The whole answer to a request, its connection being closed after it."""
    lines = head.decode("latin-1").replace("\r\n", "\n").partition("\n\n")[0].split("\n")
    words = lines[0].split()
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        return _page("400 Bad Request", [], b"")
    path, _, query = words[1].partition("?")
    environ: dict[str, Any] = {"REQUEST_METHOD": words[0], "PATH_INFO": unquote(path), "QUERY_STRING": query}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            environ[f"HTTP_{name.strip().upper().replace('-', '_')}"] = value.strip()
    started: list[tuple[str, list[tuple[str, str]]]] = []
    try:
        body = b"".join(application(environ, lambda status, headers: started.append((status, headers))))
    except Exception as error:
        return _page("500 Internal Server Error", [], f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    return _page(*started[0], body)


def _page(status: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    shown = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"HTTP/1.1 {status}\r\n{shown}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1", "replace") + body
