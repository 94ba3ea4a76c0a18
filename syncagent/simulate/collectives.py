"""``torch.distributed`` on simulated devices: collectives are queued like kernels, and gloo carries the numbers.

As with NCCL, each group has a queue of its own, behind what the current stream has so far; the host goes on.  A
``Work`` that is waited for makes the current stream wait, not the host, except for a barrier.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

from syncagent.simulate import devices, over_gloo, patches, standin, waits
from syncagent.simulate.engine import Engine
from syncagent.simulate.groups import StandIn, backend_for
from syncagent.simulate.memory import Placement, flatten
from syncagent.simulate.requirements import note_loss
from syncagent.simulate.tensor import SimulatedTensor

_Tensors = list[torch.Tensor]


class Work(distributed.Work):
    """A collective that is queued; ``result`` is what it writes."""

    def __init__(
        self, mark: tuple[Engine, int] | None, result: _Tensors, *, blocks: bool = False, sent: Any = None
    ) -> None:
        super().__init__()
        self._mark = mark
        self._result = result
        self._blocks = blocks
        self._sent = sent

    def wait(self, timeout: Any = None) -> bool:  # noqa: ARG002 - the group's own limit holds
        """Let the current stream wait; the host itself waits for a barrier only."""
        if self._sent is not None:
            self._sent.wait()
        if self._mark is not None:
            engine, ticket = self._mark
            index = self._result[0].get_device() if self._result else devices.current()
            devices.current_engine(index).depend_on(engine, ticket)
            if self._blocks:
                engine.wait(ticket, standin.STREAM_SYNCHRONIZE)
        return True

    def synchronize(self) -> None:
        self.wait()

    def block_current_stream(self) -> None:
        self.wait()

    def is_completed(self) -> bool:
        """Whether this rank is done with it."""
        return self._mark is None or self._mark[0].finished >= self._mark[1]

    is_success = is_completed

    def exception(self) -> None:
        """What fails is raised by whatever waits for the device next, as on a GPU."""

    def result(self) -> _Tensors:
        return self._result

    def get_future(self) -> Any:
        """A future that is done as far as the host is concerned, like NCCL's."""
        self.wait()
        future: Any = torch.futures.Future()
        future.set_result(self._result)
        return future


def _flat(placement: Placement) -> torch.Tensor:
    values = placement.resolve()
    return values.as_strided((values.numel(),), (1,), values.storage_offset())


def _check(tensors: _Tensors) -> None:
    for tensor in tensors:
        if not isinstance(tensor, SimulatedTensor):
            raise RuntimeError("Tensors must be CUDA and dense")  # noqa: TRY004 - as NCCL's group
        if not (tensor.is_contiguous() or _is_channels_last(tensor)):
            raise ValueError("Tensors must be contiguous")
    if len({tensor.get_device() for tensor in tensors}) > 1:
        raise RuntimeError("Expected all tensors to be on the same device")


def _is_channels_last(tensor: torch.Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.dim() in formats and tensor.is_contiguous(memory_format=formats[tensor.dim()])


def _queue(
    group: Any, name: str, written: _Tensors, read: _Tensors, call: Callable[[Any, _Tensors, _Tensors], Any]
) -> Work:
    """Queue ``call(backend, written, read)``, which gets the numbers as flat tensors on the CPU."""
    _check([*written, *read])
    backend = backend_for(group)
    into, of = _placements(written), _placements(read)

    def kernel() -> Any:
        return call(backend, [_flat(each) for each in into], [_flat(each) for each in of])

    index = (into or of)[0].index
    engine = devices.order(f"torch.distributed.{name}", index, [*into, *of])
    if not isinstance(backend, StandIn):  # gloo itself was asked for: with it the host waits on a GPU, too
        devices.run_here(engine, devices.keeping_failure(f"torch.distributed.{name}", _timed(kernel), into))
        return Work(None, written)
    own = backend.queue(index)
    own.depend_on(engine, engine.submitted)
    return Work((own, devices.queue(own, f"torch.distributed.{name}", kernel, into)), written)


def _timed(kernel: Callable[[], Any]) -> Callable[[], Any]:
    """The same for a host that waits in it itself, with the device."""

    def timed() -> Any:
        join = waits.join()
        try:
            return kernel()
        finally:
            waits.joined(join, join.moment_ns)

    return timed


def _placements(tensors: _Tensors) -> list[Placement]:
    return [tensor._sim for tensor in tensors]  # type: ignore[attr-defined]  # checked: all are simulated


# --- one function for each method of a process group -----------------------------------------------------------


def _op(given: Any) -> Any:
    """The reduction, from options or as it is."""
    op = getattr(given, "reduceOp", over_gloo.ReduceOp.SUM if given is None else given)
    kinds = over_gloo.ReduceOp.RedOpType
    kind = getattr(op, "op", op)
    if kind in {kinds.BAND, kinds.BOR, kinds.BXOR}:
        raise ValueError(f"Cannot use ReduceOp.{kind.name} with NCCL")
    return op


def _root(given: Any) -> int:
    return int(getattr(given, "rootRank", given))


def _list(tensors: Any) -> _Tensors:
    return [tensors] if isinstance(tensors, torch.Tensor) else flatten(tensors)


def all_reduce(group: Any, tensors: Any, opts: Any = None, timeout: Any = None, *, op: Any = None) -> Work:  # noqa: ARG001
    op = _op(opts if op is None else op)

    def call(backend: Any, written: _Tensors, _: _Tensors) -> None:
        for tensor in written:
            over_gloo.all_reduce(backend, tensor, op)

    return _queue(group, "all_reduce", _list(tensors), [], call)


def broadcast(group: Any, tensors: Any, opts: Any = 0, timeout: Any = None, *, root: Any = None) -> Work:  # noqa: ARG001
    root = _root(opts if root is None else root)

    def call(backend: Any, written: _Tensors, _: _Tensors) -> None:
        for tensor in written:
            over_gloo.broadcast(backend, tensor, root)

    return _queue(group, "broadcast", _list(tensors), [], call)


def _reduce(group: Any, tensors: Any, opts: Any = 0, op: Any = None, timeout: Any = None, *, root: Any = None) -> Work:  # noqa: ARG001
    op, root = _op(opts if op is None and hasattr(opts, "reduceOp") else op), _root(opts if root is None else root)
    return _queue(
        group, "reduce", _list(tensors), [], lambda backend, written, _: over_gloo.reduce(backend, written[0], op, root)
    )


def _all_gather(group: Any, output_tensors: Any, input_tensors: Any = None, *_: Any, **given: Any) -> Work:
    source = _list(given.get("input_tensor", input_tensors))
    return _queue(
        group, "all_gather", _list(output_tensors), source,
        lambda backend, written, read: over_gloo.all_gather(backend, written, read[0]),
    )  # fmt: skip


def all_gather_single(group: Any, output: Any, input: Any, *_: Any, **__: Any) -> Work:  # noqa: A002 - torch's name
    return _all_gather_singles(group, [output], [input])


def _all_gather_singles(group: Any, outputs: Any, inputs: Any, *_: Any, **__: Any) -> Work:
    for output, source in zip(outputs, inputs, strict=True):
        if output.numel() != source.numel() * group.size():
            raise ValueError("output tensor size must be equal to world_size times input tensor size")

    def call(backend: Any, written: _Tensors, read: _Tensors) -> None:
        for output, source in zip(written, read, strict=True):
            over_gloo.all_gather(backend, list(output.chunk(group.size())), source)

    return _queue(group, "all_gather_into_tensor", list(outputs), list(inputs), call)


def _all_gather_lists(group: Any, output_lists: Any, input_list: Any, *_: Any, **__: Any) -> Work:
    lists, sources = [list(each) for each in output_lists], list(input_list)

    def call(backend: Any, written: _Tensors, read: _Tensors) -> None:
        for position, source in enumerate(read):  # one list for each rank
            over_gloo.all_gather(backend, written[position :: len(read)], source)

    return _queue(group, "all_gather_coalesced", flatten(lists), sources, call)


def _reduce_scatter(
    group: Any, output_tensors: Any = None, input_tensors: Any = None, opts: Any = None, *_: Any, **given: Any
) -> Work:
    op = _op(given.get("op", opts))
    output, inputs = given.get("output", output_tensors), given.get("input", input_tensors)
    return _queue(
        group, "reduce_scatter", _list(output), _list(inputs),
        lambda backend, written, read: over_gloo.reduce_scatter(backend, written[0], read, op),
    )  # fmt: skip


def _reduce_scatter_single(group: Any, outputTensor: Any, inputTensor: Any, opts: Any = None) -> Work:  # noqa: N803 - torch's names
    return reduce_scatter_singles(group, [outputTensor], [inputTensor], opts)


def reduce_scatter_singles(group: Any, outputs: Any, inputs: Any, opts: Any = None) -> Work:
    op = _op(opts)
    for output, source in zip(outputs, inputs, strict=True):
        if source.numel() != output.numel() * group.size():
            raise ValueError("input tensor must be the same size as output size times world size")

    def call(backend: Any, written: _Tensors, read: _Tensors) -> None:
        for output, source in zip(written, read, strict=True):
            over_gloo.reduce_scatter(backend, output, list(source.chunk(group.size())), op)

    return _queue(group, "reduce_scatter_tensor", list(outputs), list(inputs), call)


def all_to_all(group: Any, output_tensors: Any, input_tensors: Any, *_: Any, **__: Any) -> Work:
    return _queue(group, "all_to_all", _list(output_tensors), _list(input_tensors), over_gloo.all_to_all)


def all_to_all_single(
    group: Any, output: Any, input: Any, output_split_sizes: Any = (), input_split_sizes: Any = (), *_: Any, **__: Any  # noqa: A002 - torch's name
) -> Work:  # fmt: skip
    split = [_splits(output, output_split_sizes, group.size()), _splits(input, input_split_sizes, group.size())]

    def call(backend: Any, written: _Tensors, read: _Tensors) -> None:
        over_gloo.all_to_all(backend, list(written[0].split(split[0])), list(read[0].split(split[1])))

    return _queue(group, "all_to_all_single", [output], [input], call)


def _splits(tensor: torch.Tensor, sizes: Any, ranks: int) -> list[int]:
    """How many elements go to, or come from, each rank."""
    rows = tensor.size(0) if tensor.dim() else 1
    if not sizes:
        if rows % ranks:
            raise ValueError("Tensor's dim 0 does not divide equally across group size")
        sizes = [rows // ranks] * ranks
    if sum(sizes) != rows:
        raise ValueError("Split sizes doesn't match total dim 0 size")
    width = tensor.numel() // rows if rows else 0
    return [int(size) * width for size in sizes]


def _gather(group: Any, output_tensors: Any, input_tensors: Any, opts: Any = 0, *_: Any, **given: Any) -> Work:
    root = _root(given.get("root", opts))
    return _queue(
        group, "gather", _list(output_tensors), _list(input_tensors),
        lambda backend, written, read: over_gloo.gather(backend, written, read[0], root),
    )  # fmt: skip


def _gather_single(group: Any, output: Any, input: Any, opts: Any = 0) -> Work:  # noqa: A002 - torch's name
    root = _root(opts)

    def call(backend: Any, written: _Tensors, read: _Tensors) -> None:
        parts = list(written[0].chunk(group.size())) if group.rank() == root else []
        over_gloo.gather(backend, parts, read[0], root)

    return _queue(group, "gather_single", [output], [input], call)


def _scatter(group: Any, output_tensors: Any, input_tensors: Any = (), opts: Any = 0, *_: Any, **given: Any) -> Work:
    root = _root(given.get("root", opts))
    return _queue(
        group, "scatter", _list(output_tensors), _list(input_tensors),
        lambda backend, written, read: over_gloo.scatter(backend, written[0], read, root),
    )  # fmt: skip


# --- from one rank to another ------------------------------------------------------------------------------


def _send(group: Any, tensors: Any, dstRank: int, tag: int = 0) -> Work:  # noqa: N803 - torch's name
    return _transfer(group, "send", [], _list(tensors), lambda backend, data: backend.send(data, dstRank, tag))


def _recv(group: Any, tensors: Any, srcRank: int, tag: int = 0) -> Work:  # noqa: N803 - torch's name
    return _transfer(group, "recv", _list(tensors), [], lambda backend, data: backend.recv(data, srcRank, tag))


def _transfer(group: Any, name: str, written: _Tensors, read: _Tensors, post: Callable[[Any, _Tensors], Any]) -> Work:
    """Post it in one queue and wait for it in another: a send that waits must not keep a receive from being posted."""
    posted: list[Any] = []

    def call(backend: Any, into: _Tensors, of: _Tensors) -> None:
        posted.append(post(backend, [over_gloo.as_bytes(each) for each in (*into, *of)]))

    work = _queue(group, name, written, read, call)
    if work._mark is None:
        return Work(None, written, sent=posted[0])
    own, ticket = work._mark
    index = (written or read)[0].get_device()
    transfers = backend_for(group).transfers(index)
    transfers.depend_on(own, ticket)
    wait = devices.queue(
        transfers, f"torch.distributed.{name}", lambda: [each.wait() for each in posted], _placements(written)
    )
    return Work((transfers, wait), written or read)


def _recv_from_any(_group: Any, *_: Any, **__: Any) -> Work:
    raise RuntimeError("Backend nccl does not support recvAnysource")


_METHODS: dict[str, Callable[..., Work]] = {
    "allreduce": all_reduce, "allreduce_coalesced": all_reduce, "broadcast": broadcast, "reduce": _reduce,
    "allgather": _all_gather, "allgather_coalesced": _all_gather_lists,
    "_allgather_base": all_gather_single, "all_gather_single": all_gather_single,
    "allgather_into_tensor_coalesced": _all_gather_singles, "all_gather_single_coalesced": _all_gather_singles,
    "reduce_scatter": _reduce_scatter,
    "_reduce_scatter_base": _reduce_scatter_single, "reduce_scatter_single": _reduce_scatter_single,
    "reduce_scatter_tensor_coalesced": reduce_scatter_singles,
    "reduce_scatter_single_coalesced": reduce_scatter_singles,
    "alltoall": all_to_all, "alltoall_base": all_to_all_single, "all_to_all_single": all_to_all_single,
    "gather": _gather, "gather_single": _gather_single,
    "scatter": _scatter, "send": _send, "recv": _recv, "recv_anysource": _recv_from_any,
}  # fmt: skip


# --- what has no tensor among its arguments --------------------------------------------------------------------


def _barrier(original: Any) -> Any:
    @functools.wraps(original)
    def barrier(self: Any, *args: Any, **kwargs: Any) -> Any:
        """NCCL reduces one number, and has the host wait for it."""
        backend = backend_for(self, or_none=True)
        options = kwargs.get("opts", args[0] if args else None)
        wanted = getattr(options, "device", None)
        others = {device.type for device in self._device_types} - {"cuda"}
        if not isinstance(backend, StandIn) or (others and (wanted is None or wanted.type != "cuda")):
            return original(self, *args, **kwargs)
        index = wanted.index if wanted is not None and wanted.type == "cuda" else None
        with torch.cuda.device(devices.current() if index is None else index):
            work = all_reduce(self, [torch.zeros(1, device="cuda")])
        work._blocks = True
        return work

    return barrier


def _start_coalescing(original: Any) -> Any:
    @functools.wraps(original)
    def start(self: Any, device_type: torch.device) -> None:
        if not (device_type.type == "cuda" and backend_for(self, or_none=True)):
            original(self, device_type)

    return start


def _end_coalescing(original: Any) -> Any:
    @functools.wraps(original)
    def end(self: Any, device_type: torch.device) -> Any:
        backend = backend_for(self, or_none=True) if device_type.type == "cuda" else None
        if backend is None:
            return original(self, device_type)
        if not isinstance(backend, StandIn):
            return Work(None, [])
        index = devices.index_of(device_type)
        own, transfers = backend.queue(index), backend.transfers(index)
        transfers.depend_on(own, own.submitted)
        return Work((transfers, transfers.submitted), [])

    return end


def _for_simulated(original: Any, run: Callable[..., Work]) -> Any:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(each, SimulatedTensor) for each in flatten([*args, *kwargs.values()])):
            return run(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    return method


def install() -> None:
    """Give process groups the methods that know simulated tensors; other tensors go to torch's own."""
    group = distributed.ProcessGroup
    for name, run in _METHODS.items():
        original = getattr(group, name, None)
        if original is not None:  # some came, and others will go, with a version of torch
            patches.put(group, name, _for_simulated(original, run))
    for name, wrap in (
        ("barrier", _barrier), ("_start_coalescing", _start_coalescing), ("_end_coalescing", _end_coalescing),
    ):  # fmt: skip
        original = getattr(group, name, None)
        if original is None:
            note_loss(f"torch.distributed.ProcessGroup.{name}")
        else:
            patches.put(group, name, wrap(original))
