"""Sparse and nested tensors: their shapes depend on data, and building them checks data on the host."""

from __future__ import annotations

from .case import Case, table

FAMILY = "sparse"

SPARSE = """
Z = (A > 0.9) * A
Q = Z.to_sparse().coalesce()
R = Z.to_sparse_csr()
ij = T.tensor([[0, 1, 1], [2, 0, 2]], device=D)
v3 = T.tensor([3.0, 4.0, 5.0], device=D)
U = T.sparse_coo_tensor(ij, v3, (64, 64))
crow = T.tensor([0, 1, 3], device=D)
col = T.tensor([2, 0, 2], device=D)
"""

MAKING: tuple[Case, ...] = table(
    FAMILY,
    """
    B Z.to_sparse()
    B Z.to_sparse(1)
    B Z.to_sparse_csr()
    B Z.to_sparse_csc()
    B Z.to_sparse_bsr((8, 8))
    B Z.to_sparse_bsc((8, 8))
    B Z.to_sparse(layout=T.sparse_csr)
    B U.coalesce()
    - Q.coalesce()
    - Q.is_coalesced()
    - Q.values()
    - Q.indices()
    - U._values()
    - U._indices()
    - U._nnz()
    - Q.sparse_dim(), Q.dense_dim(), Q.shape
    - Q.clone()
    - U.to_dense()
    - Q.to_dense()
    - R.to_dense()
    - R.values(), R.crow_indices(), R.col_indices()
    - R._nnz()
    B Q.to_sparse_csr()
    - R.to_sparse()
    - R.to_sparse_coo()
    B R.to_sparse_csc()
    B Q.cpu()
    B R.cpu()
    B U.cpu()
    B Q_ = Q.cpu() || Q_.to(D)
    B T.sparse_coo_tensor(ij, v3)
    - T.sparse_coo_tensor(ij, v3, (64, 64))
    - T.sparse_coo_tensor(ij, v3, (64, 64), is_coalesced=True)
    B T.sparse_coo_tensor(ij, v3, (64, 64), check_invariants=True)
    B T.sparse_coo_tensor([[0, 1], [1, 0]], [1.0, 2.0], (2, 2), device=D)
    - T.sparse_coo_tensor(size=(4, 4), device=D)
    - T.sparse_csr_tensor(crow, col, v3, (2, 3))
    B T.sparse_csr_tensor(crow, col, v3)
    B T.sparse_csr_tensor(crow, col, v3, (2, 3), check_invariants=True)
    - T.sparse_csc_tensor(crow, col, v3, (3, 2))
    - T.sparse_compressed_tensor(crow, col, v3, (2, 3), layout=T.sparse_csr)
    - T.zeros_like(Q)
    """,
    setup=SPARSE,
)

MATH: tuple[Case, ...] = table(
    FAMILY,
    """
    - T.sparse.mm(Q, A)
    B T.sparse.mm(U, A)
    - T.sparse.mm(R, A)
    B T.sparse.mm(Q, Q)
    B T.sparse.mm(R, R)
    - Q @ A
    - R @ A
    - R @ A[0]
    - Q @ A[0]
    - T.sparse.addmm(A, Q, A)
    - T.addmm(A, R, A)
    - T.sparse.sampled_addmm(R, A, A)
    - T.sparse.sum(Q)
    B T.sparse.sum(Q, dim=0)
    B T.sparse.softmax(Q, dim=1)
    B T.sparse.log_softmax(Q, dim=0)
    - Q + Q
    - A + Q
    - Q * 2
    B Q * Q
    - R * 2
    B R + R
    - -Q
    - Q.abs()
    - R.sin()
    - Q.t()
    - Q.t().is_coalesced()
    - Q.sum()
    - R.sum()
    - T.norm(Q)
    - Q.half()
    - U.add(U)
    B A.sparse_mask(Q)
    B A.sparse_mask(U)
    B Q.index_select(0, l[:4])
    B Q[0]
    - Q.unsqueeze(0)
    B T.cat([Q, Q]).coalesce()
    - T.cat([Q, Q])
    B Q.narrow_copy(0, 2, 9)
    - T.stack([Q, Q])
    B str(Q)
    B str(R)
    """,
    setup=SPARSE,
)

EMBEDDING = """
e = nn.Embedding(9, 8, sparse=True, device=D)
L = e(l).sum()
"""
STEPPED = """
def step(make):
    o = make(e.parameters())
    L.backward()
    o.step()
    return o
"""

GRADIENTS: tuple[Case, ...] = table(
    FAMILY,
    """
    - L.backward()
    - o = step(lambda q: T.optim.SGD(q, lr=0.1)) || o.step()
    B o = step(lambda q: T.optim.SGD(q, lr=0.1, momentum=0.9)) || o.step()
    B o = step(lambda q: T.optim.SparseAdam(list(q))) || o.step()
    B o = step(lambda q: T.optim.Adagrad(q)) || o.step()
    B o = step(lambda q: T.optim.Adagrad(q, foreach=True)) || o.step()
    B L.backward() || e.weight.grad.coalesce()
    - L.backward() || e.weight.grad.to_dense()
    - L.backward() || nn.utils.clip_grad_norm_([w], 1.0)
    - L.backward(); L = e(l).sum() || L.backward()
    - M = nn.EmbeddingBag(9, 8, mode="sum", sparse=True, device=D); L = M(l.view(111, 9)).sum() || L.backward()
    - b = A.clone().requires_grad_(); L = T.sparse.mm(A.relu().to_sparse(), b).sum() || L.backward()
    - b = A.clone().requires_grad_(); L = b.to_sparse().to_dense().sum() || L.backward()
    """,
    setup=EMBEDDING + STEPPED,
)

NESTED: tuple[Case, ...] = table(
    "nested",
    """
    - T.nested.nested_tensor([A[:3], A[:5]])
    - T.nested.nested_tensor([A[:3], A[:5]], layout=T.jagged)
    - T.nested.as_nested_tensor([A[:3], A[:5]])
    - T.nested.as_nested_tensor([A[:3], A[:5]], layout=T.jagged)
    B T.nested.nested_tensor([[1.0, 2.0], [3.0]], device=D)
    - T.nested.to_padded_tensor(n, 0.0)
    B T.nested.to_padded_tensor(j, 0.0)
    - j.to_padded_tensor(0.0, (2, 5, 64))
    - n.unbind()
    B j.unbind()
    - n.size(0), n.numel(), n.dim()
    - j.shape, j.numel(), j.dim()
    - j.values(), j.offsets()
    - n.values()
    - T.nested.nested_tensor_from_jagged(A[:8], off)
    - T.nested.nested_tensor_from_jagged(A[:8], off, min_seqlen=3, max_seqlen=5)
    B T.nested.nested_tensor_from_jagged(A[:8], off)._max_seqlen
    - T.nested.nested_tensor_from_jagged(A[:8], off, min_seqlen=3, max_seqlen=5)._max_seqlen
    B T.nested.narrow(S[:2], 1, T.zeros(2, dtype=T.int64, device=D), off[1:], layout=T.jagged)
    - n @ n.transpose(1, 2)
    - j @ A
    - n * 2
    - j * 2
    - j + j
    - F.softmax(n, -1)
    - F.softmax(j, -1)
    - F.relu(n)
    - F.linear(j, A)
    - F.linear(n, A)
    - F.layer_norm(j, (64,))
    - j.sum(-1)
    - j.mean(1)
    - F.dropout(n, 0.5)
    B n.cpu()
    B j.cpu()
    - n.clone()
    B str(n)
    """,
    setup="""
n = T.nested.nested_tensor([A[:3], A[:5]])
j = T.nested.nested_tensor([A[:3], A[:5]], layout=T.jagged)
off = T.tensor([0, 3, 8], device=D)
""",
)

CASES: tuple[Case, ...] = MAKING + MATH + GRADIENTS + NESTED
