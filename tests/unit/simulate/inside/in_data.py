"""DataLoader with workers, pinned memory, and what happens to children."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from harness import asleep
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from syncagent import simulate

torch.ones(1, device="cuda").item()  # the device is in use before any child is made


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_feed_a_pinned_loader(start, observed):
    data = TensorDataset(torch.arange(64.0).reshape(16, 4), torch.arange(16) % 2)
    loader = DataLoader(
        data, batch_size=4, num_workers=2, pin_memory=True, multiprocessing_context=start, persistent_workers=False
    )
    model, seen = nn.Linear(4, 2).cuda(), []
    observed.clear()
    for x, y in loader:
        assert x.is_pinned()
        assert not x.is_cuda
        x, y = x.cuda(non_blocking=True), y.cuda(non_blocking=True)
        nn.functional.cross_entropy(model(x), y).backward()
        seen.append(x)
    assert observed.waits == []
    assert torch.equal(torch.cat(seen).cpu(), data.tensors[0])


def test_pinned_memory_is_known_by_its_storage():
    plain = torch.rand(8)
    pinned = plain.pin_memory()
    assert pinned.is_pinned()
    assert pinned[2:].is_pinned()
    assert pinned.view(2, 4).is_pinned()
    assert not plain.is_pinned()
    assert pinned.pin_memory() is pinned
    assert torch.empty(3, pin_memory=True).is_pinned()
    assert torch.ones(3, device="cuda").to("cpu", non_blocking=True).is_pinned()
    assert not torch.ones(3, device="cuda").cpu().is_pinned()
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        torch.ones(3, device="cuda").pin_memory()


def test_a_queued_copy_does_not_see_what_the_host_writes_later_into_pageable_memory():
    host = torch.ones(8)
    asleep()
    copy = host.to("cuda", non_blocking=True)
    host.zero_()
    assert copy.tolist() == [1.0] * 8


def test_a_queued_copy_from_pinned_memory_does_see_it():
    host = torch.ones(8).pin_memory()
    asleep()
    copy = host.to("cuda", non_blocking=True)
    host.zero_()
    assert copy.tolist() == [0.0] * 8


def in_child(action):
    """What the action says in a forked child."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork in a process with threads
        child = os.fork()
    if not child:
        try:
            said = f"returned {action()}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read()


@pytest.mark.parametrize(
    "action",
    [
        lambda: torch.ones(1, device="cuda"),
        lambda: torch.ones(1).cuda(),
        lambda: torch.cuda.synchronize(),
        lambda: torch.cuda.Stream(),
        lambda: torch.cuda.set_device(0),
    ],
    ids=["factory", "copy", "synchronize", "stream", "set_device"],
)
def test_a_forked_child_cannot_use_the_device(action):
    said = in_child(action)
    assert said.startswith("RuntimeError: Cannot re-initialize CUDA in forked subprocess")


def test_a_forked_child_cannot_use_its_parents_tensors():
    x = torch.ones(2, device="cuda")
    assert "Cannot re-initialize CUDA" in in_child(lambda: x + 1)
    assert "Cannot re-initialize CUDA" in in_child(lambda: x.cpu())
    assert x.tolist() == [1.0, 1.0]


def test_a_forked_child_may_use_the_cpu():
    asleep()
    assert in_child(lambda: (torch.manual_seed(0), torch.ones(2).sum().item())[1]) == "returned 2.0"
    torch.cuda.synchronize()


def test_tensors_are_not_sent_to_other_processes():
    from multiprocessing.reduction import ForkingPickler

    with pytest.raises(simulate.SimulationError, match="not simulated"):
        ForkingPickler.dumps(torch.ones(2, device="cuda"))
