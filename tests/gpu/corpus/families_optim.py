"""Optimizers, schedulers, averages and mixed precision; every optimizer has already stepped twice."""

from __future__ import annotations

from .case import Case, table

FAMILY = "optim"

READY = """
O = T.optim
M = nn.Sequential(nn.Linear(64, 64, device=D), nn.Linear(64, 8, device=D))
def ready(name, params=None, **options):
    o = getattr(O, name)(params or M.parameters(), **options)
    for _ in range(2):
        M(A).square().mean().backward()
        o.step()
    return o
"""

# The classes that need no closure, and those whose step reads its own state on the host.
_PLAIN = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Rprop")
_READING = ("ASGD", "Adafactor")
_FUSED = ("SGD", "Adam", "AdamW")
_CAPTURABLE = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adadelta", "RMSprop", "Rprop", "ASGD")


def _step(name: str, options: str, *, waits: bool = False, needs: str = "") -> Case:
    made = f"o = ready({name!r}{options})"
    return Case(f"optim: {name}{options}", FAMILY, "o.step()", f"{READY}{made}", waits, needs)


OPTIMIZERS: tuple[Case, ...] = (
    *(_step(name, "") for name in _PLAIN),
    *(_step(name, f", foreach={way}") for name in _PLAIN for way in (True, False)),
    *(_step(name, way, waits=True) for name in _READING for way in ("", ", foreach=True", ", foreach=False")),
    *(_step(name, ", fused=True") for name in _FUSED),
    *(_step(name, ", capturable=True", needs="dev == 'cuda'") for name in _CAPTURABLE),
    *(_step(name, ", foreach=False, capturable=True", needs="dev == 'cuda'") for name in _CAPTURABLE),
    _step("SGD", ", lr=0.1, momentum=0.9, foreach=True"),
    _step("SGD", ", lr=0.1, momentum=0.9, foreach=False"),
    _step("SGD", ", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1"),
    _step("SGD", ", lr=0.1, momentum=0.9, fused=True"),
    _step("SGD", ", lr=T.tensor(0.1, device=D), fused=True"),
    _step("SGD", ", lr=T.tensor(0.1, device=D), foreach=False", waits=True),
    _step("SGD", ", lr=T.tensor(0.1, device=D), foreach=True", waits=True),
    _step("Adam", ", amsgrad=True"),
    _step("Adam", ", maximize=True, weight_decay=0.1"),
    _step("Adam", ", lr=T.tensor(0.1, device=D), capturable=True, foreach=True", needs="dev == 'cuda'"),
    _step("Adam", ", lr=T.tensor(0.1, device=D), capturable=True, foreach=False", needs="dev == 'cuda'"),
    _step("Adam", ", lr=T.tensor(0.1, device=D), fused=True"),
    _step("AdamW", ", lr=T.tensor(0.1, device=D), capturable=True, foreach=True", needs="dev == 'cuda'"),
    _step("AdamW", ", lr=T.tensor(0.1, device=D), foreach=False", waits=True),
    _step("AdamW", ", fused=True, amsgrad=True"),
    _step("RMSprop", ", centered=True, momentum=0.9"),
    _step("Adagrad", ", lr_decay=0.1, foreach=True"),
    _step("Adam", ", differentiable=False, foreach=True, betas=(0.8, 0.9)"),
)

RARE: tuple[Case, ...] = table(
    FAMILY,
    """
    B o = O.LBFGS(M.parameters(), max_iter=2) || o.step(closure)
    B o = O.LBFGS(M.parameters(), max_iter=2, line_search_fn="strong_wolfe") || o.step(closure)
    B o = O.LBFGS(M.parameters(), max_iter=2); o.step(closure) || o.step(closure)
    - o = ready("SGD") || o.step(closure)
    - o = ready("Muon", [M[0].weight]) if hasattr(O, "Muon") else ready("SGD") || o.step()
    - o = ready("Adam") || o.zero_grad()
    - o = ready("Adam") || o.zero_grad(set_to_none=False)
    - o = ready("SGD", foreach=False) || o.zero_grad(set_to_none=False)
    - o = ready("Adam") || o.state_dict()
    - o = ready("Adam"); d = o.state_dict() || o.load_state_dict(d)
    B o = ready("Adam"); d = copy.deepcopy(o.state_dict()); move(d, "cpu") || o.load_state_dict(d)
    B o = ready("Adam"); d = o.state_dict() || move(d, "cpu")
    - o = ready("Adam"); d = o.state_dict() || copy.deepcopy(d)
    B o = ready("Adam"); d = o.state_dict() || T.save(d, io.BytesIO())
    B o = ready("Adam", capturable=dev == "cuda") || str(o.state_dict())
    - o = ready("Adam") || o.add_param_group({"params": [w]})
    - o = ready("Adam") || O.Adam(M.parameters())
    - o = ready("SGD"); r = O.lr_scheduler.StepLR(o, 1) || r.step()
    - o = ready("SGD"); r = O.lr_scheduler.CosineAnnealingLR(o, 9) || r.step()
    - o = ready("SGD"); r = O.lr_scheduler.OneCycleLR(o, 0.1, 99) || r.step()
    - o = ready("SGD"); r = O.lr_scheduler.LambdaLR(o, lambda n: 0.9) || r.step()
    B o = ready("SGD"); r = O.lr_scheduler.ReduceLROnPlateau(o) || r.step(M(A).mean())
    - o = ready("SGD"); r = O.lr_scheduler.ReduceLROnPlateau(o) || r.step(0.5)
    - o = ready("SGD", lr=T.tensor(0.1, device=D)); r = O.lr_scheduler.StepLR(o, 1) || r.step()
    - o = ready("SGD"); r = O.lr_scheduler.StepLR(o, 1) || r.get_last_lr()
    - a = O.swa_utils.AveragedModel(M); a.update_parameters(M) || a.update_parameters(M)
    - a = ema(M); a.update_parameters(M) || a.update_parameters(M)
    - a = O.swa_utils.AveragedModel(M, use_buffers=True); a.update_parameters(M) || a.update_parameters(M)
    - b = [q.detach().clone() for q in M.parameters()] || T._foreach_lerp_(b, [q.detach() for q in M.parameters()], 0.1)
    - b = [g, h] || T._foreach_norm(b)
    - b = [g, h] || T._foreach_mul_(b, 2.0)
    - b = [g, h] || T._foreach_mul_(b, z)
    - b = [g, h] || T._foreach_addcdiv_(b, b, b, 0.1)
    - b = [g, h] || T._foreach_copy_(b, [h, g])
    B b = [g, h] || T._foreach_copy_(b, [T.rand(999), T.rand(999)])
    - o = ready("AdamW") || closure(); nn.utils.clip_grad_norm_(M.parameters(), 1.0); o.step(); o.zero_grad()
    - o = ready("AdamW") || closure(); closure(); o.step()
    B o = ready("AdamW") || closure().item(); o.step()
    B o = ready("AdamW") || closure(); o.step() if not M[0].weight.grad.isnan().any() else None
    - T.nn.utils.clip_grad_norm_(M.parameters(), 1.0)
    """,
    setup=READY
    + """
def closure():
    M.zero_grad()
    L = M(A).square().mean()
    L.backward()
    return L
def move(d, where):
    for q in d["state"].values():
        q.update({k: v.to(where) for k, v in q.items() if T.is_tensor(v)})
def ema(m):
    return O.swa_utils.AveragedModel(m, multi_avg_fn=O.swa_utils.get_ema_multi_avg_fn(0.9))
""",
)

SCALER: tuple[Case, ...] = table(
    "amp",
    """
    - k.scale(M(A).mean())
    - L = k.scale(M(A).mean()) || L.backward()
    - k.scale(M(A).mean()).backward() || k.unscale_(o)
    B k.scale(M(A).mean()).backward() || k.step(o)
    B k.scale(M(A).mean()).backward(); k.unscale_(o) || k.step(o)
    B k.scale(M(A).mean() * float("inf")).backward() || k.step(o)
    - k.scale(M(A).mean()).backward() || k.step(f)
    - k.scale(M(A).mean() * float("inf")).backward() || k.step(f)
    - k.scale(M(A).mean()).backward(); k.step(o) || k.update()
    - k.scale(M(A).mean() * float("inf")).backward(); k.step(o) || k.update()
    B k.update(T.tensor(8.0, device=D)) || k.get_scale()
    B k.get_scale()
    - k.update(4.0)
    - k.update(z)
    B k.state_dict()
    - d = k.state_dict() || k.load_state_dict(d)
    B k.scale(M(A).mean()).backward(); k.step(o); k.update()
    - k.scale(M(A).mean()).backward(); k.step(f); k.update()
    B k.scale(M(A).mean()).backward(); k.unscale_(o); nn.utils.clip_grad_norm_(M.parameters(), 1.0); k.step(o)
    - k.is_enabled(), k.get_growth_factor()
    - k = T.amp.GradScaler(dev, enabled=False) || k.scale(M(A).mean()).backward(); k.step(o); k.update()
    - T.autocast(dev, T.bfloat16)(M)(A)
    - T.autocast(dev, T.float16)(M)(A)
    - T.autocast(dev, T.bfloat16)(nn.Conv2d(3, 8, 3, device=D))(x4)
    - L = T.autocast(dev, T.float16)(M)(A).float().mean() || L.backward()
    - T.autocast(dev, T.bfloat16, cache_enabled=False)(M)(A)
    B T.autocast(dev, T.bfloat16)(M)(A).mean().item()
    """,
    setup="""
M = nn.Linear(64, 8, device=D)
o = T.optim.SGD(M.parameters(), lr=0.1)
f = T.optim.AdamW(M.parameters(), fused=True)
k = T.amp.GradScaler(dev)
k.scale(M(A).mean()).backward()
k.step(o)
k.update()
k.scale(M(A).mean()).backward()
k.step(f)
k.update()
o.zero_grad()
""",
)

CASES: tuple[Case, ...] = OPTIMIZERS + RARE + SCALER
