"""Reading numbers from the device in Python, and making tensors there from Python's numbers."""

from __future__ import annotations

from .case import table

READ = table(
    "scalars.read",
    """
B z.item()
B zi.item()
B g.sum().item()
B g[3].item()
B g.max().item()
B float(z)
B int(zi)
B int(z)
B bool(z)
B complex(z)
B zi.__index__()
B z.__float__()
B round(z.item(), 2)
B round(float(g.mean()), 3)
B math.sqrt(z)
B math.floor(z)
B math.isnan(z)
B abs(z).item()
B range(zi)
B [0] * int(zi)
B s.tolist()[zi]
B T.Size([zi, 2])
B T.empty(int(zi))
B T.empty(zi, device=D)
B T.zeros((zi, 2), device=D)
B g[:9].reshape(zi, 3)
B g[:9].view(-1, zi)
B A.sum(dim=zi - 2)
B g.tolist()
B z.tolist()
B A.cpu().numpy()
B A.detach().cpu().tolist()
B w.detach().cpu().numpy()
B w.sum().item()
B T.is_nonzero(z)
B z.is_nonzero()
B g.isnan().any().item()
B g.argmax().item()
B {k: v.item() for k, v in {"a": z, "b": zi}.items()}
B {zi.item(): 1}
B [v.item() for v in g[:3]]
B T.stack([v for v in g[:3]]).tolist()
B A.norm().item()
B g.mean().item() + h.mean().item()
B (g > 0.5).float().mean().item()
- k = T.tensor(3.0) || k.item()
- k = T.tensor(3) || range(k)
- s.tolist()
- float(s[0])
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
B z or zi
B z > 0 and zi > 0
B k = True || k and z > 0.1 and 3
- k = False || k and z > 0.1
B 1 if z else 2
B assert z > 0
B assert (g > 0).all(), "negative"
B while z > 1: pass
B next(v for v in g[:3] if v > 0)
B [v for v in g[:3] if v > 0]
B any(g[:3])
B all(g[:3] > 0)
B any(v > 2 for v in g[:3])
B z in g
B 3 in l
B 0.5 in g
B zi in l
B zi in [1, 2, 3]
B [zi].index(3)
B max(g[:2])
B min(g[:3])
B max(z, 0.1)
B sorted(g[:3])
B max([z, z + 1], key=float)
B z < 1 < zi
B z == 0.5 and True
B k = 5 || k if zi == 3 else 0
- z is None
- if z is not None: pass
- isinstance(z, T.Tensor)
- z == 0.5
- g == h
- z < zi
- m & m
- ~m
- z.logical_not()
- T.logical_and(z, zi)
- sum(g[:3])
- list(g[:3])
- a, b, c = g[:3]
- for v in g[:4]: v + 1
- [v * 2 for v in g[:3]]
- dict(a=z)
- tuple(A[:3])
- len(g)
- id(g)
- hash(g)
- {g: 1}
- g.any()
- m.all()
- g.isnan().any()
- abs(z)
- -z
- +z
""",
)

TEXT = table(
    "scalars.text",
    """
B str(z)
B repr(g)
B repr(A)
B str(l)
B f"{z}"
B f"{z:.3f}"
B f"{z.item():.3f}"
B f"{zi:d}"
B f"{g.mean():.2e}"
B "%.3f" % z
B "%s" % g
B "{:.2f}".format(z)
B "{}".format(z)
B format(z, ".2f")
B print(z, file=o)
B print("loss", g.mean().item(), file=o)
B print(f"{A}", file=o)
B o.write(str(w.sum()))
B import logging || logging.getLogger("corpus").error("loss %s", z)
- import logging || logging.getLogger("corpus").debug("loss %s", z)
- print(g.shape, file=o)
- f"{g.shape} {g.dtype} {g.device}"
B w.grad = g; n = nn.utils.clip_grad_norm_([w], 1.0) || f"{n:.3f}"
B T.Tensor.__repr__(z)
B T._tensor_str._str(g)
B str(nn.Parameter(g))
B k = T.empty(0, device=D) || repr([g[:3]])
- repr(T.empty(0, device=D))
- repr(nn.Linear(3, 3).to("meta"))
B k = nn.Linear(3, 3).to(D) || print(list(k.parameters()), file=o)
""",
    setup="o = io.StringIO()",
)

COMPARE = table(
    "scalars.compare",
    """
B T.equal(g, h)
B T.equal(g, g.clone())
- T.equal(g, g)
- T.equal(g, h[:3])
B g.equal(h)
B T.allclose(g, h)
B g.allclose(g)
B bool(T.isclose(g, h).all())
- T.isclose(g, h).all()
- T.isclose(g, h)
- T.eq(g, h).all()
B T.testing.assert_close(g, g.clone())
B T.testing.assert_close(z, z.clone())
B import statistics || statistics.fmean(g[:4])
B import statistics || statistics.median(g[:3])
B import numpy || numpy.float32(z)
B math.fsum(g[:3])
B math.isclose(z, 0.5)
B math.prod(g[:3]).item()
B import json || json.dumps(g[:3].tolist())
B from decimal import Decimal || Decimal(z.item())
B import collections || collections.Counter(l[:9].tolist())
""",
)

ARGUMENTS = table(
    "scalars.arguments",
    """
B g.add(h, alpha=z)
B T.add(g, h, alpha=z)
B T.addcdiv(g, g, h, value=z)
B T.addcmul(g, g, h, value=z)
B T.full((3,), z)
B T.full((3,), z, device=D)
B T.full_like(g, z)
B g.new_full((3,), z)
B T.arange(zi)
B T.arange(zi, device=D)
B T.arange(0, zi, device=D)
B T.linspace(z, 1, 5)
B T.linspace(z, 1, 5, device=D)
B T.linspace(0, 1, zi, device=D)
B T.logspace(z, 1, 5, device=D)
B F.dropout(g, p=float(z))
B F.leaky_relu(g, z)
B T.roll(g, int(zi))
B T.topk(g, zi)
B T.eye(zi, device=D)
B A.addmm(A, A, alpha=z)
- g.clamp(min=z)
- g.clamp(z, z + 1)
- T.clamp(g, 0.1, 0.9)
- T.lerp(g, h, z)
- T.pow(g, z)
- g ** z
- 2 ** z
- g * z
- g.add_(z)
- g / zi
- T.minimum(g, z)
- T.ldexp(g, zi)
- T.remainder(g, z)
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
- g.size(0)
- g.dim()
- g.is_cuda
- g.element_size() * g.nelement()
- g.storage_offset()
- w.requires_grad
- w.grad_fn
- w.is_leaf
- g._version
- z.shape == ()
- g.untyped_storage().nbytes()
- T.result_type(g, z)
- T.broadcast_shapes(g.shape, (1,))
- T.can_cast(T.float, T.int)
""",
)

MAKING = table(
    "scalars.making",
    """
B T.tensor(1.0, device=D)
B T.tensor([1, 2], device=D)
B T.tensor([[1.0, 2.0], [3.0, 4.0]], device=D)
B T.tensor(z.item(), device=D)
B T.tensor([z, z])
B T.tensor([z, 1.0], device=D)
B T.as_tensor([1.0], device=D)
B T.as_tensor(s, device=D)
B T.asarray([1, 2], device=D)
B T.asarray(s, device=D)
B import numpy as np; v = np.ones(9) || T.from_numpy(v).to(D)
B import numpy as np; v = np.ones(9) || T.as_tensor(v, device=D)
B import numpy as np; v = np.ones(9) || T.tensor(v, device=D)
B import numpy as np; v = np.float64(3) || T.tensor(v, device=D)
- import numpy as np; v = np.float64(3) || g * v
B g.new_tensor([1.0])
B g.new_tensor(3.0)
B T.tensor(range(3), device=D)
B T.tensor(s.tolist(), device=D)
B T.frombuffer(bytearray(16), dtype=T.float32).to(D)
B T.cuda.FloatTensor([1.0, 2.0])
B nn.Parameter(T.tensor([1.0], device=D))
B T.tensor(True, device=D)
- T.tensor([], device=D)
- T.as_tensor(g)
- T.asarray(g)
- T.asarray(g, copy=True)
- T.cuda.FloatTensor(3, 4)
- nn.Parameter(g)
- T.zeros_like(s, device=D)
- T.tensor(3.0)
""",
)
CASES = (*READ, *CONTROL, *TEXT, *COMPARE, *ARGUMENTS, *META, *MAKING)
