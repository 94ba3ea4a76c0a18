"""Lets ``torch.optim``'s reads of numbers on the host bypass the hook on ``item()``.

Adam and optimizers like it keep the step count of each parameter in a tensor on the host and read it about twice a
parameter and step.  Such a read waits for nothing, but every ``item()`` passes the kernel that stands on the op for all
backends, which costs 2 to 5 µs: with 148 parameters about 1 ms per step, far more than all other work of the agent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from syncagent.torchbridge.patches import exchange_everywhere
from syncagent.torchbridge.switch import compile_in_use

_NAME = "_get_value"


class HostScalars:
    """While it is on, ``torch.optim`` reads 0-dim host tensors with ``tolist()``: the same number by another way."""

    def __init__(self) -> None:
        self._original: Callable[[Any], Any] | None = None
        self._reads: Callable[[Any], Any] | None = None

    def start(self) -> None:
        """Replace the function that optimizers read with, unless compiled code may hold on to it."""
        import torch

        original = self._in_place()
        if original is None or compile_in_use():
            return  # a guard of torch.compile's would see another function, and compile again
        is_compiling = torch.compiler.is_compiling
        plain = torch.Tensor

        def read(x: Any) -> Any:
            if is_compiling() or type(x) is not plain or not x.is_cpu or x.ndim:
                return original(x)
            return x.tolist()

        self._original, self._reads = original, read
        exchange_everywhere(_NAME, original, read)

    def stop(self) -> None:
        if self._reads is not None:
            exchange_everywhere(_NAME, self._reads, self._original)
            self._reads = self._original = None

    @classmethod
    def footprint(cls) -> dict[str, object]:
        """Return what it changes, as it is now."""
        return {"how torch.optim reads numbers": cls._in_place()}

    @staticmethod
    def _in_place() -> Any:
        return getattr(sys.modules.get("torch.optim.optimizer"), _NAME, None)
