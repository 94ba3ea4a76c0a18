"""Python kernels in the dispatcher, right above the CUDA kernels of the ops that may wait, and around no other op.

They stand on the key ``BackendSelect``, which every call passes on its way to a backend, below autograd and the modes,
in every thread, under ``torch.compile`` and in graph capture.  From there a call is redispatched, which runs the
original kernel with the GIL released: calling it through ``torch.library.get_kernel`` would hold the GIL for the whole
wait and freeze every other Python thread (measured, torch 2.11 and 2.13).

Ops nest: the innermost hooked op that waits is the proof and is timed, the outermost is what the user wrote and names
the sync.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections import deque
from threading import get_ident
from typing import TYPE_CHECKING, Any

from syncagent.policy.scopes import open_scopes, scopes_by_thread
from syncagent.sensors.internals import skip_in_dynamo
from syncagent.sensors.rules import RULES, Rule, shown
from syncagent.sensors.switch import Switch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import FrameType

    from syncagent.event import SyncKind
    from syncagent.recorder import Recorder, Tally, ThreadState
    from syncagent.sensors.rules import Waits

__all__ = ["KernelSensor"]

_now = time.perf_counter_ns
_frame = sys._getframe
_KEY = "BackendSelect"
_COLD_NS = 1_000_000
_HEAVY_NS = 200_000
_SHAPES = 256
_ROUTES = 1_000
_LATE_NS = 500_000
"""Shorter calls are not asked whether they came back late."""


class KernelSensor:
    """Times what waits on the GPU, wherever it is called from."""

    name = "kernels"

    def __init__(self, recorder: Recorder, rules: Iterable[Rule] = RULES, *, device_key: str | None = None) -> None:
        """``device_key`` replaces every rule's dispatch keys: tests watch CPU ops through the same dispatcher."""
        self._recorder = recorder
        self._rules = tuple(rule for rule in rules if rule.keys)
        self._device_key = device_key
        self._switch = Switch()
        self._libraries: list[Any] = []
        self._hot = "off"
        self._live = False
        self.without: list[str] = []
        """One sentence for each op that could not be hooked."""
        self.elsewhere = 0
        """Calls on other backends that passed through, about: threads may count at the same time."""
        self.left_in_place = False

    @property
    def live(self) -> bool:
        return self._live

    @property
    def cannot_see(self) -> str:
        lost = "; ".join(self.without)
        return "waits inside extensions that call CUDA themselves" + (f"; {lost}" if lost else "")

    def start(self, *, hot: bool) -> None:
        """Put the kernels in place; ``hot`` ones (``copy_``) for every thread and for good only if asked for."""
        self._live = True
        self._put(rule for rule in self._rules if hot or not rule.hot)
        _take_off(_left)  # they lie below the new ones now, and nothing is dispatched to them
        _left.clear()
        self._hot = "always" if hot else "off"

    def arm_hot(self) -> None:
        """Watch the hot ops on this thread from now on, unless torch.compile is in use (1 µs after the first time)."""
        if self._live and self._hot == "off":
            self._switch.prepare()
            self._put((rule for rule in self._rules if rule.hot), self._switch)
            self._hot = "switched"
        if self._hot == "switched":
            self._switch.turn(True)

    def disarm_hot(self) -> None:
        """Watch the hot ops on this thread no longer."""
        if self._hot == "switched":
            self._switch.turn(False)

    @property
    def hot_armed(self) -> bool:
        """Whether the hot ops are watched on this thread."""
        return self._hot == "always" or (self._hot == "switched" and self._switch.is_on)

    @property
    def gave_way(self) -> bool:
        """Whether the hot ops are no longer watched since torch.compile is in use."""
        return self._hot == "switched" and self._switch.compiles

    def stop(self) -> None:
        """Restore every kernel; while other threads compute, leave them where they are, passing calls on.

        Taking a kernel off while another thread dispatches the same op is a race in torch: the op fails with
        ``fallthrough_kernel was executed``.  The next agent's kernels take the place of those that were left.
        """
        self._live = False
        if self._hot == "switched":
            self._switch.release()
        self._hot = "off"
        libraries, self._libraries = self._libraries, []
        self.left_in_place = bool(libraries) and self._others_compute()
        if self.left_in_place:
            _left.extend(libraries)
            return
        _take_off(libraries)

    def _others_compute(self) -> bool:
        """Has another Python thread that is alive called a hooked op?"""
        _computing.update(state.ident for state in self._recorder.states)
        alive = {thread.ident for thread in threading.enumerate() if not thread.name.startswith("syncagent")}
        _computing.intersection_update(alive)
        return bool(_computing - {get_ident()})

    def _put(self, rules: Iterable[Rule], switch: Switch | None = None) -> None:
        import torch

        key = _KEY if switch is None else switch.key
        library = torch.library.Library("aten", "IMPL")
        self._libraries.append(library)
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        with warnings.catch_warnings():
            # torch tells of every overridden kernel, and that is just what is meant here.
            warnings.filterwarnings("ignore", message=r"(?s).*[Oo]verriding a previously registered kernel.*")
            for rule in rules:
                try:
                    if has_kernel(rule.op, key) and not _left:
                        self.without.append(f"{rule.op} is not hooked: torch has a kernel of its own on {key}")
                        continue
                    over: dict[str, bool] = {"allow_override": True} if _left else {}
                    name, kernel = rule.op.removeprefix("aten::"), self._kernel(rule, switch)
                    library.impl(name, kernel, key, with_keyset=True, **over)
                    _keep_alive(rule.op, key)
                except Exception as error:
                    reason = str(error).strip().partition("\n")[0]
                    self.without.append(f"{rule.op} is not hooked: {reason}")

    def _kernel(self, rule: Rule, switch: Switch | None = None) -> Callable[..., Any]:  # noqa: PLR0915 - one function: calling others costs
        """Build the kernel of one op.  What it does with a call that does not wait must stay as little as it is."""
        import torch

        recorder, local = self._recorder, self._recorder.local
        call = _original(rule)
        name = shown(rule)
        proves, late = rule.proves, rule.late
        if switch is not None:  # up there, tensors without data come by as well
            proves = _of_data(proves)
        here = getattr(torch._C.DispatchKey, _KEY) if switch is None else None
        backends = tuple(
            getattr(torch._C.DispatchKey, key) for key in ((self._device_key,) if self._device_key else rule.keys)
        )
        sensor = self
        current_step = recorder.current_step
        proves_all = rule.waits is rule.proves  # else what is proven by an op inside is named by the one outside
        # The op's own time on the host is no stall: the shortest call so far, but no more than the rule allows for, and
        # all of that after a long wait, in which the caches have gone cold.  Where it is much it depends on the size,
        # and is kept by shape.
        host_ns = int(rule.host_us * 1e3)
        by_shape = host_ns > _HEAVY_NS
        shortest: dict[Any, int] = {}
        routes: dict[int, tuple[bool, Any]] = {}

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: PLR0915
            try:
                is_ours, below = routes[keyset.raw_repr()]
            except KeyError:
                is_ours, below = route(keyset)
            if not (is_ours and sensor._live):  # the op runs on another backend, or the watch is over
                sensor.elsewhere += 1
                _computing.add(get_ident())
                return call(below, *args, **kwargs)
            try:
                state: ThreadState = local.state
            except AttributeError:
                state = recorder.thread_state()
            try:
                kind = proves(args, kwargs)
            except Exception as error:
                kind = None
                sensor._fault(rule, error)
            outermost = state.op is None
            if outermost:
                if kind is not None and state.tallies:  # the line's syncs may only be added up
                    try:
                        frame = _frame(1)
                        tally = state.tallies.get((name, kind, id(frame.f_code), frame.f_lasti, open_scopes()))
                    except ValueError:  # a thread without Python frames
                        tally = None
                    if tally is not None and tally.step == current_step():
                        return summed(tally, state, below, args, kwargs)
                state.op = name
                state.kind = None
                state.stall_ns = 0
                state.allowed = None
            elif kind is None:
                return call(below, *args, **kwargs)
            inside_ns = state.stall_ns
            started = returned = 0
            try:
                if kind is not None:
                    policy = recorder.policy
                    if policy is None or (policy.is_passive and not open_scopes() and not scopes_by_thread):
                        state.where = None
                    else:
                        state.allowed = recorder.ask(state.op or name, kind, _caller(), state)
                started = _now()
                result = call(below, *args, **kwargs)
                returned = _now()
                return result
            finally:
                if returned == 0 and started:  # the op raised: it has waited, unless a graph capture refused it
                    returned = _now()
                    if recorder.internals.capturing():
                        kind = state.kind = None
                elif kind is None and late is not None and returned - started > _LATE_NS:
                    kind = sensor._if_late(rule, args, kwargs, returned - started)
                if kind is not None and started:
                    if state.kind is None:
                        state.kind = kind
                        state.start_ns = started
                    # What hooked ops inside have timed is closer to the wait, unless the wait was elsewhere.
                    inside_ns, state.stall_ns = state.stall_ns - inside_ns, inside_ns
                    whole_ns = returned - started
                    if 2 * inside_ns >= whole_ns:
                        state.stall_ns += inside_ns
                    else:
                        state.stall_ns += waited_ns(whole_ns, args)
                if outermost:
                    state.op = None
                    state.passes += 1
                    if state.kind is not None and started:
                        if not proves_all:
                            kind = sensor._kind(rule, args, kwargs)
                        times = (state.start_ns, state.stall_ns, returned)
                        recorder.settle(
                            state, name, kind or state.kind, times, _caller(), args, "kernels", state.allowed
                        )

        def route(keyset: Any) -> tuple[bool, Any]:
            """Find out, once for each set of keys, whether the call is for us and what is left to dispatch to."""
            below = keyset - switch.only if switch is not None else keyset.remove(here)
            found = any(keyset.has(backend) for backend in backends), below
            if len(routes) < _ROUTES:
                routes[keyset.raw_repr()] = found
            return found

        def waited_ns(whole_ns: int, args: Sequence[Any]) -> int:
            """Take the op's own time on the host off."""
            size = args[0].shape if by_shape and args else None
            least_ns = shortest.get(size, whole_ns)
            if whole_ns <= least_ns and len(shortest) < _SHAPES:
                shortest[size] = least_ns = whole_ns
            if whole_ns > _COLD_NS and not by_shape:
                return whole_ns - host_ns
            return whole_ns - min(least_ns, host_ns)

        def summed(tally: Tally, state: ThreadState, below: Any, args: Any, kwargs: Any) -> Any:
            """Run an allowed op whose line is known: it is only added up."""
            state.op = name
            started = _now()
            try:
                result = call(below, *args, **kwargs)
            finally:
                state.op = None
            whole_ns = _now() - started
            stall_ns = waited_ns(whole_ns, args) if whole_ns > host_ns or by_shape else 0
            tally.count += 1
            tally.stall_ns += stall_ns
            tally.max_ns = max(tally.max_ns, stall_ns)
            return result

        skip_in_dynamo(kernel)
        kernel.__name__ = f"syncagent_{name.removeprefix('aten::')}"
        return kernel

    def _kind(self, rule: Rule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
        """Return what the outermost op says of its wait."""
        try:
            return rule.waits(args, kwargs)
        except Exception as error:
            self._fault(rule, error)
            return None

    def _if_late(self, rule: Rule, args: Sequence[Any], kwargs: Mapping[str, Any], lasted_ns: int) -> SyncKind | None:
        """Did a call that need not wait come back so late that it has?"""
        try:
            return rule.late(args, kwargs, lasted_ns) if rule.late is not None else None
        except Exception as error:
            self._fault(rule, error)
            return None

    def _fault(self, rule: Rule, error: Exception) -> None:
        self._recorder.fault(f"the rule of {rule.op}", error)


def _original(rule: Rule) -> Callable[..., Any]:
    """Return what runs an op as if it were not hooked; takes the keys that are left to dispatch to, then its arguments.

    Undoes what boxing does to a Python number that stands for a tensor: a 0-dim tensor made from a number
    (``x[3] = 1.0``) reaches a Python kernel as that number, which no kernel takes.  Only ops with a second tensor
    argument can meet one.
    """
    import torch

    name, _, overload = rule.op.removeprefix("aten::").partition(".")
    op = getattr(getattr(torch.ops.aten, name), overload or "default")
    call: Callable[..., Any] = getattr(getattr(op, "_handle", None), "redispatch_boxed", op.redispatch)
    places = [i for i, a in enumerate(op._schema.arguments) if i and isinstance(a.type, torch.TensorType)]
    if not places:
        return call
    dtypes = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}

    def call_with_tensors(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        for place in places:
            if place < len(args) and type(args[place]) in dtypes:
                number = args[place]
                tensor = torch.scalar_tensor(number, dtype=dtypes[type(number)], device="cpu")
                args = (*args[:place], tensor, *args[place + 1 :])
        return call(keyset, *args, **kwargs)

    return call_with_tensors


def _caller(depth: int = 1) -> FrameType | None:
    """Return the frame that called the op, or ``None`` on a thread that has no Python frame (autograd's)."""
    try:
        return sys._getframe(depth + 1)
    except ValueError:
        return None


def _take_off(libraries: Iterable[Any]) -> None:
    for library in libraries:
        library._destroy()


_computing: set[int] = set()
"""Threads that have called a hooked op under any agent."""
_left: list[Any] = []
"""Kernels that could not be taken off when their agent ended."""


def _of_data(proves: Waits) -> Waits:
    def real(args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncKind | None:
        fake = hasattr(args[0], "fake_mode") or (len(args) > 1 and hasattr(args[1], "fake_mode"))
        return None if fake else proves(args, kwargs)

    return real


_kept: deque[Any] = deque(maxlen=150)


def _keep_alive(op: str, key: str) -> None:
    """Hold on to a kernel beyond its end: other threads may be inside of it when it is taken off."""
    import torch

    get_kernel = getattr(torch._C, "_dispatch_get_computed_kernel_for_dispatch_key", None)
    if get_kernel is not None:
        _kept.append(get_kernel(op, key))
