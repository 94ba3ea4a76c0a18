"""The GPUs whose times can be modelled: the figures of their datasheets, each with where it stands.

Rates are dense, without structured sparsity, for which the datasheets have larger figures.  Where a rate is given with
sparsity alone, it is half of that.  The pages themselves could not be opened
when this was written: the figures are as others quote them.
"""

from __future__ import annotations

from typing import NamedTuple

TERA, GIGA = 1e12, 1e9


class Datasheet(NamedTuple):
    """What NVIDIA says of one GPU."""

    name: str
    """As ``torch.cuda.get_device_name()`` returns it on such a GPU."""
    memory_bytes: int
    bandwidth: float
    """Of its memory, in bytes a second."""
    rates: dict[str, float]
    """Operations a second: ``half`` is fp16 and bf16, ``tf32`` is fp32 where TF32 is allowed, both on tensor cores."""
    link: float
    """Of its PCIe link, in bytes a second and in one direction."""
    source: str


GPUS: dict[str, Datasheet] = {
    "H100": Datasheet(
        name="NVIDIA H100 80GB HBM3",
        memory_bytes=80 * 10**9,
        bandwidth=3.35 * TERA,
        rates={"fp64": 67 * TERA, "fp32": 67 * TERA, "tf32": 494.5 * TERA, "half": 989 * TERA},
        link=64 * GIGA,  # PCIe 5.0
        source="https://www.nvidia.com/en-us/data-center/h100/ (H100 SXM)",
    ),
    "H200": Datasheet(
        name="NVIDIA H200",
        memory_bytes=141 * 10**9,
        bandwidth=4.8 * TERA,
        rates={"fp64": 67 * TERA, "fp32": 67 * TERA, "tf32": 494.5 * TERA, "half": 989 * TERA},
        link=64 * GIGA,  # PCIe 5.0
        source="https://www.nvidia.com/en-us/data-center/h200/ (H200 SXM)",
    ),
    "A100": Datasheet(
        name="NVIDIA A100-SXM4-80GB",
        memory_bytes=80 * 10**9,
        bandwidth=2.039 * TERA,
        rates={"fp64": 19.5 * TERA, "fp32": 19.5 * TERA, "tf32": 156 * TERA, "half": 312 * TERA},
        link=32 * GIGA,  # PCIe 4.0
        source=(
            "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
            "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf (A100 80GB SXM)"
        ),
    ),
    "L4": Datasheet(
        name="NVIDIA L4",
        memory_bytes=24 * 10**9,
        bandwidth=300 * GIGA,
        # fp64 is not in the datasheet: the architecture computes it at a 64th of fp32.
        rates={"fp64": 30.3 / 64 * TERA, "fp32": 30.3 * TERA, "tf32": 60 * TERA, "half": 121 * TERA},
        link=32 * GIGA,  # PCIe 4.0
        source="https://www.nvidia.com/en-us/data-center/l4/",
    ),
}
"""By the name that the setting ``simulate_gpu`` has for it."""
