"""The line that ``progress`` asks for: what has happened since the last one, or that nothing has."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest

from syncagent.delivery import progress_lines
from syncagent.delivery.progress import Progress
from syncagent.delivery.progress_lines import ProgressLines
from syncagent.errors import ConfigError
from syncagent.events import CallSite, Phase, Weight
from syncagent.runtime import sinks
from syncagent.runtime.run import no_run
from syncagent.settings import sources
from syncagent.support import log
from tests.unit.sink_records import source, step, sync

LOSS = CallSite("/app/loss.py", 41, "loss")
EVERY_S = 60.0


class Job:
    """A run of which one minute after the other passes."""

    def __init__(self, scale=lambda _event: Weight(), **facts):
        self.now_s = 1000.0
        self.began_s = self.now_s
        self.facts = {"cwd": "/app", **facts}
        self.lines = ProgressLines(EVERY_S, lambda: self.now_s)
        self.lines.connect(source(scale=scale, facts=self._facts))

    def _facts(self):
        return SimpleNamespace(run=replace(no_run("observe"), duration_s=self.now_s - self.began_s, **self.facts))

    def passes(self, seconds=EVERY_S):
        """Let time pass, with the ticks that the agent's thread makes meanwhile."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s = min(self.now_s + 0.25, until_s)
            self.lines.tick()


@pytest.fixture
def said(capsys, monkeypatch):
    """``said()``: the lines since the last call, without the time of day."""
    monkeypatch.delenv("SYNCAGENT_LOG_FORMAT", raising=False)
    monkeypatch.delenv("SYNCAGENT_LOG_LEVEL", raising=False)
    log.get_logger.cache_clear()
    log.is_for_programs.cache_clear()
    yield lambda: [line.split(None, 3)[3] for line in capsys.readouterr().err.splitlines()]
    log.get_logger.cache_clear()
    log.is_for_programs.cache_clear()


def test_a_line_has_what_happened_since_the_last_one(said):
    """Steps and time as a whole and since then; syncs, their stall and the worst line since then alone."""
    job = Job()
    for _ in range(300):
        job.lines.step(step())
    job.lines.events([sync(stall=30.0)] * 300 + [sync(stall=50.0, site=LOSS)] * 300)
    job.passes()
    [line] = said()
    assert line == (
        "60 s · 300 steps, 300 in the last 60 s · 600 syncs, 2 per step · 40.0 % of the time in stalls, "
        "most at loss.py:41 (25.0 %)"
    )
    for _ in range(1000):
        job.lines.step(step())
    job.lines.events([sync(stall=6.0)] * 100)
    job.passes()
    [line] = said()
    assert line == (
        "2 min · 1,300 steps, 1,000 in the last 60 s · 100 syncs, 0.1 per step · 1.0 % of the time in stalls, "
        "most at train.py:12 (1.0 %)"
    )


def test_a_line_comes_where_nothing_happens_and_says_since_when_there_was_no_step(said):
    """So a job that hangs is seen."""
    job = Job()
    job.passes()
    assert said() == ["60 s · no step yet · no syncs"]
    job.lines.step(step())
    job.passes(12 * 60)
    lines = said()
    assert len(lines) == 12
    assert lines[0] == "2 min · 1 step, 1 in the last 60 s · no syncs"
    assert lines[-1] == "13 min · 1 step, no step for 12 min · no syncs"


def test_stalls_of_threads_that_wait_at_the_same_time_count_once(said):
    """As in a report's share: the thread that waited longest, and the backward pass, which that thread waits for."""
    job = Job()
    job.lines.events([sync(stall=6000.0), sync(stall=3000.0, thread="loader")])
    job.lines.events([sync(stall=1200.0, thread="autograd", phase=Phase.BACKWARD)])
    job.passes()
    [line] = said()
    assert "3 syncs · 12.0 % of the time in stalls" in line


def test_syncs_that_stand_for_others_are_scaled_and_said_to_be_estimated(said):
    job = Job(scale=lambda _event: Weight(16.0, 16.0, 1))
    job.lines.step(step())
    job.lines.events([sync(stall=37.5)] * 2)
    job.passes()
    [line] = said()
    assert "about 32 syncs, 32 per step · 2.0 % of the time in stalls" in line


def test_a_line_that_is_not_known_is_not_named_as_another(said):
    job = Job()
    job.lines.events([sync(stall=6000.0, site=None), sync(stall=600.0, site=LOSS)])
    job.passes()
    [line] = said()
    assert line.endswith("most at (line unknown) (10.0 %)")


def test_of_several_ranks_the_first_has_the_lines_and_names_itself(said):
    """The others would say much the same; a process of a single rank need not name it."""
    for rank, size, expected in (
        (0, 8, "rank 0 of 8 · 60 s · "),
        (3, 8, None),
        (0, 1, "60 s · "),
        (None, None, "60 s · "),
    ):
        job = Job(rank=rank, world_size=size)
        job.passes()
        lines = said()
        assert len(lines) == (expected is not None)
        assert not expected or lines[0].startswith(f"{expected}no step yet")


def test_a_child_of_multiprocessing_without_a_rank_is_named_by_its_number(said, monkeypatch):
    parent = SimpleNamespace(parent_process=lambda: object())
    monkeypatch.setitem(progress_lines.sys.modules, "multiprocessing.process", parent)
    Job().passes()
    Job(world_size=2, rank=1).passes()
    assert said() == [f"process {os.getpid()} · 60 s · no step yet · no syncs"]


def test_a_simulated_device_is_named(said):
    """Its times are this CPU's; modelled ones are those of a GPU."""
    for modelled, ending in ((None, "no syncs · on the simulated device"), ("H100", "no syncs")):
        job = Job(simulated=True, modelled=modelled)
        job.passes()
        assert said()[0].endswith(ending)


def test_lines_that_were_missed_are_not_made_up_for(said):
    """A process that was stopped for an hour has one line for it."""
    job = Job()
    job.now_s += 3600.0
    job.passes(59.0)
    assert said() == ["1 h 0 min · no step yet · no syncs"]
    job.passes(2.0)
    assert len(said()) == 1


def test_a_program_that_reads_the_log_gets_each_figure(said, capsys, monkeypatch):
    monkeypatch.setenv("SYNCAGENT_LOG_FORMAT", "json")
    log.get_logger.cache_clear()
    log.is_for_programs.cache_clear()
    job = Job(rank=0, world_size=2)
    job.lines.step(step())
    job.lines.events([sync(stall=600.0)] * 2)
    job.passes()
    [line] = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found["message"].startswith("rank 0 of 2 · 60 s · 1 step")
    figures = {name: found[name] for name in ("rank", "elapsed_s", "steps", "since_s", "steps_since", "no_step_s")}
    assert figures == {
        "rank": 0, "elapsed_s": 60.0, "steps": 1, "since_s": 60.0, "steps_since": 1, "no_step_s": 60.0,
    }  # fmt: skip
    assert (found["syncs_since"], found["syncs_per_step"], found["stall_share"]) == (2, 2.0, 0.02)
    assert (found["line"], found["line_stall_share"]) == ("train.py:12", 0.02)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (10, "10 s"), (119, "119 s"), (120, "2 min"), (3599, "1 h 0 min"), (3660, "1 h 1 min"),
     (86_399, "1 d 0 h"), (200_000, "2 d 7 h")],
)  # fmt: skip
def test_times_of_days_can_be_read(seconds, text):
    assert progress_lines.duration(seconds) == text


# --- which of the two a run has ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("providers", [None, {}], ids=["script", "program"])
@pytest.mark.parametrize(
    ("value", "script_has", "program_has"),
    [(None, Progress, None), ("60", ProgressLines, ProgressLines), (0.5, ProgressLines, ProgressLines),
     ("0", None, None), ("off", None, None), (0, None, None), (False, None, None)],
)  # fmt: skip
def test_lines_replace_the_terminals_and_off_is_neither(no_settings, providers, value, script_has, program_has):
    outputs = sinks.Outputs(sources.load({"progress": value}), providers)
    kinds = [type(each) for each in sinks.SINKS["progress"](outputs)]
    expected = script_has if providers is None else program_has
    assert kinds == ([] if expected is None else [expected])


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "often", "60s", True, -0.5, [60]])
def test_what_is_no_time_is_refused_in_one_sentence(no_settings, value):
    with pytest.raises(ConfigError) as error:
        sources.load({"progress": value})
    assert str(error.value) == (
        f"syncagent: setting progress is {value!r}, but it must be a number of seconds, 0 or more, or off."
    )
