"""A script under ``SYNCAGENT=1`` on the simulated device: from its lines to spans at a real receiver."""

from __future__ import annotations

import json
import textwrap

SCRIPT = textwrap.dedent(
    """\
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).to("cuda")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(4):
        x = torch.rand(32, 16, device="cuda")
        with torch.profiler.record_function("pick"):
            y = net(x)
            picked = y[y > 0]  # MASK
        loss = picked.sum()
        loss.backward()  # BACKWARD
        optimizer.step()
        optimizer.zero_grad()
    print("loss", loss.item())
    raise SystemExit(3)
    """
)


def line_of(mark):
    return next(n for n, text in enumerate(SCRIPT.splitlines(), 1) if text.endswith(f"# {mark}"))


def test_a_script_that_knows_nothing_of_the_agent_is_seen_by_a_collector(receiver, python, environ, tmp_path):
    """One trace per step, syncs inside their step by time and parent, with the user's lines; its exit code is kept."""
    collector = receiver()
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    variables = {
        "SYNCAGENT": "1",
        "SYNCAGENT_SIMULATE": "1",
        "SYNCAGENT_REPORT": str(tmp_path / "report.json"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_SERVICE_NAME": "toy",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = python("-m", "syncagent", "run", script.name, **environ | variables)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("loss ")
    assert "aten::index" in done.stderr
    assert "Traceback" not in done.stderr

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["run"]["simulated"] is True
    assert report["run"]["steps"] == 4
    masks = [site for site in report["sites"] if site["line"] == line_of("MASK")]
    assert [(site["op"], site["count"], site["phase"]) for site in masks] == [("aten::index", 4, "forward")]

    spans = collector.spans()
    roots = {s["id"]: s for s in spans if s["name"] == "train.step"}
    forward = [s for s in spans if s["attributes"].get("code.line.number") == line_of("MASK")]
    backward = [s for s in spans if s["attributes"].get("code.line.number") == line_of("BACKWARD")]
    assert len(roots) >= 4
    assert len({root["trace"] for root in roots.values()}) == len(roots)
    assert len(forward) == len(backward) == 4
    for span in forward + backward:
        root = roots[span["parent"]]
        assert root["trace"] == span["trace"]
        assert root["start"] <= span["start"] <= span["end"] <= root["end"]
    attributes = forward[0]["attributes"]
    assert attributes["code.file.path"].endswith("train.py")
    assert attributes["syncagent.op"] == "aten::index"
    assert attributes["syncagent.kind"] == "dynamic_shape"
    assert attributes["syncagent.api"] == "torch.Tensor.__getitem__"
    assert attributes["syncagent.rank"] == 0
    assert attributes["syncagent.stall_ms"] >= 0
    assert backward[0]["attributes"]["syncagent.phase"] == "backward"
    assert backward[0]["attributes"]["syncagent.forward.line.number"] == line_of("MASK")
