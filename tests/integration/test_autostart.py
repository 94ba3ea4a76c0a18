"""``SYNCAGENT=1 python script.py``: whole processes, watched from before their first line to however they end."""

from __future__ import annotations

import json
import signal
import textwrap

import pytest

SCRIPT = """\
import os, signal, sys, time
import torch
x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
kept = x[x > 0]  # the mask
print("kept", kept.sum().item(), flush=True)
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
time.sleep(60)
"""


@pytest.fixture
def script(tmp_path):
    """``script(source)``: a file with that source."""

    def write(source, name="train.py"):
        file = tmp_path / name
        file.write_text(textwrap.dedent(source))
        return str(file)

    return write


def sites(file):
    return [(site["op"], site["kind"], site["source"]) for site in json.loads(file.read_text())["sites"]]


# --- what it costs those who do not use it ----------------------------------------------------------------------------

LOADED = "import sys; print(sorted(m for m in sys.modules if m.partition('.')[0] in ('syncagent', 'torch')))"


@pytest.mark.parametrize("value", [None, "", "0"])
def test_without_the_variable_nothing_of_the_agent_is_imported(python, value):
    """An interpreter that is not watched pays for one look at its environment."""
    done = python("-c", LOADED, **({} if value is None else {"SYNCAGENT": value}))
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)


@pytest.mark.parametrize("value", ["off", "No", "FALSE"])
def test_the_variable_can_say_no_in_words(python, value):
    """Not only as a number."""
    done = python("-c", "import sys; print('syncagent.runtime.agent' in sys.modules)", SYNCAGENT=value)
    assert (done.stdout, done.stderr, done.returncode) == ("False\n", "", 0)


def test_a_script_that_never_imports_torch_is_left_alone(python):
    """Watched by name only: torch is not imported for it, nothing is printed, its exit code is its own."""
    done = python("-c", "import sys; print('torch' in sys.modules); sys.exit(5)", SYNCAGENT="1")
    assert (done.stdout, done.stderr, done.returncode) == ("False\n", "", 5)


def test_a_module_that_only_sounds_like_torch_starts_nothing(python, script):
    """``import torchlike`` is none of the agent's business."""
    script("value = 3", name="torchlike.py")
    code = "import torchlike, sys; print(torchlike.value, 'syncagent.runtime.agent' in sys.modules)"
    done = python("-c", code, SYNCAGENT="1")
    assert (done.stdout, done.stderr) == ("3 False\n", "")


# --- however the script ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_script_as_ever_and_what_was_seen_is_saved(python, script, tmp_path, number):
    """The exit status is the signal's, a KeyboardInterrupt has its traceback, the report is whole."""
    done = python(script(SCRIPT), number, SYNCAGENT="1", SYNCAGENT_SIMULATE="1", SYNCAGENT_REPORT="seen-{pid}.json")
    assert done.returncode == -getattr(signal, number)
    assert done.stdout == "kept 3.0\n"
    assert ("KeyboardInterrupt" in done.stderr) == (number == "SIGINT")
    [file] = tmp_path.glob("seen-*.json")
    assert ("aten::index", "dynamic_shape", "kept = x[x > 0]  # the mask") in sites(file)
    assert str(json.loads(file.read_text())["run"]["pid"]) in file.name
    assert "host syncs; the host waited" in done.stderr  # the summary


# --- children ---------------------------------------------------------------------------------------------------------

LOADERS = """\
import multiprocessing, sys
import torch
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        value = torch.tensor(float(index)) ** 2
        assert torch.tensor([value, 1.0]).nonzero().numel()
        return value, "syncagent.api" in sys.modules and sys.modules["syncagent.api"].current() is not None

if __name__ == "__main__":
    for method in ("fork", "spawn"):
        batches = list(DataLoader(Squares(), 3, num_workers=1, multiprocessing_context=method))
        print(method, [b[0].tolist() for b in batches], [any(b[1]) for b in batches], flush=True)
"""


def test_workers_of_a_dataloader_are_silent_and_unharmed(python, script, tmp_path):
    """Forked and spawned: they have no agent, write no report, print nothing; the parent's report is the only one."""
    done = python(script(LOADERS), SYNCAGENT="1", SYNCAGENT_REPORT=str(tmp_path / "seen-{pid}.json"))
    lines = [f"{method} [[0.0, 1.0, 4.0], [9.0, 16.0, 25.0]] [False, False]\n" for method in ("fork", "spawn")]
    assert (done.stdout, done.returncode) == ("".join(lines), 0)
    assert len(list(tmp_path.glob("seen-*.json"))) == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("so there is no host sync to see") == 1


SPAWNED = """\
import multiprocessing
import torch

def train():
    x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
    print("child", x.nonzero().numel(), flush=True)  # in the child

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=train)
    child.start()
    child.join()
    print("parent", child.exitcode, flush=True)
"""


def test_a_spawned_child_that_trains_is_watched_itself(python, script, tmp_path):
    """From its first use of CUDA, with a report of its own."""
    done = python(
        script(SPAWNED), SYNCAGENT="1", SYNCAGENT_SIMULATE="1", SYNCAGENT_REPORT=str(tmp_path / "seen-{pid}.json")
    )
    assert (done.stdout, done.returncode) == ("child 2\nparent 0\n", 0)
    found = [sites(file) for file in tmp_path.glob("seen-*.json")]
    assert any("# in the child" in source for rows in found for _, _, source in rows)


# --- the processes that start others ----------------------------------------------------------------------------------


def test_a_launcher_is_not_watched_and_its_ranks_are(python, script, tmp_path):
    """torchrun imports torch, ends last, and has no rank: its report would take the place of rank 0's."""
    train = script(
        """\
        import os, torch
        x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
        for _ in range(1 + int(os.environ["RANK"])):
            kept = x[x > 0]
        """
    )
    done = python(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", train,
        SYNCAGENT="1", SYNCAGENT_SIMULATE="1", SYNCAGENT_DETAIL="syncs", SYNCAGENT_REPORT=f"{tmp_path}/known/",
        SYNCAGENT_JOURNAL="off", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = {}
    for file in (tmp_path / "known").iterdir():
        counts[file.name] = sum(site["count"] for site in json.loads(file.read_text())["sites"] if site["line"] == 4)
    assert counts == {"rank0.json": 1, "rank1.json": 2}
