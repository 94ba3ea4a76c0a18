"""Several processes with one name for their files, and a process that is killed: whatever was seen can be read."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from tests import processes

WATCHED = {
    "SYNCAGENT": "1", "SYNCAGENT_SIMULATE": "1", "SYNCAGENT_DETAIL": "syncs", "OMP_NUM_THREADS": "1",
    "SYNCAGENT_REPORT": "report.json",
}  # fmt: skip


@pytest.fixture
def start(tmp_path, environ):
    """``start(source, **variables)``: a watched script on the simulated device, in a folder of its own."""

    def run(source, **variables):
        script = tmp_path / "train.py"
        script.write_text(textwrap.dedent(source))
        return subprocess.Popen(
            [sys.executable, str(script)],
            env=environ | WATCHED | variables,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def syncagent(folder, *words):
    return processes.run("-m", "syncagent", *words, cwd=folder)


def read(folder, *paths):
    done = syncagent(folder, "report", "--format", "json", *paths)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SPAWNS = """\
    import torch
    import torch.multiprocessing

    def train(rank):
        x = torch.ones(3, device="cuda")
        for _ in range(5 + rank):
            x.sum().item()

    if __name__ == "__main__":
        torch.multiprocessing.spawn(train, nprocs=2)
"""


ALONE = """\
import torch
torch.ones(3, device="cuda").sum().item()
"""


@pytest.mark.timeout(400)
def test_spawned_processes_with_one_report_keep_both_and_a_new_run_replaces_them(start, forked, tmp_path):
    """The report of the second gets a number, which it says, and both commands read the two as one."""
    (tmp_path / "report.1.json").write_text("not a report, and not touched")
    done = start(SPAWNS)
    errors = done.communicate(timeout=300)[1]
    assert done.returncode == 0, errors
    assert sorted(file.name for file in tmp_path.glob("report*")) == ["report.1.json", "report.2.json", "report.json"]
    assert "syncagent report report.2.json" in errors
    report = read(tmp_path, "report.json")
    assert [site["count"] for site in report["sites"]] == [5 + 6]
    assert report["run"]["processes"] == 2
    assert json.loads((tmp_path / "report.json").read_text())["totals"]["syncs"] in (5, 6)
    (tmp_path / "base.json").write_text(json.dumps(report | {"sites": []}))
    checked = syncagent(tmp_path, "check", "report.json", "--baseline", "base.json")
    assert checked.returncode == 1
    assert "11 syncs" in checked.stdout
    (tmp_path / "train.py").write_text(ALONE)
    again = forked("train.py", **WATCHED)
    assert "syncagent report report.json" in again.stderr
    assert again.returncode == 0
    assert sorted(file.name for file in tmp_path.glob("report*")) == ["report.1.json", "report.json"]
    assert (tmp_path / "report.1.json").read_text() == "not a report, and not touched"
    assert read(tmp_path, "report.json")["totals"]["syncs"] == 1


RANK = """\
    import os, signal, time
    import torch
    x = torch.ones(3, device="cuda")
    for _ in range(3 + int(os.environ["RANK"])):
        x.sum().item()
    open("seen-" + os.environ["RANK"], "w").close()
    while not (os.path.exists("seen-0") and os.path.exists("seen-1")):
        time.sleep(0.05)
    if os.environ["RANK"] == "1":
        ending = time.monotonic() + 60
        while time.monotonic() < ending and not any("c.1.jsonl" == name for name in os.listdir(".")):
            time.sleep(0.1)
        time.sleep(2.5)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(2.5)
"""


@pytest.mark.timeout(400)
def test_ranks_with_one_name_for_everything_lose_nothing_though_one_is_killed(start, tmp_path):
    """Two ranks that were started by hand; one of them ends by SIGKILL."""
    names = {"SYNCAGENT_JOURNAL": "off", "SYNCAGENT_CAPTURE": "c.jsonl", "WORLD_SIZE": "2"}
    ranks = [start(RANK, RANK=rank, **names) for rank in "01"]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, -9], errors
    assert read(tmp_path, "report.json")["totals"]["syncs"] == 3
    whole = read(tmp_path, "c.jsonl")
    assert whole["totals"]["syncs"] == 3 + 4
    assert whole["run"]["ranks"] == [0, 1]
    assert not whole["run"]["ended"]
    assert any("did not end by itself" in note for note in whole["notes"])
    refused = syncagent(tmp_path, "check", "c.jsonl", "--baseline", "report.json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "did not end by itself" in refused.stderr
    assert refused.stderr.count("\n") == 1
