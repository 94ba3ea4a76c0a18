"""Gates in whole processes: what cannot be in force does not start, and what a run stopped is in its report."""

from __future__ import annotations

import json
import textwrap
from functools import partial

import pytest

MISSING = {"SYNCAGENT": "1", "SYNCAGENT_POLICY": "raise", "SYNCAGENT_BASELINE": "missing.json"}


@pytest.fixture
def python(python):
    """``python(*words, **variables)``: an interpreter with one thread for computing."""
    return partial(python, OMP_NUM_THREADS="1")


def refused(done, *texts):
    """It ended with 2, said one sentence and did nothing else."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(text in done.stderr for text in texts), done.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--policy", "raise", "--baseline", "missing.json"], "setting baseline is 'missing.json'"),
        (["--policy", "warn", "--baseline", "broken.json"], "setting baseline is 'broken.json'"),
        (
            ["--policy", "raise", "--allow-packs", "torhc"],
            "setting allow_packs is 'torhc', but it must be one of torch",
        ),
        (["--allow-packs", "torhc"], "setting allow_packs is 'torhc'"),
        (["--policy", "rase"], "--policy is 'rase', but it must be one of observe, warn, raise"),
    ],
    ids=" ".join,
)
def test_run_refuses_a_gate_that_cannot_hold_before_the_scripts_first_line(python, tmp_path, options, text):
    (tmp_path / "train.py").write_text("print('ran')\n")
    (tmp_path / "broken.json").write_text('{"schema": 1}')
    refused(python("-m", "syncagent", "run", *options, "train.py"), text)


@pytest.mark.parametrize(
    "variables",
    [
        MISSING,
        {"SYNCAGENT": "1", "SYNCAGENT_POLICY": "rase"},
        {"SYNCAGENT": "1", "SYNCAGENT_POLICY": "raise", "SYNCAGENT_WARMUP_STEPS": "few"},
        {
            "SYNCAGENT": "1",
            "SYNCAGENT_POLICY": "warn",
            "SYNCAGENT_BASELINE": "b.json",
            "SYNCAGENT_ALLOW_PACKS": "torhc",
        },
    ],
    ids=lambda variables: " ".join(list(variables.values())[1:]),
)
def test_a_process_whose_gate_cannot_hold_ends_where_it_imports_torch(python, variables):
    """Whatever it would catch; and not before, so that helpers without torch run."""
    done = python("-c", "import importlib.util; importlib.util.find_spec('torch'); print(1)", **variables)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    swallows = "try:\n    import torch\nexcept BaseException:\n    pass\nprint('ran')"
    refused(python("-c", swallows, **variables), "syncagent: ")


def test_children_that_import_torch_end_as_well(python, tmp_path):
    """Those that multiprocessing spawns."""
    (tmp_path / "parent.py").write_text(
        textwrap.dedent("""\
        import multiprocessing

        def work():
            import torch
            print("ran", flush=True)

        if __name__ == "__main__":
            child = multiprocessing.get_context("spawn").Process(target=work)
            child.start()
            child.join()
            raise SystemExit(child.exitcode + 40)
        """)
    )
    done = python("parent.py", **MISSING)
    assert (done.returncode, done.stdout) == (42, ""), done.stderr


def test_observation_that_cannot_start_lets_the_script_run(python):
    """It says so."""
    done = python("-c", "import torch; print('ran')", SYNCAGENT="1", SYNCAGENT_ALLOW_PACKS="torhc")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "setting allow_packs is 'torhc'" in done.stderr
    assert "The script runs unwatched." in done.stderr


JOB = """\
import torch
import syncagent

x = torch.ones(3, device="cuda")
torch.cuda.synchronize()
stream, event = torch.cuda.Stream(), torch.cuda.Event()
for step in range(3):
    torch.cuda.synchronize()
    stream.synchronize()
    event.synchronize()
    if step:
        try:
            x[x > 0]
        except syncagent.HostSyncError:
            pass
    syncagent.step()
"""


def test_explicit_waits_always_count_and_what_was_stopped_is_in_the_report(python, forked, tmp_path):
    """Also where nothing was left to wait for; and the check finds what was stopped."""
    (tmp_path / "train.py").write_text(JOB.replace("if step", "if False"))
    watched = {
        "SYNCAGENT": "1", "SYNCAGENT_SIMULATE": "1", "SYNCAGENT_JOURNAL": "off", "SYNCAGENT_SUMMARY": "off",
        "SYNCAGENT_WARMUP_STEPS": "0",
    }  # fmt: skip
    first = forked("train.py", SYNCAGENT_REPORT="base.json", **watched)
    assert first.returncode == 0, first.stderr
    base = json.loads((tmp_path / "base.json").read_text())
    counts = {(row["source"], row["count"]) for row in base["sites"] if row["kind"] == "explicit"}
    assert counts == {
        ("torch.cuda.synchronize()", 1),
        ("torch.cuda.synchronize()", 3),
        ("stream.synchronize()", 3),
        ("event.synchronize()", 3),
    }
    idle = [row["stall_ms"] for row in base["sites"] if row["source"].startswith(("stream", "event"))]
    assert idle == [0.0, 0.0]
    assert base["run"]["gate"] is None

    (tmp_path / "train.py").write_text(JOB)
    gate = {"SYNCAGENT_POLICY": "raise", "SYNCAGENT_BASELINE": "base.json"}
    second = forked("train.py", SYNCAGENT_REPORT="new.json", **gate, **watched)
    assert second.returncode == 0, second.stderr
    new = json.loads((tmp_path / "new.json").read_text())
    assert new["run"]["gate"] == "held"
    [stopped] = [row for row in new["sites"] if row["violations"]]
    assert (stopped["source"], stopped["op"], stopped["kind"]) == ("x[x > 0]", "aten::index", "dynamic_shape")
    assert (stopped["count"], stopped["stall_ms"], stopped["violations"]) == (2, 0.0, 2)

    def check(*reports):
        return python("-m", "syncagent", "check", *reports, "--baseline", "base.json")

    found = check("new.json")
    assert found.returncode == 1, found.stderr
    assert "1 site new\n" in found.stdout
    assert "x[x > 0]" in found.stdout
    assert check("base.json", "base.json").returncode == 0
    new["run"]["gate"] = "failed"
    new["notes"] = ["the gate did not hold: the policy failed"]
    (tmp_path / "new.json").write_text(json.dumps(new))
    refused(check("new.json"), "new.json cannot be checked: the gate of its run did not hold (the policy failed)")
