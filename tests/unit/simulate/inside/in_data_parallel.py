"""``DistributedDataParallel`` with one rank; test_distributed.py trains with two."""

from __future__ import annotations

import pytest
import torch
from harness import waits_behind_a_sleep
from torch import distributed as dist
from torch import nn

from syncagent.errors import SimulationError

DEVICE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _group():
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=DEVICE)
    yield
    dist.destroy_process_group()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def data():
    return torch.rand(6, 4, generator=torch.Generator().manual_seed(1))


def train(model, device):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(3):
        loss = model(data().to(device)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return [float(loss) for loss in losses]


@pytest.mark.parametrize(
    "options",
    [{}, {"static_graph": True}, {"find_unused_parameters": True}, {"gradient_as_bucket_view": True}],
)
def test_one_rank_trains_as_without_it(options):
    model = nn.parallel.DistributedDataParallel(net().to(DEVICE), device_ids=[0], **options)
    assert train(model, DEVICE) == train(net(), "cpu")


def test_neither_forward_nor_backward_makes_the_host_wait():
    model = nn.parallel.DistributedDataParallel(net().to(DEVICE), device_ids=[0])
    batch = data().to(DEVICE)
    for _ in range(2):  # the buckets are put into another order once, and the host waits for that
        model(batch).sum().backward()
    assert not waits_behind_a_sleep(lambda: model(batch).sum().backward(), expected=False)


def test_builtin_hooks_and_one_hook_only():
    model = nn.parallel.DistributedDataParallel(net().to(DEVICE), device_ids=[0])
    model._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    assert train(model, DEVICE) == train(net(), "cpu")
    with pytest.raises(RuntimeError, match="can only be called once"):
        model.register_comm_hook(None, lambda state, bucket: bucket)


def test_a_parameter_that_is_used_twice_in_one_backward_pass_of_its_own_is_an_error():
    model = nn.parallel.DistributedDataParallel(net().to(DEVICE), device_ids=[0])
    loss = model(data().to(DEVICE)).sum()
    loss.backward(retain_graph=True)
    model(data().to(DEVICE))
    model.module[0].weight.sum().backward()
    with pytest.raises(RuntimeError, match="mark a variable ready only once"):
        model.module[0].weight.sum().backward()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: nn.Embedding(4, 2, sparse=True),
            "sparse gradients is not simulated, and NCCL has no all_reduce .*sparse=False",
        ),
        (lambda: nn.EmbeddingBag(4, 2, sparse=True), "sparse gradients is not simulated"),
        (lambda: nn.Linear(2, 2), "mixed_precision.* is not simulated"),
    ],
)
def test_what_is_not_simulated_is_refused_before_training(make, words):
    from torch.nn.parallel.distributed import _MixedPrecision

    precision = _MixedPrecision(param_dtype=torch.float16) if "mixed" in words else None
    with pytest.raises(SimulationError, match=words):
        nn.parallel.DistributedDataParallel(make().to(DEVICE), device_ids=[0], mixed_precision=precision)


def test_a_model_on_the_cpu_still_gets_torchs_own_reducer():
    group = dist.new_group([0], backend="gloo")
    model = nn.parallel.DistributedDataParallel(net(), process_group=group)
    assert type(model.reducer).__module__ != "syncagent.simulate.reducer"
    assert train(model, "cpu") == train(net(), "cpu")
