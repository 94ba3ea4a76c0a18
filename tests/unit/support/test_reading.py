"""What is read is a regular file of a bounded size, whatever stands at the path."""

from __future__ import annotations

import gzip
import os
import socket
import zlib

import pytest

from syncagent.support import reading


@pytest.fixture
def place(tmp_path):
    """``place(kind)``: a path at which there is something of that kind."""
    opened = []

    def make(kind):
        path = tmp_path / kind
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "socket":
            opened.append(socket.socket(socket.AF_UNIX))
            opened[-1].bind(str(path))
        elif kind == "link to a pipe":
            os.mkfifo(tmp_path / "target")
            path.symlink_to(tmp_path / "target")
        elif kind == "device":
            path.symlink_to("/dev/zero")
        return path

    yield make
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("pipe", "it is a pipe"),
        ("link to a pipe", "it is a pipe"),
        ("directory", "it is a directory"),
        ("socket", "it is a socket"),
        ("device", "it is a device"),
        ("nothing", "no such file or directory"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(place, kind, says):
    with pytest.raises(OSError) as caught:
        reading.read(place(kind), 100)
    assert says in reading.reason(caught.value)


def test_a_regular_file_is_read_up_to_its_bound(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 100)
    assert reading.read(tmp_path / "x", 100) == b"a" * 100
    with pytest.raises(reading.TooLargeError, match="it has more than 99 bytes"):
        reading.read(tmp_path / "x", 99)


def test_a_huge_file_is_refused_without_reading_it(tmp_path):
    with open(tmp_path / "x", "wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(reading.TooLargeError, match="it has more than 64 MiB"):
        reading.read(tmp_path / "x", reading.REPORT_BYTES)


def test_a_file_that_does_not_say_how_large_it_is_is_bounded_too():
    """As those of the kernel's, whose size is 0."""
    assert reading.read("/proc/self/status", 100_000).startswith(b"Name:")
    with pytest.raises(reading.TooLargeError):
        reading.read("/proc/self/status", 10)


def test_gzip_is_unpacked_up_to_its_bound():
    packed = gzip.compress(b"a" * 3_000_000) + gzip.compress(b"b") + b"\0" * 8
    assert reading.unpacked(packed, 3_000_001) == b"a" * 3_000_000 + b"b"
    with pytest.raises(reading.TooLargeError, match="once it is unpacked"):
        reading.unpacked(packed, 3_000_000)


def test_gzip_that_unpacks_to_a_hundred_times_its_size_is_refused_early():
    with pytest.raises(reading.TooLargeError, match="more than 64 MiB once it is unpacked"):
        reading.unpacked(gzip.compress(b" " * 100_000_000), 10**9)


@pytest.mark.parametrize("end", [5, 12, 40])
def test_gzip_without_an_end_is_distinguished_from_what_is_no_gzip(end):
    with pytest.raises(EOFError):
        reading.unpacked(gzip.compress(os.urandom(100))[:end], 1000)
    with pytest.raises(zlib.error):
        reading.unpacked(b"\x1f\x8bno gzip at all", 1000)


@pytest.mark.parametrize(
    "content",
    [b"NaN", b"[-Infinity]", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe\xff", b'"\xff"', b"1" * 5000, b"{", b""],
)
def test_what_is_no_json_is_a_value_error_of_one_line(content):
    with pytest.raises(ValueError) as caught:
        reading.from_json(content)
    assert len(str(caught.value).splitlines()) == 1


def test_json_may_begin_with_a_mark_of_its_encoding():
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert reading.from_json('{"ü": 1}'.encode(encoding)) == {"ü": 1}


def test_source_that_came_through_a_pipe_is_not_asked_for_again(place, tmp_path):
    """A script may have been ``python /dev/stdin`` or ``python <(...)``."""
    assert reading.source_lines(str(place("pipe"))) == []
    assert reading.source_lines(str(tmp_path / "nothing")) == []
    assert reading.source_lines("<string>") == []
    assert reading.source_lines("a\0b") == []
    (tmp_path / "x.py").write_text("one\ntwo\n")
    assert reading.source_lines(str(tmp_path / "x.py")) == ["one\n", "two\n"]
