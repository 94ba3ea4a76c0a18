"""How long a GPU would take: from the bytes and operations of its work, its datasheet and the assumptions below.

All times are nanoseconds.  No GPU and no clock is read here, so the same work always takes the same time.
"""

from __future__ import annotations

from typing import NamedTuple

from syncagent.simulate.datasheets import Datasheet

# --- none of these is in a datasheet; docs/simulation.md says how far off their results are -------------------------

# The GPU's: assumptions.

MEMORY_SHARE = 0.8
"""How much of the memory's bandwidth a kernel reaches."""
RATE_SHARE = {"fp64": 0.8, "fp32": 0.7, "tf32": 0.55, "half": 0.55}
"""How much of the arithmetic rate a large matrix product or convolution reaches."""
LINK_SHARE = 0.8
"""How much of the link's bandwidth a copy from or to pinned memory reaches."""
PAGEABLE = 6e9
"""Bytes a second of a copy from or to pageable memory: the driver has to copy it once more, on the host."""
KERNEL_NS = 2_500
"""What each kernel takes beside its work: to begin, to end, and for the stream to go on to the next."""
SERIAL_NS = 5_000
"""The same for each time step of a recurrent layer: its kernels wait for each other."""
TRANSFER_NS = 1_500
"""The same for a copy between host and device."""

# The host's: fitted to the steps of two programs of tests/gpu/results/cost_pairs.json (tiny_mlp_item_step and
# transformer_small_item_step), which the host of an H100 bounds.  A faster host takes a third of it.
CALL_NS = 18_000
"""Host time of an op that Python calls: the program's own code around it, torch's binding, autograd, the dispatcher."""
BACKWARD_CALL_NS = 9_000
"""The same for an op that autograd calls in the backward pass."""
LAUNCH_NS = 11_000
"""Host time that an op needs in addition for each kernel: its memory and the launch."""
LIBRARY_NS = 12_000
"""Host time that cuBLAS and cuDNN need in addition, to choose a kernel."""
LONG_NS = 5_000_000
"""From here on the processor time between two ops is the program's own work, and counts as it was measured here.

Less than that can be the simulation's: a list of many tensors on its way from torch to Python, or memory that is freed.
"""
LATENCY_NS = 3_000
"""From the launch to the beginning of the kernel on a stream that has nothing to do."""
RETURN_NS = 2_000
"""From the end of the work to the moment at which the waiting host goes on."""
QUEUE_LIMIT = 1024
"""With this many kernels in a stream a launch waits for room."""


class Work(NamedTuple):
    """What an op gives a GPU to do."""

    nbytes: int = 0
    """Read and written in the GPU's memory."""
    flops: int = 0
    """Of matrix products and convolutions; the others are bound by memory."""
    rate: str = "fp32"
    """Which of the datasheet's rates holds for them."""
    kernels: int = 1
    serial: int = 0
    """Time steps that wait for each other."""
    transferred: int = 0
    """Bytes that go between host and device."""
    is_pinned: bool = False
    """Whether the host's memory is pinned there."""
    fixed_ns: int = 0
    """A time that the program has asked for."""


def duration_ns(work: Work, gpu: Datasheet) -> int:
    """Return how long the GPU is at it: the longer one of memory and arithmetic, and what each kernel takes beside."""
    if work.fixed_ns:
        return work.fixed_ns
    if work.transferred:
        rate = gpu.link * LINK_SHARE if work.is_pinned else min(PAGEABLE, gpu.link * LINK_SHARE)
        return TRANSFER_NS + round(work.transferred / rate * 1e9)
    memory_s = work.nbytes / (gpu.bandwidth * MEMORY_SHARE)
    arithmetic_s = work.flops / (gpu.rates[work.rate] * RATE_SHARE[work.rate]) if work.flops else 0.0
    busy_ns = round(max(memory_s, arithmetic_s) * 1e9)
    return max(busy_ns, work.serial * SERIAL_NS) + work.kernels * KERNEL_NS


def launch_ns(work: Work) -> int:
    """Return how long the host is at the launch, beyond what the call of the op takes."""
    if work.transferred or work.fixed_ns:
        return LAUNCH_NS
    return (work.kernels + work.serial) * LAUNCH_NS + (LIBRARY_NS if work.flops else 0)
