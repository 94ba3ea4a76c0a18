"""A web server for one small page that takes next to nothing of the process it is in, whoever connects to it.

One thread, a few connections, and a limit on what each may send, may be sent and may take its time for: those of the
standard library have a thread and a file descriptor for each connection, for as long as the other side likes, and a job
that has no descriptor left cannot write its checkpoint.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Application = Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]

__all__ = ["Server"]

CONNECTIONS = 8
REQUEST_S = 5.0
"""From the connection to the last byte of its request's head: a Prometheus sends it at once."""
ANSWER_S = 10.0
"""To take the answer, as long as a scrape may by default."""
HEAD_BYTES = 8192
_BACKLOG = 64
"""Those wait in the kernel, and take nothing of the process."""
_REST_S = 1.0
"""So long nobody is let in after the process had no descriptor left."""
_CLOSE_S = 5.0

_open: weakref.WeakSet[Server] = weakref.WeakSet()
_is_registered = False


class _Connection:
    """One client: its request comes in, then its answer goes out, then it is closed."""

    __slots__ = ("answer", "ending", "head", "socket")

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.head = b""
        self.answer = memoryview(b"")
        self.ending = time.monotonic() + REQUEST_S


class Server:
    """Serves what a WSGI application answers to requests without a body; raises ``OSError`` where it cannot listen.

    A forked child lets go of its copies of the sockets, so that the port is free when its parent has closed them.
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
        self._resting_until: float | None = None
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
        _let_go_in_forked_children(self)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of the port and of every connection; bounded, should an answer be in the making."""
        self._is_closed = True
        try:
            self._wake.send(b".")
        except OSError:
            pass
        self._thread.join(_CLOSE_S)
        self.let_go()

    def let_go(self) -> None:
        """Close the sockets of this process, and nothing else."""
        _open.discard(self)
        for one in (self._listener, self._wake, self._woken, *(c.socket for c in list(self._connections.values()))):
            try:
                one.close()
            except OSError:
                pass

    # --- on the server's thread

    def _serve(self) -> None:
        while True:
            try:
                ready = self._selector.select(self._patience_s())
                if self._is_closed:
                    return
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.data, _Connection):
                        self._move(key.data)
                self._look_at_the_clock()
            except Exception:
                time.sleep(_REST_S)  # whatever it is, it is not to keep a core busy

    def _patience_s(self) -> float | None:
        endings = [connection.ending for connection in self._connections.values()]
        if self._resting_until is not None:
            endings.append(self._resting_until)
        return max(min(endings) - time.monotonic(), 0.0) if endings else None

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        for connection in [one for one in self._connections.values() if one.ending <= now]:
            self._drop(connection)
        if self._resting_until is not None and self._resting_until <= now:
            self._resting_until = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError:  # the process has no descriptor left, and whoever waits would be announced again and again
            self._selector.unregister(self._listener)
            self._resting_until = time.monotonic() + _REST_S
            return
        try:
            accepted.setblocking(False)
            if len(self._connections) >= CONNECTIONS:
                # The one that has taken the longest gives way: who means it has sent a request by now.
                self._drop(min(self._connections.values(), key=lambda one: (bool(one.answer), one.ending)))
            connection = _Connection(accepted)
            self._selector.register(accepted, selectors.EVENT_READ, connection)
        except BaseException:
            accepted.close()
            raise
        self._connections[accepted.fileno()] = connection

    def _move(self, connection: _Connection) -> None:
        """Take in what has come, or send what can be sent."""
        if self._connections.get(connection.socket.fileno()) is not connection:
            return  # dropped in this very round
        try:
            if connection.answer:
                connection.answer = connection.answer[connection.socket.send(connection.answer) :]
            else:
                self._hear(connection)
            if not connection.answer and _is_whole(connection.head):
                self._drop(connection)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._drop(connection)

    def _hear(self, connection: _Connection) -> None:
        received = connection.socket.recv(HEAD_BYTES)
        connection.head += received
        if not received or (len(connection.head) > HEAD_BYTES and not _is_whole(connection.head)):
            self._drop(connection)
        elif _is_whole(connection.head):
            connection.answer = memoryview(_answer(connection.head, self._application))
            connection.ending = time.monotonic() + ANSWER_S
            self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.socket.fileno(), None)
        try:
            self._selector.unregister(connection.socket)
        except (KeyError, ValueError):
            pass
        connection.socket.close()


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


def _let_go_in_forked_children(server: Server) -> None:
    """Children have the parent's sockets: one that outlives it would keep its port, and answer nobody."""
    global _is_registered
    _open.add(server)
    if not _is_registered and hasattr(os, "register_at_fork"):
        _is_registered = True
        os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    for server in list(_open):
        server.let_go()
