"""Python kernels in the dispatcher, around the ops that may wait and around no other op, in one of two places.

Those for every thread stand on the key ``BackendSelect``, which every call passes on its way to a backend, right above
the CUDA kernels, below autograd and the modes, under ``torch.compile`` and in graph capture.  Those that a thread turns
on for itself stand on the switched key (:mod:`syncagent.torchbridge.switch`), above autograd and the modes: they are
called first, when the op's autograd node is still to be made, and for tensors that only wrap what reaches a backend.

From either place a call is redispatched, which runs the original kernel with the GIL released: calling it through
``torch.library.get_kernel`` would hold the GIL for the whole wait and freeze every other Python thread (measured, torch
2.11 and 2.13).
"""

from __future__ import annotations

import concurrent.futures.thread
import selectors
import socket
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import connection
from threading import get_ident
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias

from syncagent.rules.rule import Rule
from syncagent.support.compat import read_frames, running_threads
from syncagent.torchbridge.frames import leave_out_own_frames
from syncagent.torchbridge.internals import skip_in_dynamo
from syncagent.torchbridge.numbers import as_tensor, exactly
from syncagent.torchbridge.switch import SWITCHED_KEY, Switch

Call = Callable[..., Any]

_KEY = "BackendSelect"
_ROUTES = 1_000
_IS_ON_DEVICE: dict[tuple[str, ...], Callable[[Any], Callable[[Any], bool]]] = {
    ("CUDA",): lambda tensor: tensor.is_cuda.__get__,
    ("CPU",): lambda tensor: tensor.is_cpu.__get__,
}
"""How to ask a tensor whether it is on the device: past what a subclass says of itself."""

_computing: set[int] = set()
"""Threads that have called a hooked op under any agent."""
_left: dict[str, list[Any]] = {_KEY: [], SWITCHED_KEY: []}
"""Kernels that could not be taken off when their agent ended, by the key that they stand on."""
_WRAPPERS = (
    "FuncTorchDynamicLayerFrontMode", "FuncTorchGradWrapper", "FuncTorchVmapMode", "FuncTorchBatched", "Functionalize",
)  # fmt: skip
"""Keys of transforms, which call the op anew for what is inside of them: that call passes the switched key as well."""
_kept: deque[Any] = deque(maxlen=150)
"""Kernels that are held beyond their end: other threads may be inside of one when it is taken off."""
_WAITING_IN = frozenset(
    module.__file__ for module in (concurrent.futures.thread, connection, selectors, socket, threading)
)
_WAITING = frozenset({"wait", "_wait_for_tstate_lock", "join", "select", "_recv", "accept", "readinto", "_worker"})
"""Files and functions of the standard library: a thread in one of these needs the GIL before it can compute."""
_COMPILE_WORKERS = "torch._inductor.compile_worker."
"""Modules of the threads by which torch.compile talks to its other processes, as long as the program lives."""


class Hooks:
    """The kernels of one agent.

    ``watch_of(rule, call)`` builds what runs an op under watch, ``watch(keys, args, kwargs)``, from what runs it
    otherwise, ``call(keys, *args, **kwargs)``; further keywords say what is still to come below a kernel that is
    switched (:func:`syncagent.sensors.hooked_op.watched`).  ``device_key`` replaces every rule's dispatch keys: tests
    watch CPU ops through the same dispatcher.
    """

    __slots__ = (
        "_device_key", "_libraries", "_watch_of", "left_in_place", "live", "passed_through", "unhooked", "without",
    )  # fmt: skip

    def __init__(self, watch_of: Callable[..., Call], device_key: str | None = None) -> None:
        self._watch_of = watch_of
        self._device_key = device_key
        self._libraries: list[tuple[str, Any]] = []
        self.live = False
        """Whether calls are watched; else the kernels pass them on."""
        self.passed_through = 0
        """Calls on other backends that were passed on, about: threads may count at the same time."""
        self.without: list[str] = []
        """One sentence for each op that could not be hooked."""
        self.unhooked: list[str] = []
        """Those among them that this torch has, so that their waits may go unseen."""
        self.left_in_place = False
        """Whether the kernels could not be taken off safely, and are still there, passing calls on."""

    def put(self, rules: Iterable[Rule], switch: Switch | None = None) -> None:
        """Put a kernel on the op of each rule, for every thread or for those that turn the switch on."""
        import torch

        key = _KEY if switch is None else switch.key
        library = torch.library.Library("aten", "IMPL")
        self._libraries.append((key, library))
        left = _left[key]
        has_kernel = getattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
        get_kernel = getattr(torch._C, "_dispatch_get_computed_kernel_for_dispatch_key", None)
        with warnings.catch_warnings():
            # torch warns of every kernel that is overridden, which is intended here.
            warnings.filterwarnings("ignore", message=r"(?s).*[Oo]verriding a previously registered kernel.*")
            for rule in rules:
                try:
                    if has_kernel(rule.op, key) and not left:
                        self.without.append(f"{rule.op} is not hooked: torch has a kernel of its own on {key}")
                        self.unhooked.append(rule.op)
                        continue
                    over: dict[str, bool] = {"allow_override": True} if left else {}
                    name, kernel = rule.op.removeprefix("aten::"), self._kernel(rule, switch)
                    library.impl(name, kernel, key, with_keyset=kernel.with_keyset, **over)
                    if get_kernel is not None:
                        _kept.append(get_kernel(rule.op, key))
                except Exception as error:
                    reason = str(error).strip().partition("\n")[0]
                    self.without.append(f"{rule.op} is not hooked: {reason}")
                    if _find(rule) is not None:
                        self.unhooked.append(rule.op)

    def replace_left(self) -> None:
        """Take off what earlier agents had to leave below new kernels: nothing is dispatched to it."""
        for key in {key for key, _ in self._libraries}:
            _take_off(_left[key])

    def take_off(self, threads: Iterable[int | None]) -> None:
        """Restore every kernel; while other threads compute, leave them where they are, passing calls on.

        ``threads`` are the ids of those in which a sync was seen.  Taking a kernel off while another thread dispatches
        the same op is a race in torch: the op fails with ``fallthrough_kernel was executed``.  So any other thread that
        is in code that uses torch counts, since it may be on its way to its first op.  The next agent's kernels take
        the place of those that were left.
        """
        self.live = False
        libraries, self._libraries = self._libraries, []
        _computing.update(ident for ident in threads if ident is not None)
        _computing.intersection_update(
            {thread.ident for thread in threading.enumerate() if not thread.name.startswith("syncagent")}
        )
        self.left_in_place = bool(libraries) and (bool(_computing - {get_ident()}) or _others_run())
        if self.left_in_place:
            for key, library in libraries:
                _left[key].append(library)
        else:
            _take_off([library for _, library in libraries])

    def _kernel(self, rule: Rule, switch: Switch | None = None) -> Any:
        """Build the kernel of one op; of an op of one tensor, one that does without the set of keys."""
        op = _find(rule, must_exist=True)
        call: Call = getattr(getattr(op, "_handle", None), "redispatch_boxed", op.redispatch)
        has_one_argument = len(op._schema.arguments) == 1  # then the kernel looks at the tensor before it calls this
        call = call if has_one_argument else exactly(call, op)
        if switch is None:
            watches = {(False, False): self._watch_of(rule, call)}
        else:
            watches = {
                (autograd, python): self._watch_of(
                    rule, call, above_backends=True, above_autograd=autograd, above_python=python
                )
                for autograd in (False, True)
                for python in (False, True)
            }
        keys = (self._device_key,) if self._device_key else rule.keys
        kernel = self._kernel_of_any(rule, call, watches, keys, switch)
        if switch is None and has_one_argument and keys in _IS_ON_DEVICE:
            try:
                kernel = self._kernel_of_tensor(call, watches[False, False], keys)
            except AttributeError:
                pass  # this torch lacks a name that the faster kernel needs; the other one does the same
        for watch in watches.values():
            skip_in_dynamo(watch)
        skip_in_dynamo(kernel)
        kernel.__name__ = f"syncagent_{rule.reported_op.removeprefix('aten::')}"
        return kernel

    def _kernel_of_any(
        self,
        rule: Rule,
        call: Call,
        watches: Mapping[tuple[bool, bool], Call],
        keys: Sequence[str],
        switch: Switch | None,
    ) -> Callable[..., Any]:
        """Build a kernel that is given the set of keys: they say whether the call is watched, and where it goes.

        ``watches`` are by whether the call is still to pass autograd, and a mode or a subclass in Python.
        """
        import torch

        backends = tuple(getattr(torch._C.DispatchKey, key) for key in keys)
        here = getattr(torch._C.DispatchKey, _KEY) if switch is None else None
        # A copy that stays on the device waits for nothing; one that does not has a tensor on the host.
        host = torch._C.DispatchKey.CPU if rule.hot and "CPU" not in keys else None
        wrappers = [getattr(torch._C.DispatchKey, key, None) for key in _WRAPPERS] if switch is not None else []
        autograd, python = torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.Python
        routes: dict[int, tuple[Call | None, Any]] = {}
        hooks = self

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                watch, below = routes[keyset.raw_repr()]
            except KeyError:
                watch, below = route(keyset)
            try:
                if watch is not None and hooks.live:
                    return watch(below, args, kwargs)
                hooks.passed_through += 1  # the op runs on another backend or does not leave it, or the watch is over
                _computing.add(get_ident())
                return call(below, *args, **kwargs)
            except BaseException as error:
                leave_out_own_frames(error)
                raise

        def route(keyset: Any) -> tuple[Call | None, Any]:
            """Find out, once for each set of keys, what watches the call, if it is for us, and where it goes on."""
            below = keyset - switch.only if switch is not None else keyset.remove(here)
            waits = any(keyset.has(backend) for backend in backends) and (host is None or keyset.has(host))
            wraps = any(key is not None and keyset.has(key) for key in wrappers)
            is_above = (switch is not None and keyset.has(autograd), switch is not None and keyset.has(python))
            found = (watches[is_above] if waits and not wraps else None), below
            if len(routes) < _ROUTES:
                routes[keyset.raw_repr()] = found
            return found

        kernel.with_keyset = True  # type: ignore[attr-defined]  # read by Hooks
        return kernel

    def _kernel_of_tensor(self, call: Call, watch: Call, keys: tuple[str, ...]) -> Callable[..., Any]:
        """Build a kernel that asks the tensor itself where the call goes, which costs less than being given the keys.

        2.2 µs against 3.7 on the host of an H100 (tests/gpu/results/per_sync.json, `.item()` of a host tensor).
        """
        import torch

        is_ours = _IS_ON_DEVICE[keys](torch.Tensor)
        ours, host = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in (keys[0], "CPU"))
        below = torch._C._dispatch_keyset_full_after(getattr(torch._C.DispatchKey, _KEY))
        strided = torch.strided
        nothing: dict[str, Any] = {}
        hooks = self

        def kernel(value: Any) -> Any:
            try:
                layout = value.layout
            except AttributeError:  # a number that stands for a tensor
                return kernel(as_tensor(value))
            try:
                if layout is strided and not value.is_nested:
                    if is_ours(value):
                        if hooks.live:
                            return watch(ours, (value,), nothing)
                        keyset = ours
                    else:
                        keyset = host if value.is_cpu else torch._C._dispatch_keys(value) & below
                else:
                    keyset = torch._C._dispatch_keys(value) & below
                hooks.passed_through += 1
                _computing.add(get_ident())
                return call(keyset, value)
            except BaseException as error:
                leave_out_own_frames(error)
                raise

        kernel.with_keyset = False  # type: ignore[attr-defined]  # read by Hooks
        return kernel


def is_hooked(rule: Rule) -> bool:
    """Return whether any kernel stands where ours do on the op of a rule."""
    from torch import _C

    try:
        return any(_C._dispatch_has_kernel_for_dispatch_key(rule.op, key) for key in (_KEY, SWITCHED_KEY))
    except RuntimeError:  # this torch has no such op
        return False


def _find(rule: Rule, *, must_exist: bool = False) -> Any:
    """Return the overload of an op, or ``None`` where this torch does not have it."""
    import torch

    name, _, overload = rule.op.removeprefix("aten::").partition(".")
    missing = () if must_exist else (None,)
    return getattr(getattr(torch.ops.aten, name, *missing), overload or "default", *missing)


_Frames: TypeAlias = Sequence[tuple[CodeType, dict[str, Any]]]
"""Of a thread, innermost first: what it runs and the names of the module that this is of."""


def _others_run() -> bool:
    """Is another thread of the program's in code that uses torch, and in no wait of the standard library's?"""
    left_out = {thread.ident for thread in threading.enumerate() if thread.name.startswith("syncagent")} | {get_ident()}
    return any(
        _uses_torch(read_frames(ident, "f_code", "f_globals")) for ident in running_threads() if ident not in left_out
    )


def _uses_torch(frames: _Frames) -> bool:
    """Does the module of any function of a thread hold something of torch's?  Threads that read or write do not."""
    if not frames:
        return False
    innermost, _ = frames[0]
    if innermost.co_filename in _WAITING_IN and innermost.co_name in _WAITING:
        return False
    if _begins_in(frames).startswith(_COMPILE_WORKERS):
        return False
    for _, names in frames:
        for value in tuple(names.values()):
            kind = type(value)
            name = value.__name__ if kind is ModuleType else value.__module__ if kind in {type, FunctionType} else None
            if isinstance(name, str) and name.partition(".")[0] == "torch":
                return True
    return False


def _begins_in(frames: _Frames) -> str:
    """Return the module of the function that a thread was started with; nothing for threads that are not Python's."""
    module = ""
    for code, names in frames:
        if code.co_filename == threading.__file__:
            return module
        module = str(names.get("__name__", ""))
    return ""


def _take_off(libraries: list[Any]) -> None:
    for library in libraries:
        library._destroy()
    libraries.clear()
