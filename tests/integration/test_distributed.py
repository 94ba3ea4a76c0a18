"""Several ranks on simulated devices under torchrun: a device for each, and gloo between them."""

from __future__ import annotations

import json

import pytest

from tests.processes import free_port

COLLECTIVES = """
import json, os
import torch
import torch.distributed as dist

rank = int(os.environ["LOCAL_RANK"])
device = torch.device("cuda", rank)
torch.cuda.set_device(device)
dist.init_process_group("nccl", device_id=device)
found = {"devices": torch.cuda.device_count(), "backend": dist.get_backend()}

def cuda(*values):
    return torch.tensor(values, device=device)

def empty(count):
    return torch.empty(count, device=device)

x = cuda(1.0, 2.0) * (rank + 1)
dist.all_reduce(x)
found["all_reduce"] = x.tolist()
x = cuda(1.0, 2.0) * (rank + 1)
dist.all_reduce(x, op=dist.ReduceOp.AVG)
found["mean"] = x.tolist()
x = cuda(float(rank))
dist.broadcast(x, 1)
found["broadcast"] = x.tolist()
both = [empty(1), empty(2)]
dist.all_gather(both, torch.full((rank + 1,), float(rank), device=device))
found["all_gather, uneven"] = [each.tolist() for each in both]
x = empty(4)
dist.all_gather_into_tensor(x, cuda(rank, rank + 0.5))
found["all_gather_into_tensor"] = x.tolist()
x = empty(2)
dist.reduce_scatter_tensor(x, cuda(1.0, 2.0, 3.0, 4.0) * (rank + 1))
found["reduce_scatter_tensor"] = x.tolist()
x = empty(2)
dist.reduce_scatter(x, [cuda(1.0, 2.0), cuda(3.0, 4.0)])
found["reduce_scatter"] = x.tolist()
both = [empty(1), empty(1)]
dist.all_to_all(both, [cuda(rank * 10.0), cuda(rank * 10.0 + 1)])
found["all_to_all"] = [each.tolist() for each in both]
x = empty([1, 3][rank])
sizes = [[1, 0], [2, 1]][rank]
dist.all_to_all_single(x, cuda(4.0) if rank else cuda(1.0, 2.0, 3.0), sizes, [[1, 2], [0, 1]][rank])
found["all_to_all_single, uneven"] = x.tolist()
both = [empty(1), empty(1)] if rank == 0 else None
dist.gather(cuda(float(rank)), both)
found["gather"] = both and [each.tolist() for each in both]
x = empty(1)
dist.scatter(x, [cuda(5.0), cuda(6.0)] if rank == 0 else None)
found["scatter"] = x.tolist()
x = cuda(rank + 1.0)
dist.reduce(x, 0)
found["reduce"] = x.tolist()
sent, got = torch.full((300_000,), float(rank), device=device), empty(300_000)
for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, sent, 1 - rank), dist.P2POp(dist.irecv, got, 1 - rank)]):
    work.wait()
found["batch_isend_irecv"] = got.unique().tolist()
if rank == 0:
    dist.send(sent + 7, 1)
else:
    dist.recv(got, 0)
    found["recv"] = got.unique().tolist()
objects = [None, None]
dist.all_gather_object(objects, {"rank": rank})
found["all_gather_object"] = objects
x = cuda(1.0)
works = [dist.all_reduce(x, async_op=True) for _ in range(5)]
works[-1].wait()
found["async"] = x.item()
evens = dist.new_group([0])
x = cuda(1.0)
if rank == 0:
    dist.all_reduce(x, group=evens)
found["group of one"] = x.item()
dist.barrier()
print(json.dumps(found))
dist.destroy_process_group()
"""

EXPECTED = {
    "devices": [2, 2],
    "backend": ["nccl", "nccl"],
    "all_reduce": [[3.0, 6.0], [3.0, 6.0]],
    "mean": [[1.5, 3.0], [1.5, 3.0]],
    "broadcast": [[1.0], [1.0]],
    "all_gather, uneven": [[[0.0], [1.0, 1.0]], [[0.0], [1.0, 1.0]]],
    "all_gather_into_tensor": [[0.0, 0.5, 1.0, 1.5], [0.0, 0.5, 1.0, 1.5]],
    "reduce_scatter_tensor": [[3.0, 6.0], [9.0, 12.0]],
    "reduce_scatter": [[2.0, 4.0], [6.0, 8.0]],
    "all_to_all": [[[0.0], [10.0]], [[1.0], [11.0]]],
    "all_to_all_single, uneven": [[1.0], [2.0, 3.0, 4.0]],
    "gather": [[[0.0], [1.0]], None],
    "scatter": [[5.0], [6.0]],
    "reduce": [[3.0], [2.0]],
    "batch_isend_irecv": [[1.0], [0.0]],
    "recv": [None, [7.0]],
    "all_gather_object": [[{"rank": 0}, {"rank": 1}], [{"rank": 0}, {"rank": 1}]],
    "async": [32.0, 32.0],
    "group of one": [1.0, 1.0],
}


@pytest.fixture
def ranks(python, tmp_path):
    """``ranks(program, count, *words)``: what each rank has printed as its last line, as JSON, in the ranks' order."""

    def run(program, count, *words, simulate="1", **variables):
        (tmp_path / "train.py").write_text(program)
        own = {"OMP_NUM_THREADS": "1", "SYNCAGENT_SIMULATE": simulate, **variables}
        launcher = ("-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", count)
        launcher += ("--master-port", free_port(), "--redirects", "3", "--log-dir", "logs")
        done = python(*launcher, "train.py", *words, **own)
        logs = sorted(tmp_path.glob("logs/*/attempt_0/*"))
        errors = "\n".join((log / "stderr.log").read_text() for log in logs)
        assert done.returncode == 0, errors or done.stderr
        printed = [(log / "stdout.log").read_text().splitlines()[-1] for log in logs]
        for log in logs:
            for file in log.iterdir():
                file.unlink()
            log.rmdir()
        return [json.loads(line) for line in printed], errors

    return run


def test_every_collective_gives_each_rank_what_nccl_would(ranks):
    found, errors = ranks(COLLECTIVES, 2)
    assert {name: [one.get(name) for one in found] for name in EXPECTED} == EXPECTED
    assert errors.count("gloo stands in for NCCL") == 2  # once a process


TRAINING = """
import contextlib, json, os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

rank, simulated = int(os.environ["RANK"]), sys.argv[1] == "simulated"
device = torch.device("cuda", rank) if simulated else torch.device("cpu")
if simulated:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if simulated else "gloo")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.first, self.second, self.never = nn.Linear(64, 50), nn.Linear(64, 50), nn.Linear(2, 2)
        self.last = nn.Linear(50, 5)

    def forward(self, x, with_second):
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        y = torch.relu(self.first(x))
        return self.last(y + self.second(x) if with_second else y)

def train(steps=4, second=lambda step: True, sync=lambda step: True, hook=None, join=False, frozen=True, **options):
    torch.manual_seed(rank)
    net = Net().to(device)
    if frozen:
        net.never.requires_grad_(False)
    model = DistributedDataParallel(net, device_ids=[rank] if simulated else None, **options)
    if hook is not None:
        model.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(rank)
    losses = []
    with model.join() if join else contextlib.nullcontext():
        for step in range(steps):
            x = torch.rand(4, 3, 6, 6, generator=generator).to(device)
            y = torch.randint(0, 5, (4,), generator=generator).to(device)
            with contextlib.nullcontext() if sync(step) else model.no_sync():
                loss = nn.functional.cross_entropy(model(x, second(step)), y)
                loss.backward()
            losses.append(loss.detach())
            if sync(step):
                optimizer.step()
                optimizer.zero_grad()
    ends = [float(x.double().sum()) for x in (*model.parameters(), *model.buffers())]
    return [[float(loss) for loss in losses], ends, [p.grad is None for p in model.parameters()]]

found = {
    "plain": train(),
    "small buckets": train(bucket_cap_mb=0.005),
    "views": train(gradient_as_bucket_view=True),
    "unused": train(second=lambda step: step % 2 == rank, find_unused_parameters=True, frozen=False),
    "static": train(static_graph=True, frozen=False),
    "no_sync": train(sync=lambda step: step % 2),
    "hook": train(hook=default_hooks.allreduce_hook),
    "fp16": train(hook=default_hooks.fp16_compress_hook),
    "own buffers": train(broadcast_buffers=False),
    "join": train(steps=4 + rank, join=True),
}
try:
    train(frozen=False)
except RuntimeError as error:
    found["error"] = str(error).split(".")[0]
print(json.dumps(found), flush=True)
dist.destroy_process_group()
if not simulated:
    os._exit(0)  # gloo's threads may abort a process that ends while they hold tensors (PyTorch's pull request 179291)
"""


def test_data_parallel_training_gives_the_numbers_of_gloo_on_the_cpu(ranks):
    """Bit for bit, in all its forms: losses, the parameters and buffers at the end, and which gradients there are."""
    on_device, _ = ranks(TRAINING, 2, "simulated")
    on_cpu, _ = ranks(TRAINING, 2, "cpu", simulate="0")
    for ours, theirs in zip(on_device, on_cpu, strict=True):
        for name, numbers in theirs.items():
            assert ours[name] == numbers, name
    assert on_device[0]["plain"][1][:6] == on_device[1]["plain"][1][:6]
    assert on_device[0]["plain"][0] != on_device[1]["plain"][0]
    assert on_device[0]["error"].startswith("Expected to have finished reduction in the prior iteration")


SHARDED = """
import json, os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

rank, simulated = int(os.environ["RANK"]), sys.argv[1] == "simulated"
device = torch.device("cuda", rank) if simulated else torch.device("cpu")
if simulated:
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    dist.init_process_group("gloo")

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).to(device)

def train(model, make=torch.optim.Adam, seed=rank, **options):
    optimizer = make(model.parameters(), lr=0.05, **options)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(4):
        loss = model(torch.rand(4, 6, generator=generator).to(device)).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses

def data_parallel(model):
    return nn.parallel.DistributedDataParallel(model, device_ids=[rank] if simulated else None)

found = {"zero": train(data_parallel(net()), ZeroRedundancyOptimizer, optimizer_class=torch.optim.Adam)}
model = net()
fully_shard(model[0])
fully_shard(model)
found["fully_shard"] = train(model)
if simulated:
    found["fsdp"] = train(FullyShardedDataParallel(net(), device_id=device))
mesh = init_device_mesh(device.type, (2,))
plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
found["tensor_parallel"] = train(parallelize_module(net(), mesh, plan), seed=0)
both = init_device_mesh(device.type, (1, 2), mesh_dim_names=("data", "tensor"))
model = parallelize_module(net(), both["tensor"], plan)
fully_shard(model, mesh=both["data"])
found["both_parallel"] = train(model, seed=0)
found["devices"] = [str(p.device) == str(device) and p.is_cuda == simulated for p in model.parameters()]
layers = nn.Sequential(nn.LayerNorm(6), net())
plan = {"0": SequenceParallel(sequence_dim=0), **{f"1.{name}": style for name, style in plan.items()}}
found["sequence_parallel"] = train(parallelize_module(layers.to(device), mesh, plan), seed=0)
whole = torch.arange(16.0).view(4, 4).to(device)
rows = distribute_tensor(whole, mesh, [Shard(0)])
found["product"] = (rows @ rows.T).full_tensor().tolist()
found["columns"] = rows.redistribute(mesh, [Shard(1)]).to_local().tolist()
if simulated:
    torch.manual_seed(1)
    norm, x = nn.BatchNorm1d(3).to(device), torch.randn(8, 3, 5).to(device)
    synced = data_parallel(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm)))
    plain = nn.BatchNorm1d(3).to(device)
    part = x[rank * 4 : rank * 4 + 4].clone().requires_grad_()
    x.requires_grad_()
    weights = torch.arange(1.0, 9.0, device=device).view(8, 1, 1)
    expected, got = plain(x), synced(part)
    (expected * expected * weights).sum().backward()
    (got * got * weights[rank * 4 : rank * 4 + 4]).sum().backward()
    close = lambda one, other: torch.allclose(one, other, atol=1e-4)
    found["sync"] = [
        close(got, expected[rank * 4 : rank * 4 + 4]),
        close(part.grad, x.grad[rank * 4 : rank * 4 + 4]),
        close(norm.running_var, plain.running_var),
        close(norm.running_mean, plain.running_mean),
        close(norm.weight.grad * 2, plain.weight.grad),
    ]
print(json.dumps(found), flush=True)
dist.destroy_process_group()
if not simulated:
    os._exit(0)  # gloo's threads may abort a process that ends while they hold tensors (PyTorch's pull request 179291)
"""


def test_sharded_training_gives_the_numbers_of_gloo_on_the_cpu(ranks):
    """FSDP, of both generations, ZeRO and DTensor; SyncBatchNorm, which the CPU has not, those of the whole batch."""
    on_device, _ = ranks(SHARDED, 2, "simulated")
    on_cpu, _ = ranks(SHARDED, 2, "cpu", simulate="0")
    for ours, theirs in zip(on_device, on_cpu, strict=True):
        assert {name: ours[name] for name in theirs} == theirs
        assert ours["fsdp"] == theirs["fully_shard"]
        assert ours["devices"] == [True] * 4
        assert ours["sync"] == [True] * 5
