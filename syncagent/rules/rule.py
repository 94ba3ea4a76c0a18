"""What a rule is: all that is known of one op that may make the host wait on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from syncagent.events import SyncKind

Waits = Callable[[Sequence[Any], Mapping[str, Any]], SyncKind | None]
Late = Callable[[Sequence[Any], Mapping[str, Any], int], SyncKind | None]

_COLD_NS = 1_000_000
_HEAVY_NS = 200_000
_SHAPES = 256


@dataclass(frozen=True, slots=True)
class Rule:
    """What is known of one op overload; the sensors and the simulated device go by it.

    To write a new one, add a row to :data:`syncagent.rules.table.RULES`.  Two predicates look at the arguments of a
    call (``args``, ``kwargs``) and return the kind of wait, or ``None``; ``predicates.py`` has those that there are.  A
    predicate runs on the training thread before every call of the op: it reads shapes, dtypes and devices, and must
    neither read a value on the device nor call an op.  Where ``waits`` and ``proves`` are the same object, the wait of
    this op names itself.

    A row is proven on a GPU, not argued: CONTRIBUTING says how, and ``tests/gpu/results/`` has the evidence.
    """

    op: str
    """Name with overload as the dispatcher writes it: ``aten::index.Tensor``; the default overload has no suffix."""
    waits: Waits
    """Does the call wait at all?  This is the whole truth, and what the simulated device and the modes go by."""
    proves: Waits
    """May a Python kernel around this op take the call itself as proof of a wait?

    ``index.Tensor`` with a mask waits only because it calls ``nonzero``: there the inner kernel is the proof and the
    outer one gives the name.
    """
    evidence: str
    """Why it waits, in a phrase."""
    host_us: float = 0.0
    """Host time of the call itself (at most, in µs), which is no stall, where the call proves its own wait.

    It is what remained of the call's duration on an H100 after the driver's own waiting time (CUPTI) was taken off; the
    mean of four runs.
    """
    late: Late | None = None
    """Decides from the duration of a call (ns) that it has waited, where the arguments alone do not say."""
    keys: tuple[str, ...] = ("CUDA",)
    """Dispatch keys of the backends on which it waits; none where a Python kernel on it would be of no use."""
    shown: str = ""
    """The op's name in a sync, where it is not its own: parts of one op that differ between torch's own code paths."""
    outside_runtime: bool = False
    """Whether it waits in a library with a CUDA runtime of its own (cuSOLVER, cuSPARSE), where the driver's waits are
    not seen: its stall is always the call's duration less ``host_us``."""
    hot: bool = False
    """Whether ordinary training calls it so often that a Python kernel on it costs noticeable time (``copy_``)."""

    @property
    def reported_op(self) -> str:
        """The name that a sync of this op carries: the dispatcher's, without overload."""
        return self.shown or self.op.partition(".")[0]


def own_time_taken_off(rule: Rule) -> Callable[[int, Sequence[Any]], int]:
    """Build what makes a stall (ns) of a call's duration: the op's own time on the host is none.

    That is the shortest call so far, but no more than the rule allows for, and all of that after a long wait, in which
    the caches have gone cold.  Where it is much it depends on the size, and is kept by shape.
    """
    host_ns = int(rule.host_us * 1e3)
    if host_ns <= _HEAVY_NS:
        shortest_ns = host_ns

        def waited_ns(whole_ns: int, _args: Sequence[Any]) -> int:
            nonlocal shortest_ns
            shortest_ns = min(shortest_ns, whole_ns)
            return whole_ns - (shortest_ns if whole_ns <= _COLD_NS else host_ns)

        return waited_ns

    by_shape: dict[Any, int] = {}

    def waited_ns_by_shape(whole_ns: int, args: Sequence[Any]) -> int:
        size = getattr(args[0], "shape", None) if args else None
        least_ns = by_shape.get(size, whole_ns)
        if whole_ns <= least_ns and len(by_shape) < _SHAPES:
            by_shape[size] = least_ns = whole_ns
        return whole_ns - min(least_ns, host_ns)

    return waited_ns_by_shape
