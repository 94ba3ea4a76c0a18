"""Every scenario of harness.c, in a process of its own: plain and under the sanitizers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from syncagent.native import build
from tests.native import libraries

SCENARIOS = re.findall(r"^    SCENARIO\((\w+)\)", (libraries.HERE / "harness.c").read_text(), re.MULTILINE)
FLAVOURS = {
    "plain": (),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
UNAVAILABLE = 77

# Thread sanitizer does not follow threads across a fork.
_FORKING = {name for name in SCENARIOS if name.startswith("children_")}
# ... and takes long where there are many; the others have run these.
_SLOW = {"slots_are_used_again", "threads_without_a_slot_are_counted"}

RUNS = [
    (flavour, scenario)
    for flavour in FLAVOURS
    for scenario in SCENARIOS
    if flavour != "thread" or scenario not in _FORKING | _SLOW
]


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """``harness(flavour)``: the program, compiled when first asked for."""
    made: dict[str, Path] = {}

    def compiled(flavour):
        if flavour not in made:
            _require(flavour, tmp_path_factory.mktemp("try"))
            made[flavour] = libraries.compile_into(tmp_path_factory.mktemp(flavour), FLAVOURS[flavour])
        return made[flavour]

    return compiled


def _require(flavour, folder):
    try:
        compiler = build.find_compiler()
        build.machine(compiler)
    except build.NotBuiltError as error:
        pytest.skip(str(error))
    program = folder / "program"
    words = [*compiler, *FLAVOURS[flavour], "-x", "c", "-", "-o", str(program)]
    tried = subprocess.run(words, input="int main(void) { return 0; }", text=True, capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"{compiler[0]} has no {flavour} sanitizer here: {tried.stderr.strip()[-200:]}")
    if subprocess.run([program], capture_output=True, check=False).returncode:
        pytest.skip(f"programs with {flavour} sanitizer do not run here")


@pytest.mark.parametrize(("flavour", "scenario"), RUNS, ids=[f"{flavour}-{scenario}" for flavour, scenario in RUNS])
def test_scenario(harness, flavour, scenario):
    program = harness(flavour)
    done = subprocess.run([program, program.parent, scenario], capture_output=True, text=True, timeout=100, check=False)
    if done.returncode == UNAVAILABLE:
        pytest.skip("this machine does not let the scenario run")
    assert (done.returncode, done.stderr) == (0, "")


def test_unknown_scenarios_are_refused(harness):
    program = harness("plain")
    assert subprocess.run([program, program.parent, "nothing"], capture_output=True, check=False).returncode == 2
