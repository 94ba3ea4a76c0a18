"""A rank of a small job: ``train.py FOLDER``.  Lines that wait, each a known number of times per step.

It trains until FOLDER/stop is there, writes the number of its steps to FOLDER/rankN.json, and stays until FOLDER/leave
is there, so that its last counts can be scraped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

import syncagent

folder = Path(sys.argv[1])
rank = int(os.environ.get("RANK", "0"))
torch.manual_seed(rank)
net = nn.Linear(16, 4).to("cuda")
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
steps = 0
while steps < 10 or not (folder / "stop").exists():
    x = torch.rand(32, 16, device="cuda")
    y = net(x)
    loss = y[y > 0].sum()  # MASK
    with syncagent.allow("logging"):
        for _ in range(3):
            loss.item()  # LOGGED
    if rank:
        torch.unique(x)  # SECOND RANK ONLY
    loss.backward()  # BACKWARD
    optimizer.step()
    optimizer.zero_grad()
    steps += 1
    time.sleep(0.02)
(folder / f"rank{rank}.json").write_text(json.dumps({"steps": steps}))
while not (folder / "leave").exists():
    time.sleep(0.05)
