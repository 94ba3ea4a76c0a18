"""Copies between host and device, and what copies behind its name."""

from __future__ import annotations

from .case import Case, table

SIZES = {"4B": 1, "1K": 256, "60K": 15 << 10, "64K": 16 << 10, "68K": 17 << 10, "1M": 256 << 10, "16M": 4 << 20}
"""In floats.  CUDA takes up to 64 KiB of pageable memory into its own buffer and returns."""


def grid() -> tuple[Case, ...]:
    """Direction, memory, blocking or not, and size, through each of the calls that copy."""
    cases = []
    family = "copies.grid"
    for size, n in SIZES.items():
        small = n <= 16 << 10
        for memory in ("pageable", "pinned"):
            host = f"x = T.rand({n})" if memory == "pageable" else f"x = pinned(T.rand({n}))"
            device = f"y = T.rand({n}, device=D)"
            for waits in (True, False):
                how = "blocking" if waits else "non_blocking"
                flag = f"non_blocking={not waits}"
                up = waits or (memory == "pageable" and not small)
                down = waits or (memory == "pageable" and not small)
                for verb, call in (("to", f"x.to(D, {flag})"), ("copy_", f"y.copy_(x, {flag})")):
                    name = f"{family}: H2D {verb} {memory} {how} {size}"
                    cases.append(Case(name, family, call, f"{host}; {device}", up))
                name = f"{family}: D2H copy_ {memory} {how} {size}"
                cases.append(Case(name, family, f"x.copy_(y, {flag})", f"{host}; {device}", down))
        for waits in (True, False):
            how = "blocking" if waits else "non_blocking"
            flag = f"non_blocking={not waits}"
            device = f"x = T.rand({n}, device=D); y = T.rand({n}, device=D)"
            name = f"{family}: D2H to {how} {size}"
            cases.append(Case(name, family, f'x.to("cpu", {flag})', device, waits))
            name = f"{family}: D2D copy_ {how} {size}"
            cases.append(Case(name, family, f"y.copy_(x, {flag})", device, expect=False))
    return tuple(cases)


LAYOUT = table(
    "copies.layout",
    """
B v = T.rand(512, 512).t() || v.to(D)
B v = T.rand(512, 512).t() || v.to(D, non_blocking=True)
B v = T.rand(512, 512)[:, ::2] || v.to(D)
B v = T.rand(512, 512)[:, ::2] || v.to(D, non_blocking=True)
B v = p.view(2048, 2048)[:, ::2] || v.to(D)
B v = p.view(2048, 2048)[:, ::2] || v.to(D, non_blocking=True)
- v = p.view(2048, 2048)[:64] || v.to(D, non_blocking=True)
- v = p[5:999] || v.to(D, non_blocking=True)
- v = T.rand(8, 8).t() || v.to(D, non_blocking=True)
B A[:, ::2].cpu()
B A.t().cpu()
B A.t().cpu().contiguous()
- v = G.view(2048, 2048)[:, ::2] || v.to("cpu", non_blocking=True)
- v = G.view(2048, 2048)[:, ::2]; o = pinned(T.empty(2048, 1024)) || o.copy_(v, non_blocking=True)
B o = pinned(T.empty(2048, 2048))[:, ::2]; v = T.rand(2048, 1024, device=D) || o.copy_(v, non_blocking=True)
B o = T.empty(64, 128)[:, ::2] || o.copy_(A)
B A[:, 3].cpu()
B A[::2, ::2].copy_(T.rand(32, 32))
- A[::2, ::2].copy_(pinned(T.rand(32, 32)), non_blocking=True)
B v = T.rand(1, 64).expand(64, 64) || v.to(D)
B v = T.rand(1, 64).expand(64, 64) || A.copy_(v)
B v = T.rand(64) || A.copy_(v)
- v = pinned(T.rand(64)) || A.copy_(v, non_blocking=True)
- v = T.rand(64, device=D) || A.copy_(v)
B A[:1].expand(64, 64).cpu()
- T.empty(0).to(D)
- T.empty(0, device=D).cpu()
- T.empty(0, 5, device=D).copy_(T.empty(0, 5))
- T.empty(0, device=D).tolist()
- G[:0].cpu()
B v = x4.to(memory_format=T.channels_last) || v.cpu()
B x4.cpu(memory_format=T.preserve_format)
B v = T.rand(2, 3, 16, 16) || v.to(D, memory_format=T.channels_last)
- v = pinned(T.rand(2, 3, 16, 16)) || v.to(D, memory_format=T.channels_last, non_blocking=True)
- x4.to(memory_format=T.channels_last)
""",
)

CASTS = table(
    "copies.cast",
    """
B s.to(D, T.float16)
B s.to(D, T.float64)
- s.to(D, T.float16, non_blocking=True)
B c.to(D, T.float16)
B c.to(D, T.float16, non_blocking=True)
B p.to(D, T.float16)
B p.to(D, T.float16, non_blocking=True)
B g.to("cpu", T.float64)
- g.to("cpu", T.float64, non_blocking=True)
B g.double().cpu()
B g.half().cpu()
B g.bfloat16().cpu().float()
B l.to("cpu", T.int32)
B m.cpu()
B s.copy_(g[:9].double())
B g[:9].double().copy_(s)
B v = T.empty(999, dtype=T.float16) || v.copy_(g)
B v = T.empty(999, dtype=T.float16) || v.copy_(g, non_blocking=True)
B v = pinned(T.empty(4 << 20, dtype=T.float16)) || v.copy_(G, non_blocking=True)
B v = T.rand(4 << 20, device=D, dtype=T.float16) || v.copy_(p, non_blocking=True)
B g.type(T.FloatTensor)
B g.type("torch.DoubleTensor")
B s.type(T.cuda.FloatTensor)
B s.type("torch.cuda.HalfTensor")
B g.to(s)
B s.to(g)
B l.to(s)
- g.to(h)
- g.type(T.float64)
- g.to(T.float16)
- g.double()
- g.half()
- g.bfloat16()
- g.int()
- g.bool()
- g.to(T.float8_e4m3fn)
- g.to(T.complex64)
- g.type_as(l)
B g.type_as(s)
B s.type_as(g)
- g.view(T.int32)
- h.copy_(g.double())
- l.copy_(g)
- g.to(D)
- g.cuda()
- g.cuda(non_blocking=True)
- g.to(D, copy=True)
- s.cpu()
- s.to("cpu", T.float64)
- c[:999].copy_(p[:999])
B T.tensor(2 + 3j, device=D)
B T.view_as_complex(A.view(64, 32, 2)).cpu()
B g.to("cpu", copy=True)
""",
)

DEVICE = table(
    "copies.device",
    """
- g.clone()
- A.t().contiguous()
- A[:, ::2].contiguous()
- g.detach().clone()
- G.clone()
- T.clone(g, memory_format=T.contiguous_format)
- T.empty_like(g).copy_(g)
- T.empty_like(g).copy_(z)
B g.copy_(T.tensor(3.0))
- copy.deepcopy(g)
- copy.copy(g)
- g.repeat(4)
- A.expand(3, 64, 64).contiguous()
- T.cat([g, h])
- T.stack([g, h])
- T._foreach_copy_([g, A], [h, A.clone()])
B T._foreach_copy_([g, A], [T.rand(999), T.rand(64, 64)])
B T._foreach_copy_([T.rand(999), T.rand(64, 64)], [g, A])
- v = [pinned(T.rand(999)), pinned(T.rand(64, 64))] || T._foreach_copy_([g, A], v, non_blocking=True)
- g.untyped_storage().copy_(h.untyped_storage())
- g * 2.0
- g + 1
- 1 / g
- g ** 2
- g * s[0]
- g + T.tensor(3.0)
- T.add(g, T.tensor(2.0), alpha=3)
- g.add_(s[1])
- g.div_(T.tensor(2.0))
- T.maximum(g, T.tensor(0.5))
- T.where(m, g, T.tensor(0.5))
- g < T.tensor(0.5)
- g.mul(T.scalar_tensor(2.0))
- T.tensor(2.0) * g
- T.tensor(2.0) ** g
- g.fill_(z)
- g.fill_(T.tensor(3.0))
- g.fill_(3.0)
- g.zero_()
- T.lerp(g, h, 0.3)
- T.lerp(g, h, T.tensor(0.3))
- T.zeros(3, device=D)
- T.ones_like(g)
- T.full((9,), 3.0, device=D)
- T.arange(9, device=D)
- T.linspace(0, 1, 5, device=D)
- T.eye(5, device=D)
- T.scalar_tensor(1.0, device=D)
- T.empty(3, 4, device=D)
- g.new_zeros(3)
- g.new_full((3,), 2.0)
""",
)
CASES = (*grid(), *LAYOUT, *CASTS, *DEVICE)
