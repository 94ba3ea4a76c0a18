"""Writes the capture: all that was seen so far, once per second, so that even a killed process leaves a report.

Each line is JSON: a header, the run, each site in full once and afterwards only its sums, the totals, and the newest
steps and syncs.  ``syncagent.report.captured`` reads it back.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from syncagent._version import __version__
from syncagent.delivery.folder import DIRECTORY, make_directory, own_temporary_folder, remove_old
from syncagent.delivery.sink import Sink, Source
from syncagent.report import origins, places
from syncagent.report.captured import HOST_SUMS, SUMS, VERSION
from syncagent.report.decode import encode
from syncagent.report.model import SCHEMA, HostRow
from syncagent.report.summary import Facts, Since, Summary
from syncagent.support import storage
from syncagent.support.log import log_once
from syncagent.support.pace import yield_gil

MAX_BYTES = 16 * 1024 * 1024
_INTERVAL_S = 1.0
_SHARE = 0.01
"""The share of its time that the agent's thread may spend on it; if it takes more, it is written less often."""
_PATIENCE_S = 2.0
_EVENTS_AT_ONCE = 200
_MOST_EVENTS = 10_000


class Capture(Sink):
    """Writes what the summary has added up.

    Nothing is written before the first sync.  A file that is full is rewritten without the older syncs and steps.
    After an error, which is raised once, nothing more is written; it then lacks the line that says that the process has
    ended by itself.
    """

    name = "capture"

    def __init__(self, path: Path, *, mode: int = storage.DEFAULT_MODE, max_bytes: int = MAX_BYTES) -> None:
        self._wanted = path
        self._mode = mode
        self._max_bytes = max_bytes
        self._source: Source | None = None
        self.path: Path | None = None
        """The file in use; ``None`` until something is written."""
        self._file: int | None = None
        self._size = 0
        self._is_off = False
        self._writing = threading.Lock()
        """Held by the agent's thread, or by one that ends the agent, perhaps in a signal handler."""
        self._since = Since()
        self._rows: dict[int, dict[str, Any]] = {}
        self._host: dict[tuple[str, str, int], tuple[int, HostRow]] = {}
        """The rows of host time as they were written last, by cause and line, with the number of each."""
        self._due_s = 0.0
        self._known: Facts | None = None
        self._part = 0

    def connect(self, source: Source) -> None:
        self._source = source

    def flush(self) -> None:
        """Write everything that is new, after what another thread is writing just now."""
        if not self._writing.acquire(timeout=_PATIENCE_S):
            return  # a disk that hangs
        try:
            self._update()
        finally:
            self._writing.release()

    def close(self) -> None:
        """Write the rest, and a line that says that the process has ended by itself."""
        if not self._writing.acquire(timeout=_PATIENCE_S):
            return  # a disk that hangs
        try:
            self._update()
            if self._file is not None and not self._is_off:
                self._write([_line(type="end", t=time.time())])
        finally:
            self._is_off = True
            self._close_file()
            self._writing.release()

    def tick(self) -> None:
        """Write what is new if that is due and no other thread is doing it."""
        if self._is_off or time.monotonic() < self._due_s or not self._writing.acquire(blocking=False):
            return
        try:
            self._update()
        finally:
            self._writing.release()

    def _update(self) -> None:
        if self._is_off or self._source is None:
            return
        summary = self._source.summary
        if not summary.recorded or (self._since.events, self._since.steps) == summary.seen:
            return
        cpu_s = time.thread_time()
        try:
            self._write_news(summary, self._source.facts())
        except BaseException:
            self._is_off = True
            raise
        self._due_s = time.monotonic() + max(_INTERVAL_S, (time.thread_time() - cpu_s) / _SHARE)

    def _write_news(self, summary: Summary, facts: Facts) -> None:
        facts = facts._replace(run=replace(facts.run, part=self._part))
        if self._file is None:
            self._open(summary, facts)
            return
        lines = [*self._lines(summary, facts, _EVENTS_AT_ONCE)]
        if self._size + sum(map(len, lines)) > self._max_bytes:
            self._rewrite(summary, facts)
        else:
            self._write(lines)

    def _open(self, summary: Summary, facts: Facts) -> None:
        try:
            self._open_at(self._wanted, summary, facts)
        except OSError as error:
            elsewhere = own_temporary_folder() / self._wanted.name
            log_once("capture-moved", "the capture is elsewhere", path=elsewhere, wanted=self._wanted, reason=error)
            self._open_at(elsewhere, summary, facts)

    def _open_at(self, wanted: Path, summary: Summary, facts: Facts) -> None:
        make_directory(wanted.parent)
        if wanted.parent.name == DIRECTORY or wanted is not self._wanted:
            remove_old("capture", wanted.parent)
        placed = places.place(
            wanted,
            origins.of_run(facts.run),
            lambda part: self._whole(summary, facts._replace(run=replace(facts.run, part=part))),
            mode=self._mode,
        )
        assert placed is not None
        path, self._part = placed
        if self._part:
            log_once(
                "capture-part",
                "the capture has a number in its name: another process writes the one without",
                level="info",
                capture=path,
                other=wanted,
            )
        self._continue(path)

    def _rewrite(self, summary: Summary, facts: Facts) -> None:
        assert self.path is not None
        text = self._whole(summary, facts)
        self._max_bytes = max(self._max_bytes, 2 * len(text))
        storage.write_atomically(self.path, text, mode=self._mode)
        self._continue(self.path)

    def _continue(self, path: Path) -> None:
        """Append to what has just been written there."""
        self._close_file()
        self._file = storage.append_to(path, mode=self._mode)
        storage.lock(self._file)  # says that the process is still running
        self._size = os.fstat(self._file).st_size
        self.path = path

    def _close_file(self) -> None:
        before, self._file = self._file, None
        if before is not None:
            os.close(before)

    def _whole(self, summary: Summary, facts: Facts) -> str:
        """Return the text of the whole file, as of now."""
        self._since, self._rows, self._host, self._known = Since(), {}, {}, None
        header = _line(
            type="header", capture=VERSION, syncagent=__version__, schema=SCHEMA,
            **{origins.KEY: origins.of_run(facts.run).to_dict()},
        )  # fmt: skip
        return b"".join((header, *self._lines(summary, facts, _MOST_EVENTS))).decode()

    def _lines(self, summary: Summary, facts: Facts, most: int) -> Iterator[bytes]:
        """Yield the lines of what has changed, the totals last: all lines before them are as of the same moment."""
        now, changes = time.time(), summary.changes(self._since)
        # The run's line has what hardly ever changes.
        known = facts._replace(run=replace(facts.run, duration_s=0.0, steps=0), dropped=0, host=())
        if known != self._known:
            self._known = known
            yield _line(
                type="run", t=now, run=encode(facts.run), sensors=encode(facts.sensors),
                notes=list(facts.notes),
            )  # fmt: skip
        for row in changes.sites:
            values = encode(row)
            sums = {name: values.pop(name) for name in SUMS}
            site = values.pop("id")
            if self._rows.get(site) != values:
                self._rows[site] = values
                yield _line(type="site", t=now, site=site, **values, **sums)
            else:
                yield _line(type="sums", t=now, site=site, **sums)
            yield_gil()
        yield from self._host_lines(now, facts.host)
        for event in changes.events[-most:]:
            yield _line(type="event", **encode(event))
            yield_gil()
        # A step of which more has become known is written again; the last line of it holds.
        for step in (*changes.step_times[-most:], *changes.late_steps[-most:]):
            yield _line(type="step", **encode(step))
            yield_gil()
        yield _line(
            type="totals", t=now, duration_s=facts.run.duration_s, steps=changes.steps, step_ms=changes.step_ms,
            step_stall_ms=changes.step_stall_ms, stalled_ms=changes.stalled_ms, events=self._since.events,
            dropped=facts.dropped,
        )  # fmt: skip

    def _host_lines(self, now: float, rows: Sequence[HostRow]) -> Iterator[bytes]:
        """Yield the lines of the rows of host time that have been found again since."""
        keys = {(row.cause, row.file, row.line): row for row in rows}
        gone = {key: replace(row, count=0, ms=0.0) for key, (_, row) in self._host.items() if key not in keys}
        for key, row in (keys | gone).items():
            number, before = self._host.get(key, (len(self._host), None))
            self._host[key] = number, row
            if before is None:
                yield _line(type="host", t=now, host=number, **encode(row))
            elif before.count != row.count:
                yield _line(type="host_sums", t=now, host=number, **{name: getattr(row, name) for name in HOST_SUMS})
            yield_gil()

    def _write(self, lines: Sequence[bytes]) -> None:
        assert self._file is not None
        rest = memoryview(b"".join(lines))
        while rest:
            written = os.write(self._file, rest)
            self._size += written
            rest = rest[written:]


def _line(**values: Any) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"
