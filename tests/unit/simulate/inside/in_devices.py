"""Two simulated devices."""

from __future__ import annotations

import pytest
import torch
from harness import asleep

from syncagent import simulate


@pytest.fixture(autouse=True)
def _two():
    simulate.install(devices=2)


def test_tensors_know_their_device():
    x = torch.ones(2, device="cuda:1")
    assert x.device == torch.device("cuda", 1)
    assert (x + 1).device.index == 1
    assert x.to("cuda:0").device.index == 0
    assert torch.equal(x.to("cuda:0").cpu(), x.cpu())
    with torch.cuda.device(1):
        assert torch.cuda.current_device() == 1
        assert torch.zeros(1, device="cuda").get_device() == 1
        assert torch.ones(1).cuda().get_device() == 1
    assert torch.cuda.current_device() == 0
    with pytest.raises(RuntimeError, match=r"cuda:0 and cuda:1|cuda:1 and cuda:0"):
        x + torch.ones(2, device="cuda:0")


def test_a_device_has_its_own_queue():
    asleep()
    torch.cuda.synchronize(1)
    assert not torch.cuda.current_stream(0).query()
    torch.cuda.synchronize(0)


def test_a_copy_between_devices_is_ordered_after_its_source():
    x = torch.ones(2, device="cuda:0")
    asleep()
    x.mul_(3)
    assert x.to("cuda:1").tolist() == [3.0, 3.0]


def test_a_part_is_marked_for_a_profiler():
    runtime = torch.cuda.cudart()
    torch.cuda.check_error(runtime.cudaProfilerStart())
    torch.cuda.check_error(runtime.cudaProfilerStop())
    with torch.cuda.profiler.profile():
        assert torch.ones(2, device="cuda").sum().item() == 2
    free, total = runtime.cudaMemGetInfo(0)
    assert 0 < free <= total
    with pytest.raises(RuntimeError, match="CUDA error 2"):
        torch.cuda.check_error(2)


def test_a_share_of_the_memory_is_kept():
    assert torch.cuda.get_per_process_memory_fraction() == 1
    torch.cuda.set_per_process_memory_fraction(0.5)
    assert torch.cuda.get_per_process_memory_fraction("cuda:0") == 0.5
    with pytest.raises(ValueError, match=r"Invalid fraction value: 2\. Allowed range: 0~1"):
        torch.cuda.set_per_process_memory_fraction(2)
    torch.cuda.set_per_process_memory_fraction(1.0)
