"""What the scripts of this folder share: their options, and the time of a step between two waits for the GPU."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Run:
    """What one run of a script was asked for."""

    variant: str
    device: str
    steps: int
    small: bool = False
    """Sizes for a machine without a GPU."""

    @property
    def before(self) -> bool:
        return self.variant == "before"

    def sized(self, full: int, small: int) -> int:
        return small if self.small else full


class Clock:
    """Times the steps after the first fifth of them."""

    def __init__(self, run: Run) -> None:
        self._device, self._steps = run.device, run.steps
        self._first = max(run.steps // 5, 1)
        self._count = 0
        self._began = self._ended = 0.0

    def tick(self) -> None:
        """A step has been made."""
        self._count += 1
        if self._count == self._first:
            self._began = self._now()
        if self._count == self._steps:
            self._ended = self._now()

    @property
    def step_ms(self) -> float:
        return (self._ended - self._began) * 1e3 / max(self._steps - self._first, 1)

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main(train: Callable[[Run], tuple[float, float]]) -> None:
    """Run a script's training as its options say, and print what it comes to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=("before", "after"), default="before")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--small", action="store_true", help="sizes for a machine without a GPU")
    options = parser.parse_args()
    torch.manual_seed(0)
    step_ms, checksum = train(Run(**vars(options)))
    print(f"{options.variant}: {step_ms:.3f} ms a step, checksum {checksum:.9g}")
