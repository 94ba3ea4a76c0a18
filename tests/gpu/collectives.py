"""How long each rank's GPU stands still for collectives, with and without a rank that is late.

    torchrun --nproc-per-node 2 tests/gpu/collectives.py --out collectives.json

Trains with DDP and with `fully_shard`, in each case without a late rank, with a rank that sleeps 10 ms a step, and with
one that reads a number from the GPU after each layer. Writes for each rank the median of what its GPU waited in a step,
the time of a step with and without the measurement, and the native library's own counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from datetime import datetime, timezone

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from syncagent import native

LATE_RANK = 1
SLEEP_S = 0.010
WIDTH, LAYERS, BATCH = 4096, 8, 2048
WARM_UP, STEPS = 5, 30


class Layers(nn.Module):
    """Linear layers; a late rank reads a number after each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(LAYERS))
        self.reads = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
            if self.reads:
                x.sum().item()
        return x


def build(kind: str) -> tuple[nn.Module, Layers]:
    torch.manual_seed(0)
    layers = Layers().cuda().bfloat16()
    if kind == "ddp":
        return DistributedDataParallel(layers, device_ids=[torch.cuda.current_device()]), layers
    for layer in layers.layers:
        fully_shard(layer)
    fully_shard(layers)
    return layers, layers


def train(library: native.Native, kind: str, late: str, *, measured: bool) -> dict[str, object]:
    """Return medians by step of this rank."""
    model, layers = build(kind)
    is_late = dist.get_rank() == LATE_RANK
    layers.reads = is_late and late == "item"
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    x = torch.randn(BATCH, WIDTH, device="cuda", dtype=torch.bfloat16)
    assert (library.measure_joins(measured) > 0) is measured
    ends, joins = [], []
    for step in range(WARM_UP + STEPS):
        if is_late and late == "sleep":
            time.sleep(SLEEP_S)
        model(x).float().pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter_ns())
        if step % 5 == 4:
            torch.cuda.synchronize()  # so that the host is never more than five steps ahead
            joins += library.take_joins()
    torch.cuda.synchronize()
    joins += library.take_joins()
    status = library.status()
    began = ends[WARM_UP - 1]
    waits = [
        sum(join.waited_ns for join in joins if first < join.moment_ns <= last) / 1e6
        for first, last in itertools.pairwise(ends[WARM_UP - 1 :])
    ]
    counts = sum(join.moment_ns > began for join in joins) / STEPS
    library.measure_joins(False)
    return {
        "step_ms": (ends[-1] - began) / STEPS / 1e6,
        "waited_ms": statistics.median(waits) if measured else None,
        "longest_wait_ms": max((join.waited_ns for join in joins), default=0) / 1e6,
        "joins_a_step": counts,
        "direct": sum(join.flags == native.DIRECT for join in joins),
        "host_order": all(a.moment_ns <= b.moment_ns for a, b in itertools.pairwise(joins)),
        "dropped": status.joins_dropped,
        "state": status.joins,
        "failed": [native.FAILED_AT[status.failed_at], status.failed_with],
    }


def captured(library: native.Native) -> dict[str, object]:
    """A CUDA graph with a collective: nothing of ours may get into it or break it."""
    library.measure_joins(True)
    x = torch.ones(1 << 20, device="cuda")
    dist.all_reduce(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        dist.all_reduce(x)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    library.take_joins()
    graph = torch.cuda.CUDAGraph()
    before = library.status().joins_measured
    x.fill_(1)
    with torch.cuda.graph(graph):
        dist.all_reduce(x)
    recorded = library.status().joins_measured - before
    graph.replay()
    torch.cuda.synchronize()
    status = library.status()
    library.measure_joins(False)
    return {"sum": x[0].item(), "joins_in_capture": recorded, "state": status.joins}


def host_cost_us(library: native.Native, *, measured: bool, calls: int = 500) -> float:
    """Return how long the host takes to have the compute stream wait for a collective."""
    library.measure_joins(measured)
    x, took = torch.ones(1, device="cuda"), []
    for _ in range(calls):
        work = dist.all_reduce(x, async_op=True)
        began = time.perf_counter_ns()
        work.wait()
        took.append(time.perf_counter_ns() - began)
        torch.cuda.synchronize()
        library.take_joins()
    library.measure_joins(False)
    return statistics.median(took) / 1e3


def memory_of_each_gpu() -> dict[str, float]:
    """Memory that is in use on each GPU, in MB: a context on another rank's GPU would be hundreds."""
    used = {}
    for device in range(torch.cuda.device_count()):
        try:
            used[str(device)] = torch.cuda.device_memory_used(device) / 1e6
        except Exception as error:
            used[str(device)] = repr(error)
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    library = native.load()
    assert library is not None, native.why_not()
    assert library.start(100_000) > 0
    runs: dict[str, object] = {"memory_mb_before": memory_of_each_gpu()}
    for kind in ("ddp", "fully_shard"):
        for late in ("none", "sleep", "item"):
            for measured in (False, True):
                dist.barrier()
                name = f"{kind}, late: {late}, {'measured' if measured else 'not measured'}"
                runs[name] = train(library, kind, late, measured=measured)
                torch.cuda.empty_cache()
    runs["wait_us_not_measured"] = host_cost_us(library, measured=False)
    runs["wait_us_measured"] = host_cost_us(library, measured=True)
    runs["memory_mb_after"] = memory_of_each_gpu()
    runs["graph"] = captured(library)
    gathered: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, runs)
    if dist.get_rank() == 0:
        facts = {
            "torch": torch.__version__,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "device": torch.cuda.get_device_name(),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "hooks": library.measure_joins(True),
            "late_rank": LATE_RANK,
            "ranks": gathered,
        }
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=2)
            file.write("\n")
    library.stop()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
