"""Python kernels in the dispatcher, right above the CUDA kernels of the ops that may wait, and around no other op.

They stand on the key ``BackendSelect``, which every call passes on its way to a backend, below autograd and the modes,
in every thread, under ``torch.compile`` and in graph capture.  From there a call is redispatched, which runs the
original kernel with the GIL released: calling it through ``torch.library.get_kernel`` would hold the GIL for the whole
wait and freeze every other Python thread (measured, torch 2.11 and 2.13).
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from threading import get_ident
from typing import Any

from syncagent.rules.rule import Rule
from syncagent.torchbridge.frames import leave_out_own_frames
from syncagent.torchbridge.internals import skip_in_dynamo
from syncagent.torchbridge.numbers import as_tensor, exactly
from syncagent.torchbridge.switch import Switch

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
_left: list[Any] = []
"""Kernels that could not be taken off when their agent ended."""
_kept: deque[Any] = deque(maxlen=150)
"""Kernels that are held beyond their end: other threads may be inside of one when it is taken off."""


class Hooks:
    """The kernels of one agent.

    ``watch_of(rule, call, above_backends=...)`` builds what runs an op under watch, ``watch(keys, args, kwargs)``, from
    what runs it otherwise, ``call(keys, *args, **kwargs)``.  ``device_key`` replaces every rule's dispatch keys: tests
    watch CPU ops through the same dispatcher.
    """

    __slots__ = (
        "_device_key", "_libraries", "_watch_of", "left_in_place", "live", "passed_through", "unhooked", "without",
    )  # fmt: skip

    def __init__(self, watch_of: Callable[..., Call], device_key: str | None = None) -> None:
        self._watch_of = watch_of
        self._device_key = device_key
        self._libraries: list[Any] = []
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
        self._libraries.append(library)
        has_kernel = getattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
        get_kernel = getattr(torch._C, "_dispatch_get_computed_kernel_for_dispatch_key", None)
        with warnings.catch_warnings():
            # torch warns of every kernel that is overridden, which is intended here.
            warnings.filterwarnings("ignore", message=r"(?s).*[Oo]verriding a previously registered kernel.*")
            for rule in rules:
                try:
                    if has_kernel(rule.op, key) and not _left:
                        self.without.append(f"{rule.op} is not hooked: torch has a kernel of its own on {key}")
                        self.unhooked.append(rule.op)
                        continue
                    over: dict[str, bool] = {"allow_override": True} if _left else {}
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
        """Take off what earlier agents had to leave: it lies below the new kernels, and nothing is dispatched to it."""
        _take_off(_left)

    def take_off(self, threads: Iterable[int | None]) -> None:
        """Restore every kernel; while other threads compute, leave them where they are, passing calls on.

        ``threads`` are the ids of those in which a sync was seen.  Taking a kernel off while another thread dispatches
        the same op is a race in torch: the op fails with ``fallthrough_kernel was executed``.  The next agent's kernels
        take the place of those that were left.
        """
        self.live = False
        libraries, self._libraries = self._libraries, []
        _computing.update(ident for ident in threads if ident is not None)
        _computing.intersection_update(
            {thread.ident for thread in threading.enumerate() if not thread.name.startswith("syncagent")}
        )
        self.left_in_place = bool(libraries) and bool(_computing - {get_ident()})
        if self.left_in_place:
            _left.extend(libraries)
        else:
            _take_off(libraries)

    def _kernel(self, rule: Rule, switch: Switch | None = None) -> Any:
        """Build the kernel of one op; of an op of one tensor, one that does without the set of keys."""
        op = _find(rule, must_exist=True)
        call: Call = getattr(getattr(op, "_handle", None), "redispatch_boxed", op.redispatch)
        has_one_argument = len(op._schema.arguments) == 1  # then the kernel looks at the tensor before it calls this
        call = call if has_one_argument else exactly(call, op)
        watch = self._watch_of(rule, call, above_backends=switch is not None)
        keys = (self._device_key,) if self._device_key else rule.keys
        kernel = self._kernel_of_any(rule, call, watch, keys, switch)
        if switch is None and has_one_argument and keys in _IS_ON_DEVICE:
            try:
                kernel = self._kernel_of_tensor(call, watch, keys)
            except AttributeError:
                pass  # this torch lacks a name that the faster kernel needs; the other one does the same
        skip_in_dynamo(watch)
        skip_in_dynamo(kernel)
        kernel.__name__ = f"syncagent_{rule.reported_op.removeprefix('aten::')}"
        return kernel

    def _kernel_of_any(
        self, rule: Rule, call: Call, watch: Call, keys: Sequence[str], switch: Switch | None
    ) -> Callable[..., Any]:
        """Build a kernel that is given the set of keys: they say whether the call is watched, and where it goes."""
        import torch

        backends = tuple(getattr(torch._C.DispatchKey, key) for key in keys)
        here = getattr(torch._C.DispatchKey, _KEY) if switch is None else None
        # A copy that stays on the device waits for nothing; one that does not has a tensor on the host.
        host = torch._C.DispatchKey.CPU if rule.hot and "CPU" not in keys else None
        routes: dict[int, tuple[bool, Any]] = {}
        hooks = self

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                is_ours, below = routes[keyset.raw_repr()]
            except KeyError:
                is_ours, below = route(keyset)
            try:
                if is_ours and hooks.live:
                    return watch(below, args, kwargs)
                hooks.passed_through += 1  # the op runs on another backend or does not leave it, or the watch is over
                _computing.add(get_ident())
                return call(below, *args, **kwargs)
            except BaseException as error:
                leave_out_own_frames(error)
                raise

        def route(keyset: Any) -> tuple[bool, Any]:
            """Find out, once for each set of keys, whether the call is for us and what is left to dispatch to."""
            below = keyset - switch.only if switch is not None else keyset.remove(here)
            waits = any(keyset.has(backend) for backend in backends) and (host is None or keyset.has(host))
            found = waits, below
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
        return bool(_C._dispatch_has_kernel_for_dispatch_key(rule.op, _KEY))
    except RuntimeError:  # this torch has no such op
        return False


def _find(rule: Rule, *, must_exist: bool = False) -> Any:
    """Return the overload of an op, or ``None`` where this torch does not have it."""
    import torch

    name, _, overload = rule.op.removeprefix("aten::").partition(".")
    missing = () if must_exist else (None,)
    return getattr(getattr(torch.ops.aten, name, *missing), overload or "default", *missing)


def _take_off(libraries: list[Any]) -> None:
    for library in libraries:
        library._destroy()
    libraries.clear()
