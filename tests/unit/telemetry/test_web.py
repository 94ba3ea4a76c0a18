"""Whoever connects to the endpoint, and however: it takes few descriptors and no threads, and scrapes get through."""

from __future__ import annotations

import os
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from syncagent.telemetry import web
from tests import processes

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors as Linux lists them")

HOST, PORT = "127.0.0.1", processes.free_port()


class Page(web.Request):
    def do_GET(self):
        if self.path == "/broken":
            raise RuntimeError("no")
        self.send_response(200)
        self.send_header("X-Asked", self.headers.get("Accept", ""))
        self.end_headers()
        self.wfile.write(b"x" * 20_000_000 if self.path == "/large" else f"GET {self.path} ".encode() * 1000)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(web, "REQUEST_S", 0.5)
    monkeypatch.setattr(web, "ANSWER_S", 0.5)
    monkeypatch.setattr(web, "_PAUSE_S", 0.1)
    one = web.Server(HOST, PORT, Page, "a-server")
    yield one
    one.close()


@pytest.fixture
def connect(server):
    """Open a connection and send something."""
    opened = []

    def connected(*pieces):
        one = socket.create_connection((HOST, PORT), 5)
        opened.append(one)
        for piece in pieces:
            one.sendall(piece)
        return one

    yield connected
    for one in opened:
        one.close()


def scraped(server):
    with urllib.request.urlopen(f"http://{HOST}:{PORT}/metrics?a=b", timeout=5) as answer:
        return answer.read()


def received(one):
    """All that comes until the other side closes; nothing where it has reset the connection."""
    found = b""
    try:
        while piece := one.recv(65536):
            found += piece
    except ConnectionError:
        pass
    return found


def held():
    return len(os.listdir("/proc/self/fd"))


def sockets():
    found = 0
    for one in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{one}").startswith("socket:")
        except OSError:
            pass  # the one by which they were listed
    return found


def until(found):
    ending = time.monotonic() + 10
    while not found() and time.monotonic() < ending:
        time.sleep(0.01)
    return found()


def test_it_answers_what_the_page_says(server):
    assert scraped(server) == b"GET /metrics?a=b " * 1000
    with urllib.request.urlopen(
        urllib.request.Request(f"http://{HOST}:{PORT}/ab", headers={"Accept": "x"}), timeout=5
    ) as answer:
        assert answer.headers["X-Asked"] == "x"
        assert answer.read(8) == b"GET /ab "


def test_a_page_that_fails_is_an_answer_too(server, capsys):
    """And one line in the log."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://{HOST}:{PORT}/broken", timeout=5)
    assert caught.value.code == 500
    caught.value.close()
    assert scraped(server)
    (line,) = capsys.readouterr().err.splitlines()
    assert "RuntimeError" in line


def test_connections_that_send_nothing_take_few_descriptors_and_no_threads(server, connect):
    """And keep no other connection out."""
    before, threads = held(), threading.active_count()
    idle = [connect() for _ in range(60)]
    assert scraped(server)
    assert held() - before - len(idle) <= web.CONNECTIONS + 1
    assert threading.active_count() == threads
    assert all(received(one) == b"" for one in idle[: -web.CONNECTIONS])  # they gave way to the later ones


def test_one_that_sends_a_byte_now_and_then_is_closed(server, connect):
    """The time is for the whole request."""
    slow = connect(b"GET / HTTP/1.1\r\n")

    def is_closed():
        try:
            slow.sendall(b"a: b\r\n")
            time.sleep(0.05)
        except ConnectionError:
            return True
        return False

    assert until(is_closed)
    assert scraped(server)


def test_one_that_does_not_take_its_answer_is_closed(server, connect):
    before = held()
    connect(b"GET /large HTTP/1.1\r\n\r\n")
    assert until(lambda: held() == before + 2)
    assert until(lambda: held() == before + 1)


@pytest.mark.parametrize(
    ("request_", "begins"),
    [
        (b"\r\n\r\n", b""),
        (b"\x16\x03\x01\x02\x00\x01\n\n", b""),
        (b"GET /\r\n\r\n", b"GET / "),  # HTTP/0.9
        (b"POST / HTTP/1.1\r\n\r\n", b"HTTP/1.0 501 "),
        (b"GET / HTTP/1.1\n\n", b"HTTP/1.0 200 "),
        (b"GET / HTTP/1.0\r\nno colon\r\n: \r\n\r\n", b"HTTP/1.0 200 "),
        (b"a" * 20_000, b""),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000, b""),
    ],
)
def test_a_request_of_any_kind_is_answered_or_closed(server, connect, request_, begins):
    assert received(connect(request_)).startswith(begins)
    assert scraped(server)


def test_one_that_has_no_more_to_say_is_answered_or_closed(server, connect):
    """Half a request is none; a whole one is answered."""
    for request_, begins in ((b"GET / HT", b""), (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.0 200 ")):
        one = connect(request_)
        one.shutdown(socket.SHUT_WR)
        assert received(one)[:13] == begins


def test_a_process_without_a_descriptor_left_is_not_kept_busy_and_serves_again(server, monkeypatch):
    import resource

    tries, accept = [], socket.socket.accept
    monkeypatch.setattr(socket.socket, "accept", lambda listener: tries.append(1) or accept(listener))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as one, socket.socket() as free:
        lowest = free.fileno()
        free.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
        try:
            one.connect((HOST, PORT))
            assert until(lambda: tries)
            time.sleep(0.3)
            assert len(tries) <= 10  # each time that its pause of 0.1 s is over, and not thousands
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        one.sendall(b"GET / HTTP/1.1\r\n\r\n")
        one.settimeout(5)
        assert received(one).startswith(b"HTTP/1.0 200")


def test_closed_it_leaves_nothing_behind():
    before, threads = held(), threading.active_count()
    one = web.Server(HOST, PORT, Page, "a-server")
    with socket.create_connection((HOST, PORT), 5):
        one.close()
    assert (held(), threading.active_count()) == (before, threads)


def test_where_it_cannot_listen_it_leaves_nothing_behind(server):
    before = held()
    with pytest.raises(OSError):
        web.Server(HOST, PORT, Page, "a-server")
    assert held() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_none_of_its_sockets_and_the_parent_serves_on(server, connect):
    """Those of connections included: the other side sees the end of its answer though the child lives on."""
    connect()
    assert scraped(server)
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.write(into, b"%d" % sockets())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(out, 10)) == sockets() - 2  # its listener and its connection
    os.close(out)
    os.close(into)
    assert scraped(server)
