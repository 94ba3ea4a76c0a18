"""Which file a process writes to, so that no process of a run overwrites that of another: ``x.json``, ``x.1.json``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from syncagent.report.origins import Origin, origin_of, same_run
from syncagent.support import storage
from syncagent.support.report_formats import SUFFIXES

_TRIES = 100


def place(
    file: Path, origin: Origin, text_of: Callable[[int], str], *, mode: int, may_add: bool = True
) -> tuple[Path, int] | None:
    """Write a file of this process; return where it went and the number that its name got, or 0.

    The file of another run is replaced, and its numbered files are removed.  The file of another process of the same
    run stays: the name of ours gets the first free number or, without ``may_add``, ``None`` is returned and nothing is
    written.  ``text_of`` makes the text, given the number.  Raises ``OSError``.
    """
    if os.path.exists(file) and not os.path.isfile(file) and not os.path.isdir(file):
        raise OSError(f"{os.fspath(file)!r} is not a regular file")  # as root, /dev/null itself would be replaced
    before = origin.process, os.path.abspath(file)
    with storage.locked_folder(file.parent):
        part = _added_before.get(before, 0)
        own = origin_of(numbered(file, part)) if part else None
        if own is not None and own.process == origin.process:  # it has saved before, on a signal
            storage.write_atomically(numbered(file, part), text_of(part), mode=mode)
            return numbered(file, part), part
        for _ in range(_TRIES):
            if not os.path.lexists(file):
                try:
                    storage.write_new(file, text_of(0), mode=mode)
                except FileExistsError:
                    continue
                break
            there = origin_of(file)
            is_free = there is None or there.process == origin.process or not same_run(there, origin)
            if is_free and not storage.is_locked(file):
                storage.write_atomically(file, text_of(0), mode=mode)
                break
            if not may_add:
                return None
            part = _added_before[before] = _add(file, text_of, mode)
            return numbered(file, part), part
        _remove_parts_of_other_runs(file, origin)
        return file, 0


def numbered(file: Path, number: int) -> Path:
    """The name with a number in it."""
    suffix = _suffix(file.name)
    return file.with_name(f"{file.name.removesuffix(suffix)}.{number}{suffix}")


def parts_of(file: Path) -> list[Path]:
    """The numbered files beside a file, in the order of their numbers."""
    return [numbered(file, number) for number in _numbers(file)]


def _numbers(file: Path) -> list[int]:
    suffix = _suffix(file.name)
    pattern = re.compile(rf"{re.escape(file.name.removesuffix(suffix))}\.([1-9]\d{{0,5}}){re.escape(suffix)}")
    try:
        names = os.listdir(file.parent)
    except OSError:
        return []
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


def _suffix(name: str) -> str:
    suffixes = [suffix for suffix in SUFFIXES.values() if name.endswith(suffix)]
    return max(suffixes, key=len, default=os.path.splitext(name)[1])


_added_before: dict[tuple[str, str], int] = {}


def _add(file: Path, text_of: Callable[[int], str], mode: int) -> int:
    number = 1 + max(_numbers(file), default=0)
    while True:
        with suppress(FileExistsError):
            storage.write_new(numbered(file, number), text_of(number), mode=mode)
            return number
        number += 1


def _remove_parts_of_other_runs(file: Path, origin: Origin) -> None:
    for part in parts_of(file):
        found = origin_of(part)
        if found is not None and found.part and not same_run(found, origin):
            with suppress(OSError):  # it is not read either: it says which run it is of
                part.unlink()
