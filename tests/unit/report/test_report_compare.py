from __future__ import annotations

import json
from dataclasses import replace

import pytest
from training_run import CWD, MASK, NONZERO, backward_sync, report_of, run_info, sync, whole_report

from syncagent.events import CallSite, SyncKind
from syncagent.report.compare import compare
from syncagent.report.compared import text as changes


def verdicts(old, new, **options):
    return [change.verdict for change in compare(old, new, **options).changes]


def at(line, source="x.item()", file=f"{CWD}/a.py", function="f"):
    return CallSite(file, line, function, source)


class TestMatching:
    def test_a_report_equals_itself(self):
        assert set(verdicts(whole_report(), whole_report())) == {"same"}

    def test_a_line_that_moved_is_the_same_site(self):
        (change,) = compare(report_of(sync(at(1))), report_of(sync(at(9)))).changes
        assert (change.verdict, change.old.line, change.new.line) == ("same", 1, 9)

    @pytest.mark.parametrize("other", [at(1, "del y[mask]"), at(1, file=f"{CWD}/b.py"), at(1, function="g")])
    def test_another_text_file_or_function_is_another_site(self, other):
        assert verdicts(report_of(sync(at(1))), report_of(sync(other))) == ["new", "gone"]

    def test_another_kind_is_another_site_and_another_op_is_not(self):
        assert verdicts(report_of(sync()), report_of(sync(kind=SyncKind.CHECK))) == ["new", "gone"]
        assert verdicts(report_of(sync()), report_of(sync(op="aten::item", api=None))) == ["same"]

    def test_a_file_of_the_same_name_in_another_folder_is_another_site(self):
        other = sync(at(1, file=f"{CWD}/sub/a.py"))
        assert verdicts(report_of(sync(at(1))), report_of(other)) == ["new", "gone"]

    def test_backward_syncs_are_distinguished_by_their_forward_line(self):
        old, new = report_of(backward_sync()), report_of(backward_sync(forward_site=NONZERO))
        assert verdicts(old, new) == ["new", "gone"]

    def test_a_checkout_elsewhere_is_the_same_project(self):
        there = sync(CallSite("/ci/build/loss.py", 41, NONZERO.function, NONZERO.source))
        assert verdicts(report_of(sync()), report_of(there, cwd="/ci/build")) == ["same"]

    def test_without_its_text_a_line_is_known_by_its_number(self):
        assert verdicts(report_of(sync(at(1, ""))), report_of(sync(at(2, "")))) == ["new", "gone"]

    def test_the_same_text_twice_in_a_function_is_added_up(self):
        old = report_of(sync(at(1)), sync(at(2)), steps=1)
        (change,) = compare(old, report_of(sync(at(1)), sync(at(2)), steps=1)).changes
        assert (change.new.count, change.new.per_step, change.new.stall_ms) == (2, 2, 2)


class TestGrowth:
    def test_it_is_counted_a_step(self):
        once, twice = [sync()] * 4, [sync()] * 4
        assert verdicts(report_of(*once, steps=4), report_of(*twice, steps=2)) == ["grown"]
        assert verdicts(report_of(*once, steps=2), report_of(*twice, steps=4)) == ["shrunk"]

    def test_a_longer_run_is_not_growth(self):
        assert verdicts(report_of(*[sync()] * 2, steps=2), report_of(*[sync()] * 9, steps=9)) == ["same"]

    def test_set_up_that_happens_once_neither_grows_nor_shrinks_with_the_run(self):
        assert verdicts(report_of(sync(), steps=9), report_of(sync(), steps=2)) == ["same"]
        assert verdicts(report_of(sync(), steps=2), report_of(sync(), steps=9)) == ["same"]

    def test_a_rare_sync_that_came_to_be_frequent_has_grown(self):
        assert verdicts(report_of(sync(), steps=9), report_of(*[sync()] * 9, steps=9)) == ["grown"]

    def test_without_steps_whole_counts_are_compared_and_it_is_noted(self):
        comparison = compare(report_of(sync()), report_of(sync(), sync(), steps=2))
        assert comparison.changes[0].verdict == "grown"
        assert "a run without steps: whole counts are compared, not counts per step" in comparison.notes

    def test_a_little_more_is_tolerated(self):
        old, new = report_of(*[sync()] * 20, steps=10), report_of(*[sync()] * 21, steps=10)
        assert verdicts(old, new) == ["same"]
        assert verdicts(old, new, tolerance=0) == ["grown"]

    def test_a_longer_stall_is_not_growth(self):
        assert verdicts(report_of(sync(ms=1)), report_of(sync(ms=500))) == ["same"]


def test_findings_are_new_and_grown_sites_that_nothing_allows():
    old = report_of(sync(), steps=1)
    new = report_of(sync(), sync(), sync(MASK), sync(at(1), allowed="known"), steps=1)
    assert {change.source for change in compare(old, new).findings()} == {NONZERO.source, MASK.source}


def test_changes_come_by_verdict_worst_first():
    old = report_of(sync(at(1, "gone")), sync(at(2, "same")))
    new = report_of(sync(at(2, "same")), sync(at(3, "new, little"), ms=1), sync(at(4, "new, much"), ms=9))
    assert [change.source for change in compare(old, new).changes] == ["new, much", "new, little", "gone", "same"]


@pytest.mark.parametrize(
    ("run", "note"),
    [
        ({"simulated": True}, "one of the two runs was on a simulated device"),
        ({"device": "NVIDIA A100"}, r"the devices differ \(NVIDIA H100, NVIDIA A100\)"),
        ({"detail": "ops"}, r"different detail \(syncs, ops\)"),
    ],
)
def test_what_makes_runs_less_comparable_is_noted(run, note):
    notes = compare(report_of(steps=1), replace(report_of(), run=run_info(steps=1, **run))).notes
    assert len(notes) == 1
    assert notes[0].startswith(note.replace("\\", "")) or note.replace("\\", "") in notes[0]


def test_a_sensor_that_was_blind_later_is_noted():
    new = replace(report_of(steps=1), sensors=())
    assert "sensors live in the old run only: kernels" in compare(report_of(steps=1), new).notes[0]


def test_a_site_that_has_changed_a_little_is_no_finding_and_shows_what_it_was():
    old, new = report_of(sync(at(1, "log(x.item())")), steps=1), sync(at(3, "log(x.item(), step=step)"))
    comparison = compare(old, report_of(new, steps=1))
    assert ([change.verdict for change in comparison.changes], comparison.findings()) == (["changed"], ())
    assert "1 site changed\n" in changes.render(comparison)
    assert "    was: log(x.item())\n" in changes.render(comparison)
    grown = compare(old, report_of(new, new, steps=1))
    assert [change.verdict for change in grown.findings()] == ["grown"]


def test_one_that_was_added_beside_a_known_one_is_new_however_alike():
    known = sync(at(1, "log(x.item())"))
    assert verdicts(report_of(known), report_of(known, sync(at(2, "log(x.item(), 1)")))) == ["new", "same"]


def test_formatting_is_no_change():
    one = CallSite(f"{CWD}/a.py", 3, "f", "x.item(),", "log(\n    'a',\n    x.item(),\n)")
    other = CallSite(f"{CWD}/a.py", 9, "f", 'log("a", x.item())')
    here = {"folder": CWD}
    assert verdicts(report_of(sync(one), **here), report_of(sync(other), **here)) == ["same"]


def test_what_depends_on_the_drivers_state_is_left_out_and_noted():
    comparison = compare(report_of(steps=1), report_of(sync(conditional=True), sync(conditional=True), steps=1))
    assert comparison.changes == ()
    assert comparison.notes == (
        "left out: 2 syncs that depended on the driver's state alone: another run need not have them",
    )


def test_it_is_json():
    values = json.loads(json.dumps(compare(report_of(sync()), whole_report()).to_dict()))
    assert values["schema"] == 1
    assert {change["verdict"] for change in values["changes"]} == {"new", "same"}


class TestText:
    def test_what_is_new_says_what_to_do(self):
        new = report_of(sync(), steps=1)
        new = replace(new, sites=tuple(replace(site, advice="pin it") for site in new.sites))
        none = replace(new, sites=())
        assert changes.render(compare(none, new)).count("    \u2192 pin it\n") == 1
        assert "pin it" not in changes.render(compare(new, none))  # it is gone

    def test_each_verdict_has_a_heading(self):
        old = report_of(sync(), sync(at(1)), steps=1)
        shown = changes.render(compare(old, report_of(sync(), sync(), sync(MASK), steps=1)))
        assert shown == (
            "1 site new\n"
            "  torch.nonzero() (aten::nonzero)  loss.py:57 in masked_loss\n"
            "    kept = logits[mask]\n"
            "    1 sync (1 per step), 1.0 ms\n"
            "1 site grown\n"
            "  torch.nonzero() (aten::nonzero)  loss.py:41 in masked_loss\n"
            "    torch.nonzero(labels == 9)\n"
            "    1 sync (1 per step), 1.0 ms  →  2 syncs (2 per step), 2.0 ms\n"
            "1 site gone\n"
            "  torch.nonzero() (aten::nonzero)  a.py:1 in f\n"
            "    x.item()\n"
            "    1 sync (1 per step), 1.0 ms\n"
            "0 sites unchanged\n"
        )

    def test_nothing_at_all_is_printed(self):
        assert changes.render(compare(report_of(steps=1), report_of(steps=1))) == "No syncs in either report.\n"

    def test_backward_library_and_allowed_are_shown(self):
        shown = changes.render(compare(report_of(steps=1), whole_report()))
        assert "forward loss.py:57: kept = logits[mask]" in shown
        assert "library transformers/trainer.py:9: float(x)" in shown
        assert "    allowed\n" in shown


class TestWhatIsNoFinding:
    def test_a_site_that_only_a_new_sensor_saw_is_a_note(self):
        seen = sync(op="cudaDeviceSynchronize", kind=SyncKind.EXPLICIT, sensor="driver")
        comparison = compare(report_of(), report_of(seen))
        assert verdicts(report_of(), report_of(seen)) == ["new"]
        assert comparison.findings() == ()
        [note] = [note for note in comparison.notes if note.startswith("no finding: 1 site")]
        assert note.endswith("only the sensor driver saw it, which was not live in the old run")

    def test_waits_without_a_line_differ_from_run_to_run(self):
        """Those of ops whose line the driver's look has missed, in steps that were not sampled."""
        seen = [sync(None, op="cudaStreamSynchronize", kind=SyncKind.OTHER, sensor="driver", at_ms=n) for n in range(9)]
        old = report_of(*seen[:3], steps=3)
        old = replace(old, sensors=(*old.sensors, replace(old.sensors[0], name="driver", live=True)))
        comparison = compare(old, report_of(*seen, steps=3))
        assert [change.verdict for change in comparison.changes] == ["grown"]
        assert comparison.findings() == ()
        assert any(
            note.startswith("no finding: 1 site (cudaStreamSynchronize): no line is kn") for note in comparison.notes
        )

    def test_where_that_sensor_was_live_before_it_is_a_finding(self):
        seen = sync(op="cudaDeviceSynchronize", kind=SyncKind.EXPLICIT, sensor="driver")
        old = report_of()
        old = replace(old, sensors=(*old.sensors, replace(old.sensors[0], name="driver", live=True)))
        assert len(compare(old, report_of(seen)).findings()) == 1

    def test_what_is_counted_only_where_it_takes_long_is_none(self):
        """A line whose waits the driver's look has caught: on a slower machine it catches more of them."""
        seen = [sync(op="cudaStreamSynchronize", sensor="driver", at_ms=number) for number in range(9)]
        old = report_of(*seen[:3], steps=3, detail="auto")
        old = replace(old, sensors=(*old.sensors, replace(old.sensors[0], name="driver", live=True)))
        comparison = compare(old, report_of(*seen, steps=3, detail="auto"))
        assert [change.verdict for change in comparison.changes] == ["grown"]
        assert comparison.findings() == ()
        watched = [replace(event, sensor="kernels") for event in seen]
        assert len(compare(old, report_of(*watched, steps=3, detail="auto")).findings()) == 1

    @pytest.mark.parametrize("kind", [SyncKind.COLLECTIVE, SyncKind.ALLOCATOR])
    def test_some_kinds_are_judged_only_where_that_is_asked_for(self, kind):
        new = report_of(sync(kind=kind))
        assert compare(report_of(), new).findings() == ()
        asked = replace(new, run=replace(new.run, judge_kinds=(kind.value,)))
        assert len(compare(report_of(), asked).findings()) == 1

    def test_time_without_a_sync_is_none(self):
        new = report_of(sync(repeats=0))
        assert [site.count for site in new.sites] == [0]
        assert compare(report_of(), new).findings() == ()


def test_modelled_times_are_those_of_their_gpu():
    old, new = (report_of(sync(ms=5), steps=3, simulated=True, modelled=gpu) for gpu in ("H100", "L4"))
    shown = changes.render(compare(old, new))
    assert "* of a simulated device: modelled for an H100, not measured on one or modelled for an L4" in shown


def test_each_figure_of_a_simulated_run_is_marked():
    old, new = report_of(sync(ms=5), steps=3, simulated=True), report_of(sync(ms=3), sync(ms=3), steps=3)
    shown = changes.render(compare(old, new))
    assert "5.0 ms*  \N{RIGHTWARDS ARROW}  2 syncs" in shown
    assert "6.0 ms\n" in shown
    assert "time per step: 100 ms*  \N{RIGHTWARDS ARROW}  100 ms, 0* saved" in shown
    assert "* of a simulated device: this CPU's times, not a GPU's" in shown
