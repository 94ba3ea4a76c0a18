"""The pytest plugin, as users run it: pytest in a process of its own, on files of theirs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

BASELINE = Path(__file__).resolve().parents[2] / "examples" / "policy_gate" / "baseline.json"
HEAD = """
import asyncio
import unittest
import warnings
import pytest
import torch
import syncagent

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

def wait(times=1):
    x = torch.arange(4.0, device=DEVICE)
    for _ in range(times):
        torch.nonzero(x)
"""
ASKED_FOR = """
@pytest.fixture(scope="session", autouse=True)
def of_the_session():
    wait(5)
    yield
    wait(5)

@pytest.fixture(scope="class", autouse=True)
def of_the_class():
    wait(3)
    yield
    wait(3)

@pytest.fixture(autouse=True)
def of_the_function():
    wait()
    yield
    wait()

@pytest.mark.no_host_sync
def test_passes_quiet():
    torch.arange(4.0, device=DEVICE) + 1

@pytest.mark.no_host_sync
def test_fails_one():
    wait()

@pytest.mark.no_host_sync(max_syncs=2)
@pytest.mark.parametrize("times", [1, 2, pytest.param(3, marks=pytest.mark.xfail(strict=True))])
def test_passes_up_to_two(times):
    wait(times)

@pytest.mark.no_host_sync(kinds="scalar_read")
def test_passes_another_kind():
    wait()

@pytest.mark.no_host_sync(kinds=["scalar_read", "dynamic_shape"])
def test_fails_its_kind():
    wait()

@pytest.mark.no_host_sync(allow="test_it.py")
def test_passes_allowed():
    wait()

@pytest.mark.no_host_sync
def test_passes_in_a_block():
    with syncagent.allow("wanted"):
        wait()

@pytest.mark.no_host_sync
def test_fails_what_pytest_raises_sees():
    with pytest.raises(RuntimeError):
        wait()
        raise RuntimeError

@pytest.mark.no_host_sync
def test_passes_with_filters_of_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.arange(4.0, device=DEVICE) + 1

@pytest.mark.no_host_sync
def test_fails_by_its_own_error():
    wait()
    assert DEVICE == "of its own"

@pytest.mark.no_host_sync
def test_passes_skipped():
    wait()
    pytest.skip("no reason")

@pytest.mark.no_host_sync
class TestOfAClass:
    def test_passes_in_a_class(self):
        pass

    def test_fails_in_a_class(self):
        wait()

    @pytest.mark.no_host_sync(max_syncs=1)
    def test_passes_by_the_closest_marker(self):
        wait()

@pytest.mark.no_host_sync
class TestUnittest(unittest.TestCase):
    def setUp(self):
        wait()

    def test_passes_in_a_case(self):
        pass

    def test_fails_in_a_case(self):
        wait()

@pytest.mark.no_host_sync
class TestAsyncio(unittest.IsolatedAsyncioTestCase):
    async def test_passes_in_its_loop(self):
        await asyncio.sleep(0)

    async def test_fails_in_its_loop(self):
        await asyncio.sleep(0)
        wait()

@pytest.mark.asyncio
@pytest.mark.no_host_sync
async def test_fails_in_a_coroutine():
    await asyncio.sleep(0)
    wait()

@pytest.mark.asyncio
async def test_passes_a_coroutine_that_counts(host_syncs):
    await asyncio.sleep(0)
    wait(2)
    assert host_syncs.count == 2

def test_passes_counted(host_syncs):
    assert host_syncs.count == 0
    wait(2)
    assert [(site.op, site.count, site.function) for site in host_syncs.sites] == [("aten::nonzero", 2, "wait")]
    host_syncs.assert_at_most(2)
    with pytest.raises(AssertionError, match="2 host syncs, but at most 1 is allowed"):
        host_syncs.assert_at_most(1)
    assert host_syncs.report().sites[0].advice

def test_fails_asserted(host_syncs):
    wait()
    host_syncs.assert_none()

@pytest.fixture
def too_early(host_syncs):
    with pytest.raises(syncagent.SyncAgentError, match="has not begun"):
        host_syncs.count
    yield
    assert host_syncs.count == 1

def test_passes_after_a_fixture(too_early):
    wait()

@pytest.mark.no_host_sync(most=3)
def test_fails_nonsense():
    pass

@pytest.mark.no_host_sync(max_syncs=-1)
def test_fails_number():
    pass

@pytest.mark.no_host_sync(kinds=["scalars"])
def test_fails_kind():
    pass

@pytest.mark.no_host_sync(3)
def test_fails_position():
    pass

@pytest.mark.no_host_sync(allow=False)
def test_fails_allow():
    pass

@pytest.mark.no_host_sync(allow=[])
def test_passes_where_nothing_is_allowed():
    pass
"""
ADDED_LATE = """
@pytest.fixture
def added(request):
    request.node.add_marker(pytest.mark.no_host_sync)

def test_fails_for_what_a_fixture_adds(added):
    wait()

def test_fails_as_it_is_too_late(request):
    request.node.add_marker("no_host_sync")

@pytest.mark.no_host_sync(max_syncs=1)
def test_fails_for_its_own_marker(request):
    wait(2)
    request.node.add_marker("no_host_sync")

def test_fails_by_its_own_error(request):
    request.node.add_marker("no_host_sync")
    assert 0, "of its own"
"""
AGENT_OF_A_FIXTURE = """
@pytest.fixture(scope="session", autouse=True)
def agent():
    with syncagent.watch(simulate=True):
        yield

def test_waits():
    wait(2)
"""
AGENTS_OF_FIXTURES = """
@pytest.fixture(params=[1, 2])
def agent(request):
    with syncagent.watch():
        yield

def test_waits(agent):
    wait(2)

def test_waits_without(request):
    wait()
"""
UNDER_A_POLICY = """
def test_quiet():
    torch.arange(4.0, device=DEVICE) + 1

def test_waits():
    wait(2)

def test_swallows():
    try:
        wait()
    except RuntimeError:
        pass

@pytest.mark.no_host_sync(max_syncs=1)
def test_limit():
    wait()
"""
STOPPED = """
@pytest.mark.no_host_sync
def test_passes_before():
    pass

@pytest.mark.no_host_sync
def test_fails_after_a_stop_inside():
    syncagent.stop()
    wait()

@pytest.mark.no_host_sync
def test_fails_after_the_stop_of_what_start_returns():
    syncagent.start().stop()
    wait()

@pytest.mark.no_host_sync
def test_fails_later():
    wait()

@pytest.mark.no_host_sync
def test_fails_where_it_stops_the_region():
    syncagent.current().stop()
"""
STOPPED_IN_A_FIXTURE = """
@pytest.fixture(scope="module", autouse=True)
def agent():
    with syncagent.watch() as agent:
        yield agent

@pytest.mark.no_host_sync
def test_fails_as_it_is_stopped(agent):
    agent.stop()
    wait()

@pytest.mark.no_host_sync
def test_fails_later():
    wait()
"""
OF_THE_PROGRAM = """
@pytest.fixture
def policy_of_the_program():
    with syncagent.watch(policy="raise", warmup_steps=0):
        yield

@pytest.fixture(scope="session")
def asked_for_late():
    wait()

def test_fails_by_the_first_agent(policy_of_the_program):
    wait()

def test_passes_and_begins_the_next(host_syncs):
    pass

def test_fails_by_a_region(policy_of_the_program):
    wait()

@pytest.mark.no_host_sync
def test_passes_with_a_fixture_in_it(request):
    request.getfixturevalue("asked_for_late")
"""
OF_PARAMETERS = """
CASES = [
    pytest.param(2, marks=pytest.mark.no_host_sync(max_syncs=2), id="two"),
    pytest.param(2, marks=pytest.mark.no_host_sync(max_syncs=1), id="none"),
    pytest.param(2, marks=pytest.mark.filterwarnings("ignore"), id="other"),
]

@pytest.mark.no_host_sync
@pytest.mark.parametrize("times", CASES)
def test_it(times):
    for _ in range(times):
        wait()
"""
INHERITED = """
@pytest.mark.no_host_sync
class TestNone:
    def test_one(self):
        wait()

class TestNoneAsWell(TestNone):
    pass

class TestOne(TestNone):
    pytestmark = pytest.mark.no_host_sync(max_syncs=1)

@pytest.mark.no_host_sync(max_syncs=1)
class TestOneAsWell(TestNone):
    pass

class TestHeir(TestOneAsWell):
    pytestmark = [pytest.mark.filterwarnings("ignore")]

class TestFunction(TestNone):
    @pytest.mark.no_host_sync(max_syncs=1)
    def test_one(self):
        wait()
"""
EXPECTED_ERRORS = """
@pytest.mark.no_host_sync
@pytest.mark.xfail(raises=syncagent.HostSyncAssertionError, strict=True)
def test_the_error_of_an_assertion():
    wait()

@pytest.mark.no_host_sync
@pytest.mark.xfail(raises=AssertionError, strict=True)
def test_any_assertion():
    wait()

@pytest.mark.no_host_sync
@pytest.mark.xfail(raises=ValueError, strict=True)
def test_another_error():
    wait()
"""
UNNOTICED = """
import sys

def test_nothing_is_imported():
    assert "torch" not in sys.modules
    assert [name for name in sys.modules if name.startswith("syncagent.")] == [
        "syncagent._version", "syncagent.integrations", "syncagent.integrations.pytest_plugin"
    ]
"""

NONSENSE = ("test_fails_nonsense", "test_fails_number", "test_fails_kind", "test_fails_position", "test_fails_allow")
LOADED = """
import sys

import pytest

OF_PYTEST = {
    "syncagent", "syncagent._version", "syncagent.integrations", "syncagent.integrations.pytest_plugin"
}

def loaders():
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "syncagent"}
    return {type(module.__loader__).__name__ for name, module in ours.items() if name not in OF_PYTEST}

@pytest.mark.no_host_sync
def test_watched():
    assert loaders() == {"SourceFileLoader"}

def test_an_inner_session_leaves_nothing_behind(tmp_path):
    (tmp_path / "test_inner.py").write_text("def test_it(host_syncs): pass")
    before = list(sys.meta_path)
    assert pytest.main(["-q", "-p", "no:cacheprovider", str(tmp_path)]) == 0
    assert sys.meta_path == before
"""

EXPECTED_FAILURES = """
@pytest.mark.no_host_sync
class TestExpected(unittest.TestCase):
    @unittest.expectedFailure
    def test_waits(self):
        wait()

    @unittest.expectedFailure
    def test_neither(self):
        pass

    @unittest.expectedFailure
    def test_waits_and_fails(self):
        wait()
        self.fail("as expected")

    @unittest.expectedFailure
    def test_fails(self):
        self.fail("as expected")

    @pytest.mark.xfail(strict=True)
    def test_marked_xfail(self):
        wait()
"""


class Ran:
    def __init__(self, done, folder):
        self.code, self.text, self.folder = done.returncode, done.stdout + done.stderr, folder
        file = folder / "junit.xml"
        self.cases = list(ET.parse(file).iter("testcase")) if file.exists() else []

    def names(self, *tags):
        """The tests with a failure or an error, or with neither."""
        return {case.get("name") for case in self.cases if any(case.find(tag) is not None for tag in tags)}

    def said(self, name):
        (case,) = [case for case in self.cases if case.get("name") == name]
        return next(found.text or "" for found in case if found.tag in {"failure", "error"})

    def counts(self):
        return {
            case.get("name"): int(one.get("value"))
            for case in self.cases
            for one in case.iter("property")
            if one.get("name") == "host_syncs"
        }


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """``ran(source, *options)``: pytest on a file of that content."""
    for name in [name for name in os.environ if name.startswith(("PYTEST_", "SYNCAGENT"))]:
        monkeypatch.delenv(name)

    def run(source, *options, more=()):
        (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
        (tmp_path / "test_it.py").write_text(source)
        (tmp_path / "junit.xml").unlink(missing_ok=True)
        for name, content in more:
            (tmp_path / name).write_text(content)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=junit.xml", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
        return Ran(done, tmp_path)

    return run


def has_asyncio():
    try:
        import pytest_asyncio  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def check_what_was_asked_for(run):
    failed = run.names("failure", "error")
    coroutines = set() if has_asyncio() else {case.get("name") for case in run.cases if "coroutine" in case.get("name")}
    expected = {case.get("name") for case in run.cases if case.get("name").startswith("test_fails")}
    assert failed - coroutines == expected - coroutines, run.text
    for name in failed - {"test_fails_by_its_own_error", *coroutines}:
        said = run.said(name)
        if name not in {*NONSENSE}:
            assert "host sync, but none is allowed\n" in said, said
            assert "test_it.py:14 in wait" in said
            assert "torch.nonzero(x)" in said
            assert "→ keep the shape" in said


def test_what_tests_ask_for_by_marker_and_fixture(ran):
    run = ran(HEAD + ASKED_FOR, "--syncagent-simulate")
    check_what_was_asked_for(run)
    assert len(run.cases) == 31
    assert run.said("test_fails_nonsense") == "no_host_sync takes allow=, max_syncs=, kinds=, but not most="
    assert run.said("test_fails_position") == "no_host_sync takes allow=, max_syncs=, kinds=, but not 3"
    assert run.said("test_fails_number").startswith(
        "no_host_sync: the most host syncs that are allowed are -1; it must"
    )
    assert run.said("test_fails_kind").startswith("no_host_sync: kind 'scalars' is not allowed; it must be one of ")
    assert run.said("test_fails_allow").startswith(
        "no_host_sync: setting allow is False, but it must be a list of names"
    )
    assert "host sync" not in run.said("test_fails_by_its_own_error")
    assert "contextlib" not in run.said("test_fails_one")
    assert run.counts()["test_passes_up_to_two[2]"] == 2
    assert "warnings summary" not in run.text


def test_a_marker_that_is_added_while_the_test_runs_is_refused(ran):
    run = ran(HEAD + ADDED_LATE, "--syncagent-simulate")
    assert run.names("failure", "error") == {case.get("name") for case in run.cases}, run.text
    assert run.said("test_fails_for_what_a_fixture_adds").startswith("1 host sync, but none is allowed\n")
    assert run.said("test_fails_as_it_is_too_late") == (
        "no_host_sync was added while the test ran, which is too late; add it in a fixture, or above the test"
    )
    assert run.said("test_fails_for_its_own_marker").startswith("2 host syncs, but at most 1 is allowed\n")
    assert "too late" not in run.said("test_fails_by_its_own_error")


def test_a_count_that_is_not_as_expected_is_shown_with_its_lines(ran):
    run = ran(
        HEAD + "def test_it(host_syncs):\n    wait(2)\n    assert host_syncs.count == 1\n", "--syncagent-simulate"
    )
    assert "where 2 = <host_syncs: test_it.py:14 (2)>.count" in run.said("test_it")


@pytest.mark.parametrize("more", [[], ["-n", "1"]])
@pytest.mark.parametrize(("source", "counts"), [(AGENT_OF_A_FIXTURE, [2]), (AGENTS_OF_FIXTURES, [5])])
def test_the_report_has_what_agents_saw_that_ended_before_the_session(ran, source, counts, more):
    run = ran(HEAD + source, "--syncagent-simulate", "--syncagent-report=all.json", *more)
    assert run.code == 0, run.text
    assert f"{counts[0]} host syncs in " in run.text
    assert "There is no CUDA device here" not in run.text
    assert [site["count"] for site in json.loads((run.folder / "all.json").read_text())["sites"]] == counts


def test_the_marker_of_a_parameter_is_closer_than_the_functions(ran):
    run = ran(HEAD + OF_PARAMETERS, "--syncagent-simulate")
    assert run.names("failure", "error") == {"test_it[none]", "test_it[other]"}, run.text
    assert run.said("test_it[none]").startswith("2 host syncs, but at most 1 is allowed\n")
    assert run.said("test_it[other]").startswith("2 host syncs, but none is allowed\n")


def test_the_marker_of_a_class_is_closer_than_those_of_the_classes_that_it_inherits_from(ran):
    run = ran(HEAD + INHERITED, "--syncagent-simulate")
    failed = {(case.get("classname"), case.get("name")) for case in run.cases if case.find("failure") is not None}
    assert failed == {("test_it.TestNone", "test_one"), ("test_it.TestNoneAsWell", "test_one")}, run.text
    assert len(run.cases) == 6


def test_what_a_broken_limit_raises_is_the_error_that_an_assertion_raises(ran):
    run = ran(HEAD + EXPECTED_ERRORS, "--syncagent-simulate")
    assert run.names("failure", "error") == {"test_another_error"}, run.text
    assert run.names("skipped") == {"test_the_error_of_an_assertion", "test_any_assertion"}
    assert "FAILED test_it.py::test_another_error - Failed: 1 host sync, but none is" in run.text


@pytest.mark.parametrize("more", [[], ["-n", "1"]])
def test_a_report_that_cannot_be_saved_fails_the_session(ran, tmp_path, more):
    (tmp_path / "file").touch()
    run = ran(HEAD + UNDER_A_POLICY, "--syncagent-simulate", "--syncagent-report=file/known.json", *more)
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert "the report cannot be written to 'file/known.json': " in run.text
    assert "syncagent report file/known.json" not in run.text
    assert "4 passed" in run.text


def test_the_report_is_saved_where_pytest_is_told_to_exit(ran):
    source = HEAD + "def test_it():\n    wait()\n    pytest.exit('enough', returncode=7)\n"
    run = ran(source, "--syncagent-simulate", "--syncagent-report=all.json")
    assert run.code == 7
    assert [site["count"] for site in json.loads((run.folder / "all.json").read_text())["sites"]] == [1]


@pytest.mark.parametrize(
    ("name", "shown"), [("all.json", "The rest: syncagent report all.json"), ("all.html", "The rest: all.html")]
)
def test_the_command_that_shows_the_rest_can_read_the_file(ran, name, shown):
    run = ran(HEAD + UNDER_A_POLICY, "--syncagent-simulate", f"--syncagent-report={name}")
    assert shown + "\n" in run.text, run.text


def test_an_expected_failure_of_unittest_is_about_the_test_itself(ran):
    run = ran(HEAD + EXPECTED_FAILURES, "--syncagent-simulate")
    assert run.names("failure", "error") == {"test_waits", "test_neither"}, run.text
    assert run.said("test_waits") == run.said("test_neither") == "Unexpected success"
    assert run.names("skipped") == {"test_waits_and_fails", "test_fails", "test_marked_xfail"}


def test_the_same_in_workers_and_in_another_order(ran):
    shuffled = "import random\n\ndef pytest_collection_modifyitems(items):\n    random.Random(7).shuffle(items)\n"
    check_what_was_asked_for(ran(HEAD + ASKED_FOR, "--syncagent-simulate", "-n", "2", more=[("conftest.py", shuffled)]))


@pytest.mark.parametrize("source", [STOPPED, STOPPED_IN_A_FIXTURE])
def test_a_test_that_stops_the_agent_hides_nothing(ran, source):
    run = ran(HEAD + source, "--syncagent-simulate", "--syncagent-report=all.json")
    expected = {case.get("name") for case in run.cases if case.get("name").startswith("test_fails")}
    assert run.names("failure", "error") == expected, run.text
    assert run.said("test_fails_later").startswith("1 host sync, but none is allowed\n")
    if source is STOPPED:
        assert "could not be counted: the program stopped the agent, or" in run.said(
            "test_fails_where_it_stops_the_region"
        )
        assert "3 host syncs in 3 of 5 tests\n" in run.text
        assert sum(site["count"] for site in json.loads((run.folder / "all.json").read_text())["sites"]) == 3


@pytest.mark.parametrize("options", [[], ["--syncagent=observe"]])
def test_policies_of_the_program_stay_in_force(ran, options):
    run = ran(HEAD + OF_THE_PROGRAM, "--syncagent-simulate", *options)
    assert run.names("failure", "error") == {"test_fails_by_the_first_agent", "test_fails_by_a_region"}, run.text
    assert "no NVIDIA driver" not in run.text


def test_what_pytest_shows_of_a_failed_test_is_allowed(ran):
    """It asks values for their text, which waits."""
    source = (
        HEAD + "def test_it():\n    x = torch.arange(4.0, device=DEVICE)\n    shown(x)\n\ndef shown(x):\n    assert 0\n"
    )
    run = ran(source, "--syncagent-simulate", "--syncagent=observe", "--syncagent-report=all.json")
    assert "tensor([" in run.text
    assert "\n0 host syncs in 0 of 1 test\n" in run.text
    assert all(
        site["allowed_count"] == site["count"] for site in json.loads((run.folder / "all.json").read_text())["sites"]
    )


def test_observe_counts_and_saves_a_report(ran):
    run = ran(HEAD + UNDER_A_POLICY, "--syncagent-simulate", "--syncagent=observe", "--syncagent-report=known.json")
    assert run.code == 0, run.text
    assert run.counts() == {"test_quiet": 0, "test_waits": 2, "test_swallows": 1, "test_limit": 1}
    assert "4 host syncs in 3 of 4 tests\npytest · simulated CUDA device" in run.text
    assert "the report is in known.json" in run.text
    report = json.loads((run.folder / "known.json").read_text())
    assert [(site["source"], site["count"], site["ranks"]) for site in report["sites"]] == [("torch.nonzero(x)", 4, [])]


def test_raise_fails_at_the_line_and_where_the_error_is_swallowed(ran):
    run = ran(HEAD + UNDER_A_POLICY, "--syncagent-simulate", "--syncagent=raise")
    assert run.names("failure", "error") == {"test_waits", "test_swallows"}, run.text
    assert ">           torch.nonzero(x)\nE           syncagent.errors.HostSyncError: aten::nonzero makes" in run.text
    assert run.said("test_swallows") == "the test caught the error of a host sync that --syncagent=raise had stopped"


def test_warn_warns_in_pytests_own_way(ran):
    run = ran(HEAD + UNDER_A_POLICY, "--syncagent-simulate", "--syncagent=warn")
    assert run.code == 0
    assert run.text.count("HostSyncWarning: aten::nonzero made the host wait") == 1
    assert ran(HEAD + UNDER_A_POLICY, "--syncagent-simulate", "--syncagent=warn", "-W", "error").code == 1


def test_the_lines_of_a_baseline_may_wait_and_no_others(ran):
    source = HEAD + UNDER_A_POLICY
    assert ran(source, "--syncagent-simulate", "--syncagent=observe", "--syncagent-report=known.json").code == 0
    options = ("--syncagent-simulate", "--syncagent=raise", "--syncagent-baseline=known.json")
    assert ran(source, *options).code == 0
    moved = source.replace("DEVICE =", "# further down\nDEVICE =").replace(
        "def test_quiet():", "def test_quiet():\n    "
    )
    assert ran(moved, *options).code == 0
    new = ran(
        source.replace("torch.arange(4.0, device=DEVICE) + 1", "torch.arange(4.0, device=DEVICE).sum().item()"),
        *options,
    )
    assert new.names("failure") == {"test_quiet"}


def test_workers_reports_are_one_and_a_worker_that_dies_is_named(ran):
    dies = "import os\n\ndef test_dies():\n    os._exit(3)\n"
    options = ("--syncagent-simulate", "--syncagent=observe", "--syncagent-report=all.json", "-n", "2")
    run = ran(HEAD + UNDER_A_POLICY, *options)
    assert "4 host syncs in 3 of 4 tests\n" in run.text
    assert [site["count"] for site in json.loads((run.folder / "all.json").read_text())["sites"]] == [4]
    run = ran(HEAD + UNDER_A_POLICY, *options, more=[("test_dies.py", dies)])
    assert " died, and what was seen there is not in the report" in run.text
    assert "crashed while running 'test_dies.py::test_dies'" in run.text


def test_without_a_device_everything_passes_in_silence(ran):
    if __import__("torch").cuda.is_available():
        pytest.skip("there is a GPU")
    run = ran(HEAD + UNDER_A_POLICY + "\ndef test_counted(host_syncs):\n    wait()\n    host_syncs.assert_none()\n")
    assert run.code == 0
    assert "host sync" not in run.text
    run = ran(HEAD + UNDER_A_POLICY, "--syncagent=raise")
    assert run.code == 0
    assert (
        "There is no CUDA device here, so nothing could wait for one; --syncagent-simulate simulates one." in run.text
    )


@pytest.mark.parametrize("option", ["--collect-only", "-k=no_test"])
def test_where_no_test_ran_it_claims_nothing_about_the_device(ran, option):
    run = ran(HEAD + UNDER_A_POLICY, "--syncagent-simulate", "--syncagent=observe", option)
    assert "0 host syncs in 0 of 0 tests\n" in run.text
    assert "There is no CUDA device here" not in run.text


def test_off_it_imports_nothing(ran):
    run = ran(UNNOTICED)
    assert run.code == 0, run.text


def test_a_simulated_device_alone_loads_no_agent(ran):
    source = "import sys\n\ndef test_it():\n    assert 'syncagent.runtime.agent' not in sys.modules\n"
    run = ran(HEAD.replace("import syncagent", "") + source + "    wait()\n", "--syncagent-simulate")
    assert run.code == 0, run.text


@pytest.mark.parametrize("options", [[], ["--syncagent-simulate", "--syncagent=raise"]])
def test_python_itself_loads_the_package_not_the_part_of_pytest_that_rewrites_asserts(ran, options):
    run = ran(LOADED, *options)
    assert run.code == 0, run.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--syncagent-baseline=known.json"], "--syncagent-baseline needs --syncagent=warn or --syncagent=raise"),
        (["--syncagent=raise", "--syncagent-baseline=nix.json"], "cannot read the report 'nix.json': no such file"),
        (["--syncagent=raise", "--syncagent-baseline=test_it.py"], "'test_it.py' is not a syncagent report"),
        (["--syncagent=often"], "invalid choice: 'often' (choose from"),
        (
            ["--syncagent=observe", "--syncagent-report=x.doc"],
            "a report cannot be saved as 'x.doc': the name has to end",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_any_test_runs(ran, options, said):
    run = ran("def test_it():\n    pass\n", *options)
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert said in run.text
    assert "Traceback" not in run.text
    assert not run.cases


def test_a_baseline_of_another_program_is_refused(ran, tmp_path):
    known = json.loads(BASELINE.read_text(encoding="utf-8"))
    for site in known["sites"]:
        site["file"] = f"elsewhere/{site['file']}"
    (tmp_path / "known.json").write_text(json.dumps(known))
    run = ran("def test_it():\n    pass\n", "--syncagent=raise", "--syncagent-baseline=known.json")
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert "--syncagent-baseline known.json: it is of another program, none of its files is in " in run.text


def test_a_setting_that_is_not_allowed_is_said(ran, monkeypatch):
    monkeypatch.setenv("SYNCAGENT_WARMUP_STEPS", "few")
    run = ran(HEAD + UNDER_A_POLICY, "--syncagent=raise")
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert "SYNCAGENT_WARMUP_STEPS is 'few'" in run.text


def test_a_setting_that_is_not_allowed_fails_what_is_watched_in_one_sentence(ran, monkeypatch):
    monkeypatch.setenv("SYNCAGENT_WARMUP_STEPS", "few")
    source = (
        "import pytest\n\n@pytest.mark.no_host_sync\ndef test_marked():\n    pass\n\n"
        "def test_counting(host_syncs):\n    pass\n\ndef test_other():\n    pass\n"
    )
    run = ran(source)
    assert run.names("failure", "error") == {"test_marked", "test_counting"}, run.text
    for name in ("test_marked", "test_counting"):
        assert run.said(name).startswith("syncagent: setting SYNCAGENT_WARMUP_STEPS is 'few', but it must be ")
        assert "\n" not in run.said(name)


def test_the_page_shows_what_pytest_prints(ran):
    page = (BASELINE.parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
    files = dict(re.findall(r'(?ms)^```python title="(\S+)"\n(.*?)^```$', page))
    shown = re.findall(r"(?ms)^```text\n(.*?)^```$", page)[0]
    run = ran(files["test_loss.py"], "-q", "--syncagent-simulate", more=[("loss.py", files["loss.py"])])
    assert shown.split("\n", 1)[1] in run.text


def test_a_process_that_is_watched_already_is_joined(ran, monkeypatch):
    """As by SYNCAGENT=1 pytest: no warning, and the agent's own report goes on."""
    monkeypatch.setenv("SYNCAGENT", "1")
    monkeypatch.setenv("SYNCAGENT_SIMULATE", "1")
    monkeypatch.setenv("SYNCAGENT_REPORT", "own.json")
    limit = "\n@pytest.mark.no_host_sync\ndef test_none_is_allowed():\n    wait()\n"
    run = ran(HEAD + UNDER_A_POLICY + limit, "-W", "error")
    assert run.names("failure", "error") == {"test_none_is_allowed"}, run.text
    assert [site["count"] for site in json.loads((run.folder / "own.json").read_text())["sites"]] == [5]
