"""``syncagent run``: scripts and modules with their own arguments, output, traceback and exit code."""

from __future__ import annotations

import json
from functools import partial

import pytest

from tests.processes import PACKAGE

SCRIPT = """\
import os, signal, subprocess, sys
import torch
signal.signal(signal.SIGTERM, lambda *_: print("own handler", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
subprocess.run([sys.executable, "-c", "print('child')"], check=True)
x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
print(x.nonzero().numel(), flush=True)  # a sync
print(sys.argv, __name__, os.path.samefile(sys.path[0], os.path.dirname(__file__)), flush=True)
sys.exit(3)
"""

MODULE = """\
import sys
import torch
import syncagent
x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
with syncagent.watch(policy="warn") as inner:
    print(inner is syncagent.current(), inner.settings.policy, flush=True)
print(x.unique().numel(), flush=True)  # a sync
print(sys.argv[1:], __name__, __package__, sys.path[0], flush=True)
raise ValueError("broken data")
"""


@pytest.fixture
def syncagent(python):
    """``syncagent(*words, **variables)``: the command in a folder of its own, nothing set but the variables."""
    return partial(python, "-m", "syncagent")


def report(folder):
    [file] = folder.glob("seen-*.json")
    return json.loads(file.read_text())


def test_a_script_runs_with_its_own_arguments_handlers_and_exit_code(syncagent, tmp_path):
    """Options before the script are the agent's, all after it the script's, also those that look like ours."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text(SCRIPT)
    done = syncagent(
        "run", "--simulate", "--detail", "syncs", "--report", "seen-{pid}.json", "src/train.py",
        "--detail", "mine", "-m", "--", "x",
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "own handler",
        "child",
        "2",
        f"{['src/train.py', '--detail', 'mine', '-m', '--', 'x']} __main__ True",
    ]
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    seen = report(tmp_path)
    assert (seen["run"]["detail"], seen["run"]["simulated"], seen["run"]["script"]) == ("syncs", True, "train.py")
    assert ("aten::nonzero", 7, str(tmp_path / "src" / "train.py")) in [
        (site["op"], site["line"], site["file"]) for site in seen["sites"]
    ]


def test_a_module_runs_as_python_would_run_it_and_keeps_its_traceback(syncagent, tmp_path):
    """``run -m``; a ``watch()`` in the program is a region of the agent that is there."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("")
    (tmp_path / "jobs" / "train.py").write_text(MODULE)
    done = syncagent("run", "--simulate", "--report", "seen-{pid}.json", "-m", "jobs.train", "--lr", "0.1")
    assert done.stdout.splitlines() == [
        "True warn",
        "3",
        f"['--lr', '0.1'] __main__ jobs {tmp_path}",
    ]
    assert done.returncode == 1
    file = tmp_path / "jobs" / "train.py"
    assert f'  File "{file}", line 9, in <module>\n    raise ValueError("broken data")\n' in done.stderr
    assert "ValueError: broken data\n" in done.stderr
    assert PACKAGE not in done.stderr.partition("ValueError: broken data")[0].partition("Traceback")[2]
    seen = report(tmp_path)
    assert (seen["run"]["policy"], seen["run"]["detail"]) == ("observe", "auto")
    assert ("aten::_unique2", 7, "torch.Tensor.unique") in [
        (site["op"], site["line"], site["api"]) for site in seen["sites"]
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "missing.py"], "there is no file 'missing.py' (a module is run with -m)"),
        (["run"], "say which script to run"),
        (["run", "--policy", "loud", "here.py"], "'loud', but it must be one of observe, warn, raise"),
        (["run", "--max-events", "0", "here.py"], "'0', but it must be a whole number, 1 or more"),
        (["run", "--volume", "11", "here.py"], "No such option"),
        (["rum", "here.py"], "No such command"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_exit_code_2(syncagent, tmp_path, words, sentence):
    """Nothing has run by then."""
    (tmp_path / "here.py").write_text("print('ran')")
    done = syncagent(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence.lower() in done.stderr.lower()
    assert done.stderr.startswith("syncagent")
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_variable_is_reported_before_the_script_runs(syncagent, tmp_path):
    """``run`` is asked to watch, so it refuses; ``SYNCAGENT=1 python`` would run the script unwatched."""
    (tmp_path / "here.py").write_text("print('ran')")
    done = syncagent("run", "here.py", SYNCAGENT_DETAIL="everything")
    assert (done.returncode, done.stdout) == (2, "")
    assert "setting SYNCAGENT_DETAIL is 'everything', but it must be one of auto, ops, syncs" in done.stderr


def test_a_cost_that_cannot_be_measured_is_reported_as_unknown(syncagent, tmp_path):
    """On the simulated device there is no GPU to trace; the run is reported all the same, under detail="syncs"."""
    (tmp_path / "train.py").write_text(
        "import torch\n"
        "w = torch.ones(4, device='cuda', requires_grad=True)\n"
        "optimizer = torch.optim.SGD([w], lr=0.1)\n"
        "for _ in range(8):\n"
        "    loss = (w * w).sum(); loss.backward(); optimizer.step()\n"
        "    print(loss.item())\n",
        encoding="utf-8",
    )
    done = syncagent("run", "--simulate", "--cost", "--report", "seen.json", "train.py")
    assert done.returncode == 0, done.stderr
    assert "cost: not known, the device is simulated" in done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
    assert (seen["run"]["detail"], seen["cost"]["gain_all_ms"]) == ("syncs", None)
    assert all(site["gain_ms"] is None for site in seen["sites"])
    shown = syncagent("cost", "seen.json")
    assert "cost: not known, the device is simulated" in shown.stdout


GOES_ELSEWHERE = """\
import os, sys
if "early" in sys.argv:
    os.chdir("elsewhere")
import torch
if "late" in sys.argv:
    os.chdir("elsewhere")
import syncagent
agent = syncagent.start()  # joins, with the same settings
x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
x.nonzero()
syncagent.stop()
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_program_that_changes_its_folder_has_its_files_where_it_was_started(syncagent, tmp_path, when):
    """As Hydra does; before torch is imported, with which the agent starts, or after."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "train.py").write_text(GOES_ELSEWHERE)
    first = syncagent("run", "--simulate", "--detail", "syncs", "--report", "known.json", "train.py", when)
    assert first.returncode == 0
    assert "not applied" not in first.stderr
    assert [*(tmp_path / "elsewhere").iterdir()] == []
    sites = json.loads((tmp_path / "known.json").read_text())["sites"]
    assert "aten::nonzero" in [site["op"] for site in sites]
    assert len([*(tmp_path / ".syncagent").glob("capture-*")]) == 1
    gate = ("--simulate", "--policy", "raise", "--warmup-steps", "0", "--baseline", "known.json")
    assert syncagent("run", *gate, "train.py", when).returncode == 0
