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

from syncagent.policy.reach import open_reaches
from syncagent.policy.scopes import open_scopes, scopes_by_thread
from syncagent.sensors.internals import skip_in_dynamo
from syncagent.sensors.numbers import as_tensor
from syncagent.sensors.own_time import own_time_taken_off
from syncagent.sensors.redispatch import original
from syncagent.sensors.rules import RULES, Rule, shown
from syncagent.sensors.switch import Switch
from syncagent.sensors.tracebacks import leave_out_own_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import FrameType

    from syncagent.event import SyncKind
    from syncagent.recorder import Recorder
    from syncagent.records import About, Tally, ThreadState
    from syncagent.sensors.rules import Waits

    Call = Callable[..., Any]

__all__ = ["KernelSensor"]

_now = time.perf_counter_ns
_KEY = "BackendSelect"
_ROUTES = 1_000
_LAYS: dict[tuple[str, ...], Callable[[Any], Callable[[Any], bool]]] = {
    ("CUDA",): lambda tensor: tensor.is_cuda.__get__,
    ("CPU",): lambda tensor: tensor.is_cpu.__get__,
}
"""How to ask a tensor whether it is on the device: past what a subclass says of itself."""
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
        self.unhooked: list[str] = []
        """Those among them that this torch has, so that their waits may go unseen."""
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
        has_kernel = getattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
        with warnings.catch_warnings():
            # torch tells of every overridden kernel, and that is just what is meant here.
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
                    _keep_alive(rule.op, key)
                except Exception as error:
                    reason = str(error).strip().partition("\n")[0]
                    self.without.append(f"{rule.op} is not hooked: {reason}")
                    if _exists(rule):
                        self.unhooked.append(rule.op)

    def _kernel(self, rule: Rule, switch: Switch | None = None) -> Any:
        """Build the kernel of one op; of an op of one tensor, one that does without the set of keys."""
        call, op = original(rule)
        watch = self._watch(rule, call, switch)
        keys = (self._device_key,) if self._device_key else rule.keys
        kernel = self._kernel_of_any(rule, call, watch, keys, switch)
        if switch is None and len(op._schema.arguments) == 1 and keys in _LAYS:
            try:
                kernel = self._kernel_of_tensor(call, watch, keys)
            except AttributeError:
                pass  # a torch without one of the names that it leans on: the other does all it does, for more
        skip_in_dynamo(watch)
        skip_in_dynamo(kernel)
        kernel.__name__ = f"syncagent_{shown(rule).removeprefix('aten::')}"
        return kernel

    def _kernel_of_any(
        self, rule: Rule, call: Call, watch: Call, keys: Sequence[str], switch: Switch | None
    ) -> Callable[..., Any]:
        """The dispatcher hands over the set of keys, by which the call is ours and goes on."""
        import torch

        backends = tuple(getattr(torch._C.DispatchKey, key) for key in keys)
        here = getattr(torch._C.DispatchKey, _KEY) if switch is None else None
        # A copy that stays on the device waits for nothing; one that does not has a tensor on the host.
        host = torch._C.DispatchKey.CPU if rule.hot and "CPU" not in keys else None
        routes: dict[int, tuple[bool, Any]] = {}
        sensor = self

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                is_ours, below = routes[keyset.raw_repr()]
            except KeyError:
                is_ours, below = route(keyset)
            try:
                if is_ours and sensor._live:
                    return watch(below, args, kwargs)
                sensor.elsewhere += 1  # the op runs on another backend or does not leave it, or the watch is over
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

        kernel.with_keyset = True  # type: ignore[attr-defined]
        return kernel

    def _kernel_of_tensor(self, call: Call, watch: Call, keys: tuple[str, ...]) -> Callable[..., Any]:
        """The tensor itself tells where the call goes, which costs less than to be handed the keys.

        2.2 µs against 3.7 on the host of an H100 (tests/gpu/results/per_sync.json, `.item()` of a host tensor).
        """
        import torch

        is_ours = _LAYS[keys](torch.Tensor)
        ours, host = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in (keys[0], "CPU"))
        below = torch._C._dispatch_keyset_full_after(getattr(torch._C.DispatchKey, _KEY))
        strided = torch.strided
        nothing: dict[str, Any] = {}
        sensor = self

        def kernel(value: Any) -> Any:
            try:
                layout = value.layout
            except AttributeError:  # a number that stands for a tensor
                return kernel(as_tensor(value))
            try:
                if layout is strided and not value.is_nested:
                    if is_ours(value):
                        if sensor._live:
                            return watch(ours, (value,), nothing)
                        keyset = ours
                    else:
                        keyset = host if value.is_cpu else torch._C._dispatch_keys(value) & below
                else:
                    keyset = torch._C._dispatch_keys(value) & below
                sensor.elsewhere += 1
                _computing.add(get_ident())
                return call(keyset, value)
            except BaseException as error:
                leave_out_own_frames(error)
                raise

        kernel.with_keyset = False  # type: ignore[attr-defined]
        return kernel

    def _watch(self, rule: Rule, call: Call, switch: Switch | None) -> Call:  # noqa: PLR0915 - four functions over one set of names
        """Build what runs an op under watch.  All that can be done before the wait is: the GPU is at work meanwhile."""
        recorder, local = self._recorder, self._recorder.local
        current_step, describe, settle = recorder.current_step, recorder.describe, recorder.settle
        capturing = recorder.internals.capturing
        sensor = self
        name, late = shown(rule), rule.late
        proves = rule.proves if switch is None else _of_data(rule.proves)  # above, tensors without data come by as well
        names_itself = rule.waits is rule.proves  # else the kind of its wait is another question
        always: SyncKind | None = getattr(proves, "always", None)
        waited_ns = own_time_taken_off(rule)

        def watch(below: Any, args: Any, kwargs: Any) -> Any:
            try:
                state: ThreadState = local.state
            except AttributeError:
                state = recorder.thread_state()
            kind = always
            if kind is None:
                try:
                    kind = proves(args, kwargs)
                except Exception as error:
                    sensor._fault(rule, error)
            if kind is None:
                return call(below, *args, **kwargs) if state.op is not None else not_proven(state, below, args, kwargs)
            kernel = sys._getframe().f_back
            frame = kernel.f_back if kernel is not None else None  # none on a thread of autograd's
            if state.op is not None:
                return inside(state, kind, frame, below, args, kwargs)
            named = kind if names_itself else sensor._kind(rule, args, kwargs) or kind
            if frame is not None and state.tallies:  # the line's syncs may only be added up
                tally = state.tallies.get((name, named, id(frame.f_code), frame.f_lasti, open_scopes()))
                if tally is not None and tally.step == current_step() and not (open_reaches and is_other(tally, state)):
                    return summed(tally, state, below, args, kwargs)
            started = 0
            try:  # an interrupt may come at any point
                state.op = name
                state.passes += 1
                state.stall_ns = 0
                policy = recorder.policy
                allowed = None
                if policy is None or not policy.is_passive or open_scopes() or scopes_by_thread:
                    allowed = recorder.ask(name, named, frame, state, args, sensor.name)  # which may raise
                about = state.about = describe(state, name, named, frame, args, "kernels", allowed)
                started = _now()
                result = call(below, *args, **kwargs)
                returned = _now()
                state.op = None
            except BaseException:  # where the op raised, it has waited, unless a graph capture refused it
                state.op = None
                if started and not sensor._is_refused(capturing):
                    now = _now()
                    settle(state, about, named, started, now - started, now)
                raise
            whole_ns, inside_ns = returned - started, state.stall_ns
            # What hooked ops inside have timed is closer to the wait, unless the wait was elsewhere.
            stall_ns = inside_ns if 2 * inside_ns >= whole_ns else waited_ns(whole_ns, args)
            seen = settle(state, about, named, started, stall_ns, returned)
            if allowed is not None:
                recorder.tally(state, seen, frame)
            return result

        def inside(
            state: ThreadState, kind: SyncKind, frame: FrameType | None, below: Any, args: Any, kwargs: Any
        ) -> Any:
            """Run an op that waits inside of another, which names the sync."""
            if state.outer is not None and state.about is None:
                state.about = sensor._describe_outer(state, kind, frame, judged=True)  # which may raise
            inside_ns = state.stall_ns
            started = _now()
            try:
                return call(below, *args, **kwargs)
            finally:
                whole_ns = _now() - started
                if state.kind is None:
                    state.kind, state.start_ns = kind, started
                inside_ns, state.stall_ns = state.stall_ns - inside_ns, inside_ns
                state.stall_ns += inside_ns if 2 * inside_ns >= whole_ns else waited_ns(whole_ns, args)

        def not_proven(state: ThreadState, below: Any, args: Any, kwargs: Any) -> Any:
            """Run an outermost op whose arguments alone do not say that it waits."""
            raised = True
            started = _now()
            try:
                state.kind = state.about = None
                state.op, state.outer = name, (rule, args, kwargs)
                state.passes += 1
                state.stall_ns = 0
                result = call(below, *args, **kwargs)
                raised = False
                return result
            finally:
                returned = _now()
                kind, is_late = state.kind, False
                if kind is None and not raised and late is not None and returned - started > _LATE_NS:
                    kind, is_late = sensor._if_late(rule, args, kwargs, returned - started), True
                    state.start_ns, state.stall_ns = started, waited_ns(returned - started, args)
                elif raised and sensor._is_refused(capturing):
                    kind = None
                if kind is not None:
                    about = state.about or sensor._describe_outer(state, kind, _caller(3), judged=False)
                    state.op = None
                    seen = settle(
                        state, about, state.named, state.start_ns, state.stall_ns, returned, conditional=is_late
                    )
                    if about.allowed is not None:
                        recorder.tally(state, seen, _caller(3))
                state.op = state.outer = None

        def is_other(tally: Tally, state: ThreadState) -> bool:
            """Do other regions cover this sync than those that were summed, of other threads or of a backward pass?"""
            return tally.last is None or tally.last.regions != recorder.in_force(state)[0]

        def summed(tally: Tally, state: ThreadState, below: Any, args: Any, kwargs: Any) -> Any:
            """Run an allowed op whose line is known: it is only added up."""
            started = _now()
            try:
                state.op = name
                result = call(below, *args, **kwargs)
            finally:
                state.op = None
            stall_ns = waited_ns(_now() - started, args)
            tally.count += 1
            tally.stall_ns += stall_ns
            tally.max_ns = max(tally.max_ns, stall_ns)
            return result

        return watch

    def _describe_outer(self, state: ThreadState, kind: SyncKind, frame: FrameType | None, *, judged: bool) -> About:
        """Describe the outermost op, for a wait that was proven by one inside, and is judged first, or too late."""
        rule, args, kwargs = state.outer
        state.named = named = kind if rule.waits is rule.proves else self._kind(rule, args, kwargs) or kind
        allowed = self._recorder.ask(state.op or "", named, frame, state, args, self.name) if judged else None
        return self._recorder.describe(state, state.op or "", state.named, frame, args, self.name, allowed)

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

    def _is_refused(self, capturing: Callable[[], bool]) -> bool:
        """Has a graph capture refused the op that raised?  The program has to see that error, never one of ours."""
        try:
            return capturing()
        except Exception as error:
            self._recorder.fault("the check for a graph capture", error)
            return False

    def _fault(self, rule: Rule, error: Exception) -> None:
        self._recorder.fault(f"the rule of {rule.op}", error)


def _exists(rule: Rule) -> bool:
    """Does this torch have the op?"""
    import torch

    name, _, overload = rule.op.removeprefix("aten::").partition(".")
    return hasattr(getattr(torch.ops.aten, name, None), overload or "default")


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
