"""Names what Python called as a user would write it."""

from __future__ import annotations

from typing import Any

_C_MODULES = {
    "torch._C._linalg": ("torch.linalg", "linalg_"),
    "torch._C._nn": ("torch.nn.functional", ""),
    "torch._C._fft": ("torch.fft", "fft_"),
    "torch._C._special": ("torch.special", "special_"),
    "torch._C._sparse": ("torch.sparse", "sparse_"),
}
"""Where torch's C functions are found by users, and what their names begin with."""


def api_name(api: Any) -> str | None:
    """Name a function of torch as a user would write it: ``torch.Tensor.__getitem__``, ``torch.unique``."""
    if api is None:
        return None
    name = getattr(api, "__name__", None) or type(api).__name__
    owner = getattr(api, "__objclass__", None)
    if owner is not None or getattr(api, "__qualname__", "").startswith(("Tensor.", "TensorBase.", "_TensorBase.")):
        return f"torch.Tensor.{name}"
    module = getattr(api, "__module__", None) or ""
    if module in _C_MODULES:
        outer, prefix = _C_MODULES[module]
        return f"{outer}.{name.removeprefix(prefix)}"
    # Functions written in C say nothing useful of their module, and torch.functional is seen as torch.
    if module in {"", "torch._C._VariableFunctions", "torch.functional", "torch._tensor", "torch._VariableFunctions"}:
        module = "torch"
    return f"{module.removeprefix('torch._C.')}.{name}" if module.startswith("torch") else f"torch.{name}"
