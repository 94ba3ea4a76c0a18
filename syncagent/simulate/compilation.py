"""``torch.compile`` and Triton, which write kernels for a GPU: the program runs without the first, not the second."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from typing import Any

import torch

from syncagent.errors import SimulationError
from syncagent.simulate import patches
from syncagent.simulate.memory import flatten
from syncagent.simulate.requirements import ON_INSTANCES, find, look_up, note_loss
from syncagent.simulate.tensor import SimulatedTensor, replacement
from syncagent.support.import_hook import ImportHook
from syncagent.support.log import log_once

# --- torch.compile -----------------------------------------------------------------------------------------


_WRAPPER = "_dynamo.eval_frame.OptimizedModule"
_OLD_WAY = "_dynamo.optimize"


def _as_it_is(function: Any) -> Any:
    """Stands where torch's wrapper of a compiled module has what compiles its calls; it can be copied and pickled."""
    return function


def _eager(model: Any) -> Any:
    """What ``torch.compile`` returns for this, but running as written."""
    if isinstance(model, torch.nn.Module):
        wrapper = look_up(_WRAPPER)
        if wrapper is None:
            note_loss(f"torch.{_WRAPPER}", ON_INSTANCES[_WRAPPER])
        # The same class as torch's, since programs look for `_orig_mod`, and checkpoints have it in their keys.
        return model if wrapper is None else wrapper(model, _as_it_is)
    if isinstance(model, type) or not callable(model):
        return model

    @functools.wraps(model, updated=())
    def as_written(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    as_written._torchdynamo_orig_callable = model  # type: ignore[attr-defined]  # where libraries look for it
    return as_written


def _say_so() -> None:
    log_once(
        "compile",
        "torch.compile leaves the program as it is on the simulated device: compiled kernels would be for a GPU",
        level="info",
    )


def _compile_eagerly() -> None:
    original: Any = torch.compile
    signature = inspect.signature(original)

    def compile_(*args: Any, **kwargs: Any) -> Any:
        asked = signature.bind(*args, **kwargs).arguments  # raises as torch does for options that there are not
        switched_off = any(os.environ.get(name) == "1" for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"))
        if asked.get("disable") or switched_off:
            return original(*args, **kwargs)
        _say_so()
        model = asked.get("model")
        return _eager if model is None else _eager(model)

    here = replacement(compile_, original)
    here.__signature__ = signature  # libraries look there for its options
    patches.put(torch, "compile", here)


def _compile_eagerly_by_old_names() -> None:
    """The way of before torch 2.0: a call with the backend, and of what that returns with the model."""
    dynamo: Any = sys.modules["torch._dynamo"]

    def optimize(*_: Any, **__: Any) -> Any:
        _say_so()
        return _eager

    if not hasattr(dynamo, "optimize"):
        note_loss(f"torch.{_OLD_WAY}", ON_INSTANCES[_OLD_WAY])
    for name in ("optimize", "optimize_assert"):
        if hasattr(dynamo, name):
            patches.put(dynamo, name, replacement(optimize, getattr(dynamo, name)))


# --- Triton ------------------------------------------------------------------------------------------------


def _refuse_launches() -> None:
    """Let a kernel that gets a simulated tensor say what is the matter, in place of Triton's missing driver."""
    interface: Any = getattr(sys.modules.get("triton.runtime.jit"), "KernelInterface", None)
    if interface is None:
        return
    original = interface.__getitem__

    @functools.wraps(original)
    def launcher(kernel: Any, grid: Any) -> Any:
        launch = original(kernel, grid)

        @functools.wraps(launch)
        def launch_or_refuse(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(each, SimulatedTensor) for each in flatten([*args, *kwargs.values()])):
                function = getattr(kernel, "fn", kernel)
                name = getattr(function, "__name__", type(kernel).__name__)
                raise SimulationError(
                    f"the Triton kernel {name} is not simulated on CUDA: Triton compiles for a GPU. Use the library's "
                    "implementation without Triton, or plain PyTorch, on the simulated device"
                )
            return launch(*args, **kwargs)

        return launch_or_refuse

    interface.__getitem__ = launcher


_ANSWERS = {"transformers.utils.import_utils": "transformers", "accelerate.utils.imports": "accelerate"}
"""Modules whose ``is_triton_available`` other libraries ask, too, and the packages that have imported it by name."""


def _answer_no(question: str, original: Any, package: str) -> None:
    """Replace a function of no arguments or optional ones in all modules of its package."""
    has_none = replacement(lambda *_, **__: False, original)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package and vars(module).get(question) is original:
            patches.put(module, question, has_none)


def _tell_there_is_no_triton() -> None:
    """Libraries that ask torch, transformers or accelerate then take their way without it."""
    original = find("utils._triton.has_triton")
    if original is not None:
        _answer_no("has_triton", original, "torch")

    def answer(module: str, package: str) -> None:
        original = getattr(sys.modules.get(module), "is_triton_available", None)
        if original is not None:
            _answer_no("is_triton_available", original, package)

    for module, package in _ANSWERS.items():
        hook = ImportHook(module, functools.partial(answer, module, package))
        hook.install()
        patches.also(lambda: None, hook.remove)


def install() -> None:
    """Replace ``torch.compile``, and see to it that Triton's kernels are refused by name."""
    _compile_eagerly()
    _tell_there_is_no_triton()
    for module, then in (
        ("triton.runtime.jit", _refuse_launches),
        ("torch._dynamo", _compile_eagerly_by_old_names),
    ):
        hook = ImportHook(module, then)
        hook.install()
        patches.also(lambda: None, hook.remove)
