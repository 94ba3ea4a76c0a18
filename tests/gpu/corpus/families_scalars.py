"""Reading numbers from the device in Python, openly or behind a test, a comparison, a text or an argument."""

from __future__ import annotations

from .case import table

READ = table(
    "scalars.read",
    """
B z.item()
B zi.item()
B g.sum().item()
B g.max().item()
B float(z)
B int(zi)
B bool(z)
B complex(z)
B zi.__index__()
B round(z.item(), 2)
B round(float(g.mean()), 3)
B math.sqrt(z)
B math.isnan(z)
B range(zi)
B [0] * int(zi)
B s.tolist()[zi]
B T.Size([zi, 2])
B T.empty(int(zi))
B T.zeros((zi, 2), device=D)
B g[:9].reshape(zi, 3)
B g[:9].view(-1, zi)
B A.sum(dim=zi - 2)
B g.tolist()
B A.cpu().numpy()
B w.detach().cpu().numpy()
B w.sum().item()
B T.is_nonzero(z)
B g.argmax().item()
B {k: v.item() for k, v in {"a": z, "b": zi}.items()}
B [v.item() for v in g[:3]]
B A.norm().item()
B (g > 0.5).float().mean().item()
- k = T.tensor(3.0) || k.item()
- k = T.tensor(3) || range(k)
- s.tolist()
- bool(s.sum() > 0)
""",
)

CONTROL = table(
    "scalars.control",
    """
B if z: pass
B if z > 0.1: pass
B if not z: pass
B if g.isnan().any(): pass
B if (g > 0).all(): pass
B if m.any(): pass
B if T.isfinite(g).all().item(): pass
B not z
B z and zi
B k = True || k and z > 0.1 and 3
B 1 if z else 2
B assert (g > 0).all(), "negative"
B while z > 1: pass
B next(v for v in g[:3] if v > 0)
B [v for v in g[:3] if v > 0]
B any(g[:3])
B all(g[:3] > 0)
B z in g
B 3 in l
B zi in l
B zi in [1, 2, 3]
B [zi].index(3)
B max(g[:2])
B sorted(g[:3])
B max([z, z + 1], key=float)
B z < 1 < zi
B z == 0.5 and True
B k = 5 || k if zi == 3 else 0
- z is None
- z == 0.5
- g == h
- z.logical_not()
- sum(g[:3])
- list(g[:3])
- a, b, c = g[:3]
- for v in g[:4]: v + 1
- [v * 2 for v in g[:3]]
- tuple(A[:3])
- len(g)
- id(g)
- hash(g)
- g.any()
- g.isnan().any()
- abs(z)
""",
)

TEXT = table(
    "scalars.text",
    """
B str(z)
B repr(g)
B repr(A)
B f"{z}"
B f"{z:.3f}"
B f"{z.item():.3f}"
B f"{g.mean():.2e}"
B "%s" % g
B "{:.2f}".format(z)
B format(z, ".2f")
B print(z, file=o)
B print("loss", g.mean().item(), file=o)
B o.write(str(w.sum()))
B k = logging.Logger("k"); k.addHandler(logging.StreamHandler(o)) || k.error("loss %s", z)
- k = logging.Logger("k", 20); k.addHandler(logging.StreamHandler(o)) || k.debug("loss %s", z)
- print(g.shape, file=o)
- f"{g.shape} {g.dtype} {g.device}"
B w.grad = g; n = nn.utils.clip_grad_norm_([w], 1.0) || f"{n:.3f}"
B T._tensor_str._str(g)
B str(nn.Parameter(g))
B repr([g[:3]])
- repr(T.empty(0, device=D))
- repr(nn.Linear(3, 3).to("meta"))
B k = nn.Linear(3, 3).to(D) || print(list(k.parameters()), file=o)
""",
    setup="import logging; o = io.StringIO()",
)

COMPARE = table(
    "scalars.compare",
    """
B T.equal(g, h)
B T.equal(g, g.clone())
- T.equal(g, g)
B T.allclose(g, h)
B bool(T.isclose(g, h).all())
- T.isclose(g, h).all()
- T.isclose(g, h)
- T.eq(g, h).all()
B T.testing.assert_close(g, g.clone())
B import statistics || statistics.fmean(g[:4])
B import statistics || statistics.median(g[:3])
B math.fsum(g[:3])
B math.prod(g[:3]).item()
B import collections || collections.Counter(l[:9].tolist())
""",
)

ARGUMENTS = table(
    "scalars.arguments",
    """
B g.add(h, alpha=z)
B T.add(g, h, alpha=z)
B T.addcdiv(g, g, h, value=z)
B T.full((3,), z, device=D)
B T.full_like(g, z)
B g.new_full((3,), z)
B T.arange(zi)
B T.arange(zi, device=D)
B T.linspace(z, 1, 5, device=D)
B T.linspace(0, 1, zi, device=D)
B T.logspace(z, 1, 5, device=D)
B F.dropout(g, p=float(z))
B F.leaky_relu(g, z)
B T.topk(g, zi)
B T.eye(zi, device=D)
B A.addmm(A, A, alpha=z)
- g.clamp(min=z)
- g.clamp(z, z + 1)
- T.lerp(g, h, z)
- T.pow(g, z)
- g ** z
- 2 ** z
- g * z
- g.add_(z)
- T.ldexp(g, zi)
- T.add(g, h, alpha=2.0)
""",
)

META = table(
    "scalars.meta",
    """
- g.shape
- g.numel()
- T.numel(g)
- g.dtype
- g.stride()
- g.is_contiguous()
- g.data_ptr()
- T.is_tensor(g)
- T.is_floating_point(g)
- w.grad_fn
- g.untyped_storage().nbytes()
""",
)

CASES = (*READ, *CONTROL, *TEXT, *COMPARE, *ARGUMENTS, *META)
