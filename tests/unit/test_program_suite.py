"""The suite of public programs: catalogue, scripts, pins, results and reviewed sites belong together."""

from __future__ import annotations

import re

import pytest

from tests.processes import ROOT
from tests.programs import catalogue, run
from tests.programs.results import RESULTS, SITES, load

REPORT = {
    "sites": [
        {"kind": "scalar_read", "op": "aten::equal", "file": "/x/train.py", "line": 3, "function": "f",
         "ops": [{"op": "aten::equal", "count": 2}, {"op": "aten::_local_scalar_dense", "count": 2}],
         "library": {"file": "/x/site-packages/lib/a.py", "line": 7, "function": "A.step"}},
        {"kind": "copy_h2d", "op": "aten::item", "file": f"{catalogue.DRIVERS}/one.py", "line": 5,
         "ops": [{"op": "aten::item", "count": 1}, {"op": "aten::copy_.default", "count": 2}],
         "function": "<module>", "library": None},
        {"kind": "dynamic_shape", "op": "other", "file": "/x/train.py", "line": 4, "function": "", "ops": [],
         "library": None},
        {"kind": "explicit", "op": "cudaDeviceSynchronize", "file": f"{catalogue.DRIVERS}/outcome.py", "line": 9,
         "ops": [], "function": "_now", "library": None},
    ]
}  # fmt: skip
EQUAL = catalogue.Program("one", "lib", "trains")
ENDED = {"exit": 0, "device": "cpu", "values": {"loss": [1.0, 0.5]}}


def test_each_program_has_a_script_and_a_pinned_package():
    """Modules that scripts share are no programs."""
    pins = set(re.findall(r"(?m)^([\w-]+)==", (ROOT / "tests/programs/requirements.txt").read_text(encoding="utf-8")))
    names = [program.name for program in catalogue.PROGRAMS]
    assert len(names) == len(set(names)) >= 40
    assert {path.stem for path in catalogue.DRIVERS.glob("*.py")} - set(names) == {"outcome", "tokens", "warming"}
    assert [program.name for program in catalogue.PROGRAMS if not program.path.exists()] == []
    assert {program.package for program in catalogue.PROGRAMS} <= pins | {"open_clip_torch"}


def test_each_program_has_its_result_and_its_reviewed_sites_and_none_is_left_over():
    programs = {program.name: program for program in catalogue.PROGRAMS}
    results, sites = load(RESULTS), load(SITES)
    assert list(results) == list(programs)
    assert set(sites) <= set(programs)
    pin = re.search(r"(?m)^torch==(.*)$", (ROOT / "tests/programs/requirements.txt").read_text(encoding="utf-8"))[1]
    for name, result in results.items():
        assert (result["torch"], result["numbers"]) == (pin, programs[name].numbers), name
        assert result["exit"] or result["sites"] == len(sites[name]), name


def test_a_site_is_named_by_the_librarys_line_and_its_usual_op_and_the_suites_own_syncs_are_left_out():
    """Not by the op that has waited longest, which is another one on a busy machine."""
    assert run.sites(REPORT) == [
        "copy_h2d copy_ one.py:5 <module>", "dynamic_shape other train.py:4 ",
        "scalar_read _local_scalar_dense lib/a.py:7 A.step",
    ]  # fmt: skip


def test_each_new_and_each_missing_site_is_one_line():
    assert run.differences(EQUAL, ["a", "b"], {"one": ["b", "c"]}) == [
        "one: a new site: a", "one: a reviewed site was not seen: c",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("second", "third", "numbers", "said"),
    [
        ({}, {}, catalogue.EQUAL, None),
        (
            {"exit": 1, "why": "ValueError: no"},
            {},
            catalogue.EQUAL,
            "exit code 1 on the simulated device: ValueError: no",
        ),
        ({"values": {"loss": [1.0, float("nan")]}}, {}, catalogue.RANDOM, "not finite"),
        ({"values": {"loss": [1.0, 0.4]}}, {}, catalogue.RANDOM, "differs between two runs"),
        ({"values": {"loss": [1.0, 0.4]}}, {"values": {"loss": [1.0, 0.4]}}, catalogue.RANDOM, None),
        ({"values": {"loss": [1.0, 0.4]}}, {"values": {"loss": [1.0, 0.4]}}, catalogue.EQUAL, "on the CPU"),
        ({"values": {"loss": [1.0, 0.5001]}}, {"values": {"loss": [1.0, 0.5001]}}, catalogue.CLOSE, "on the CPU"),
        ({"values": {"loss": [1.0, 0.50001]}}, {"values": {"loss": [1.0, 0.50001]}}, catalogue.CLOSE, None),
        ({"device": "cpu"}, {}, catalogue.EQUAL, "it ran on cpu and cpu"),
    ],
)
def test_exit_codes_and_numbers_are_judged(second, third, numbers, said):
    program = catalogue.Program("one", "lib", "trains", numbers)
    wrong = run.judged(program, ENDED, ENDED | {"device": "cuda"} | second, ENDED | {"device": "cuda"} | third)
    assert len(wrong) == (said is not None)
    assert said is None or said in wrong[0]
