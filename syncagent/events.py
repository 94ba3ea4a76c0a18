"""The records that travel through the program: a host sync, where it happened and how long it stalled the host."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from syncagent.support.compat import StrEnum


class SyncKind(StrEnum):
    """Why the host had to wait for the GPU."""

    DYNAMIC_SHAPE = "dynamic_shape"
    """The size of the result depends on values on the GPU: ``nonzero``, ``unique``, boolean masks."""

    SCALAR_READ = "scalar_read"
    """Python needs a value: ``item``, ``float``, ``if tensor:``, ``equal``."""

    COPY_D2H = "copy_d2h"
    """A copy from the GPU to host memory that the host waits for."""

    COPY_H2D = "copy_h2d"
    """A copy from host memory to the GPU that the host waits for."""

    CHECK = "check"
    """An error flag or an argument check reads values from the GPU: ``linalg``, distributions."""

    EXPLICIT = "explicit"
    """The program asked for it, as by ``torch.cuda.synchronize``, or a library did in C."""

    COLLECTIVE = "collective"
    """Code of ``torch.distributed`` waited in the driver: ``barrier``, ``monitored_barrier``, object collectives."""

    ALLOCATOR = "allocator"
    """The driver waited before it took or gave memory: ``cudaMalloc``, ``cudaFree``, pinned memory."""

    OTHER = "other"


_NOT_JUDGED = (SyncKind.COLLECTIVE, SyncKind.ALLOCATOR)


def is_judged(kind: str, judge_kinds: Collection[str]) -> bool:
    """Return whether a kind of sync counts for policies, checks and limits; ``judge_kinds`` names more that do."""
    return kind not in _NOT_JUDGED or kind in judge_kinds


class Phase(StrEnum):
    """Which part of training the sync belongs to; what cannot be told is ``other``."""

    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    EVALUATION = "evaluation"
    """Gradients are off, and the outermost module that runs is in eval mode.

    A teacher, an average or a frozen part that runs within a module that trains, or within an optimizer's closure, is
    ``forward``; one that the program's own loop calls by itself cannot be told from validation.
    """
    OTHER = "other"


class HostCause(StrEnum):
    """What the host was busy with where it did not wait for the GPU."""

    LINE = "line"
    """A line of the program, with all that it calls."""
    DATA_LOADER = "data loader"
    """A ``DataLoader`` of torch's was making or waiting for a batch, or was starting its workers."""
    GARBAGE_COLLECTION = "garbage collection"
    """Python was looking for reference cycles."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where an expression stands, in characters of its lines from 0; it begins on the line of the call site."""

    column: int
    end_line: int
    end_column: int
    indent: int = 0
    """Blanks at the beginning of its line, which ``CallSite.source`` leaves out."""


@dataclass(frozen=True, slots=True)
class CallSite:
    """A line of Python.

    ``line`` counts from 1 and is 0 where it is unknown; ``source`` is the stripped text of that line, empty where the
    source cannot be read.
    """

    file: str
    line: int
    function: str
    source: str = ""
    statement: str = field(default="", compare=False, repr=False)
    """The whole statement, or the head of a compound one, where it is more than ``source``."""
    span: Span | None = field(default=None, compare=False, repr=False)
    """The expression that waits; ``None`` where Python does not know it (before 3.11)."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class SyncEvent:
    """One host sync.

    Times are nanoseconds; ``start_ns`` counts from the Unix epoch.  Whatever could not be determined is ``None`` or
    empty, never guessed.
    """

    op: str
    """The dispatcher's name of the outermost op that waited (``aten::nonzero``), or the callable for explicit syncs
    (``torch.cuda.synchronize``)."""
    api: str | None
    """What Python called (``torch.Tensor.__getitem__``), where known."""
    kind: SyncKind
    start_ns: int
    stall_ns: int
    site: CallSite | None
    """The innermost line of the user's own code; in the backward pass, the line that called ``backward()``."""
    phase: Phase
    step: int
    """The step it happened in, counted from 0."""
    rank: int | None
    device: str
    stream: int
    """The CUDA stream's handle; 0 is the default stream."""
    thread: str
    sensor: str
    """The sensor that saw it: ``kernels``, ``explicit``, ``monitored``, ``modes``, ``simulated``, ``driver``."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Shapes of the op's tensor arguments, the first four at most."""
    allowed: str | None = None
    """Why the policy allows it (an allowance's reason); ``None`` where nothing does."""
    ranges: tuple[str, ...] = ()
    """Labels of the enclosing ``torch.profiler.record_function`` ranges, outermost first."""
    module: str | None = None
    """Path of the ``nn.Module`` whose forward is running, such as ``layers.3.attn`` (``detail="ops"``)."""
    forward_site: CallSite | None = None
    """In the backward pass: the line of the forward pass that made the autograd node."""
    stack: tuple[CallSite, ...] = ()
    """The whole stack, innermost first, if the setting ``stacks`` asks for it."""
    library_site: CallSite | None = None
    """The line inside a library (torch.optim, transformers) that made the call, where the user's is further out."""
    user_span: object | None = None
    """The user's own OpenTelemetry span (``opentelemetry.trace.Span``) that was active at the time, if any."""
    user_context: object | None = None
    """The context (``opentelemetry.context.Context``) it was active in, with the user's baggage, if there was one."""
    violation: bool = False
    """Whether the policy warned of it or raised; a sync that it stopped before the wait has a stall of 0."""
    conditional: bool = False
    """Whether it waited only because of the driver's state, which may differ in the next run; no gate counts it."""
    repeats: int = 1
    """How many syncs this record stands for, with ``stall_ns`` their sum.  Syncs of an allowed line are summed after
    the first hundred, except the first of each step; so are all syncs that come faster than they can be delivered.
    0 for a wait that only the driver saw at a line whose syncs are counted in sampled steps: it adds time alone."""
    longest_ns: int | None = None
    """The longest stall of its line so far, where the record stands for many."""
    regions: tuple[int, ...] = ()
    """Numbers of the regions (a watch inside a watch) that it happened in."""
    policy: str | None = None
    """The policy of the region that judged it; ``None`` where the process's did."""
    estimated: bool = False
    """Whether ``stall_ns`` is a line's part of many short waits: their sum is exact, the parts are those that the lines
    had in sampled steps."""


class Weight(NamedTuple):
    """What one recorded sync stands for where only some were recorded."""

    syncs: float = 1.0
    """How many syncs."""
    stall: float = 1.0
    """By how much its stall is to be multiplied: 1 where the stalls of all are known in another way."""
    unit: int = 0
    """Which sampled step or interval it was seen in."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A training step that has ended.  Times are nanoseconds since the Unix epoch."""

    step: int
    start_ns: int
    end_ns: int
    rank: int | None = None
    user_span: object | None = None
    """The user's own OpenTelemetry span that was active when the step ended, if any."""
    user_context: object | None = None


@dataclass(frozen=True, slots=True)
class CollectiveRecord:
    """How long the GPU stood still for collectives in a step; that is known later than the step's own record."""

    step: int
    start_ns: int
    """The step's, since the Unix epoch."""
    waited_ns: int
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class OpCount:
    """Host time of one op at one site under ``detail="ops"``; times in nanoseconds, summed over ``count`` calls."""

    op: str
    site: CallSite | None
    phase: Phase
    count: int
    host_ns: int
    """Host time inside the op, stalls included."""
