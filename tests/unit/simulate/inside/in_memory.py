"""``empty_cache`` waits if it gives anything back to the driver: a segment of memory in which nothing is left."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from harness import asleep, waits_behind_a_sleep
from torch import nn

EMPTIED = [("torch.cuda.empty_cache", "other")]
MB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_cached(observed):
    gc.collect()
    torch.cuda.empty_cache()
    observed.clear()


def empty_cache(observed):
    observed.clear()
    torch.cuda.empty_cache()
    return list(observed.waits)


def test_nothing_that_was_freed_is_nothing_to_wait_for(observed):
    kept = torch.empty(64 * MB, device="cuda")
    assert empty_cache(observed) == []
    del kept


def test_memory_that_was_freed_is_given_back_once(observed):
    freed = torch.empty(64 * MB, device="cuda")
    del freed
    assert empty_cache(observed) == EMPTIED
    assert empty_cache(observed) == []


def test_the_accelerators_name_for_it_does_the_same(observed):
    freed = torch.empty(64 * MB, device="cuda")
    del freed
    observed.clear()
    torch.accelerator.empty_cache()
    assert observed.waits == [("torch.accelerator.empty_cache", "other")]


def test_a_view_keeps_memory_and_so_does_a_gradient(observed):
    whole = torch.empty(64 * MB, device="cuda")
    view = whole[:3].detach()
    del whole
    assert empty_cache(observed) == []
    del view
    assert empty_cache(observed) == EMPTIED
    layer = nn.Linear(4096, 4096, device="cuda")
    layer(torch.ones(1, 4096, device="cuda")).sum().backward()
    empty_cache(observed)
    layer.zero_grad()
    assert empty_cache(observed) == EMPTIED


def test_a_small_tensor_shares_its_segment_with_others(observed):
    kept, freed = (torch.ones(3, device="cuda") for _ in range(2))
    del freed
    assert empty_cache(observed) == []
    del kept
    assert empty_cache(observed) == EMPTIED


def test_memory_that_is_used_again_is_not_given_back(observed):
    freed = torch.empty(64 * MB, device="cuda")
    del freed
    kept = torch.empty(60 * MB, device="cuda")
    assert empty_cache(observed) == [] or not kept.numel()


def test_what_queued_kernels_still_use_has_no_owner(observed):
    freed = torch.ones(16 * MB, device="cuda")
    asleep()
    total = freed.sum()
    del freed
    assert empty_cache(observed) == EMPTIED
    assert total.item() == 16 * MB


def test_it_waits_for_the_device():
    def freed():
        torch.empty(64 * MB, device="cuda")

    def emptied_after():
        freed()
        torch.cuda.empty_cache()

    assert waits_behind_a_sleep(emptied_after, expected=True)


def test_copies_and_moves_are_allocations_of_their_own(observed):
    layer = nn.Linear(4096, 4096).cuda()
    again = copy.deepcopy(layer)
    empty_cache(observed)
    del again
    gc.collect()
    assert empty_cache(observed) == EMPTIED
    layer.cpu()
    assert empty_cache(observed) == EMPTIED


def test_many_small_tensors_come_and_go(observed):
    for _ in range(3000):
        torch.empty(1000, device="cuda")
    assert empty_cache(observed) == EMPTIED
    assert empty_cache(observed) == []


def test_a_storage_is_freed_and_allocated_again_in_stream_order():
    """As FSDP does with the parameters that it gathers."""
    whole = torch.ones(4, device="cuda")
    part = whole[2:]
    doubled = whole * 2
    storage = whole.untyped_storage()
    storage.resize_(0)
    assert storage.size() == 0
    storage.resize_(16)
    assert storage.nbytes() == 16
    whole.fill_(3)
    assert part.tolist() == [3, 3]
    assert doubled.tolist() == [2, 2, 2, 2]


def test_a_storages_contents():
    """Checkpoints and allocators of parameters go by these."""
    source = torch.arange(4, dtype=torch.int32, device="cuda")
    untyped = source.untyped_storage()
    assert untyped.tolist() == source.cpu().untyped_storage().tolist()
    assert isinstance(untyped.cpu(), torch.UntypedStorage)
    again = untyped.clone()
    again.fill_(1)
    assert source.tolist() == [0, 1, 2, 3]
    untyped.copy_(torch.arange(4, 8, dtype=torch.int32).untyped_storage())
    assert source.tolist() == [4, 5, 6, 7]
    untyped.copy_(again)
    assert source.tolist() == [0x01010101] * 4
    assert untyped.cuda() is untyped
    other = torch.zeros(4, dtype=torch.int32).untyped_storage()
    other.copy_(untyped)
    assert other.tolist() == [1] * 16
    other.copy_(torch.arange(4, dtype=torch.int32).untyped_storage())
    assert other.tolist() == torch.arange(4, dtype=torch.int32).untyped_storage().tolist()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_a_typed_storages_contents():
    source = torch.arange(4, dtype=torch.int32, device="cuda")
    typed = source.storage()
    assert typed.tolist() == [0, 1, 2, 3]
    assert typed.cpu().tolist() == [0, 1, 2, 3]
    assert typed.clone().fill_(5).tolist() == [5] * 4
    typed.copy_(torch.arange(4, 8, dtype=torch.int32).storage())
    assert source.tolist() == [4, 5, 6, 7]
