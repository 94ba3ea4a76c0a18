"""Fourier transforms of 16-bit numbers, which only CUDA takes: they are computed in 32 bits and rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from syncagent.simulate import composite
from syncagent.simulate.requirements import MissingOp, aten

_WIDER = {torch.float16: torch.float32, torch.complex32: torch.complex64}
_NARROWER = {wide: narrow for narrow, wide in _WIDER.items()}
_NAMES = (
    "fft fft2 fftn hfft hfft2 hfftn rfft rfft2 rfftn ifft ifft2 ifftn ihfft ihfft2 ihfftn irfft irfft2 irfftn"
)  # fmt: skip


def _kernel(op: Any) -> Callable[..., Any]:
    def run(source: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if source.dtype not in _WIDER:
            return op.decompose(source, *args, **kwargs)
        result = op.decompose(source.to(_WIDER[source.dtype]), *args, **kwargs)
        return result.to(_NARROWER[result.dtype])

    return run


def install_kernels(library: Any) -> None:
    """Give the stand-in device kernels for ``torch.fft``'s transforms."""
    for name in _NAMES.split():
        op = getattr(aten, f"fft_{name}").default
        if not isinstance(op, MissingOp):
            composite.register(library, op, _kernel(op))
