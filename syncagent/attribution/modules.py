"""Finds the path of the ``nn.Module`` that is running its forward, from the frames: no module needs a hook."""

from __future__ import annotations

from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary


class ModulePaths:
    """Names modules by their place below the outermost module that is running, as ``named_modules`` does."""

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
