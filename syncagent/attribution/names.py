"""Names what was running: the function of torch that Python called, and the ``nn.Module`` in its forward pass."""

from __future__ import annotations

from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

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


class ModulePaths:
    """Names modules by their place below the outermost module that is running, as ``named_modules`` does.

    They are found from the frames: no module needs a hook.
    """

    def __init__(self) -> None:
        self._names: WeakKeyDictionary[Any, dict[int, str]] = WeakKeyDictionary()

    def path(self, frame: FrameType | None) -> str | None:
        """Return the dotted path (``layers.3.attn``), the class name for the outermost itself, ``None`` outside."""
        innermost: Any = None
        outermost: Any = None
        while frame is not None:
            code = frame.f_code
            if code.co_name == "_call_impl" and code.co_filename.endswith("module.py"):
                module = frame.f_locals.get("self")
                innermost = module if innermost is None else innermost
                outermost = module
            frame = frame.f_back
        if outermost is None:
            return None
        if innermost is outermost:
            return type(outermost).__name__
        name = self._below(outermost).get(id(innermost))
        if name is None or not _is_at(outermost, name, innermost):  # added or moved since
            self._names.pop(outermost, None)
            name = self._below(outermost).get(id(innermost))
        return name if name is not None else type(innermost).__name__

    def _below(self, root: Any) -> dict[int, str]:
        names = self._names.get(root)
        if names is None:
            names = self._names[root] = {id(module): name for name, module in root.named_modules() if name}
        return names


def _is_at(root: Any, name: str, module: Any) -> bool:
    try:
        found: Any = root.get_submodule(name)
    except AttributeError:
        return False
    return found is module
