"""Functions that look at the class of their arguments in C++, and take another way for one that they do not know."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import handle_torch_function

from syncagent.simulate import patches
from syncagent.simulate.lookups import find

__all__ = ["install"]

_mode_is_on = find("_C._is_torch_function_mode_enabled") or (lambda: False)


def _wrap_ctc_loss() -> None:
    """Of a tensor subclass torch does not read the lengths; for CUDA it takes them to the host, which is done here."""
    original = torch.ctc_loss

    def ctc_loss(
        log_probs: Any, targets: Any, input_lengths: Any, target_lengths: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if _mode_is_on():
            return handle_torch_function(
                ctc_loss, (), log_probs, targets, input_lengths, target_lengths, *args, **kwargs
            )
        if log_probs.is_cuda:
            input_lengths, target_lengths = (
                lengths.tolist() if isinstance(lengths, torch.Tensor) else lengths
                for lengths in (input_lengths, target_lengths)
            )
        return original(log_probs, targets, input_lengths, target_lengths, *args, **kwargs)

    ctc_loss.__module__ = "torch"
    patches.put(torch, "ctc_loss", ctc_loss)


def install() -> None:
    """Wrap them."""
    _wrap_ctc_loss()
