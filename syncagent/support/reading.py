"""Files that the agent reads: regular ones only, no larger than expected, and never with a wait for a writer."""

from __future__ import annotations

# Settings are read in every interpreter that inherits the variable: nothing heavy here.
import os
import stat
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

MIB = 1024 * 1024
REPORT_BYTES = 64 * MIB
"""A report holds a few thousand rows; one of a thousand sites has about 1 MiB."""

_NONBLOCK = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_CHUNK = MIB
_RATIO, _SMALL = 100, 64 * MIB


class TooLargeError(OSError):
    """A file is larger than what may be read of it."""

    def __init__(self, most: int, unit: str = "") -> None:
        shown = f"{most // MIB:,} MiB" if most >= MIB else f"{most:,} bytes"
        super().__init__(f"it has more than {shown}{unit}")


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file and return its descriptor.

    Raises ``OSError`` with a reason for anything else.  Nothing else is even opened, since opening a pipe waits for
    whoever writes into it, and opening a device may do something.
    """
    _refuse_irregular(os.stat(path).st_mode)
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK | _BINARY)
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode)  # it may have been exchanged meanwhile
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read(path: str | os.PathLike[str], most: int) -> bytes:
    """Return what is in a regular file; raise ``OSError`` where that is more than ``most`` bytes, or cannot be read."""
    with open(open_regular(path), "rb", buffering=0) as stream:
        if os.fstat(stream.fileno()).st_size > most:
            raise TooLargeError(most)
        return b"".join(_bounded(iter(partial(stream.read, _CHUNK), b""), most))


def begin(path: str | os.PathLike[str], count: int, most: int) -> bytes:
    """Return the first bytes of a regular file; raise ``OSError`` where :func:`read` would."""
    with open(open_regular(path), "rb", buffering=0) as stream:
        if os.fstat(stream.fileno()).st_size > most:
            raise TooLargeError(most)
        return stream.read(count)


def unpacked(content: bytes, most: int) -> bytes:
    """Return what is in a gzip file of one or more members, which may be at most ``most`` bytes.

    One that unpacks to a hundred times its size, and is large then, is no trace or report: it would take the memory
    before it is refused.

    Raises :class:`TooLargeError` before more than that has been unpacked, ``zlib.error`` for what is no gzip, and
    ``EOFError`` for what has no end.
    """
    most = min(most, max(len(content) * _RATIO, _SMALL))
    return b"".join(_bounded(_unpacked(content), most, unit=" once it is unpacked"))


def from_json(content: bytes, *, strict: bool = True) -> Any:
    """Return the values in JSON; what is wrong with it is a ``ValueError`` with one line.

    Python's parser takes NaN and Infinity, which are no JSON; with ``strict`` they are refused.
    """
    import json

    try:
        return json.loads(content, parse_constant=_no_number if strict else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in {error.encoding}: {error.reason} at byte {error.start:,}") from None
    except ValueError as error:
        raise ValueError("it has a number of thousands of digits" if "digits" in str(error) else str(error)) from None


def source_lines(file: str) -> list[str]:
    """Return the lines of a source file as ``linecache`` knows them; none where the code came from no regular file.

    A script may be read from a pipe or from standard input, which must not be read once more.
    """
    import linecache

    if file not in linecache.cache:
        try:
            if not stat.S_ISREG(os.stat(file).st_mode):
                return []
        except ValueError:  # a NUL in the name
            return []
        except OSError:
            pass  # code of a notebook, of a zip file or of no file at all: linecache knows
    return linecache.getlines(file)


def reason(error: OSError) -> str:
    """Say what an error of the file system means, in words that fit behind a colon."""
    return error.strerror.lower() if error.strerror else str(error)


def _refuse_irregular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, not a regular file")


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _bounded(chunks: Iterable[bytes], most: int, unit: str = "") -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise TooLargeError(most, unit)
        yield chunk


def _unpacked(content: bytes) -> Iterator[bytes]:
    import zlib

    rest = content
    while rest:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            chunk = member.decompress(rest, _CHUNK)
            rest = member.unconsumed_tail
            if not chunk and not rest and not member.eof:
                raise EOFError
            yield chunk
        rest = member.unused_data.lstrip(b"\0")  # padding, as gzip allows


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")
