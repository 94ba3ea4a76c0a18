"""A baseline lets pass what ``syncagent check`` would call known, and nothing else: both go by one key."""

from __future__ import annotations

import contextlib
import json
import linecache
import site
import sys

import pytest
import torch

import syncagent
from syncagent import HostSyncError
from syncagent.report.compare import compare
from syncagent.report.model import Report
from syncagent.runtime.process import release

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])


@pytest.fixture
def job(tmp_path, monkeypatch):
    """``job(source, folder, name)``: the functions of a script with this text."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source, folder="job", name="train.py"):
        file = tmp_path / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        linecache.checkcache()
        space = {"__name__": "train"}
        exec(compile(source, str(file), "exec"), space)
        return space

    return write


@pytest.fixture
def gate(cpu_agent, tmp_path):
    """``gate(before, after)``: the lines that a gate stops in the second, which knows the first, as both see it."""

    def run(before, after, change=lambda values: values):
        agent = cpu_agent(detail="syncs")
        before()
        release(agent).save(tmp_path / "base.json")
        base = change(json.loads((tmp_path / "base.json").read_text()))
        (tmp_path / "base.json").write_text(json.dumps(base))
        agent = cpu_agent(policy="raise", detail="syncs", baseline=str(tmp_path / "base.json"))
        after()
        report = release(agent)
        found = compare(Report.load(tmp_path / "base.json"), report).findings()
        stopped = {row.source for row in report.sites if row.violations}
        assert stopped == {change.source for change in found}
        return stopped

    return run


def calls(space, *names):
    def run():
        for name in names or ("step",):
            with contextlib.suppress(HostSyncError):
                space[name](X)

    return run


BEFORE = "def step(x):\n    total = x.sum().item()\n    return total\n"


@pytest.mark.parametrize(
    "after",
    [
        (
            "import os\n\n"
            "def step(x):\n    # moved\n    total = (\n        x.sum()\n        .item()\n    )\n    return total\n"
        ),
        "def step(x):\n    total = x.sum(dim=None).item()\n    return total\n",
        "def step(x):\n    total: float = x.sum().item()\n    return total\n",
    ],
    ids=["moved and formatted", "a keyword", "an annotation"],
)
def test_what_has_moved_or_changed_a_little_passes(gate, job, after):
    """Formatting, line breaks, a keyword."""
    before = job(BEFORE)
    assert gate(calls(before), lambda: calls(job(after))()) == set()


@pytest.mark.parametrize(
    ("after", "stopped"),
    [
        (BEFORE.replace("return total", "return total + x.max().item()"), {"return total + x.max().item()"}),
        (BEFORE.replace("    return", "    other = x.min().item()\n    return"), {"other = x.min().item()"}),
        (BEFORE.replace("def step", "def other"), {"total = x.sum().item()"}),
        (BEFORE.replace("x.sum().item()", "x.nonzero()"), {"total = x.nonzero()"}),
    ],
    ids=["another statement", "one much like it beside it", "another function", "another kind"],
)
def test_what_is_new_is_stopped(gate, job, after, stopped):
    """Also right beside a line that is known."""
    before = job(BEFORE)
    assert gate(calls(before), lambda: calls(job(after), "other" if "def other" in after else "step")()) == stopped


def test_one_known_line_stands_for_one_changed_line(gate, job):
    """The second that is like it is new."""
    before = job(BEFORE)
    after = "def step(x):\n    total = x.sum(0)[0].item()\n    other = x.sum(1)[0].item()\n    return total\n"
    after = after.replace("    other", "    pass\n    other")

    def run():
        space = job(after)
        try:
            space["step"](X)
        except HostSyncError:
            return
        pytest.fail("nothing was stopped")

    assert len(gate(calls(before), run)) == 1


def test_a_file_of_the_same_name_elsewhere_is_another(gate, job):
    """The folder counts."""
    before = job(BEFORE)
    assert gate(calls(before), lambda: calls(job(BEFORE, "job/inner"))()) == {"total = x.sum().item()"}


def test_another_library_line_behind_a_known_line_is_new(gate, tmp_path, monkeypatch):
    """An option of a library was turned on: the user's line is the same."""
    folder = tmp_path / "site-packages" / "library"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "def train(x, check):\n    x.sum().item()\n    if check:\n        bool(x.isnan().any())\n"
    )
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "library", raising=False)
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(folder.parent)])
    import library

    def run(check):
        with contextlib.suppress(HostSyncError):
            library.train(X, check)

    assert gate(lambda: run(False), lambda: run(True)) == {"library.train(X, check)"}


def test_backward_syncs_are_known_by_their_forward_line(gate, job):
    """The same line calls backward() for all of them."""
    source = "def step(x):\n    y = x.clone().requires_grad_()\n    loss = y[MASK].sum()\n    loss.backward()\n"
    source = f"import torch\nMASK = torch.tensor([[True, False], [True, True]])\n{source}"
    assert gate(calls(job(source)), lambda: calls(job(source))()) == set()


def test_a_baseline_from_another_checkout_matches(gate, job):
    """Files are named from the project, not from the root of the disk."""

    def moved(values):
        return json.loads(json.dumps(values).replace(values["run"]["folder"], "/ci/build"))

    assert gate(calls(job(BEFORE)), lambda: calls(job(BEFORE))(), moved) == set()


def test_a_baseline_of_an_earlier_version_is_still_read(gate, job):
    """It has single lines, no folder, and a row for each op."""
    source = "def step(x):\n    total = max(\n        x.sum().item(),\n        1,\n    )\n    return total\n"

    def earlier(values):
        for key in ("gate", "folder", "project"):
            del values["run"][key]
        for row in values["sites"]:
            for key in ("statement", "ops", "conditional"):
                del row[key]
        return values

    assert gate(calls(job(source)), lambda: calls(job("\n" + source))(), earlier) == set()
    more = source.replace("1,\n", "x.max().item(),\n")
    assert gate(calls(job(source)), lambda: calls(job(more))(), earlier) == {"x.max().item(),"}


def test_what_a_kind_is_judged_by_is_what_it_is_reported_as(cpu_agent):
    """A mask waits in the ``nonzero`` inside; the whole is what has a name."""
    agent = cpu_agent(policy="raise", allow_kinds="dynamic_shape", detail="syncs")
    X[X > 0]
    torch.masked_select(X, X > 0)
    assert [event.allowed for event in agent.events()] == ["allow_kinds: dynamic_shape"] * 2
    syncagent.stop()
