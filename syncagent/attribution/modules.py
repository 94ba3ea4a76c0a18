"""Which ``nn.Module`` is running its forward, and whether it trains, from the frames: no module needs a hook."""

from __future__ import annotations

from operator import attrgetter
from types import CodeType, FrameType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from syncagent.attribution.callsite import AnyFrame
from syncagent.events import Phase

_CALLS = 4_096


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


class _Call:
    """A line that calls a module."""

    __slots__ = ("code", "evaluates", "has_parameters", "module")

    def __init__(self, code: CodeType | None, module: Any) -> None:
        self.code = code  # kept alive: its identity is part of the key
        self.module: ReferenceType[Any] | None = ref(module)
        """``None`` once the line has called another one as well."""
        self.has_parameters = _has_parameters(module)
        self.evaluates: bool | None = None
        """Whether it runs without gradients in eval mode, as far as that was seen; ``None`` where it was not."""


class ModuleCalls:
    """Tells forward from evaluation, by the outermost module that runs.

    A thread that looks at another knows neither whether gradients are on there nor which module runs.  So a thread
    that records a sync publishes which module the line calls, and how.
    """

    def __init__(self) -> None:
        self._calls: dict[tuple[int, int], _Call] = {}

    def phase(self, call: FrameType, *, grads: bool) -> Phase:
        """Return the phase of what runs in that call of a module, and publish it; for the thread itself.

        A module in training mode that has no parameters, as most loss functions, says nothing of what it is used for.
        """
        module: Any = call.f_locals.get("self")
        try:
            training = module.training
        except Exception:  # a property of the program's own
            training = None
        if not isinstance(training, bool):
            return Phase.FORWARD if grads else Phase.OTHER
        known = self._known(call.f_back, module)
        if grads:
            if not training:
                known.evaluates = False
            return Phase.FORWARD
        if training:
            return Phase.FORWARD if known.has_parameters else Phase.OTHER
        if known.evaluates is None:
            known.evaluates = True
        return Phase.EVALUATION

    def _known(self, caller: FrameType | None, module: Any) -> _Call:
        if caller is None:
            return _Call(None, module)
        key = (id(caller.f_code), caller.f_lasti)
        known = self._calls.get(key)
        before = known.module() if known is not None and known.module is not None else None
        if known is not None and before is module:
            return known
        made = _Call(caller.f_code, module)
        if known is not None and (known.module is None or before is not None):
            made.module = None
        if known is not None or len(self._calls) < _CALLS:
            self._calls[key] = made
        return made

    def seen(self, call: AnyFrame) -> Phase:
        """Return the phase of what another thread runs in that call; ``other`` where it has not published enough."""
        caller = call.f_back
        known = self._calls.get((id(caller.f_code), caller.f_lasti)) if caller is not None else None
        if known is None or known.module is None:
            return Phase.OTHER
        try:
            # All of it is done from C: the module's last reference is never this thread's.
            training = next(map(_training, map(_referent, (known.module,))))
        except AttributeError:  # it is gone
            return Phase.OTHER
        if training is True:
            return Phase.FORWARD if known.has_parameters else Phase.OTHER
        return Phase.EVALUATION if training is False and known.evaluates else Phase.OTHER


_training = attrgetter("training")
_referent: Any = ReferenceType.__call__


def _has_parameters(module: Any) -> bool:
    try:
        return any(True for _ in module.parameters())
    except Exception:  # a method of the program's own
        return False
