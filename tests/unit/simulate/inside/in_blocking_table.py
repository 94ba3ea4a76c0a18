"""Each expression of the list measured on an H100 waits here if it waited there, and is reported if it waits."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from harness import waits_behind_a_sleep
from torch import nn

from syncagent import simulate

T = torch


def _names():
    g = T.rand(999, device="cuda") + 0.1
    pinned = T.rand(9).pin_memory()
    big_pinned = T.empty(1 << 20).pin_memory()
    names = {
        "T": T, "F": F, "nn": nn, "io": io, "copy": copy, "g": g, "s": T.rand(9), "c": T.rand(1 << 22), "p": pinned,
        "P": big_pinned, "G": T.rand(1 << 20, device="cuda"), "z": T.tensor(2.0, device="cuda"),
        "l": (T.arange(999) % 7).cuda(), "L": T.tensor([3] * 999).cuda(), "m": (T.arange(999) % 3 == 0).cuda(),
        "ci": T.tensor([1, 2, 3]), "A": (T.rand(9, 9) + 9 * T.eye(9)).cuda(),
        "w": T.rand(999, device="cuda").requires_grad_(), "A0": T.rand(9, 4, device="cuda").requires_grad_(),
        "SPD": (9 * T.eye(9)).cuda(), "scaled_step": _scaled_step, "optimizer_step": _optimizer_step,
        "lstm": _lstm, "norm_layer": _norm_layer, "packed": _packed,
        "hm": T.arange(999) % 3 == 0, "none": T.zeros(999, dtype=T.bool), "row": (T.arange(2048) % 5).cuda(),
        "long": (T.arange(2049) % 5).cuda(), "encoder": _encoder(), "batch": T.rand(2, 4, 8, device="cuda"),
        "pad": T.tensor([[False] * 4, [False, False, True, True]]).cuda(),
        "logp": T.rand(9, 1, 5, device="cuda").log(), "probs": T.rand(4, 9, device="cuda") + 0.1,
    }  # fmt: skip
    T.cuda.synchronize()
    return names


def _scaled_step():
    model, scaler = nn.Linear(4, 4).cuda(), T.amp.GradScaler("cuda")
    optimizer = T.optim.SGD(model.parameters(), lr=0.1)
    x = T.ones(2, 4, device="cuda")

    def step():
        optimizer.zero_grad()
        scaler.scale(model(x).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    return step


def _optimizer_step(kind, **settings):
    w = T.rand(9, device="cuda").requires_grad_()
    w.grad = T.ones_like(w)
    return kind([w], lr=0.1, **settings).step


def _lstm():
    model, x = nn.LSTM(3, 4).cuda(), T.rand(5, 2, 3, device="cuda")
    return lambda: model(x)[0].sum().backward()


def _norm_layer():
    model, x = nn.BatchNorm1d(4).cuda(), T.rand(5, 4, device="cuda")
    return lambda: model(x).sum().backward()


def _packed():
    x = T.rand(2, 5, 3, device="cuda")
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    return lambda: pad_packed_sequence(pack_padded_sequence(x, [5, 3], batch_first=True), batch_first=True)


def _encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, device="cuda")
    return nn.TransformerEncoder(layer, 2).eval().requires_grad_(False)


# What follows ``#`` is set up before the sleep, as a name ``f``.
WAITS = """
g.cpu()
s.cuda()
c.cuda(non_blocking=True)
p.cuda()
p.copy_(g[:9])
T.tensor([1,2],device='cuda')
T.tensor(1.,device='cuda')
g.new_tensor([1])
T.full((3,),z)
g[m]
g.clone().__setitem__(m,z)
g.clone().__setitem__(m,g[m])
g[ci]
g[[1,2]]
g[l[3]]
g[l[3]:]
g.clone().__setitem__(l,0.)
l.clone().__setitem__(ci,1)
F.one_hot(l)
T.bincount(l)
T.bincount(l,minlength=9)
T.histc(g)
T.isin(l,l)
T.equal(g,g.clone())
T.allclose(g,g)
g.any().item()
l.repeat_interleave(l)
T.unique(l)
T.unique_consecutive(l)
g.unique(dim=0)
g.masked_select(m)
T.where(m)
g.tolist()
str(z)
T.linspace(z,1,5)
g.masked_fill(m,z)
T.combinations(l[:5])
T.normal(g,g)
T.distributions.Categorical(g)
T.distributions.Normal(z,z)
T.save(g,io.BytesIO())
max(g[:2])
A[:, l[:2].tolist()]
A[:,[0,1]]
T.cov(A)
T.as_tensor([1.],device='cuda')
g[None,m]
c.to('cuda',T.half)
c.half().cuda(non_blocking=True)
g.cpu().numpy()
T.cuda.synchronize()
T.cuda.current_stream().synchronize()
T.linalg.inv(SPD)
T.linalg.cholesky(SPD)
T.linalg.solve(SPD,A)
T.linalg.svd(A)
T.linalg.eigh(SPD)
T.linalg.lu_factor(A)
T.linalg.pinv(A)
T.linalg.matrix_rank(A)
nn.utils.clip_grad_norm_([w],1.,error_if_nonfinite=True)
w[m].sum().backward()
w.masked_select(m).sum().backward()
f() # scaled_step()
F.ctc_loss(logp,T.tensor([[1,2]]),T.tensor([9]),T.tensor([2]))
F.ctc_loss(logp,L[None,:2],T.tensor([9]),T.tensor([2]))
T.istft(T.stft(g,64,window=T.ones(64,device='cuda'),return_complex=True),64,window=T.ones(64,device='cuda'))
g.clone().__setitem__(hm,0.)
g.clone().__setitem__(hm,s[0])
g.clone().__setitem__(none,0.)
A.clone().__setitem__((hm[:9],0),1.)
A.clone().__setitem__((slice(None),hm[:9]),1.)
g.clone().index_put_((hm,),g[hm],accumulate=True)
g.index_put((hm,),g[hm],accumulate=True)
w[hm].sum().backward()
A0[hm[:9]].sum().backward()
g.masked_scatter(m,w).sum().backward()
w.prod().backward()
A0.prod(1).sum().backward()
w.cumprod(0).sum().backward()
A0.cumprod(0).prod().backward()
g.numpy(force=True)
T.mode(long)
long.mode()
T.mode(long[:,None],0)
T.mode(long,out=(T.empty_like(l[0]),T.empty_like(l[0])))
encoder(batch,src_key_padding_mask=pad)
"""

RETURNS = """
T.cuda._sleep(1)
s.cuda(non_blocking=True)
p.cuda(non_blocking=True)
G.to('cpu',non_blocking=True)
P.copy_(G,non_blocking=True)
T.zeros(3,device='cuda')
g.clone().__setitem__(m,0.)
g.clone().__setitem__(m,s[0])
g[l]
F.one_hot(l,9)
T.histc(g,9,0,1)
T.isin(l,l[:3])
T.multinomial(g,2)
T.multinomial(g,2,True)
T.equal(g,g)
l.repeat_interleave(2)
L.repeat_interleave(L,output_size=2997)
T.nonzero_static(m,size=9)
T.quantile(g,.5)
T.median(g)
T.mode(l)
T.kthvalue(g,5)
T.sort(g)
T.nan_to_num(g)
g.index_copy(0,l[:1],g[:1])
g.index_add(0,l[:1],g[:1])
g.scatter(0,l,g)
g.take(l)
g.put(l,g)
T.randperm(1000,device='cuda')
T.randperm(99999,device='cuda')
T.tensor_split(g,ci)
g*s[0]
g.masked_fill(m,s[0])
g.masked_scatter(m,g)
T.cuda.empty_cache()
T.cuda.mem_get_info()
T.empty(1<<22,pin_memory=True)
s.pin_memory()
T.cuda.Stream()
T.cuda.get_rng_state()
T.poisson(g)
T.distributions.Categorical(g,validate_args=False).sample()
copy.deepcopy(g)
T.gradient(g)
T.count_nonzero(m)
T.index_select(g,0,l)
g.to('cuda')
g.copy_(g.double())
T.arange(9,device='cuda')
T.stack([z,z])
T.full((9,),3.,device='cuda')
T.where(m,g,z)
g.clamp(min=z)
g.add_(z)
g.clone().fill_(z)
g.clone().fill_(s[0])
T.multinomial(probs,2)
g[...,0]
g[T.tensor(3)]
T.bernoulli(g.clamp(0,1))
nn.MSELoss()(g,g)
T.utils.data.default_collate([g,g])
s.to('cuda',T.half,non_blocking=True)
T.linalg.inv_ex(A)
T.linalg.qr(A)
T.linalg.det(A)
T.stft(g,64,window=T.ones(64,device='cuda'),return_complex=True)
T.empty(1<<28,device='cuda')
nn.utils.clip_grad_norm_([w],1.)
f() # packed()
f() # lstm()
F.cross_entropy(A,l[:9])
F.embedding(l,A0)
F.embedding(l,A0.detach(),max_norm=1.)
F.embedding_bag(l[None],A0)
F.embedding(l,A0).sum().backward()
w.sum().backward()
A0[:0].prod(1).sum().backward()
f() # norm_layer()
w[l].sum().backward()
T.where(m,w,0.).sum().backward()
f() # optimizer_step(T.optim.SGD,momentum=.9)
f() # optimizer_step(T.optim.AdamW)
f() # optimizer_step(T.optim.AdamW,fused=True)
f() # optimizer_step(T.optim.AdamW,foreach=False)
g[hm]
w[hm].sum()
g[none]
g.clone().__setitem__(hm,g[:333])
g.clone().__setitem__(hm,z)
g.clone().index_put_((hm,),z)
g.clone().index_put_((none,),g[:0],accumulate=True)
g.clone().index_put_((l,),g,accumulate=True)
T.mode(row)
T.mode(long[:,None],1)
encoder(batch)
nn.TransformerEncoder(encoder.layers[0],1,enable_nested_tensor=False)(batch,src_key_padding_mask=pad)
"""

NOT_SIMULATED = {
    "T.nested.nested_tensor([g,g])": "nested tensors",
}

NO_META = "aten::_transformer_encoder_layer_fwd: no meta kernel"
OTHERWISE_THAN_ON_A_GPU: dict[str, str] = {}
"""Expression -> why it waits although a GPU would not, or the reverse."""


WAITS_BEFORE = {
    "T.combinations(l[:5])": (2, 14),  # which finds the pairs with nonzero_static
}
"""Expression -> the version of torch since which it is made of other ops and waits no longer."""


@pytest.fixture(scope="module")
def names():
    return _names()


def _lines(block):
    return [line for line in block.strip().splitlines() if line]


def _no_longer(line):
    return tuple(map(int, T.__version__.split(".")[:2])) >= WAITS_BEFORE.get(line, (99,))


WAITING = [line for line in _lines(WAITS) if not _no_longer(line)]
RETURNING = [*_lines(RETURNS), *filter(_no_longer, WAITS_BEFORE)]


def _call(line, names):
    expression, _, setup = (part.strip() for part in line.partition("#"))
    scope = {**names, "f": eval(setup, names)} if setup else names
    code = compile(expression, "<expression>", "eval")
    return lambda: eval(code, scope)


@pytest.mark.parametrize("line", WAITING)
def test_it_waits_as_on_an_h100(line, names, observed):
    names["w"].grad = T.ones_like(names["w"])
    call = _call(line, names)
    T.cuda.synchronize()
    observed.clear()
    call()
    reported = observed.ops
    assert reported
    before = simulate.internal_waits()
    assert waits_behind_a_sleep(call, expected=True)
    assert not simulate.internal_waits() - before


@pytest.mark.parametrize("line", RETURNING)
def test_it_returns_at_once_as_on_an_h100(line, names, observed):
    names["w"].grad = T.ones_like(names["w"])
    before = simulate.internal_waits()
    call = _call(line, names)
    T.cuda.synchronize()
    observed.clear()
    waited = waits_behind_a_sleep(call, expected=False)
    reported = [op for op in observed.ops if op != "torch.cuda.synchronize"]
    assert not reported
    if waited:
        assert simulate.internal_waits() - before, "waited without any reason"
        reasons = simulate.internal_waits() - before
        # Old versions cannot tell the shape beforehand: the device waits on its own account, and reports nothing.
        assert line in OTHERWISE_THAN_ON_A_GPU or set(reasons) == {NO_META}, reasons


@pytest.mark.parametrize("line", NOT_SIMULATED)
def test_what_is_not_simulated_says_so(line, names):
    with pytest.raises(simulate.SimulationError, match="not simulated"):
        _call(line, names)()


def test_copies_of_nothing_do_not_wait(observed):
    T.empty(0).cuda()
    T.empty(0, device="cuda").cpu()
    assert observed.waits == []
