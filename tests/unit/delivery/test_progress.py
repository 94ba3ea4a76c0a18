"""The one quiet line of a long run."""

from __future__ import annotations

import io

import pytest

from syncagent.delivery.progress import Progress
from syncagent.events import Phase, StepRecord, SyncEvent, SyncKind
from syncagent.support import stderr

WIPE = "\x1b[2K"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stream(monkeypatch):
    """A terminal as the program's stderr."""
    terminal = Terminal()
    monkeypatch.setattr(stderr, "stream", lambda: terminal)
    return terminal


def sync(stall_s):
    return SyncEvent(
        "aten::nonzero", None, SyncKind.OTHER, 0, int(stall_s * 1e9), None, Phase.OTHER, 0, None, "cuda:0", 0, "t", "k"
    )


STEP = StepRecord(0, 0, 1)


def test_the_first_minute_is_silent(clock, stream):
    """Most runs are over by then."""
    progress = Progress(clock)
    clock.now += 59.9
    progress.events([sync(1.0)])
    progress.step(STEP)
    progress.close()
    assert stream.getvalue() == ""


def test_a_long_run_shows_time_steps_syncs_and_their_share(clock, stream):
    """One line; the cursor is left at its start, so that the program's next line covers it."""
    progress = Progress(clock)
    for _ in range(1500):
        progress.step(STEP)
    progress.events([sync(3.0)] * 5)
    clock.now += 75.0
    progress.step(STEP)
    text = stream.getvalue()
    assert "[syncagent] 1:15 · 1,501 steps · 5 syncs · 20.0% of the time in stalls" in text
    assert text.startswith(WIPE)
    assert text.endswith("\r")
    assert "\n" not in text


def test_the_line_is_rewritten_every_ten_seconds_at_most(clock, stream):
    """However often something happens."""
    progress = Progress(clock)
    clock.now += 60.0
    for _ in range(200):
        clock.now += 0.1
        progress.events([sync(0.0)])
    assert stream.getvalue().count("[syncagent]") == 2


def test_the_line_is_wiped_at_the_end(clock, stream):
    """What follows starts on a clean line."""
    progress = Progress(clock)
    clock.now += 61.0
    progress.step(STEP)
    progress.close()
    assert stream.getvalue().endswith(WIPE + "\r")


def test_nothing_is_written_where_stderr_is_no_terminal(clock, monkeypatch):
    """Logs stay clean."""
    stream = io.StringIO()
    monkeypatch.setattr(stderr, "stream", lambda: stream)
    progress = Progress(clock)
    clock.now += 3600.0
    progress.events([sync(1.0)])
    progress.step(STEP)
    progress.close()
    assert stream.getvalue() == ""


def test_the_share_is_never_above_the_whole(clock, stream):
    """Several threads may stall at once."""
    progress = Progress(clock)
    clock.now += 100.0
    progress.events([sync(90.0)] * 4)
    assert "100.0% of the time" in stream.getvalue()
