"""Data-parallel training in which one rank may be late: ``--late item`` has rank 1 look into its activations.

Run it with torchrun, on as many GPUs as there are ranks, or on the simulated device:

    SYNCAGENT=1 SYNCAGENT_REPORT=ranks/ torchrun --standalone --nproc-per-node 2 train.py --late item
    syncagent report ranks/
"""

from __future__ import annotations

import argparse
import gc
import os
import time

import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

MONITORED = 1
"""The rank that is late."""


class Samples(Dataset):
    """Random inputs; on the late rank with ``--late loader`` each takes its time, as from a slow disk."""

    def __init__(self, count: int, width: int, pause_s: float) -> None:
        self.inputs = torch.randn(1000, width, generator=torch.Generator().manual_seed(0))
        self.count = count
        self.pause_s = pause_s

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.pause_s:
            time.sleep(self.pause_s)
        return self.inputs[index % len(self.inputs)]


class Net(nn.Module):
    """Layers that, on a rank that is monitored, have the size of their activations logged."""

    def __init__(self, width: int, depth: int, monitored: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.monitored = monitored
        self.sizes = [0.0] * depth

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x).relu()
            if self.monitored:
                self.sizes[number] = x.abs().mean().item()
        return x


def save_sample(pause_s: float) -> None:
    """Write something to a slow disk."""
    time.sleep(pause_s)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--late", choices=("none", "item", "sleep", "loader", "gc"), default="item")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--batch", type=int, default=384)
    parser.add_argument("--pause-ms", type=float, default=10.0, help="of a step, with --late sleep and loader")
    args = parser.parse_args()

    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    init_process_group("nccl", device_id=device)
    late = args.late if rank == MONITORED else "none"
    torch.manual_seed(0)

    pause_s = args.pause_ms / 1e3
    samples = Samples(args.steps * args.batch, args.width, pause_s / args.batch if late == "loader" else 0.0)
    sampler = DistributedSampler(samples, num_replicas=1, rank=0)  # every rank reads as many steps
    loader = DataLoader(samples, args.batch, sampler=sampler, pin_memory=True)
    model = DistributedDataParallel(Net(args.width, args.depth, late == "item").to(device), device_ids=[local])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    kept = [[number] for number in range(200_000)] if late == "gc" else []

    began = time.perf_counter()
    for step, inputs in enumerate(loader):
        if step == 10:
            torch.cuda.synchronize()
            began = time.perf_counter()
        loss = model(inputs.to(device, non_blocking=True)).square().mean()
        loss.backward()
        if late == "sleep":
            save_sample(pause_s)
        if kept:
            gc.collect()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    if rank == 0 and args.steps > 10:
        print(f"a step takes {(time.perf_counter() - began) / (args.steps - 10) * 1e3:.1f} ms")
    destroy_process_group()


if __name__ == "__main__":
    main()
