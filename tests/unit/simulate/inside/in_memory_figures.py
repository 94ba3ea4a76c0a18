"""``memory_allocated`` and its like: what torch's caching allocator would say of the program's tensors."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

MB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_cached():
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.reset_accumulated_memory_stats()


def test_sizes_are_rounded_as_torch_does_and_peaks_are_kept():
    before = torch.cuda.memory_allocated()
    small = torch.empty(100, device="cuda")  # 400 bytes in a block of 512
    large = torch.empty(3 * MB, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_allocated() - before == 512 + 3 * MB
    del large
    assert torch.cuda.memory_allocated() - before == 512
    assert torch.cuda.max_memory_allocated() - before == 512 + 3 * MB
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() - before == 512
    del small


def test_freed_memory_stays_reserved_until_the_cache_is_emptied():
    before = torch.cuda.memory_reserved()
    freed = torch.empty(64 * MB, dtype=torch.uint8, device="cuda")
    del freed
    assert torch.cuda.memory_reserved() - before == 64 * MB
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == before
    assert torch.cuda.max_memory_reserved() - before == 64 * MB


def test_views_and_queued_kernels_take_nothing():
    whole = torch.ones(4 * MB, dtype=torch.uint8, device="cuda")
    before = torch.cuda.memory_allocated()
    view = whole[1:].view(torch.int8)[3:]
    whole.add_(1)
    assert torch.cuda.memory_allocated() == before
    del whole
    assert torch.cuda.memory_allocated() == before
    del view
    assert torch.cuda.memory_allocated() == before - 4 * MB


def test_a_step_needs_what_its_graph_keeps():
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(3))).to("cuda")
    parameters = 3 * 4 * MB
    source = torch.ones(1024, 1024, device="cuda")
    before = torch.cuda.memory_allocated()
    loss = model(source).sum()
    kept = torch.cuda.memory_allocated() - before
    assert kept == 2 * 4 * MB + 512  # the outputs of the first two layers, and the loss
    loss.backward()
    del loss
    assert torch.cuda.memory_allocated() - before == parameters
    assert torch.cuda.max_memory_allocated() - before >= parameters + 4 * MB


def test_a_storage_that_is_resized_takes_its_new_size():
    """As FSDP frees parameters and gathers them again."""
    tensor = torch.ones(4 * MB, dtype=torch.uint8, device="cuda")
    before = torch.cuda.memory_allocated()
    tensor.untyped_storage().resize_(0)
    assert torch.cuda.memory_allocated() == before - 4 * MB
    tensor.untyped_storage().resize_(8 * MB)
    assert torch.cuda.memory_allocated() == before + 4 * MB
    tensor.resize_(12 * MB)
    assert torch.cuda.memory_allocated() == before + 8 * MB
    del tensor
    assert torch.cuda.memory_allocated() == before - 4 * MB


def test_the_figures_have_torchs_names():
    kept = torch.empty(5 * MB, dtype=torch.uint8, device="cuda")
    stats = torch.cuda.memory_stats()
    assert stats["allocated_bytes.all.current"] == torch.cuda.memory_allocated()
    assert stats["allocated_bytes.large_pool.current"] >= 5 * MB
    assert stats["allocation.all.allocated"] == 1
    assert stats["reserved_bytes.all.current"] == torch.cuda.memory_reserved() >= 20 * MB
    assert stats["inactive_split_bytes.large_pool.current"] >= 15 * MB
    assert stats["allocation.all.freed"] == stats["num_ooms"] == stats["num_alloc_retries"] == 0
    assert "Allocated memory" in torch.cuda.memory_summary()
    assert "| GPU reserved memory" in torch.cuda.memory_summary(abbreviated=True)
    del kept


def test_the_accelerators_figures_are_the_same():
    kept = torch.empty(5 * MB, dtype=torch.uint8, device="cuda")
    assert torch.accelerator.memory_allocated() == torch.cuda.memory_allocated("cuda:0")
    assert torch.accelerator.max_memory_reserved() == torch.cuda.max_memory_reserved()
    del kept
    torch.accelerator.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated()


def test_what_there_is_no_room_for_is_counted():
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_stats()["num_ooms"] == 1
