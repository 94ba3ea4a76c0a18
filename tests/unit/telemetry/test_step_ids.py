"""Traces that the ranks of a job share."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from syncagent.support import log
from syncagent.telemetry.step_ids import ProcessIdentity, StepIds, process_identity


def ids(key="job", **attributes):
    return StepIds(lambda: ProcessIdentity(attributes, key))


def test_ranks_of_a_job_agree_without_a_word():
    """On each step's id, whatever rank they are."""
    one, other = ids(rank=0), ids(rank=1)
    traces = [one.trace_id(step) for step in range(1000)]
    assert traces == [other.trace_id(step) for step in range(1000)]
    assert len(set(traces)) == 1000
    assert all(0 < trace < 2**128 for trace in traces)


def test_two_jobs_share_nothing_nor_do_processes_without_a_job():
    keys = [ids("job"), ids("other"), ids(None), ids(None), StepIds()]
    assert len({each.trace_id(0) for each in keys}) == len(keys)


@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.9])
def test_a_sampler_by_ratio_takes_about_its_share(ratio):
    """Its choice goes by 64 bits of the id."""
    sampler, made = TraceIdRatioBased(ratio), ids()
    taken = sum(sampler.should_sample(None, made.trace_id(n), "").decision.is_sampled() for n in range(20_000))
    assert taken / 20_000 == pytest.approx(ratio, abs=0.012)


def test_steps_that_are_counted_anew_are_on_their_next_lap():
    """A program that calls ``step(n)`` with n from 0 in each epoch; all of its ranks go on at the same step."""
    made, seen = ids(), []
    for _ in range(3):
        for step in range(5):
            during = made.trace_id(step)
            assert made.trace_id(step) == during
            made.ended(step)
            seen.append(during)
    assert len(set(seen)) == 15


def test_a_step_that_is_long_over_does_not_shift_the_laps():
    """Some thread's last syncs may come late on one rank only."""
    late, other = ids(), ids()
    for step in range(20):
        late.ended(step)
        other.ended(step)
    late.trace_id(3)
    assert late.trace_id(20) == other.trace_id(20)


def test_the_job_may_be_known_later_than_the_first_step(monkeypatch):
    """Ray Train and Lightning write it into the environment of the running script."""
    now = {"key": None}
    made = StepIds(lambda: ProcessIdentity({}, now["key"]))
    monkeypatch.setattr("syncagent.telemetry.step_ids._FRESH_S", 0.0)
    made.trace_id(0)
    now["key"] = "job"
    assert made.trace_id(1) == ids("job").trace_id(1)


def test_whose_they_are_is_read_from_the_environment(no_settings, monkeypatch):
    environment = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "exp7"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    attributes, key = process_identity()
    del attributes["host.name"]
    assert attributes == {"syncagent.local_rank": 1, "syncagent.world_size": 8, "syncagent.job.id": "exp7"}
    assert key.startswith("exp7/")


def test_a_job_of_several_machines_without_a_name_is_warned_once(no_settings, monkeypatch, capsys):
    """By rank 0."""
    monkeypatch.setattr(log, "_said", set())
    for name, value in {"RANK": "0", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    for rank in "001":
        monkeypatch.setenv("RANK", rank)
        assert process_identity().key is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "torchrun --rdzv-id" in line
