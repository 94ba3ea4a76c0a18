"""Training on several ranks of which the last may be late; GPU and host work without the processor, by sleeping.

    late_ranks.py FORM LATE [STEPS]

prints, on rank 0, how long a step takes in ms.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time

import torch
from torch import distributed, nn, optim
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

FORM, LATE, STEPS = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 40
LAYERS, WARM_UP = 5, 10
EPOCHS, MORE = 3, 4  # with Join the last rank has so many more batches in each epoch
GPU_S, HOST_S, LATE_S = 0.0073, 0.006, 0.04  # long, since other tests use the processor as well

distributed.init_process_group("nccl")
RANK, RANKS = distributed.get_rank(), distributed.get_world_size()
DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
torch.cuda.set_device(DEVICE)
IS_LATE = RANK == RANKS - 1
DIES = IS_LATE and FORM == "elastic" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"


def gpu_cycles(seconds):
    """Return for how many cycles this GPU has to sleep so long."""
    for cycles in (10_000_000, 100_000_000):  # the first time its clock is not yet at its full rate
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        torch.cuda._sleep(cycles)
        ended.record()
        ended.synchronize()
    return int(cycles * seconds * 1e3 / began.elapsed_time(ended))


GPU_CYCLES = gpu_cycles(GPU_S)


class Samples(Dataset):
    def __len__(self):
        return 1_000_000

    def __getitem__(self, index):
        if IS_LATE and LATE == "loader":
            time.sleep(LATE_S)
        return torch.ones(8)


class Slow(nn.Linear):
    """A layer with work for the GPU and for the host; of the late rank one reads a number, too."""

    def forward(self, x):
        torch.cuda._sleep(GPU_CYCLES)
        if IS_LATE and LATE == "item":
            x.sum().item()
        time.sleep(HOST_S)
        return super().forward(x)


def model():
    torch.manual_seed(0)
    layers = nn.Sequential(*[Slow(8, 8) for _ in range(LAYERS)]).to(DEVICE)
    if FORM == "fsdp":
        for layer in layers:
            fully_shard(layer)
        return fully_shard(layers)
    if FORM == "tensor":
        mesh = init_device_mesh("cuda", (RANKS,))
        plan = {str(n): (RowwiseParallel if n % 2 else ColwiseParallel)() for n in range(LAYERS - 1)}
        return parallelize_module(layers, mesh, plan)
    return DistributedDataParallel(layers, device_ids=[DEVICE.index])


def train(net, optimizer, batches, steps):
    kept = [[number] for number in range(300_000)] if IS_LATE and LATE == "gc" else []
    for step in range(steps):
        for part in range(2 if FORM == "no_sync" else 1):
            inputs = next(batches).to(DEVICE, non_blocking=True)
            no_sync = net.no_sync() if FORM == "no_sync" and part == 0 else contextlib.nullcontext()
            with no_sync:
                net(inputs).sum().backward()
        if IS_LATE and LATE == "sleep":
            time.sleep(LATE_S)
        if kept:
            gc.collect()
        optimizer.step()
        optimizer.zero_grad()
        if DIES and step == WARM_UP // 2:
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=1e-3, foreach=False)  # the last layer is no DTensor
    batches = iter(DataLoader(Samples(), batch_size=2))
    if FORM == "join":
        for _ in range(EPOCHS):
            with Join([net]):
                train(net, optimizer, batches, STEPS // EPOCHS + (MORE if IS_LATE else 0))
    else:
        train(net, optimizer, batches, WARM_UP)
        torch.cuda.synchronize()
        began = time.perf_counter()
        train(net, optimizer, batches, STEPS - WARM_UP)
        torch.cuda.synchronize()
        if RANK == 0:
            print((time.perf_counter() - began) / (STEPS - WARM_UP) * 1e3)
    distributed.destroy_process_group()


main()
