"""Python kernels on the dispatcher's CUDA key, around the ops that may wait and around no other.

``torch.library.get_kernel`` hands out the original kernel and ``Library.impl`` puts ours in its place, for every
thread, autograd's included, under ``torch.compile`` and in graph capture.  Ops nest: the innermost hooked op that waits is the
proof and is timed, the outermost is what the user wrote and names the sync.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

from syncagent.sensors.internals import skip_in_dynamo
from syncagent.sensors.rules import RULES, Rule, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from syncagent.recorder import Recorder, ThreadState

__all__ = ["KernelSensor"]

_now = time.perf_counter_ns


class KernelSensor:
    """Times what waits on the GPU, wherever it is called from."""

    name = "kernels"

    def __init__(self, recorder: Recorder, rules: Iterable[Rule] = RULES, *, device_key: str | None = None) -> None:
        """``device_key`` replaces every rule's dispatch keys: tests watch CPU ops through the same dispatcher."""
        self._recorder = recorder
        self._rules = tuple(rules)
        self._device_key = device_key
        self._cold: list[Any] = []
        self._hot: list[Any] = []
        self._live = False
        self.without: list[str] = []
        """One sentence for each op that could not be hooked."""
        self.faults: list[str] = []

    @property
    def live(self) -> bool:
        return self._live

    @property
    def cannot_see(self) -> str:
        lost = "; ".join([*self.without, *self.faults])
        return "waits inside extensions that call CUDA themselves" + (f"; {lost}" if lost else "")

    def start(self, *, hot: bool) -> None:
        """Put the kernels in place; ``hot`` ones (``copy_``) only if asked for."""
        import torch

        if not hasattr(torch.library, "get_kernel"):
            self.without.append(f"torch {torch.__version__} has no torch.library.get_kernel (2.9 and later have)")
            return
        self._cold = self._put(rule for rule in self._rules if not rule.hot)
        self._live = True
        if hot:
            self.arm_hot()

    def arm_hot(self) -> None:
        """Watch the hot ops from now on (about 40 µs)."""
        if self._live and not self._hot:
            self._hot = self._put(rule for rule in self._rules if rule.hot)

    def disarm_hot(self) -> None:
        """Give the hot ops their own kernels back."""
        libraries, self._hot = self._hot, []
        _take_off(libraries)

    @property
    def hot_armed(self) -> bool:
        return bool(self._hot)

    def stop(self) -> None:
        """Restore every kernel."""
        self._live = False
        self.disarm_hot()
        libraries, self._cold = self._cold, []
        _take_off(libraries)

    def _put(self, rules: Iterable[Rule]) -> list[Any]:
        import torch

        library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            # torch tells of every overridden kernel, and that is just what is meant here.
            warnings.filterwarnings("ignore", message=r"(?s).*[Oo]verriding a previously registered kernel.*")
            for rule in rules:
                for key in (self._device_key,) * bool(rule.keys) if self._device_key else rule.keys:
                    try:
                        original = torch.library.get_kernel(rule.op, key)
                        kernel = self._kernel(rule, _accepting_numbers(rule, original.call_boxed))
                        library.impl(rule.op.removeprefix("aten::"), kernel, key, with_keyset=True)
                    except Exception as error:
                        reason = str(error).strip().partition("\n")[0]
                        self.without.append(f"{rule.op} on {key} is not hooked: {reason}")
        return [library]

    def _kernel(self, rule: Rule, call: Callable[..., Any]) -> Callable[..., Any]:
        """Build the kernel of one op.  What it does with a call that does not wait must stay as little as it is."""
        recorder = self._recorder
        local = recorder.local
        name = shown(rule)
        proves, waits = rule.proves, rule.waits
        sensor = self

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
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
                state.op = name
                state.kind = None
                state.stall_ns = 0
            elif kind is None:
                return call(keyset, *args, **kwargs)
            allowed: str | None = None
            waited_before = state.stall_ns
            started = returned = 0
            try:
                if kind is not None and recorder.gate is not None:
                    allowed = recorder.gate(state.op or name, kind, _caller(), state)
                started = _now()
                result = call(keyset, *args, **kwargs)
                returned = _now()
                return result
            finally:
                if returned == 0 and started:  # the op raised: it has waited, unless a graph capture refused it
                    returned = _now()
                    if recorder.internals.capturing():
                        kind = state.kind = None
                if kind is not None and started:
                    if state.kind is None:
                        state.kind = kind
                        state.start_ns = started
                    if state.stall_ns == waited_before:  # nothing inside has proved and timed the wait: it is all ours
                        state.stall_ns += returned - started
                if outermost:
                    state.op = None
                    if state.kind is not None and started:
                        try:
                            recorder.record(
                                state, name, waits(args, kwargs) or state.kind,
                                (state.start_ns, state.stall_ns, returned), _caller(), args, "kernels", allowed,
                            )  # fmt: skip
                        except Exception as error:
                            sensor._fault(rule, error)
                    else:
                        state.passes += 1

        skip_in_dynamo(kernel)
        kernel.__name__ = f"syncagent_{name.removeprefix('aten::')}"
        return kernel

    def _fault(self, rule: Rule, error: Exception) -> None:
        """Our own mistake never reaches the program: it is kept for the report."""
        text = f"{rule.op}: the agent failed with {type(error).__name__}: {error}"
        if text not in self.faults:
            self.faults.append(text)


def _accepting_numbers(rule: Rule, call: Callable[..., Any]) -> Callable[..., Any]:
    """Undo what boxing does to a Python number that stands for a tensor.

    A 0-dim tensor made from a number (``x[3] = 1.0``) reaches a Python kernel as that number, which the original kernel
    does not take.  Only ops with a second tensor argument can meet one.
    """
    import torch

    name, _, overload = rule.op.removeprefix("aten::").partition(".")
    schema = getattr(getattr(torch.ops.aten, name), overload or "default")._schema
    places = [i for i, a in enumerate(schema.arguments) if i and isinstance(a.type, torch.TensorType)]
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


def _caller() -> FrameType | None:
    """Return the frame that called the op, or ``None`` on a thread that has no Python frame (autograd's)."""
    try:
        return sys._getframe(2)
    except ValueError:
        return None


def _take_off(libraries: list[Any]) -> None:
    for library in libraries:
        library._destroy()
