"""Sparse tensors on the simulated device: the CPU's numbers, CUDA's number of elements and CUDA's waits."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*weights_only")


def tensors(device):
    """Dense and sparse tensors: coalesced, uncoalesced, with dense dimensions."""
    torch.manual_seed(0)
    dense = torch.rand(6, 5, device="cpu") * (torch.rand(6, 5, device="cpu") > 0.5)
    names = {"A": dense, "B": torch.rand(5, 4, device="cpu"), "ones": torch.ones(6, 4)}
    names = {name: x.to(device) for name, x in names.items()}
    places = torch.tensor([[0, 1, 1, 0], [2, 0, 2, 2]]).to(device)
    values = torch.tensor([1.0, 2.0, 3.0, 4.0]).to(device)
    return {
        **names, "D": device, "torch": torch, "i": places, "v": values,
        "s": names["A"].to_sparse(), "p": (names["A"] * 2 - 1).relu().to_sparse(),
        "u": torch.sparse_coo_tensor(places, values, (6, 5)),
        "h": torch.sparse_coo_tensor(places[:1], torch.arange(12.0).reshape(4, 3).to(device), (5, 3)),
        "c": names["A"].to_sparse_csr(),
    }  # fmt: skip


_PARTS = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.strided: (),
}


def described(value):
    """All that there is to a result, but for the device."""
    if isinstance(value, (list, tuple)):
        return [described(x) for x in value]
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_sparse:
        parts = value._indices().tolist(), value._values().tolist()
        return [value.shape, value.dtype, value.is_coalesced(), value.sparse_dim(), *parts]
    if value.layout != torch.strided:
        return [value.shape, value.dtype, *(getattr(value, name)().tolist() for name in _PARTS[value.layout])]
    return [value.shape, value.dtype, value.tolist()]


CALLS = """\
u
u.coalesce()
h.coalesce()
[s._nnz(), u._nnz(), h.sparse_dim(), h.dense_dim(), s.is_sparse, s.layout]
[x.to_dense() for x in (s, u, h)]
[s.indices(), s.values(), u._indices(), u._values()]
torch.sparse_coo_tensor(i, v)
torch.sparse_coo_tensor([[0, 1], [1, 0]], [1.0, 2.0], (2, 2), device=D)
torch.sparse_coo_tensor(i, v, (6, 5), check_invariants=True)
[torch.sparse_coo_tensor(size=(2, 3), device=D), torch.zeros(2, 3, layout=torch.sparse_coo, device=D)]
[torch.zeros_like(u), torch.empty_like(h)]
[torch.sparse.mm(s, B), torch.sparse.mm(u, B), u @ B, s @ B[:, 0]]
[torch.sparse.addmm(ones, s, B, beta=0.5, alpha=2), torch.addmm(ones, u, B)]
torch.sparse.mm(s, s.t()).to_dense()
(s @ s.t()).to_dense()
torch.bmm(torch.stack([s, u]).coalesce(), torch.stack([B, B]))
[A + s, A + u, A.clone().add_(u, alpha=-0.1)]
[(s + p).coalesce(), (s - p).coalesce(), (u + s).coalesce(), torch.add(s, u, alpha=3).coalesce()]
[s * 2, 2 * u, s / 3, -u, s * A, u * A, (s * p).to_dense(), (s * u).to_dense(), s * v[0]]
[s.sin(), u.abs(), s.relu(), s**2, u.sqrt(), s.isnan(), s.neg()]
[s.double(), u.long(), s.half(), u.to(torch.float64)]
[s.t(), u.T, s.transpose(0, 1), s.permute(1, 0), s.unsqueeze(0), h.unsqueeze(-1), s.clone().t_()]
[s.sum(), u.sum(), torch.sparse.sum(s, 0), torch.sparse.sum(u, 1), torch.sparse.sum(h, [1]), torch.sparse.sum(h, 0)]
[torch.sparse.softmax(s, 1), torch.sparse.log_softmax(u, 0)]
[torch.cat([s, u]), torch.cat([s, s], 1), torch.stack([s, u])]
[s.norm(), u.norm(), torch.norm(h), s.any()]
[s.index_select(0, i[0]), s[1], h.index_select(1, i[0]), s.narrow_copy(0, 1, 3), s.unbind(0)]
[A.sparse_mask(s), A.sparse_mask(u), p.sparse_mask(s)]
[s.clone().zero_(), s.clone().mul_(2), s.clone().div_(2), s.clone().copy_(u), s.clone().sin_(), s.clone().neg_()]
[s.clone().add_(p).coalesce(), s.clone().mul_(p).to_dense(), s.clone().sub_(p).coalesce()]
[torch.smm(s, B), torch.hspmm(s, B).to_dense(), s.new().resize_as_(s), s.new(s._indices(), s._values(), s.size())]
[A.to_sparse(1), A.to_sparse(layout=torch.sparse_csr), s.to_sparse_csr(), c.to_sparse()]
[c, c.clone(), c.t(), c.sin(), c * 2, -c, c.to_sparse_csc(), c.double(), torch.zeros_like(c)]
[c.to_dense(), c @ B, c @ B[:, 0], torch.sparse.mm(c, B), c.sum(), c._nnz(), A + c, (c @ c.t().to_dense()), c[1]]
[torch.sparse_csr_tensor([0, 1, 3], [0, 0, 2], [1.0, 2.0, 3.0], (2, 3), device=D)]
torch.sparse.mm(c, A.t().to_sparse_csr()).to_dense()
"""


@pytest.mark.parametrize("call", CALLS.splitlines())
def test_results_are_the_cpus(call):
    ours, theirs = (described(eval(call, tensors(device))) for device in ("cuda", "cpu"))
    assert repr(ours) == repr(theirs)


def test_a_sparse_tensor_says_what_it_is():
    names = tensors("cuda")
    for name in ("s", "u", "h", "c"):
        x = names[name]
        assert (x.device, x.is_cuda, x.is_cpu, x.get_device()) == (torch.device("cuda", 0), True, False, 0)
        assert x.cpu().device.type == "cpu"
        assert x.cpu().cuda().layout == x.layout
    assert names["s"].type() == "torch.cuda.sparse.FloatTensor"
    shown = str(names["u"])
    assert "device='cuda:0'" in shown
    assert shown.startswith("tensor(indices=tensor([[0, 1, 1, 0],")
    with pytest.raises(RuntimeError, match="uncoalesced"):
        names["u"].indices()
    with pytest.raises(NotImplementedError, match="SparseCUDA"):
        names["s"].cumsum(0)


# --- waits -----------------------------------------------------------------------------------------------------

WAITS = """\
A.to_sparse() # aten::_to_sparse dynamic_shape
A.to_sparse_csr() # aten::_to_sparse_csr dynamic_shape
u.coalesce() # aten::_coalesce dynamic_shape
torch.sparse.mm(u, B) # aten::_coalesce dynamic_shape
torch.sparse.log_softmax(s, 0) # aten::_sparse_log_softmax dynamic_shape
s.index_select(0, i[0]) # aten::_local_scalar_dense scalar_read
s.cpu() # aten::copy_ copy_d2h aten::copy_ copy_d2h
c.cpu() # aten::copy_ copy_d2h aten::copy_ copy_d2h aten::copy_ copy_d2h
torch.sparse.mm(c, c.t()) # aten::addmm dynamic_shape
torch.sparse_coo_tensor([[0, 1], [1, 0]], [1.0, 2.0], (2, 2), device=D) # aten::copy_ copy_h2d aten::copy_ copy_h2d
torch.sparse_coo_tensor(i, v, (6, 5))
s.coalesce()
s.values()
[s._nnz(), s.is_coalesced(), s.sparse_dim(), s.shape]
s * 2
s * s
s * p
s + p
A + s
A + u
A.sparse_mask(s)
s.t()
torch.stack([s, s])
s @ B
s @ B[:, 0]
torch.sparse.addmm(ones, s, B)
s.to_dense()
u.to_dense()
torch.norm(s)
s.sum()
c @ B
c.sin()
c.to_dense()
torch.sparse_csr_tensor(c.crow_indices(), c.col_indices(), c.values(), (6, 5))
"""


@pytest.mark.parametrize("line", WAITS.splitlines())
def test_waits_are_those_of_a_gpu(line, observed):
    call, _, expected = line.partition(" # ")
    names = tensors("cuda")
    torch.cuda.synchronize()
    observed.clear()
    eval(call, names)
    assert " ".join(word for wait in observed.waits for word in wait) == expected


# --- gradients and programs ----------------------------------------------------------------------------------------


def both(program):
    """What a program computes on the device, and on the CPU."""
    results = []
    for device in ("cuda", "cpu"):
        torch.manual_seed(0)
        results.append(described(program(device)))
    return results


LOSSES = {
    "product": lambda S, X: torch.sparse.mm(S, X).sin().sum(),
    "transposed": lambda S, X: (S.t() @ X).sin().sum(),
    "dense": lambda S, X: (S.to_dense() @ X).pow(2).sum(),
    "softmax": lambda S, X: (torch.sparse.softmax(S.coalesce(), 1).to_dense() @ X).sum(),
    "rows": lambda S, X: torch.sparse.sum(S, 1).to_dense().pow(2).sum() + X.sum(),
    "square": lambda S, X: torch.sparse.sum(S * S) + X.sum(),
    "values": lambda S, X: (S.coalesce().values() ** 3).sum() + X.sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_values_are_the_cpus(name):
    def program(device):
        graph = (torch.rand(9, 9, device="cpu") > 0.6).float().to_sparse()
        indices, values = graph.indices().to(device), torch.rand(graph._nnz(), device="cpu").to(device).requires_grad_()
        X = torch.rand(9, 4, device="cpu").to(device).requires_grad_()
        LOSSES[name](torch.sparse_coo_tensor(indices, values, (9, 9)), X).backward()
        return values.grad, X.grad

    ours, theirs = both(program)
    assert ours == theirs


def test_a_sparse_leaf_has_a_sparse_gradient_on_its_own_device():
    def program(device):
        S = torch.eye(4, device="cpu").to_sparse().to(device).requires_grad_()
        on_host = torch.eye(4, device="cpu").to_sparse().requires_grad_()
        X = torch.rand(4, 3, device="cpu").to(device)
        (torch.sparse.mm(S, X).sum() + torch.sparse.mm(on_host.to(device), X).sin().sum()).backward()
        assert S.grad.is_sparse
        assert S.grad.device.type == device
        assert on_host.grad.device.type == "cpu"
        return S.grad.to_dense(), on_host.grad.to_dense()

    ours, theirs = both(program)
    assert ours == theirs


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "SparseAdam": lambda parameters: torch.optim.SparseAdam(list(parameters), lr=0.01),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
}


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sparse_embeddings_train_to_the_cpus_numbers(name, accumulated):
    def program(device):
        embedding = nn.Embedding(50, 8, sparse=True, device="cpu").to(device)
        optimizer = OPTIMIZERS[name](embedding.parameters())
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(accumulated):
                rows = torch.randint(0, 50, (16, 5), device="cpu").to(device)
                embedding(rows).sin().mean(1).pow(2).sum().backward()
            assert embedding.weight.grad.is_sparse
            optimizer.step()
        return embedding.weight.detach()

    ours, theirs = both(program)
    assert ours == theirs


@pytest.mark.parametrize(("name", "waits"), [("SGD", False), ("SparseAdam", True), ("Adagrad", True)])
def test_an_optimizer_waits_where_it_coalesces(name, waits, observed):
    embedding = nn.Embedding(9, 8, sparse=True, device="cuda")
    optimizer = OPTIMIZERS[name](embedding.parameters())
    embedding(torch.arange(5, device="cuda")).sum().backward()
    torch.cuda.synchronize()
    observed.clear()
    optimizer.step()
    assert ("aten::_coalesce" in observed.ops) == waits


def test_gradients_that_outgrow_the_parameter_are_coalesced(observed):
    embedding = nn.Embedding(9, 2, sparse=True, device="cuda")
    rows = torch.arange(9, device="cuda").repeat(2)
    embedding(rows).sum().backward()
    assert embedding.weight.grad._nnz() == 18
    torch.cuda.synchronize()
    observed.clear()
    embedding(rows).sum().backward()
    assert observed.ops == ["aten::_coalesce"]
    assert embedding.weight.grad._nnz() == 9


def test_bags_padding_and_mixed_gradients():
    def program(device):
        rows = torch.tensor([[0, 1, 2], [2, 0, 3]]).to(device)
        padded = nn.Embedding(10, 4, sparse=True, padding_idx=0, device="cpu").to(device)
        padded(rows).pow(2).sum().backward()
        bag = nn.EmbeddingBag(10, 4, sparse=True, mode="sum", device="cpu").to(device)
        bag(rows).pow(2).sum().backward()
        mixed = nn.Embedding(10, 4, sparse=True, device="cpu").to(device)
        mixed(rows).sum().backward()
        (mixed.weight * 2).sum().backward()
        mixed(rows).sum().backward()
        return padded.weight.grad, bag.weight.grad.to_dense(), mixed.weight.grad

    ours, theirs = both(program)
    assert ours == theirs


class GraphNetwork(nn.Module):
    """Two layers of graph convolution over a sparse matrix, which is a buffer."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.first, self.second = nn.Linear(7, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.sparse.mm(self.matrix, self.first(x)).relu()
        return torch.sparse.mm(self.matrix, self.second(x))


@pytest.mark.parametrize("compress", [False, True], ids=["coo", "csr"])
def test_a_graph_network_trains_to_the_cpus_losses(compress):
    def program(device):
        links = (torch.rand(30, 30, device="cpu") > 0.8).float() + torch.eye(30, device="cpu")
        degrees = links.sum(1).rsqrt()
        matrix = (degrees[:, None] * links * degrees[None]).to_sparse()
        with torch.device("cpu"):
            model = GraphNetwork(matrix.to_sparse_csr() if compress else matrix)
        model.to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x, labels = torch.randn(30, 7, device="cpu").to(device), torch.randint(0, 3, (30,), device="cpu").to(device)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    ours, theirs = both(program)
    assert ours == theirs


def test_they_are_saved_loaded_pickled_and_copied():
    S = tensors("cuda")["u"]
    S.note = "kept"
    file = io.BytesIO()
    torch.save({"u": S, "s": S.coalesce()}, file)
    for place in ("cuda", "cpu"):
        file.seek(0)
        loaded = torch.load(file, map_location=place)
        assert loaded["u"].device.type == place
        assert described(loaded["u"]) == described(S)
        assert loaded["s"].is_coalesced()
    assert described(pickle.loads(pickle.dumps(S))) == described(S)
    again, deep = copy.copy(S), copy.deepcopy(S)
    assert (again.note, deep.note) == ("kept", "kept")
    assert described(again) == described(deep) == described(S)
    deep._values().zero_()
    assert S._values().tolist() == [1.0, 2.0, 3.0, 4.0]
    module = nn.Module()
    module.register_buffer("matrix", torch.zeros(6, 5).to_sparse().cuda())
    module.load_state_dict({"matrix": S.cpu()})
    assert described(module.matrix) == described(S)


def test_inference_mode():
    names = tensors("cuda")
    with torch.inference_mode():
        ours = [names["s"] @ names["B"], (names["s"] * 2).to_dense(), torch.sparse.sum(names["s"], 1).to_dense()]
        ours += [torch.sparse.mm(names["c"], names["B"])]
    names = tensors("cpu")
    theirs = [names["s"] @ names["B"], (names["s"] * 2).to_dense(), torch.sparse.sum(names["s"], 1).to_dense()]
    theirs += [torch.sparse.mm(names["c"], names["B"])]
    assert described(ours) == described(theirs)
