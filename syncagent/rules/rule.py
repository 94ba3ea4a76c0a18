"""What a rule is: all that is known of one op that may make the host wait on CUDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from syncagent.events import SyncKind

    Waits = Callable[[Sequence[Any], Mapping[str, Any]], SyncKind | None]
    Late = Callable[[Sequence[Any], Mapping[str, Any], int], SyncKind | None]

__all__ = ["Rule"]


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
    """Tells from how long a call lasted (ns) that it has waited, where the arguments alone do not say."""
    keys: tuple[str, ...] = ("CUDA",)
    """Dispatch keys of the backends on which it waits; none where a Python kernel on it would serve nothing."""
    shown: str = ""
    """The op's name in a sync, where it is not its own: parts of one op that differ between torch's own code paths."""
    hot: bool = False
    """Whether ordinary training calls it so often that a Python kernel on it is felt (``copy_``)."""

    @property
    def reported_op(self) -> str:
        """The name that a sync of this op carries: the dispatcher's, without overload."""
        return self.shown or self.op.partition(".")[0]
