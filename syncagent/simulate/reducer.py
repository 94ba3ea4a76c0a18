"""What ``DistributedDataParallel`` needs of C++, in Python: its reducer, which refuses the stand-in's device there.

Step by step as in torch: gradients go into the same buckets, each is reduced as soon as it is full and those before it
are under way, and the buckets follow the order of the first backward pass from the second on.  So sums round alike.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import distributed

from syncagent.errors import SimulationError
from syncagent.simulate import patches
from syncagent.simulate.memory import flatten
from syncagent.simulate.requirements import note_loss
from syncagent.simulate.tensor import SimulatedTensor

_c10d: Any = distributed

_UNFINISHED = (
    "Expected to have finished reduction in the prior iteration before starting a new one. This error indicates that "
    "your module has parameters that were not used in producing loss. You can enable unused parameter detection by "
    "passing the keyword argument `find_unused_parameters=True` to `torch.nn.parallel.DistributedDataParallel`, and by "
    "making sure all `forward` function outputs participate in calculating loss."
)
_TWICE = (
    "Expected to mark a variable ready only once. This error is caused by one of the following reasons: 1) Use of a "
    "module parameter outside the `forward` function. 2) Reused parameters in multiple reentrant backward passes."
)


class Bucket:
    """Gradients that are reduced together; hooks get it in the place of ``torch.distributed.GradBucket``."""

    def __init__(self, index: int, parameters: list[torch.nn.Parameter], *, is_last: bool) -> None:
        self._index = index
        self._parameters = parameters
        self._is_last = is_last
        first = parameters[0]
        self._buffer = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
        self.views: list[torch.Tensor] = []
        offset = 0
        for parameter in parameters:
            self.views.append(self._view(parameter, offset))
            offset += parameter.numel()
        self.pending = len(parameters)
        self.future: Any = None

    def _view(self, parameter: torch.nn.Parameter, offset: int) -> torch.Tensor:
        """In the parameter's own layout where that is dense."""
        size, stride = parameter.size(), parameter.stride()
        is_dense = sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 == parameter.numel()
        if is_dense and 0 not in stride:
            return self._buffer.as_strided(size, stride, offset)
        return self._buffer.narrow(0, offset, parameter.numel()).view(size)

    def index(self) -> int:
        return self._index

    def buffer(self) -> torch.Tensor:
        return self._buffer

    def gradients(self) -> list[torch.Tensor]:
        return self.views

    def parameters(self) -> list[torch.nn.Parameter]:
        return self._parameters

    def is_last(self) -> bool:
        return self._is_last

    def set_buffer(self, tensor: torch.Tensor) -> None:
        """Let a hook give the numbers; the gradients are views of this bucket's own memory."""
        if tensor is not self._buffer:
            self._buffer.copy_(tensor)


class Reducer:
    """Averages gradients over the ranks during ``backward()``."""

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        bucket_indices: list[list[int]],
        per_bucket_size_limits: list[int],  # noqa: ARG002 - only for messages in torch
        process_group: Any,
        expect_sparse_gradients: list[bool] | None = None,
        bucket_bytes_cap: int = 25 * 1024 * 1024,
        find_unused_parameters: bool = False,
        gradient_as_bucket_view: bool = False,
        param_to_name_mapping: Any = None,  # noqa: ARG002 - only for messages in torch
        first_bucket_bytes_cap: int = 1024 * 1024,
        skip_all_reduce_unused_params: bool = False,  # noqa: ARG002 - what is unused everywhere is left alone anyway
        use_python_reducer: bool = False,  # noqa: ARG002 - torch.compile's
        bucket_size_limits_for_rebuilding: list[int] | None = None,
        *_: Any,
    ) -> None:
        if any(expect_sparse_gradients or ()):
            raise SimulationError(
                "DistributedDataParallel with sparse gradients is not simulated, and NCCL has no all_reduce for them "
                "either; give nn.Embedding and nn.EmbeddingBag sparse=False"
            )
        self._parameters = list(parameters)
        self._group = process_group
        self._limits = list(bucket_size_limits_for_rebuilding or ()) or [first_bucket_bytes_cap, bucket_bytes_cap]
        self._finds_unused = find_unused_parameters
        self._grads_are_views = gradient_as_bucket_view
        self._is_static = False
        self._is_first_backward = True
        self._hook: Callable[[Any], Any] | None = None
        self._buckets: list[Bucket] = []
        self._place: dict[int, tuple[Bucket, int]] = {}
        """Where each parameter is: its bucket, and its number there."""
        self._set_buckets(bucket_indices)
        self._ready_order: list[int] = []
        self._is_rebuilt = False
        self._expects_hooks = self._is_under_way = False
        self._ready: set[int] = set()
        self._next = 0
        self._unused: list[int] = []
        self._hook_counts: Counter[int] = Counter()
        """How often each parameter's gradient was accumulated in the first backward pass of a static graph."""
        self._counts_left: Counter[int] = Counter()
        self._used = torch.zeros(len(self._parameters), dtype=torch.int32)
        self._used_anywhere: torch.Tensor | None = None
        self._used_work: Any = None
        self._divisor = 0
        self._joined: Any = None
        self._post_backward: list[Any] = []
        self._handles: list[Any] = []
        self._nodes = [self._watch(index, parameter) for index, parameter in enumerate(self._parameters)]
        self._index_of = {node: index for index, node in enumerate(self._nodes)}

    # --- where gradients go ------------------------------------------------------------------------------

    def _set_buckets(self, indices: list[list[int]]) -> None:
        self._buckets = [
            Bucket(number, [self._parameters[i] for i in members], is_last=number == len(indices) - 1)
            for number, members in enumerate(indices)
        ]
        self._place = {
            index: (bucket, position)
            for bucket, members in zip(self._buckets, indices, strict=True)
            for position, index in enumerate(members)
        }

    def _watch(self, index: int, parameter: torch.nn.Parameter) -> Any:
        """Hook the node of autograd's graph that accumulates this parameter's gradient."""
        with torch.enable_grad():
            expanded: Any = parameter.expand_as(parameter)  # to mypy a tensor may lack the node that this one has
            node = expanded.grad_fn.next_functions[0][0]
        self._handles.append(node.register_hook(lambda *_: self._autograd_hook(index)))
        return node

    def _rebuild_buckets(self) -> bool:
        """Put the buckets into the order in which gradients have become ready; once."""
        if self._is_under_way:
            raise RuntimeError(_UNFINISHED)
        if self._is_rebuilt or not self._ready_order or (self._finds_unused and not self._is_static):
            return False
        order, self._ready_order = self._ready_order, []
        buckets, _ = _c10d._compute_bucket_assignment_by_size(
            [self._parameters[index] for index in order], self._limits, [False] * len(order), order
        )
        self._set_buckets(self._as_on_first_rank(buckets))
        self._is_rebuilt = True
        return True

    def _as_on_first_rank(self, buckets: list[list[int]]) -> list[list[int]]:
        device = self._parameters[0].device

        def agreed(numbers: list[int]) -> list[int]:
            on_device = torch.tensor(numbers, dtype=torch.int32).pin_memory().to(device, non_blocking=True)
            self._group.broadcast([on_device], _broadcast_options(0)).wait()
            agreed: list[int] = on_device.cpu().tolist()
            return agreed

        *members, count = agreed([*flatten(buckets), len(buckets)])
        sizes = agreed(([len(bucket) for bucket in buckets] + [0] * count)[:count])
        parts = iter(members)
        return [[next(parts) for _ in range(size)] for size in sizes]

    # --- a pass -------------------------------------------------------------------------------------------

    def prepare_for_forward(self) -> None:
        """Nothing to do: torch counts passes here."""

    def prepare_for_backward(self, outputs: list[torch.Tensor]) -> None:
        """Begin to count gradients."""
        self._expects_hooks = True
        self._ready.clear()
        self._next = 0
        self._divisor = 0
        self._counts_left = self._hook_counts.copy()
        for bucket in self._buckets:
            bucket.pending = len(bucket.parameters())
        self._used.zero_()
        self._used_anywhere = self._used_work = None
        self._unused = []
        if self._is_static and not self._is_first_backward:
            self._unused = [index for index in range(len(self._parameters)) if not self._hook_counts[index]]
        elif self._finds_unused and not self._is_static:
            self._unused = self._find_unused(outputs)

    def _find_unused(self, outputs: list[torch.Tensor]) -> list[int]:
        """The parameters that no output depends on."""
        seen: set[Any] = set()
        left = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
        while left:
            node = left.pop()
            if node not in seen:
                seen.add(node)
                left.extend(following for following, _ in node.next_functions if following is not None)
        # An output that is a parameter itself has no graph behind it.
        own = {id(tensor) for tensor in outputs}
        return [
            index
            for index, node in enumerate(self._nodes)
            if node not in seen and id(self._parameters[index]) not in own
        ]

    def _autograd_hook(self, index: int) -> None:
        if not self._expects_hooks:  # inside no_sync()
            return
        if self._parameters[index].grad is not None:
            self._used[index] = 1
        if self._is_static and self._is_first_backward:
            self._hook_counts[index] += 1
            self._note_ready(index)
            return
        unused, self._unused = self._unused, []
        for other in unused:
            self._mark_ready(other)
        if self._is_static:
            self._counts_left[index] -= 1
            if self._counts_left[index]:
                return
        self._note_ready(index)
        self._mark_ready(index)

    def _note_ready(self, index: int) -> None:
        if not self._is_rebuilt and index not in self._ready_order:
            self._ready_order.append(index)

    def _delay_all_reduce(self) -> None:
        """At the end of a static graph's first backward pass: which parameters it uses is known only now."""
        self._push_all_rebuilt_params()
        for index in range(len(self._parameters)):
            self._mark_ready(index)

    def _mark_ready(self, index: int) -> None:
        self._is_under_way = True
        if index in self._ready:
            raise RuntimeError(_TWICE)
        self._ready.add(index)
        if not self._divisor:
            self._divisor = self._ranks_that_take_part()
        bucket, position = self._place[index]
        self._fill(bucket.views[position], self._parameters[index])
        bucket.pending -= 1
        while self._next < len(self._buckets) and not self._buckets[self._next].pending:
            following = self._buckets[self._next]
            following.future = self._run_comm_hook(following)
            self._next += 1
        if self._next == len(self._buckets) and len(self._ready) == len(self._parameters):
            if self._finds_unused or self._is_static:
                self._share_used()
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)

    def _ranks_that_take_part(self) -> int:
        if self._joined is None:
            return int(self._group.size())
        self._joined.wait()
        return int(self._joined.result()[0].item())

    @torch.no_grad()
    def _fill(self, view: torch.Tensor, parameter: torch.nn.Parameter) -> None:
        grad, scale = parameter.grad, 1.0 if self._hook else 1.0 / self._divisor
        if grad is None:
            view.zero_()
        elif self._grads_are_views and _is_same_memory(grad, view):
            view.mul_(scale)
        else:
            torch.mul(grad.detach(), scale, out=view)
            if self._grads_are_views:
                parameter.grad = view

    @torch.no_grad()
    def _run_comm_hook(self, bucket: Any) -> Any:
        return self._run_allreduce_hook(bucket) if self._hook is None else self._hook(bucket)

    def _run_allreduce_hook(self, bucket: Any) -> Any:
        return _Sum(self._group.allreduce([bucket.buffer()]), bucket)

    def _share_used(self) -> None:
        device = self._parameters[0].device
        self._used_anywhere = self._used.clone().pin_memory().to(device, non_blocking=True)
        self._used_work = self._group.allreduce([self._used_anywhere])

    @torch.no_grad()
    def _finish(self) -> None:
        """At the end of backward: let the current stream wait for the sums, and put them into the gradients."""
        self._expects_hooks = self._is_under_way = False
        self._is_first_backward = False
        anywhere: list[int] | None = None
        for bucket in self._buckets:
            result = bucket.future.wait()
            bucket.set_buffer(result[0] if isinstance(result, (list, tuple)) else result)
            bucket.future = None
        for index, parameter in enumerate(self._parameters):
            bucket, position = self._place[index]
            if self._used_anywhere is not None and not self._used[index]:
                if anywhere is None:  # read only where a parameter is unused here, as in torch
                    self._used_work.wait()
                    anywhere = self._used_anywhere.cpu().tolist()
                if not anywhere[index]:
                    continue
            view = bucket.views[position]
            if parameter.grad is None:
                parameter.grad = view if self._grads_are_views else view.clone()
            elif not (self._grads_are_views and _is_same_memory(parameter.grad, view)):
                parameter.grad.copy_(view)
        futures, self._post_backward = self._post_backward, []
        for future in futures:
            future.wait()

    # --- what DistributedDataParallel asks for besides ---------------------------------------------------

    def _set_static_graph(self) -> None:
        self._is_static = True

    def _ddp_graph_static(self) -> bool:
        return self._is_static

    def _push_all_rebuilt_params(self) -> None:
        for index in range(len(self._parameters)):
            self._note_ready(index)

    def _get_zeros_like_grad_buckets(self) -> list[Bucket]:
        return [Bucket(bucket.index(), bucket.parameters(), is_last=bucket.is_last()) for bucket in self._buckets]

    def _get_local_used_map(self) -> torch.Tensor:
        return self._used.to(self._parameters[0].device)

    def _set_forward_pass_work_handle(self, work: Any, use_static_world_size: bool) -> None:
        self._joined = None if use_static_world_size else work

    def _install_post_backward_futures(self, futures: list[Any]) -> None:
        self._post_backward = list(futures)

    def _register_comm_hook(self, state: Any, hook: Any) -> None:
        if self._hook is not None:
            raise RuntimeError("register_comm_hook or register_builtin_comm_hook can only be called once.")
        self._hook = functools.partial(hook, state)

    def _remove_autograd_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _check_reducer_finalized(self) -> None:
        if self._is_under_way:
            raise RuntimeError(_UNFINISHED)

    def _update_process_group(self, new_process_group: Any) -> None:
        self._group = new_process_group

    def _reset_state(self) -> None:
        self._is_first_backward = True
        self._is_rebuilt = False
        self._ready_order.clear()

    def _set_optimizer_in_backward(self) -> None:
        """The hook of such optimizers does all that is needed."""

    def _set_manual_finalization_required(self, required: bool) -> None:
        if required:
            raise SimulationError(
                "DistributedDataParallel's require_manual_backward_finalization is not simulated; leave it off"
            )

    def _set_ddp_runtime_logging_sample_rate(self, sample_rate: int) -> None:
        """Nothing is logged."""

    def set_logger(self, logger: Any) -> None:
        """Nothing is logged."""


class _Sum:
    """The future of an all-reduce: its bucket's numbers."""

    def __init__(self, work: Any, bucket: Any) -> None:
        self._work, self._bucket = work, bucket

    def wait(self) -> torch.Tensor:
        self._work.wait()
        buffer: torch.Tensor = self._bucket.buffer()
        return buffer

    def value(self) -> list[torch.Tensor]:
        return [self.wait()]

    def then(self, callback: Callable[[Any], Any]) -> Any:
        future: Any = self._work.get_future()
        return future.then(callback)

    def done(self) -> bool:
        return True


def _is_same_memory(one: Any, other: Any) -> bool:
    return isinstance(one, SimulatedTensor) and one._sim.box is other._sim.box


def _broadcast_options(root: int) -> Any:
    options = distributed.BroadcastOptions()
    options.rootRank = root
    return options


class Logger:
    """Takes what ``DistributedDataParallel`` logs, and keeps nothing."""

    def __init__(self, reducer: Any) -> None:
        pass

    def _get_ddp_logging_data(self) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(strs_map={}, ints_map={})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


# --- functions of torch.distributed -------------------------------------------------------------------------


def _broadcast_coalesced(group: Any, tensors: list[torch.Tensor], buffer_size: int, src: int = 0) -> None:  # noqa: ARG001
    """Every tensor from one rank to all."""
    works = [group.broadcast([_contiguous(tensor)], _broadcast_options(src)) for tensor in tensors]
    for work in works:
        work.wait()


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """A view of the same memory that is contiguous: parameters are dense, in whatever order."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.detach().permute(order)


def _verify_params_across_processes(group: Any, tensors: list[torch.Tensor], logger: Any = None) -> None:  # noqa: ARG001
    """Raise torch's error where another rank's parameters are of other shapes."""
    device = tensors[0].device
    counts = torch.empty(group.size(), dtype=torch.int64, device=device)
    own = torch.tensor([len(tensors)], device=device)
    group._allgather_base(counts, own).wait()
    for rank, count in enumerate(counts.cpu().tolist()):
        if count != len(tensors):
            raise RuntimeError(
                f"DDP expects same model across all ranks, but Rank {group.rank()} has {len(tensors)} params, while "
                f"rank {rank} has inconsistent {count} params."
            )
    shapes = [number for tensor in tensors for number in (tensor.dim(), *tensor.shape, *tensor.stride())]
    shapes.insert(0, len(shapes))
    first = torch.tensor(shapes[:1], device=device)
    group.broadcast([first], _broadcast_options(0)).wait()
    if first.item() == shapes[0]:
        of_first = torch.tensor(shapes, device=device)
        group.broadcast([of_first], _broadcast_options(0)).wait()
        if of_first.cpu().tolist() == shapes:
            return
    raise RuntimeError(
        f"the parameters of DistributedDataParallel on rank {group.rank()} have other shapes or strides than on rank 0"
    )


def _register_comm_hook(reducer: Any, state: Any, comm_hook: Any) -> None:
    reducer._register_comm_hook(state, comm_hook)


def _register_builtin_comm_hook(reducer: Any, comm_hook_type: Any) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    kinds = _c10d.BuiltinCommHookType
    hooks = {kinds.ALLREDUCE: default_hooks.allreduce_hook, kinds.FP16_COMPRESS: default_hooks.fp16_compress_hook}
    reducer._register_comm_hook(reducer._group, hooks[comm_hook_type])


_FOR_SIMULATED: dict[str, Any] = {
    "Reducer": Reducer, "Logger": Logger, "_broadcast_coalesced": _broadcast_coalesced,
    "_verify_params_across_processes": _verify_params_across_processes, "_register_comm_hook": _register_comm_hook,
    "_register_builtin_comm_hook": _register_builtin_comm_hook,
}  # fmt: skip


def _choosing(original: Any, ours: Any) -> Any:
    """Ours for simulated tensors, and for what was made for them."""

    def function(*args: Any, **kwargs: Any) -> Any:
        is_ours = any(isinstance(each, (SimulatedTensor, Reducer)) for each in flatten([*args, *kwargs.values()]))
        return (ours if is_ours else original)(*args, **kwargs)

    return functools.update_wrapper(function, original, updated=())


def _refuse_mixed_precision() -> None:
    cls = torch.nn.parallel.DistributedDataParallel
    original: Any = cls.__init__

    @functools.wraps(original)
    def __init__(self: Any, module: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - becomes cls.__init__
        on_device = any(isinstance(parameter, SimulatedTensor) for parameter in module.parameters())
        if on_device and kwargs.get("mixed_precision") is not None:
            raise SimulationError(
                "DistributedDataParallel(mixed_precision=...) is not simulated; use torch.autocast in its place"
            )
        original(self, module, *args, **kwargs)

    patches.put(cls, "__init__", __init__)


def install() -> None:
    """Put them where DistributedDataParallel looks for torch's own."""
    _refuse_mixed_precision()
    for name, ours in _FOR_SIMULATED.items():
        original = getattr(distributed, name, None)
        if original is None:
            note_loss(f"torch.distributed.{name}")
        else:
            patches.put(distributed, name, _choosing(original, ours))
