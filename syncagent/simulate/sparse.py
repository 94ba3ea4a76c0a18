"""Sparse tensors (COO) on a simulated device, and the kernels that read and make them.

As in torch, such a tensor is two others: indices (sparse dimensions x elements) and values (elements x dense sizes).
The host knows how many elements there are, which is why an op whose result's number depends on the numbers has to wait.
A kernel puts the two together to a sparse tensor on the CPU, and runs the CPU's own op on that.

In C++ the object is one of torch's own sparse tensors, on the stand-in device: autograd and the optimizers see a sparse
gradient.  The indices and values in it are never read.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from syncagent.errors import SimulationError
from syncagent.events import SyncKind
from syncagent.simulate import devices, dispatch, standin, tensor, waits
from syncagent.simulate.allocator import hold
from syncagent.simulate.facts import OpFacts, UnknownShapeError, infer
from syncagent.simulate.failures import all_for_program, leave_simulation
from syncagent.simulate.memory import Layout, Placement, flatten, on_each, stride_for
from syncagent.simulate.requirements import aten, find
from syncagent.simulate.special import empty
from syncagent.simulate.tensor import SimulatedTensor, adopt, new_output

make_subclass = find("Tensor._make_subclass")
_with_dims = aten._sparse_coo_tensor_with_dims.default
_from_parts = aten._sparse_coo_tensor_with_dims_and_tensors.default
_indices, _values = aten._indices.default, aten._values.default
_SPARSE_META = torch._C.DispatchKeySet(torch._C.DispatchKey.SparseMeta)

run: Any = None
"""Runs an op that has a sparse tensor among its arguments; sparse_ops.py puts it here."""


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What makes a sparse tensor, besides its size."""

    indices: SimulatedTensor
    """int64, of shape (sparse dimensions, elements)."""
    values: SimulatedTensor
    """Of shape (elements, *dense sizes)."""
    is_coalesced: bool = False
    """Whether each index is there once, and they are in order."""

    @property
    def count(self) -> int:
        """How many elements there are; some may be at the same index."""
        return self.indices.shape[1]

    @property
    def sparse_dim(self) -> int:
        return self.indices.shape[0]


class InParts(SimulatedTensor):
    """A tensor that consists of several dense ones; the placement that it has itself is that of its values."""

    _form: Any

    def kept(self) -> Kept:
        """What a queued kernel keeps of it."""
        raise NotImplementedError

    def become(self, values: torch.Tensor) -> None:
        """Take over the memory of a tensor on the CPU."""
        raise NotImplementedError

    def take_over(self, data: SimulatedTensor) -> None:
        super().take_over(data)
        if isinstance(data, InParts):
            self._form = data._form

    def data_ptr(self) -> int:
        raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage")

    const_data_ptr = data_ptr

    def untyped_storage(self) -> Any:
        raise NotImplementedError("Cannot access the storage of a sparse tensor, which has none")

    _typed_storage = storage = untyped_storage

    def __copy__(self) -> Any:
        again = self.detach()
        again.requires_grad_(self.requires_grad)
        again.__dict__.update({name: value for name, value in self.__dict__.items() if name not in tensor.OWN})
        return again


@all_for_program
class SparseTensor(InParts):
    """A sparse COO tensor on a simulated CUDA device."""

    _form: Form

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub lacks func
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        try:
            return run(func, args, kwargs or {})
        except BaseException as error:
            leave_simulation(error)
            raise

    def kept(self) -> Kept:
        return _KeptCoo(self._form, tuple(self.shape))

    def become(self, values: torch.Tensor) -> None:
        replace(self, adopt_sparse(values, self._sim.index)._form, values.shape)

    def new(self, *args: Any, device: Any = None) -> torch.Tensor:  # type: ignore[override]  # torch's stub differs
        """The constructor that SparseAdam calls: of nothing, of a size, or of indices, values and a size."""
        place = self.device if device is None else device
        if args and isinstance(args[0], torch.Tensor):
            return torch.sparse_coo_tensor(*args, dtype=self.dtype, device=place)
        size = args[0] if args and isinstance(args[0], (tuple, list)) else args or (0,)
        return torch.empty(tuple(size), dtype=self.dtype, device=place, layout=torch.sparse_coo)


# --- making one ----------------------------------------------------------------------------------------------


class _Making(threading.local):
    index: int | None = None


_making = _Making()


def placeholder(size: tuple[int, ...], dtype: torch.dtype) -> SimulatedTensor | None:
    """What C++ gets for the indices and the values of a sparse tensor that this thread is making, or ``None``."""
    return None if _making.index is None else _empty_part(size, dtype, _making.index)


@functools.cache
def _empty_part(size: tuple[int, ...], dtype: torch.dtype, index: int) -> SimulatedTensor:
    with torch.inference_mode(False):
        return new_output(Layout(size, stride_for(size), 0, dtype), index)


@functools.lru_cache(maxsize=256)
def _bare(size: tuple[int, ...], sparse_dim: int, dtype: torch.dtype, index: int) -> torch.Tensor:
    """One of torch's sparse tensors on the stand-in device, without elements."""
    before = devices.exchange(index)  # C++ has the parts on the current device
    try:
        with torch.inference_mode(False):
            return _with_dims.redispatch(  # type: ignore[no-any-return]  # torch gives its ops no types
                _SPARSE_META, sparse_dim, len(size) - sparse_dim, size,
                dtype=dtype, layout=torch.sparse_coo, device=devices.stand_ins[index], pin_memory=False,
            )  # fmt: skip
    finally:
        devices.exchange(before)


def make(form: Form, size: Any) -> SparseTensor:
    """A sparse tensor of these indices and values."""
    if make_subclass is None:
        raise SimulationError(f"sparse tensors are not simulated on CUDA with torch {torch.__version__}")
    placement = form.values._sim
    bare = _bare(tuple(size), form.sparse_dim, form.values.dtype, placement.index)
    _making.index = placement.index
    try:
        made: SparseTensor = make_subclass(SparseTensor, bare)
    finally:
        _making.index = None
    set_form(made, form)
    return made


def set_form(target: InParts, form: Any) -> None:
    """Give a tensor other parts, of the same size."""
    target._form = form
    target._sim = form.values._sim
    target._held = hold(target._sim.box, target._sim.index)


def replace(target: SparseTensor, form: Form, size: Any) -> None:
    """Give a tensor other indices and values, of any size."""
    if tuple(size) == tuple(target.shape) and form.sparse_dim == target._form.sparse_dim:
        set_form(target, form)
    else:
        tensor.set_data(target, make(form, size))


def no_elements(size: Any, sparse_dim: int, dtype: torch.dtype, index: int) -> Form:
    """The form of a tensor of zeros."""
    indices, values = (
        empty(Layout(shape, stride_for(shape), 0, kind), index)
        for shape, kind in (((sparse_dim, 0), torch.int64), ((0, *size[sparse_dim:]), dtype))
    )
    return Form(indices, values, is_coalesced=True)


def adopt_sparse(values: torch.Tensor, index: int) -> SparseTensor:
    """A tensor over the memory of a sparse one on the CPU."""
    form = Form(adopt(_indices(values), index), adopt(_values(values), index), values.is_coalesced())
    return make(form, values.shape)


# --- kernels -------------------------------------------------------------------------------------------------


_PARTS: dict[Any, Callable[[torch.Tensor], tuple[torch.Tensor, ...]]] = {
    torch.strided: lambda dense: (dense,),
    torch.sparse_coo: lambda coo: (_indices(coo), _values(coo)),
}
"""The dense tensors of which one on the CPU consists, by its layout."""
_ADOPTERS: dict[Any, Callable[[torch.Tensor, int], SimulatedTensor]] = {torch.sparse_coo: adopt_sparse}
"""By layout: makes a tensor over the memory of one on the CPU."""


def know_layout(layout: Any, parts: Any, adopter: Callable[[torch.Tensor, int], SimulatedTensor]) -> None:
    """Let results of another layout be taken over."""
    _PARTS[layout], _ADOPTERS[layout] = parts, adopter


LAYOUTS = frozenset({torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc})
"""Layouts of tensors that consist of several."""


class Kept:
    """A sparse argument as a queued kernel keeps it."""

    placements: tuple[Placement, ...]
    size: tuple[int, ...]

    def resolve(self) -> torch.Tensor:
        """Return the CPU tensor over the same memory; only for kernels, as :meth:`Placement.resolve`."""
        raise NotImplementedError

    def as_dense(self) -> Placement:
        """What an op's meta kernel is asked about in its place."""
        values = self.placements[-1]
        return Placement(values.box, Layout(self.size, stride_for(self.size), 0, values.layout.dtype), values.index)


class _KeptCoo(Kept):
    def __init__(self, form: Form, size: tuple[int, ...]) -> None:
        self.indices, self.values = self.placements = form.indices._sim, form.values._sim
        self.size = size
        self.is_coalesced = form.is_coalesced

    def resolve(self) -> torch.Tensor:
        own = self.values.box.own_form
        if isinstance(own, _OwnForm) and own.is_of(self):
            return own.tensor
        return on_host(self.indices.resolve(), self.values.resolve(), self.size, is_coalesced=self.is_coalesced)


@dataclass(frozen=True, slots=True)
class _OwnForm:
    """A result of the CPU's with another number of elements than CUDA's: kernels on the CPU get it as it was.

    So sums are taken in the same order, and are the same bit for bit.
    """

    tensor: torch.Tensor
    indices: Placement
    values: Placement
    is_coalesced: bool

    def is_of(self, kept: _KeptCoo) -> bool:
        """Whether a tensor still consists of the indices and values that were made of it."""
        return (
            kept.indices.box is self.indices.box
            and kept.indices.layout == self.indices.layout
            and kept.values.layout == self.values.layout
            and kept.is_coalesced == self.is_coalesced
        )


def remember(made: SparseTensor, own: torch.Tensor) -> None:
    """Keep the CPU's form of a tensor beside CUDA's."""
    form = made._form
    indices, values = form.indices._sim, form.values._sim
    values.box.own_form = _OwnForm(own, indices, values, form.is_coalesced)


def on_host(indices: torch.Tensor, values: torch.Tensor, size: Any, *, is_coalesced: bool) -> torch.Tensor:
    """A sparse tensor on the CPU over this memory."""
    sparse_dim = indices.shape[0]
    return _from_parts(  # type: ignore[no-any-return]  # torch gives its ops no types
        sparse_dim, len(size) - sparse_dim, size, indices, values,
        dtype=values.dtype, layout=torch.sparse_coo, device=devices.CPU, is_coalesced=is_coalesced,
    )  # fmt: skip


class Call:
    """An op that reads or writes sparse tensors, or makes one, in the form in which it can be queued."""

    def __init__(self, facts: OpFacts, args: Any, kwargs: Any) -> None:
        self.facts = facts
        self.placements: list[Placement] = []
        self.hosts: list[torch.Tensor] = []
        self._given = args, kwargs
        self._kept: dict[int, Kept] = {}
        self._args = [self._keep(x) for x in args]
        self._kwargs = {name: self._keep(x) for name, x in kwargs.items()}
        self.index = dispatch.check_devices(facts, self.placements, self.hosts, args)

    def _keep(self, value: Any) -> Any:
        if isinstance(value, InParts):
            if id(value) not in self._kept:
                kept = self._kept[id(value)] = value.kept()
                self.placements += kept.placements
            return self._kept[id(value)]
        if isinstance(value, SimulatedTensor):
            self.placements.append(value._sim)
            return value._sim
        if isinstance(value, (list, tuple)):
            return [self._keep(x) for x in value]
        if isinstance(value, torch.Tensor):
            self.hosts.append(value)
        if isinstance(value, torch.device):
            return devices.CPU
        return value

    def _resolved(self) -> tuple[list[Any], dict[str, Any]]:
        known: dict[int, torch.Tensor] = {}
        resolve = functools.partial(_resolve, known, self.facts.backward)
        return [resolve(x) for x in self._args], {name: resolve(x) for name, x in self._kwargs.items()}

    def _written(self, args: Any, kwargs: Any) -> Iterator[Any]:
        for position, name in self.facts.writes:
            yield args[position] if position < len(args) else kwargs.get(name)

    # --- an op that the host waits for ---

    def run_now(self, kind: SyncKind | None, shown: str = "", *, compute: Callable[..., Any] | None = None) -> Any:
        """Run the op while the host waits: what it returns may be of any shape.

        Without a kind it is a wait of the simulation's own, which no GPU would have.
        """
        facts = self.facts
        if kind is None:
            waits.internal(f"{facts.name}: how many elements its result has is known when it has run")
            return self._run(None, compute)
        return waits.reported(shown or facts.shown, kind, self._given[0], lambda: self._run(standin.read(), compute))

    def _run(self, call: standin.Call | None, compute: Callable[..., Any] | None) -> Any:
        facts = self.facts

        def kernel() -> Any:
            args, kwargs = self._resolved()
            given = list(_memory([*args, *kwargs.values()]))
            result = (compute or facts.compute)(*args, **kwargs)
            fresh = on_each(lambda x: _own(x, given), dispatch.fresh(facts, result))
            written = list(self._written(args, kwargs))
            return fresh, [
                x if isinstance(x, torch.Tensor) and x.layout is torch.strided else _own(x, given) for x in written
            ]

        try:
            made, written = devices.run_here(devices.order(facts.name, self.index, self.placements), kernel, call)
        except NotImplementedError as error:
            raise NotImplementedError(str(error).partition("\n")[0].replace("SparseCPU", "SparseCUDA")) from None
        args, kwargs = self._given
        for target, values in zip(self._written(args, kwargs), written, strict=True):
            if isinstance(target, InParts):
                target.become(values)
            elif isinstance(target, SimulatedTensor) and values.shape != target.shape:
                tensor.take_resized(target, values)
        results = on_each(self._adopt, made)
        return dispatch.returned(facts, args, kwargs, results)

    def _adopt(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return _ADOPTERS.get(value.layout, adopt)(value, self.index)

    # --- an op that is queued ---

    def spec(self) -> Any:
        """The layout of the op's results, if they and all arguments were dense; a list if there are several."""
        shapes = [_as_dense(x) for x in self._args], {name: _as_dense(x) for name, x in self._kwargs.items()}
        return infer(self.facts.op, *shapes)

    def queue_dense(self, layout: Layout | None = None) -> Any:
        """Queue an op whose result is dense, or that writes to a dense argument."""
        facts = self.facts
        try:
            spec = self.spec() if layout is None else layout
        except UnknownShapeError:
            return self._run(None, None)  # the program's own mistake, in torch's words
        if facts.outs:
            return self.run_now(None)
        made = [] if facts.pure_write else [new_output(spec._replace(offset=0), self.index)]
        outputs = [x._sim for x in made]
        args, kwargs = self._given
        written = [x._sim for x in self._written(args, kwargs) if isinstance(x, SimulatedTensor)]

        def kernel() -> None:
            resolved, named = self._resolved()
            result = facts.compute(*resolved, **named)
            for target in written:
                target.box.own_form = None
            for placement, values in zip(outputs, dispatch.fresh(facts, result), strict=True):
                dispatch.deliver(facts, placement, values, resolved)

        self._queue(kernel, outputs + written)
        return dispatch.returned(facts, args, kwargs, made)

    def queue_sparse(
        self,
        count: int,
        sparse_dim: int,
        *,
        is_coalesced: bool,
        compute: Callable[..., Any] | None = None,
        layout: Layout | None = None,
    ) -> Any:
        """Queue an op with a sparse result of that many elements."""
        facts, index = self.facts, self.index
        try:
            size, _, _, dtype = self.spec() if layout is None else layout
        except UnknownShapeError:
            return self._run(None, None)
        shapes = ((sparse_dim, count), torch.int64), ((count, *size[sparse_dim:]), dtype)
        indices, values = (new_output(Layout(shape, stride_for(shape), 0, kind), index) for shape, kind in shapes)
        outputs = [indices._sim, values._sim]

        def kernel() -> None:
            args, kwargs = self._resolved()
            result = (compute or facts.compute)(*args, **kwargs)
            given = list(_memory([*args, *kwargs.values()]))
            for placement, part in zip(outputs, _of_count(result, count), strict=True):
                dispatch.deliver(facts, placement, part, given)
            if _indices(result).shape[1] != count:
                remember(made, result)

        made = make(Form(indices, values, is_coalesced or count < 2), size)
        self._queue(kernel, outputs)
        return made

    def _queue(self, kernel: Callable[[], None], written: list[Placement]) -> None:
        if self.hosts:
            copied = on_each(_snapshot, [*self._args, *self._kwargs.values()])
            self._args, rest = copied[: len(self._args)], copied[len(self._args) :]
            self._kwargs = dict(zip(self._kwargs, rest, strict=True))
        name = self.facts.name
        devices.queue(devices.order(name, self.index, self.placements), name, kernel, written)


def _of_count(result: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The indices and values of a sparse tensor on the CPU, as many as CUDA's has.

    Where the CPU's kernel sums what CUDA's leaves apart, zeros make up the number, at an index that is there already.
    """
    if _indices(result).shape[1] > count:
        result = result.coalesce()
    indices, values = _indices(result), _values(result)
    lacking = count - indices.shape[1]
    if lacking <= 0:
        return indices, values
    last = indices[:, -1:] if indices.shape[1] else indices.new_zeros(indices.shape[0], 1)
    return (
        torch.cat([indices, last.expand(-1, lacking)], 1),
        torch.cat([values, values.new_zeros(lacking, *values.shape[1:])]),
    )


def _resolve(known: dict[int, torch.Tensor], is_backward: bool, value: Any) -> Any:
    """The CPU's tensor for an argument: one object for one that is there twice."""
    if isinstance(value, Kept):
        if id(value) not in known:
            known[id(value)] = value.resolve()
        return known[id(value)]
    if isinstance(value, Placement):
        return dispatch.resolve_kept(value) if is_backward else value.resolve()
    return [_resolve(known, is_backward, x) for x in value] if isinstance(value, list) else value


def _as_dense(value: Any) -> Any:
    if isinstance(value, Kept):
        return value.as_dense()
    return [_as_dense(x) for x in value] if isinstance(value, list) else value


def _snapshot(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _memory(values: list[Any]) -> Iterator[torch.Tensor]:
    """The dense tensors of which arguments on the CPU consist."""
    for x in flatten(values):
        if isinstance(x, torch.Tensor):
            yield from _PARTS[x.layout](x)


def _own(value: Any, given: list[torch.Tensor]) -> Any:
    """A result that shares no memory with the arguments."""
    if not isinstance(value, torch.Tensor) or not any(dispatch.aliases(x, given) for x in _memory([value])):
        return value
    return value.clone()
