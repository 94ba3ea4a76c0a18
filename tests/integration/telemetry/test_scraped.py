"""A script under the agent that Prometheus may scrape: it reads its own endpoint before it ends."""

from __future__ import annotations

import json
import socket

import pytest

from tests import processes

SCRIPT = """\
import sys, time, urllib.request
import torch

x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
for _ in range(5):
    x[x > 0]
for _ in range(600):  # until the agent's thread has counted them
    time.sleep(0.1)
    try:
        text = urllib.request.urlopen(sys.argv[1], timeout=10).read().decode()
    except OSError:
        text = ""
    counts = [line for line in text.splitlines() if line.startswith("syncagent_syncs_total") and '"6"' in line]
    if len(sys.argv) > 2 or counts and counts[0].endswith(" 5.0"):
        break
print("\\n".join(counts), flush=True)
sys.exit(3)
"""


@pytest.fixture
def train(forked, tmp_path):
    def run(port, *arguments, **variables):
        (tmp_path / "train.py").write_text(SCRIPT)
        own = {
            "SYNCAGENT": "1",
            "SYNCAGENT_SIMULATE": "1",
            "SYNCAGENT_REPORT": str(tmp_path / "report.json"),
            "SYNCAGENT_SUMMARY": "off",
            "OTEL_METRICS_EXPORTER": "prometheus",
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        return forked("train.py", *arguments, **own | variables)

    return run


@pytest.fixture
def port():
    """One that is free, and the one after it most likely, too."""
    return processes.free_port()


def test_each_rank_is_scraped_at_its_own_port(train, port):
    done = train(port - 1, f"http://127.0.0.1:{port}/metrics", RANK="3", LOCAL_RANK="1", WORLD_SIZE="4")
    assert done.returncode == 3, done.stderr
    (count,) = done.stdout.splitlines()
    assert 'syncagent_op="aten::index"' in count
    assert 'syncagent_rank="3"' in count
    assert 'service_name="train"' in count


def test_a_port_that_is_taken_is_reported_and_training_goes_on(train, port, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        done = train(port, f"http://127.0.0.1:{port + 1}/metrics", "once")
    assert done.returncode == 3, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if "PROMETHEUS" in line]
    assert f"PORT={port} cannot be opened" in sentence
    assert "Traceback" not in done.stderr
    assert sum(site["count"] for site in json.loads((tmp_path / "report.json").read_text())["sites"]) >= 5
