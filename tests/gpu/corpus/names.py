"""The namespace in which cases run: standard tensors on the device and on the host, fresh for each run."""

from __future__ import annotations

import copy
import functools
import importlib.util
import io
import math
import os
import pickle
from typing import Any

import torch

__all__ = ["DEVICE", "namespace"]

DEVICE = os.environ.get("CORPUS_DEVICE", "cuda")
"""``cpu`` smoke-tests the corpus where there is no GPU."""


def has(module: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(module) is not None


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Page-locked memory, where there is a GPU to lock it for."""
    return tensor.pin_memory() if DEVICE == "cuda" else tensor.clone()


@functools.cache
def large() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """16 MB on the device, in pageable and in pinned memory: made once, since what is in them never matters."""
    host = torch.rand(4 << 20)
    return host.to(DEVICE), host, pinned(host)


def namespace() -> dict[str, Any]:
    """Fresh names, but for the 16 MB tensors.

    ``D`` is the device; g, h float (999); A float (64, 64), S symmetric positive definite (32, 32);
    l int64 (999) in 0..8; m mask (999); z, zi 0-dim float and int; w float (999) with grad; W (64, 64) with grad;
    x4 images (2, 3, 16, 16); G 16 MB float; on the host: s float (9), c 16 MB float, p pinned 16 MB, ci int64 (3).
    """
    d = torch.device(DEVICE)
    torch.manual_seed(0)
    a = torch.rand(64, 64, device=d)
    q = torch.rand(32, 32, device=d)
    big, pageable, page_locked = large()
    names: dict[str, Any] = {
        "T": torch, "torch": torch, "nn": torch.nn, "F": torch.nn.functional, "D": d, "dev": DEVICE,
        "io": io, "copy": copy, "math": math, "pickle": pickle, "has": has, "pinned": pinned,
        "g": torch.rand(999, device=d) + 0.1, "h": torch.rand(999, device=d) + 0.1,
        "A": a, "S": q @ q.T + 32 * torch.eye(32, device=d), "l": torch.randint(0, 9, (999,), device=d),
        "m": torch.rand(999, device=d) > 0.5, "z": torch.tensor(0.5, device=d), "zi": torch.tensor(3, device=d),
        "w": torch.rand(999, device=d).requires_grad_(), "W": torch.rand(64, 64, device=d).requires_grad_(),
        "x4": torch.rand(2, 3, 16, 16, device=d), "G": big,
        "s": torch.rand(9), "c": pageable, "p": page_locked,
        "ci": torch.tensor([1, 2, 3]),
    }  # fmt: skip
    return names
