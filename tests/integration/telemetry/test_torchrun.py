"""A job under the real torchrun: its ranks' steps share traces, although the run was given no name."""

from __future__ import annotations

import textwrap
from collections import defaultdict

SCRIPT = textwrap.dedent(
    """\
    import torch
    from torch import nn

    net = nn.Linear(16, 4).to("cuda")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        loss = net(torch.rand(32, 16, device="cuda")).sum()
        loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    """
)


def test_the_ranks_of_a_step_share_a_trace(receiver, python, environ, tmp_path):
    """Rank, local rank, world size, host and job are on every span and on the resource."""
    collector = receiver()
    (tmp_path / "train.py").write_text(SCRIPT)
    own = {
        "SYNCAGENT": "1",
        "SYNCAGENT_SIMULATE": "1",
        "SYNCAGENT_DETAIL": "syncs",
        "SYNCAGENT_SUMMARY": "0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OMP_NUM_THREADS": "1",
    }
    words = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0")
    done = python(*words, "-m", "syncagent", "run", "train.py", **environ | own)
    assert done.returncode == 0, done.stderr
    spans = collector.spans()
    steps = defaultdict(list)
    for span in spans:
        if span["name"] == "train.step":
            steps[span["trace"]].append(span)
    assert len(steps) == 3
    for members in steps.values():
        assert sorted(span["attributes"]["syncagent.rank"] for span in members) == [0, 1]
        assert len({span["attributes"]["syncagent.step"] for span in members}) == 1
        assert {span["parent"] for span in members} == {""}
    by_id = {span["id"]: span for span in spans}
    for span in spans:
        attributes, resource = span["attributes"], span["resource"]
        rank = attributes["syncagent.rank"]
        assert (
            attributes["syncagent.local_rank"] == resource["syncagent.rank"] == resource["syncagent.local_rank"] == rank
        )
        assert attributes["syncagent.world_size"] == resource["syncagent.world_size"] == 2
        assert attributes["syncagent.job.id"] == resource["syncagent.job.id"]
        assert attributes["host.name"] == resource["host.name"]
        if span["parent"]:
            assert by_id[span["parent"]]["attributes"]["syncagent.rank"] == rank
