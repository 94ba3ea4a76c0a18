"""Backward passes, functional transforms and autocast: the wait happens in autograd's own thread."""

from __future__ import annotations

from .case import Case, table

FAMILY = "backward"

INDEXING: tuple[Case, ...] = table(
    FAMILY,
    """
    B L = w[m].sum() || L.backward()
    B L = W[A > 0.5].sum() || L.backward()
    B L = w.masked_select(m).sum() || L.backward()
    - L = w[l].sum() || L.backward()
    - L = W[l[:9], l[:9]].sum() || L.backward()
    - L = w.index_select(0, l).sum() || L.backward()
    - L = w[3:9].sum() || L.backward()
    B k = m.cpu(); L = w[k].sum() || L.backward()
    B L = w[[1, 2]].sum() || L.backward()
    B L = w[ci].sum() || L.backward()
    - L = w.nonzero().sum() + w.sum() || L.backward()
    - L = (w * 1).index_put((l,), g).sum() || L.backward()
    - L = (w * 1).index_put((l,), g, accumulate=True).sum() || L.backward()
    B v = w * 1; v[m] = h[m]; L = v.sum() || L.backward()
    - v = w * 1; v[m] = 0.0; L = v.sum() || L.backward()
    - v = w * 1; v[l] = z; L = v.sum() || L.backward()
    - L = g.clone().index_put((l,), w).sum() || L.backward()
    B L = g.clone().masked_scatter(m, w).sum() || L.backward()
    - L = (w * 1).masked_fill(m, 0.0).sum() || L.backward()
    - L = T.where(m, w, 0.0).sum() || L.backward()
    - L = T.where(m, w, h).sum() || L.backward()
    - L = w.gather(0, l).sum() || L.backward()
    - L = g.scatter(0, l, w).sum() || L.backward()
    - L = g.scatter_add(0, l, w).sum() || L.backward()
    - L = g.scatter_reduce(0, l, w, "amax").sum() || L.backward()
    B L = g.scatter_reduce(0, l, w, "prod").sum() || L.backward()
    - L = g.index_add(0, l, w).sum() || L.backward()
    - L = w.repeat_interleave(l).sum() || L.backward()
    - L = w.repeat_interleave(2).sum() || L.backward()
    - n = int(l.sum()); L = w.repeat_interleave(l, output_size=n).sum() || L.backward()
    - u, i = T.unique(l, return_inverse=True); L = w[i].sum() || L.backward()
    - L = F.embedding(l, W[:9]).sum() || L.backward()
    - L = F.embedding(l, W, padding_idx=0).sum() || L.backward()
    - L = F.embedding(l, W, scale_grad_by_freq=True).sum() || L.backward()
    - L = F.embedding_bag(l.view(111, 9), W, mode="mean").sum() || L.backward()
    - L = F.embedding_bag(l.view(111, 9), W, mode="max").sum() || L.backward()
    """,
)

REDUCTIONS: tuple[Case, ...] = table(
    FAMILY,
    """
    B L = w[:9].prod() || L.backward()
    B L = (w[:9] * (T.arange(9, device=D) != 3)).prod() || L.backward()
    B L = W.prod(1).sum() || L.backward()
    B L = w.cumprod(0).sum() || L.backward()
    - L = w.cumsum(0).sum() || L.backward()
    - L = w.std() || L.backward()
    - L = W.var(1).sum() || L.backward()
    - L = w.norm() || L.backward()
    - L = w.max() || L.backward()
    - L = W.max(1).values.sum() || L.backward()
    - L = w.topk(3).values.sum() || L.backward()
    - L = w.sort().values.sum() || L.backward()
    - L = w.median() || L.backward()
    - L = w.logsumexp(0) || L.backward()
    - L = T.cdist(W, A).sum() || L.backward()
    - L = (W @ A).relu().mean() || L.backward()
    - L = T.einsum("ij,jk->", W, A) || L.backward()
    - L = T.fft.rfft(w).abs().sum() || L.backward()
    B L = T.linalg.svd(W)[1].sum() || L.backward()
    - L = T.linalg.svdvals(W).sum() || L.backward()
    - L = T.linalg.eigh(W + W.T)[0].sum() || L.backward()
    - L = T.linalg.eigh(W + W.T)[1].sum() || L.backward()
    B L = T.linalg.eig(W)[0].abs().sum() || L.backward()
    - L = T.linalg.inv(W).sum() || L.backward()
    - L = T.linalg.cholesky(W @ W.T + 64 * T.eye(64, device=D)).sum() || L.backward()
    - L = T.linalg.solve(W, A).sum() || L.backward()
    - L = T.linalg.solve_triangular(W.triu() + 1, A, upper=True).sum() || L.backward()
    B L = T.linalg.lstsq(W, A).solution.sum() || L.backward()
    - L = T.linalg.pinv(W).sum() || L.backward()
    - L = T.linalg.det(W / 9) || L.backward()
    B L = T.linalg.matrix_exp(W / 64).sum() || L.backward()
    - L = T.linalg.qr(W)[1].sum() || L.backward()
    """,
)

LAYERS: tuple[Case, ...] = table(
    FAMILY,
    """
    - L = nn.Conv2d(3, 8, 3, device=D)(x4).sum() || L.backward()
    - L = nn.BatchNorm2d(3, device=D)(x4).square().sum() || L.backward()
    - L = nn.LayerNorm(64, device=D)(W).square().sum() || L.backward()
    - L = nn.LSTM(16, 8, 2, device=D)(x4[0])[0].sum() || L.backward()
    - L = nn.GRU(16, 8, device=D)(x4[0])[0].sum() || L.backward()
    - L = F.scaled_dot_product_attention(q, q, q, is_causal=True).sum() || L.backward()
    - L = F.scaled_dot_product_attention(q.half(), q.half(), q.half()).sum() || L.backward()
    - L = F.cross_entropy(W, l[:64], ignore_index=3) || L.backward()
    - L = F.max_pool2d(q, 2).sum() || L.backward()
    - L = F.interpolate(q, size=9, mode="bilinear").sum() || L.backward()
    - L = F.grid_sample(q, T.rand(2, 8, 8, 2, device=D), align_corners=False).sum() || L.backward()
    - L = F.ctc_loss(q[0].log_softmax(2)[:, :2], l[:6].view(2, 3) + 1, n2, n2) || L.backward()
    - L = F.ctc_loss(q[0].log_softmax(2)[:, :2], l[:6].view(2, 3) + 1, n2.to(D), n2.to(D)) || L.backward()
    - L = F.binary_cross_entropy_with_logits(w, g) || L.backward()
    """,
    setup="q = x4.clone().requires_grad_(); n2 = T.tensor([3, 3])",
)

HOST: tuple[Case, ...] = table(
    FAMILY,
    """
    B r = s.clone().requires_grad_(); L = (r.to(D) * 2).sum() || L.backward()
    B r = p.detach().requires_grad_(); L = (r.to(D, non_blocking=True) * 2).sum() || L.backward()
    B r = s.clone().requires_grad_(); L = (r.cuda() if dev == "cuda" else r).sum() || L.backward()
    B L = w.cpu().sum() || L.backward()
    B L = (w.cpu() * 2).to(D).sum() || L.backward()
    - L = w.double().sum() || L.backward()
    B w.sum().backward(T.tensor(1.0).to(D))
    - w.sum().backward(z)
    - (w * 2).backward(g)
    - T.autograd.grad(w.sum(), w)
    B L = w[m].sum() || T.autograd.grad(L, w)
    - d = T.autograd.grad(w.pow(3).sum(), w, create_graph=True)[0] || d.sum().backward()
    - T.autograd.grad((w * 2).sum(), w, create_graph=True)
    - L = w.pow(2).sum() || L.backward(retain_graph=True)
    - L = w.pow(2).sum(); L.backward(retain_graph=True) || L.backward()
    - w.sum().backward(); L = (w * 2).sum() || L.backward()
    - w.grad = g.clone(); L = (w * 2).sum() || L.backward()
    B L = w.pow(2).sum(); w.register_hook(lambda d: d * d.sum().item()) || L.backward()
    B v = w * 2; v.register_hook(lambda d: d if d.any() else None); L = v.sum() || L.backward()
    - L = w.pow(2).sum(); w.register_hook(lambda d: d * 2) || L.backward()
    B L = w.sum(); w.register_post_accumulate_grad_hook(lambda t: see([t.grad])) || L.backward()
    - L = w.sum(); w.register_post_accumulate_grad_hook(double) || L.backward()
    - M = nn.Linear(64, 9, device=D); M.register_full_backward_hook(lambda *a: None); L = M(W).sum() || L.backward()
    B M = nn.Linear(64, 9).to(D); M.register_full_backward_hook(lambda a, b, c: see(c)); L = M(W).sum() || L.backward()
    B M = nn.Linear(64, 9, device=D); M.register_forward_hook(lambda *a: bool(a[2].isnan().any())) || M(W)
    B L = w.exp().sum() || detect(L)
    - L = w.exp().sum() || detect(L, check_nan=False)
    - L = Quiet.apply(w).sum() || L.backward()
    B L = Loud.apply(w).sum() || L.backward()
    B T.autograd.gradcheck(lambda t: t * 2, [w[:2].detach().double().requires_grad_()])
    B T.autograd.functional.jacobian(lambda t: t[t > 0.5], w[:9])
    - T.autograd.functional.vjp(lambda t: t.sum(), w)
    """,
    setup="""
def detect(L, **k):
    with T.autograd.detect_anomaly(**k):
        L.backward()
def see(d):
    d[0].max().item()
def double(t):
    t.grad.mul_(2)
class Quiet(T.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2
    @staticmethod
    def backward(ctx, d):
        return d * ctx.saved_tensors[0]
class Loud(Quiet):
    @staticmethod
    def backward(ctx, d):
        return d * ctx.saved_tensors[0].max().item()
""",
)

FUNCTIONAL: tuple[Case, ...] = table(
    FAMILY,
    """
    B L = ck(peek, w, use_reentrant=False).sum() || L.backward()
    B L = ck(peek, w, use_reentrant=True).sum() || L.backward()
    - L = ck(T.sin, w, use_reentrant=False).sum() || L.backward()
    - L = ck(T.sin, w, use_reentrant=True).sum() || L.backward()
    - L = ck(F.dropout, w, use_reentrant=False).sum() || L.backward()
    B ck(peek, w, use_reentrant=False)
    - T.func.grad(lambda t: t.sin().sum())(g)
    B T.func.grad(lambda t: t[m].sum())(g)
    - T.func.vmap(lambda t: t.sum())(A)
    B T.func.vmap(T.linalg.inv)(S.expand(2, 32, 32))
    - T.func.jacrev(lambda t: t.sin())(g[:9])
    - T.func.jacfwd(lambda t: t.sin())(g[:9])
    - T.func.hessian(lambda t: t.pow(3).sum())(g[:9])
    - T.func.vjp(T.sin, g)[1](h)
    - T.func.jvp(T.sin, (g,), (h,))
    - M = nn.Linear(64, 9, device=D); d = dict(M.named_parameters()) || T.func.functional_call(M, d, (A,))
    - M = nn.Linear(64, 9, device=D); c_ = T.autocast(dev, T.bfloat16) || c_(M)(A).sum().backward()
    - M = nn.Conv2d(3, 8, 3, device=D); c_ = T.autocast(dev, T.float16) || c_(M)(x4).sum().backward()
    - c_ = T.autocast(dev, T.bfloat16) || c_(lambda: F.softmax(W @ W, 1).sum())().backward()
    B c_ = T.autocast(dev, T.bfloat16) || c_(lambda: (W @ W)[A > 0.5].sum())().backward()
    """,
    setup="""
from torch.utils.checkpoint import checkpoint as ck
def peek(x):
    return x * x.mean().item()
""",
)

CASES: tuple[Case, ...] = INDEXING + REDUCTIONS + LAYERS + HOST + FUNCTIONAL
