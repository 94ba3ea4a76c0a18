"""Kernels that a thread turns on and off for itself, at no cost while they are off and with nothing changed in torch.

Putting a kernel on an op changes a table that every thread dispatches by, and threads read it without a lock: done
again and again while they compute, it crashes the process in the end (seen within seconds in a test).  So kernels that
come and go stand for good on a dispatch key which no tensor has, and the thread adds that key to its own calls.  The
autograd engine hands the key on to its threads; torch's guards on compiled code see it, which is why the switch
stays off once torch.compile begins to compile.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from syncagent.torchbridge.patches import Patches

SWITCHED_KEY = "TESTING_ONLY_GenericMode"
"""It stands above autograd, autocast and all modes, and no tensor has it."""
_KEY = SWITCHED_KEY
_CALLBACKS = "torch._dynamo.callback"

_fallback: list[Any] = []
"""Makes ops without a kernel of ours ignore the key; it is never removed, since a thread may have the key on."""


def compile_in_use() -> bool:
    """Has torch.compile been called in this process, or compiled anything?"""
    counters: Any = getattr(sys.modules.get("torch._dynamo.utils"), "counters", None)
    backends = getattr(sys.modules.get("torch._dynamo.eval_frame"), "cached_backends", None)
    asked = any(backend is not None for backend in (backends or {}).values())  # torch._dynamo.disable leaves a None
    return asked or bool(counters and counters.get("frames"))


class Switch:
    """The dispatch key, and whether this thread has it on."""

    def __init__(self) -> None:
        self.key = _KEY
        self.compiles = False
        """torch.compile is in use: the switch stays off."""
        self.before_compile: Callable[[], None] | None = None
        """Called, once or more, on the thread on which torch.compile comes into use."""
        self._patches = Patches()
        self._registered: Any = None
        self.only: Any = None
        """The set of keys that holds this one alone."""

    def prepare(self) -> None:
        """Have ops without a kernel on the key ignore it.  Raises what torch raises if that cannot be done."""
        import torch

        if not _fallback:
            library = torch.library.Library("_", "IMPL")
            library.fallback(torch.library.fallthrough_kernel, _KEY)
            _fallback.append(library)
        included = torch._C._dispatch_tls_local_include_set
        was_on = self.is_on
        torch._C._dispatch_tls_set_dispatch_key_included(_KEY, False)
        without = included()
        torch._C._dispatch_tls_set_dispatch_key_included(_KEY, True)
        self.only = included() - without
        torch._C._dispatch_tls_set_dispatch_key_included(_KEY, was_on)
        self._watch_for_compile()

    @property
    def is_on(self) -> bool:
        """Whether this thread has it on."""
        import torch

        return bool(torch._C._dispatch_tls_is_dispatch_key_included(_KEY))

    @property
    def holds(self) -> bool:
        """Whether turning it now lasts: while torch runs a mode in Python, it keeps the key off, and restores it."""
        import torch

        return not torch._C._dispatch_tls_is_dispatch_key_excluded(_KEY)

    def turn(self, on: bool) -> None:
        """Turn it on or off for this thread."""
        import torch

        if on and not self._registered:
            self._watch_for_compile()
        torch._C._dispatch_tls_set_dispatch_key_included(_KEY, on and not self.compiles)

    def release(self) -> None:
        """Turn it off here, and stop watching for torch.compile."""
        self.turn(False)
        self._patches.restore()
        if self._registered is not None:
            handler, self._registered = self._registered, None
            if self._compile_starts in handler.start_callbacks:  # torch._dynamo.reset() forgets it
                handler.remove_start_callback(self._compile_starts)

    @classmethod
    def footprint(cls) -> dict[str, object]:
        """Return what it changes, as it is now."""
        import torch

        return {"torch.compile": torch.compile, "this thread's switch": cls().is_on}

    # --- torch.compile

    def _watch_for_compile(self) -> None:
        """Wrap ``torch.compile``; register a callback for the start of compiling if anything of it is loaded."""
        import torch

        if self._registered is None and _CALLBACKS in sys.modules:
            self.compiles = self.compiles or compile_in_use()
            self._registered = sys.modules[_CALLBACKS].callback_handler
            self._registered.register_start_callback(self._compile_starts)
            if self.compiles and self.before_compile is not None:
                self.before_compile()
        if not self.compiles and not self._patches:
            self._patches.wrap(torch, "compile", self._announced)

    def _announced(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def compile_(*args: Any, **kwargs: Any) -> Any:
            self._compile_starts()
            return original(*args, **kwargs)

        return compile_

    def _compile_starts(self, *_: object) -> None:
        self.compiles = True
        self.turn(False)
        if self.before_compile is not None:
            self.before_compile()
