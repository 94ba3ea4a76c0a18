"""Indexing, and assignment through an index."""

from __future__ import annotations

from .case import table

MASK_READ = table(
    "indexing.mask_read",
    """
B g[m]
B g[g > 0.5]
B A[:, A[0] > 0.5]
B A[A[:, 0] > 0.5]
B A[A[:, 0] > 0.5, 0]
B g[None, m]
B g[..., m]
B k = T.zeros(64, dtype=T.bool, device=D) || A[k, k]
B A[A[:, 0] > 0.5, zi]
B g[m, None]
B x4[:, :, x4[0, 0] > 0.5]
B g[m.cpu()]
- k = m.cpu() || k[k]
B k = m.cpu() || g[k]
B k = m.tolist() || g[k]
B k = m.cpu().numpy() || g[k]
B g[m].mean()
B w[m]
B w[m].sum().backward()
B e = T.empty(0, device=D) || e[e > 0]
B g[z > 0]
- g[True]
- g[False]
B T.ops.aten.index.Tensor(g, [m])
""",
)

MASK_WRITE = table(
    "indexing.mask_write",
    """
- g[m] = 0.0
- l[m] = 0
- g[m] = s[0]
- g[m] = T.tensor(3.0)
B g[m] = z
B g[m] = g[m]
B v = g[m] || g[m] = v
B g[m] += 1
B A[A > 0.5] = z
- A[A > 0.5] = 0.0
- A[:, A[0] > 0.5] = 0.0
B A[A[:, 0] > 0.5] = A[0].clone()
- A[A[:, 0] > 0.5, 0] = 1.0
- A[A[:, 0] > 0.5] = 1.0
- g[m] = T.tensor([3.0])
B g[m] = T.tensor([3.0]).to(D)
B k = m.cpu() || g[k] = 0.0
B k = m.cpu() || g[k] = s[0]
B k = T.zeros(999, dtype=T.bool) || g[k] = 0.0
B k = A[0].cpu() > 0.5 || A[k, 0] = 1.0
B k = A[0].cpu() > 0.5 || A[:, k] = 1.0
- k = m.cpu(); v = g[k] || g[k] = v
- k = m.cpu() || g[k] = z
- k = m.cpu() || g.index_put_((k,), z)
B k = m.cpu(); v = g[k] || g.index_put_((k,), v, accumulate=True)
B k = m.cpu(); v = g[k] || g.index_put((k,), v, accumulate=True)
- k = T.zeros(999, dtype=T.bool) || g.index_put_((k,), g[:0], accumulate=True)
- g.masked_fill_(m, 0.0)
- g.masked_fill(m, float("-inf"))
B g.masked_fill(m, z)
- g.masked_fill(m, s[0])
- A.masked_fill(T.ones(64, 64, dtype=T.bool, device=D).triu(1), -1e9)
- g.masked_scatter(m, h)
- g.masked_scatter_(m, h)
B g.index_put_((m,), h[m])
B g.index_put_((m,), z)
B g.index_put((m,), z, accumulate=True)
- g.index_put_((m,), T.tensor(1.0))
- T.where(m, g, 0.0)
- T.where(m, g, z)
- T.where(g > 0.5, 1.0, 0.0)
- T.where(m, T.tensor(1.0), g)
- g.where(m, h)
- T.where(A > 0.5, A, A.t())
""",
)

INTEGERS = table(
    "indexing.integers",
    """
- g[l]
- A[l, l]
- A[:, l]
- A[l]
- A[l[:9], None]
- A[l[:5], 2:5]
- w[l]
- w[l].sum().backward()
B g[ci]
B A[ci]
B A[:, ci]
B A[l[:3], ci]
B g[[1, 2]]
B A[[1, 2], [3, 4]]
B A[:, [0, 1]]
B A[[[0, 1], [2, 3]]]
B v = l[:2].tolist() || A[:, v]
B v = ci.numpy() || g[v]
B v = range(3) || g[v]
B g[l[3]]
B g[zi]
B A[zi]
B A[:, zi]
B A[zi, zi]
B g[-zi]
- g[T.tensor(3)]
- g[ci[1]]
- g[3]
- g[-1]
- g[None]
- g[...]
- g[..., None]
- A[1, 2]
- A[:, -1]
- A[1:3, ::2]
- g[::3]
- g[5:-5]
- g[()]
B g[zi:]
B g[:zi]
B g[zi : zi + 5]
B g[::zi]
B A[:, zi:]
- g[ci[0] : ci[2]]
B g[: l.max()]
B x4[..., : zi]
- x4.flip(0)
- T.roll(g, 3)
- g.narrow(0, 2, 5)
B g.narrow(0, zi, 5)
- g.select(0, 3)
- v = T.tensor(3) || g.narrow(0, v, 5)
- A.diagonal()
- T.take(g, l)
- T.take_along_dim(A, A.argsort(1), 1)
- A.gather(1, l[:64, None])
- A.index_select(0, l)
- F.embedding(l, A)
- F.embedding(l, A, padding_idx=0)
- F.embedding(l, A.clone(), max_norm=1.0)
- e = nn.Embedding(9, 8).to(D) || e(l)
- F.embedding_bag(l.view(-1, 9), A)
- e = T.empty(0, dtype=T.int64, device=D) || g[e]
- e = T.empty(0, dtype=T.int64) || g[e]
""",
)

WRITE = table(
    "indexing.write",
    """
B g[3] = 1.0
- g[3] = z
B g[3] = T.tensor(3.0)
- g[3] = g[4]
- g[:] = 2.0
- g[2:5] = 0.0
- g[...] = 1.0
- A[:, 3] = 0.0
- A[1:5, ::2] = z
- A[3] = A[4]
B A[3] = T.rand(64)
B g[:9] = s
B A[0, 0] = 1.0
B g[l] = 0.0
B l[l.clone()] = 1
- g[l] = z
- g[l] = h
B g[l] += 1
- g[l] += h
B g[ci] = 1.0
B g[ci] = z
B g[[0, 1]] = 1.0
B g[[0, 1]] = h[:2]
B g[zi] = 1.0
B g[zi] = z
B g[zi:] = 0.0
B A[l[:5], l[:5]] = 1.0
- A[l[:5]] = A[0].clone()
B A[:, ci] = 0.0
- g.index_put_((l,), h)
- g.index_put_((l,), h, accumulate=True)
- g.index_put_((l,), z)
B g.index_put_((ci,), h[:3])
- g.scatter_(0, l, 1.0)
- g.scatter_(0, l, h)
- g.scatter_add_(0, l, h)
- g.scatter_reduce_(0, l, h, "amax")
- g.scatter_(0, l, h, reduce="add")
- g.index_add_(0, l, h)
- g.index_copy_(0, l, h)
- g.index_fill_(0, l, 1.0)
B g.index_fill_(0, l, z)
- g.put_(l, h)
- g.put_(l, h, accumulate=True)
- T.diagonal_scatter(A, g[:64])
- T.select_scatter(A, g[:64], 0, 3)
- T.slice_scatter(A, A[:3], 0, 1, 4)
""",
)
CASES = (*MASK_READ, *MASK_WRITE, *INTEGERS, *WRITE)
