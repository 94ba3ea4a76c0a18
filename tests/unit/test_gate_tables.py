"""What the pages say of the checks that ``tests/gpu/gate.py`` makes on a GPU."""

from __future__ import annotations

import json

import pytest

from tests.gpu import ci_tables, gate

RESULT = {
    "torch": "2.11.0", "gpu": "NVIDIA H200", "python": "3.12.3", "date": "2026-11-30T00:00:00+00:00",
    "versions": {"pytest": "9.1.0", "transformers": "5.17.0"},
    "checks": [
        {"name": "the plugin counts", "ok": True, "seen": "", "page": "docs/testing.md"},
        {"name": "the weights are the same", "ok": True, "seen": "", "page": "docs/trainers.md"},
        {"name": "syncs/step is logged", "ok": False, "seen": "[]", "page": "docs/trainers.md"},
        {"name": "no report is of the simulated device", "ok": True, "seen": "3 reports", "page": ""},
    ],
    "left_out": [{"name": "the example", "why": "git is not installed"}],
}  # fmt: skip


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(ci_tables, "RESULTS", tmp_path)
    return tmp_path


def test_without_a_result_the_command_is_named(results):
    assert ci_tables.MAKERS["ongpu"]() == "Not measured yet: `python tests/gpu/gate.py --out FILE`."
    assert ci_tables.MAKERS["trainersongpu"]() == "The callbacks were not run on a GPU."


def test_the_table_counts_by_page_and_names_what_fails_and_what_was_not_tried(results):
    (results / "gate.json").write_text(json.dumps(RESULT), encoding="utf-8")
    text = ci_tables.MAKERS["ongpu"]()
    assert "| this page: the plugin, `assert_no_syncs` | 1 | 1 |\n" in text
    assert "callback | 2 | 1 |\n" in text
    assert (
        "\n\nThose that do not:\n\n- syncs/step is logged\n\nNot tried:\n\n- the example: git is not installed\n\n"
        in text
    )
    assert text.endswith(
        "NVIDIA H200, torch 2.11.0, Python 3.12.3, 2026-11-30, pytest 9.1.0, transformers 5.17.0. "
        "`python tests/gpu/gate.py --out FILE`."
    )
    assert ci_tables.MAKERS["trainersongpu"]().startswith("On a GPU, 1 of 2 checks of the callbacks")


def test_every_part_is_of_a_page_in_the_table():
    assert {title.partition(":")[0] for title in gate.PARTS} == ci_tables.PROMISED.keys()


def test_without_being_asked_for_no_device_is_simulated(tmp_path):
    """The documents' commands lose what asks for one, and whatever else asks for one is refused."""
    bench = gate.Bench(tmp_path, tmp_path, simulate=False, left_out=print)
    done = bench.bash("echo --simulate --syncagent-simulate SYNCAGENT_SIMULATE=1 python; env")
    assert done.stdout.startswith("python\n")
    assert "SYNCAGENT_SIMULATE" not in done.stdout
    with pytest.raises(AssertionError, match="a simulated device was asked for"):
        bench.python("-m", "syncagent", "run", "--simulate", "train.py")


def test_a_process_that_takes_too_long_is_ended_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_LIMIT_S", 1)
    done = gate.Bench(tmp_path, tmp_path, simulate=False, left_out=print).bash("echo begun; sleep 60")
    assert (done.returncode, done.stdout) == (124, "begun\n")
    assert "ended after 1 s" in done.stderr
