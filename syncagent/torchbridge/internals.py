"""The names of torch that are not public and that the agent needs: each looked up once, and what is lost without it.

Only this room and the simulated device touch such names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "UNKNOWN",
    "Internals",
    "keep_busy",
    "look_up",
    "op_name",
    "optimizer_hooks",
    "skip_in_dynamo",
    "when_cuda_is_used",
]


@dataclass(frozen=True, slots=True)
class Internals:
    """What was found; a stand-in that answers "unknown" takes the place of what was not."""

    graph_task: Callable[[], int]
    """Id of the backward pass that runs on this thread; -1 outside of one."""
    node_sequence: Callable[[], int]
    """Sequence number of the autograd node that is being executed on this thread; -1 where there is none."""
    next_sequence: Callable[[], int]
    """Number that the next autograd node made on this thread will get."""
    backward_context: Callable[[], Any]
    """On an autograd thread: the ``contextvars.Context`` of the thread that called ``backward()``, or ``None``."""
    raw_stream: Callable[[int], int]
    """Handle of the current CUDA stream of a device."""
    current_device: Callable[[], int]
    capturing: Callable[[], bool]
    """Whether the current stream is being captured into a CUDA graph."""
    grad_enabled: Callable[[], bool]
    backward_entry: Any
    """Code object of the function in which ``backward()`` callers stand while the engine runs, or ``None``."""
    missing: tuple[str, ...]
    """One sentence for each name that this torch lacks."""


UNKNOWN = Internals(
    graph_task=lambda: -1,
    node_sequence=lambda: -1,
    next_sequence=lambda: 0,
    backward_context=lambda: None,
    raw_stream=lambda _device: 0,
    current_device=lambda: 0,
    capturing=lambda: False,
    grad_enabled=lambda: False,
    backward_entry=None,
    missing=("nothing is known of torch's internals: phases, forward lines, devices and streams are not reported",),
)
"""Where the look-up itself fails."""


def look_up(*, simulated: bool = False) -> Internals:
    """Find each name in the torch that is installed; under simulation no driver is asked, there may be none."""
    import torch

    missing: list[str] = []

    def need(path: str, lost: str, otherwise: Any) -> Any:
        found: Any = torch
        for part in path.split("."):
            found = getattr(found, part, None)
            if found is None:
                missing.append(f"torch.{path} is not in torch {torch.__version__}: {lost}")
                return otherwise
        return found

    get_stash = need("_C._get_obj_in_tls", "backward syncs name their thread less reliably", None)
    has_stash = need("_C._is_key_in_tls", "backward syncs name their thread less reliably", None)

    def backward_context() -> Any:
        return get_stash("context") if get_stash and has_stash and has_stash("context") else None

    current_node = need("_C._current_autograd_node", "backward syncs lack their forward line", lambda: None)

    def node_sequence() -> int:
        node = current_node()
        return node._sequence_nr() if node is not None else -1

    # A build without CUDA has none of the next three, and needs none.
    is_built = need("backends.cuda.is_built", "a build without CUDA is taken for one with it", lambda: True)
    cuda = is_built() and not simulated
    unknown = lambda *_: 0  # noqa: E731 - stands for several functions
    entry = need("autograd.graph._engine_run_backward", "backward syncs may lack the backward() line", None)
    return Internals(
        graph_task=need("_C._current_graph_task_id", "the backward phase is not recognized", lambda: -1),
        node_sequence=node_sequence,
        next_sequence=need("_C._autograd._get_sequence_nr", "backward syncs lack their forward line", lambda: 0),
        backward_context=backward_context,
        raw_stream=need("_C._cuda_getCurrentRawStream", "streams are not distinguished", unknown) if cuda else unknown,
        current_device=need("_C._cuda_getDevice", "devices are not distinguished", unknown) if cuda else unknown,
        capturing=(
            need("_C._cuda_isCurrentStreamCapturing", "syncs refused in graph capture are counted", lambda: False)
            if cuda
            else lambda: False
        ),
        grad_enabled=need("is_grad_enabled", "backward syncs lack their forward line", lambda: False),
        backward_entry=getattr(entry, "__code__", None),
        missing=tuple(missing),
    )


def skip_in_dynamo(function: Any) -> bool:
    """Have torch.compile skip a function of ours and what it calls, at no cost per call.

    Returns ``False`` where this torch has no way to say so.
    """
    import torch

    frames: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
    try:
        action = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(action, action))
    except (AttributeError, TypeError):
        return False
    return True


def when_cuda_is_used(then: Callable[[], None]) -> None:
    """Call ``then`` once CUDA is initialised in this process; at once if it is already."""
    import torch

    lazily = getattr(torch.cuda, "_lazy_call", None)
    if lazily is None:  # a torch that does not say when: as if it were used now
        then()
    else:
        lazily(then)


def optimizer_hooks() -> int:
    """Return how many hooks run after every step of any optimizer."""
    from torch.optim import optimizer

    return len(getattr(optimizer, "_global_optimizer_post_hooks", ()))


def op_name(op: Any) -> str:
    """Return the dispatcher's name of an op (``aten::add``), without its overload."""
    return str(op._schema.name)


def keep_busy(cycles: int) -> None:
    """Queue a kernel that keeps the current stream busy for that many cycles of the GPU's clock."""
    import torch

    torch.cuda._sleep(cycles)
