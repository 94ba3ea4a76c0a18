"""Reports are added up where they are of one run, each process once, and refused where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_run import report_of, sync

from syncagent.errors import SyncAgentError
from syncagent.report.together import add_up

MONDAY, TUESDAY = "2025-11-24T09:00:00+00:00", "2025-11-25T09:00:00Z"


def found(name="x.json", **run):
    return Path(name), report_of(sync(), **run)


def test_processes_of_one_run_are_added_up_whatever_their_script_and_rank():
    report = add_up(
        [
            found("a.json", run_id="r", process="a", rank=0, world_size=2),
            found("b.json", run_id="r", process="b", rank=1, world_size=2),
            found("c.json", run_id="r", process="c", script="helper.py"),
        ]
    )
    assert (report.totals.syncs, report.run.processes, report.run.run_id) == (3, 3, "r")


def test_one_for_each_rank_are_ranks():
    report = add_up([found(f"{rank}.json", run_id="r", process=f"{rank}", rank=rank, world_size=2) for rank in (0, 1)])
    assert (report.run.processes, report.run.ranks, report.notes) == (0, (0, 1), ())


def test_a_process_counts_once():
    """The same file twice, by two names, or its capture beside it."""
    one = found("x.json", run_id="r", process="a")
    capture = found("x.jsonl", run_id="r", process="a", ended=False)
    old = found("old.json")
    for given in ([one, one], [one, capture], [capture, one], [old, old, found("./old.json")]):
        report = add_up(given)
        assert (report.totals.syncs, report.run.ended) == (1, True)


def test_ranks_of_several_machines_that_share_no_id_are_added_up():
    ranks = [
        found(f"{rank}.json", run_id=f"node{rank // 2}", process=f"{rank}", rank=rank, world_size=4)
        for rank in range(4)
    ]
    child = found("child.json", run_id="node1", process="child")
    assert add_up([*ranks, child]).run.processes == 5


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ({"script": "a.py"}, {"script": "b.py"}, r"'1.json' is of 'a.py', '2.json' of 'b.py'"),
        ({"rank": 0, "script": "a.py"}, {"rank": 1, "script": "b.py"}, r"'1.json' is of 'a.py', '2.json' of 'b.py'"),
        ({"started": MONDAY}, {"started": TUESDAY}, "'1.json' began at 2025-11-24.*'2.json' at 2025-11-25.*without a"),
        ({}, {}, "without a rank"),
        ({"rank": 0}, {"rank": 0}, "both are of rank 0"),
        ({"rank": 0, "run_id": "a", "process": "a"}, {"rank": 0, "run_id": "b", "process": "b"}, "both are of rank 0"),
        ({"rank": 0, "started": MONDAY}, {"rank": 1, "started": TUESDAY}, r"at 2025-11-25T09:00:00Z \(`syncagent com"),
        ({"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 4}, "of a run of 2 ranks, '2.json' of one of 4 ranks"),
    ],
)
def test_reports_of_two_runs_are_refused_in_a_sentence_that_says_what_differs(one, other, says):
    with pytest.raises(SyncAgentError, match=says) as caught:
        add_up([found("1.json", **one), found("2.json", **other)])
    assert str(caught.value).startswith("only reports of one run can be added up, and these are of two: ")
    assert "\n" not in str(caught.value)


def test_a_third_report_of_a_rank_that_is_there_already_is_refused():
    ranks = [found(f"{rank}.json", rank=rank) for rank in (0, 1)]
    with pytest.raises(SyncAgentError, match="both are of rank 0"):
        add_up([*ranks, found("again.json", rank=0)])


def test_ranks_that_are_missing_are_named():
    ranks = [found(f"{rank}.json", run_id="r", process=f"{rank}", rank=rank, world_size=4) for rank in (0, 2)]
    assert add_up(ranks).notes == ("of the 4 ranks, 2 have no report here: 1, 3",)
    assert add_up(ranks[:1]).notes == ()


def test_what_is_already_a_sum_can_be_shown_but_nothing_can_be_added_to_it():
    """Each of its ranks would be counted as part of one."""
    ranks = [found(f"{rank}.json", run_id="r", process=f"{rank}", rank=rank) for rank in range(4)]
    of_ranks = Path("two.json"), add_up(ranks[:2])
    of_processes = (
        Path("two.json"),
        add_up([found("a.json", run_id="r", process="a"), found("b.json", run_id="r", process="b")]),
    )
    for merged in (of_ranks, of_processes):
        assert add_up([merged, merged]) == merged[1]
        for given in ([merged, ranks[2]], [ranks[0], merged], [merged, (Path("other.json"), merged[1])]):
            with pytest.raises(SyncAgentError, match=r"^'(two|other)\.json' is already the sum of .* instead of it$"):
                add_up(given)
