"""A pipeline of two stages of which the last may be late; GPU and host work without the processor, by sleeping.

late_stages.py SCHEDULE LATE
"""

from __future__ import annotations

import gc
import os
import sys
import time

import torch
from torch import distributed, nn, optim
from torch.distributed import pipelining

SCHEDULE, LATE = sys.argv[1:]
STEPS, PARTS, LAYERS = 26, 4, 2
GPU_CYCLES, HOST_S, LATE_S = 11_000_000, 0.002, 0.02

distributed.init_process_group("nccl")
RANK, RANKS = distributed.get_rank(), distributed.get_world_size()
DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
torch.cuda.set_device(DEVICE)
IS_LATE = RANK == RANKS - 1


class Slow(nn.Linear):
    """A layer with work for the GPU and for the host; of the late stage one reads a number and goes on later, too."""

    def forward(self, x):
        torch.cuda._sleep(GPU_CYCLES)
        time.sleep(HOST_S)
        return super().forward(x)


class Last(Slow):
    def forward(self, x):
        x = super().forward(x)
        if IS_LATE and LATE == "item" and x.sum().item() is not None:
            time.sleep(LATE_S)
        return x


def main():
    layers = nn.Sequential(Slow(8, 8), Last(8, 8)).to(DEVICE)
    stage = pipelining.PipelineStage(layers, RANK, RANKS, DEVICE)
    schedule = getattr(pipelining, SCHEDULE)(stage, PARTS, loss_fn=nn.MSELoss())
    optimizer = optim.SGD(layers.parameters(), lr=1e-3, foreach=False)
    gc.freeze()  # what is loaded by now takes long to look through
    data = torch.ones(2 * PARTS, 8, device=DEVICE)
    for _ in range(STEPS):
        losses = []
        schedule.step(*[data] * (RANK == 0), target=data if IS_LATE else None, losses=losses)
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    distributed.destroy_process_group()


main()
