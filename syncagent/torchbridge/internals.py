"""The names of torch that are not public and that the agent needs: each looked up once, and what is lost without it.

Only this room and the simulated device touch such names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from syncagent.torchbridge.patches import find

SYNCHRONIZE = (
    # (where the attribute lives below torch, its name, how the sync is named).  torch.cuda.synchronize looks its C
    # function up at each call, so a reference to it that was taken before the agent came is seen too.
    ("_C", "_cuda_synchronize", "torch.cuda.synchronize"),
    ("_C", "_accelerator_synchronizeDevice", "torch.accelerator.synchronize"),
    ("cuda.Stream", "synchronize", "torch.cuda.Stream.synchronize"),
    ("cuda.Event", "synchronize", "torch.cuda.Event.synchronize"),
)
"""The functions behind the calls by which a program asks to wait."""

EMPTY_CACHE = (
    # cudaFree waits for the device, so giving cached memory back does; with nothing cached it does not.
    ("_C", "_cuda_emptyCache", "torch.cuda.empty_cache"),
    ("_C", "_accelerator_emptyCache", "torch.accelerator.empty_cache"),
)

_NO_LINE = "backward syncs lack their forward line"
_NAMES = (
    # (field of Internals, place below torch, what is lost without it)
    ("graph_task", "_C._current_graph_task_id", "the backward phase is not recognized"),
    ("next_sequence", "_C._autograd._get_sequence_nr", _NO_LINE),
    ("grad_enabled", "is_grad_enabled", _NO_LINE),
)
_NAMES_OF_CUDA = (
    ("raw_stream", "_C._cuda_getCurrentRawStream", "streams are not distinguished"),
    ("current_device", "_C._cuda_getDevice", "devices are not distinguished"),
    ("capturing", "_C._cuda_isCurrentStreamCapturing", "syncs refused in graph capture are counted"),
)
"""A build without CUDA has none of these, and needs none."""


@dataclass(frozen=True, slots=True)
class Internals:
    """What was found; the default, which answers "unknown", takes the place of what was not."""

    graph_task: Callable[[], int] = lambda: -1
    """Id of the backward pass that runs on this thread; -1 outside of one."""
    node_sequence: Callable[[], int] = lambda: -1
    """Sequence number of the autograd node that is being executed on this thread; -1 where there is none."""
    next_sequence: Callable[[], int] = lambda: 0
    """Number that the next autograd node made on this thread will get."""
    graph_sequence: Callable[[Any], int] = lambda _value: -1
    """Sequence number of the autograd node that made this value; -1 where none did."""
    backward_context: Callable[[], Any] = lambda: None
    """On an autograd thread: the ``contextvars.Context`` of the thread that called ``backward()``, or ``None``."""
    raw_stream: Callable[[int], int] = lambda _device: 0
    """Handle of the current CUDA stream of a device."""
    current_device: Callable[[], int] = lambda: 0
    capturing: Callable[[], bool] = lambda: False
    """Whether the current stream is being captured into a CUDA graph."""
    grad_enabled: Callable[[], bool] = lambda: False
    backward_entry: Any = None
    """Code object of the function in which ``backward()`` callers stand while the engine runs, or ``None``."""
    missing: tuple[str, ...] = ()
    """One sentence for each name that this torch lacks."""


UNKNOWN = Internals(
    missing=("nothing is known of torch's internals: phases, forward lines, devices and streams are not reported",)
)
"""Where the look-up itself fails."""


def look_up(*, simulated: bool = False) -> Internals:
    """Find each name in the torch that is installed; under simulation no driver is asked, there may be none."""
    import torch

    missing: list[str] = []

    def need(path: str, lost: str) -> Any:
        found = find(torch, path)
        if found is None:
            missing.append(f"torch.{path} is not in torch {torch.__version__}: {lost}")
        return found

    get_stash = need("_C._get_obj_in_tls", "backward syncs name their thread less reliably")
    has_stash = need("_C._is_key_in_tls", "backward syncs name their thread less reliably")

    def backward_context() -> Any:
        return get_stash("context") if get_stash and has_stash and has_stash("context") else None

    current_node = need("_C._current_autograd_node", _NO_LINE) or (lambda: None)

    of_python = torch.autograd.function.BackwardCFunction

    def node_sequence() -> int:
        # A Function of the program's own has a node that no op has made: its number would be taken for a later op's.
        node = current_node()
        return node._sequence_nr() if node is not None and not isinstance(node, of_python) else -1

    def graph_sequence(value: Any) -> int:
        number = getattr(getattr(value, "grad_fn", None), "_sequence_nr", None)
        return number() if number is not None else -1

    is_built = need("backends.cuda.is_built", "a build without CUDA is taken for one with it") or (lambda: True)
    names = _NAMES + (_NAMES_OF_CUDA if is_built() and not simulated else ())
    found = {field: need(path, lost) for field, path, lost in names}
    entry = need("autograd.graph._engine_run_backward", "backward syncs may lack the backward() line")
    return Internals(
        node_sequence=node_sequence,
        graph_sequence=graph_sequence,
        backward_context=backward_context,
        backward_entry=getattr(entry, "__code__", None),
        missing=tuple(missing),
        **{field: function for field, function in found.items() if function is not None},
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
