"""Calls that ask CUDA to wait, calls to CUDA that do not, streams, and the state of modules on its way in and out."""

from __future__ import annotations

from .case import Case, table

WAITS = table(
    "explicit.wait",
    """
B T.cuda.synchronize()
B T.cuda.synchronize(D)
B T.cuda.synchronize(0)
B T.accelerator.synchronize()
B T.cuda.current_stream().synchronize()
B T.cuda.default_stream().synchronize()
B T.accelerator.current_stream().synchronize()
B T._C._cuda_synchronize()
B e.record(); e.synchronize()
B e.record(T.cuda.current_stream()); e.synchronize()
B e = T.cuda.Event(blocking=True) || e.record(); e.synchronize()
B e = T.Event(device=D) || e.record(); e.synchronize()
B T.cuda.current_stream().record_event().synchronize()
B e.record(); f.record(); f.synchronize(); e.elapsed_time(f)
B q.wait_stream(T.cuda.current_stream()); q.synchronize()
B e.record(); q.wait_event(e); q.synchronize()
B k = T.empty(1 << 26, device=D); del k || T.cuda.empty_cache()
B k = T.empty(1 << 26, device=D); del k || T.accelerator.empty_cache()
- T.cuda.empty_cache() || T.cuda.empty_cache()
- T.cuda.empty_cache() || T.empty(1 << 27, device=D)
~ e.record(); T.cuda.synchronize() || e.synchronize()
- e.record(); f.record(); T.cuda.synchronize() || e.elapsed_time(f)
~ e.synchronize()
- e.query()
- e.record(); e.query()
- T.cuda.current_stream().query()
~ q.synchronize()
- q.query()
~ T.Stream(device=D).synchronize()
- q.wait_stream(T.cuda.current_stream())
- T.cuda.current_stream().wait_stream(q)
- e.record(); q.wait_event(e)
- e.record(); e.wait(q)
- T.cuda.current_stream().record_event()
- with T.cuda.stream(q): g * 2
~ with T.cuda.stream(q): z.item()
~ with T.cuda.stream(q): g.cpu()
~ with T.cuda.stream(q): s.to(D)
~ with T.cuda.stream(q): T.nonzero(m)
- with q: g + 1
B with T.cuda.stream(q): q.wait_stream(T.cuda.default_stream()); z.item()
- g.record_stream(q)
- T.cuda.Stream()
- T.cuda.Event(enable_timing=True)
""",
    setup="q = T.cuda.Stream(); e, f = T.cuda.Event(enable_timing=True), T.cuda.Event(enable_timing=True)",
)


def aside(call: str, *, waits: bool, elsewhere: bool = False) -> Case:
    """A call made while another stream, ``q``, sleeps."""
    family = "explicit.stream"
    prepared = "q = T.cuda.Stream(); e = T.cuda.Event()"
    return Case(f"{family}: q sleeps; {call}", family, call, prepared, waits, stream="q", elsewhere=elsewhere)


ASIDE = (
    aside("q.synchronize()", waits=True),
    aside("T.cuda.synchronize()", waits=True),
    aside("e.record(q); e.synchronize()", waits=True),
    aside("with T.cuda.stream(q): z.item()", waits=True),
    aside("with T.cuda.stream(q): g.cpu()", waits=True),
    aside("with T.cuda.stream(q): T.nonzero(m)", waits=True),
    aside("with T.cuda.stream(q): s.to(D)", waits=True),
    aside("T.cuda.current_stream().wait_stream(q); z.item()", waits=True),
    aside("q.query()", waits=False),
    aside("T.cuda.current_stream().synchronize()", waits=False, elsewhere=True),
    aside("z.item()", waits=False, elsewhere=True),
    aside("g.cpu()", waits=False, elsewhere=True),
    aside("s.to(D)", waits=False, elsewhere=True),
    aside("T.nonzero(m)", waits=False, elsewhere=True),
    aside("T.cuda.current_stream().wait_stream(q)", waits=False),
    aside("with T.cuda.stream(q): g.mul_(2)", waits=False),
)

CALLS = table(
    "explicit.call",
    """
- T.cuda.memory_allocated()
- T.cuda.memory_reserved()
- T.cuda.max_memory_allocated()
- T.cuda.memory_stats()
- T.cuda.memory_summary()
- T.cuda.memory_snapshot()
- T.cuda.reset_peak_memory_stats()
- T.cuda.mem_get_info()
- T.cuda.set_device(0)
- T.cuda.current_device()
- T.cuda.device_count()
- T.cuda.is_available()
- T.cuda.get_device_properties(0)
- T.cuda.get_device_name()
- T.cuda.get_device_capability()
- with T.cuda.device(0): g * 2
- T.cuda.current_stream().cuda_stream
- s.is_pinned()
- p.is_pinned()
- k = T.empty(1 << 20, pin_memory=True); del k || T.empty(1 << 20, pin_memory=True)
- k = s.pin_memory(); del k || s.pin_memory()
- k = T.empty(1 << 22, device=D); del k || T.empty(1 << 22, device=D)
- k = T.empty(1 << 22, device=D) || del k
- T.cuda.nvtx.range_push("a"); T.cuda.nvtx.range_pop()
- T.cuda.nvtx.mark("a")
- with T.cuda.nvtx.range("a"): g * 2
- with T.profiler.record_function("a"): g * 2
- with T.autograd.profiler.record_function("a"): g * 2
- T.cuda.get_rng_state()
- k = T.cuda.get_rng_state() || T.cuda.set_rng_state(k)
- T.cuda.manual_seed(3)
- T.cuda.manual_seed_all(3)
- T.manual_seed(3)
- T.cuda.initial_seed()
- T.Generator(device=D)
- T.Generator(device=D).manual_seed(3)
- k = T.Generator(device=D) || k.get_state()
- k = T.Generator(device=D) || T.rand(9, device=D, generator=k)
- with T.random.fork_rng(devices=[0]): T.rand(3, device=D)
- T.from_dlpack(g)
- T.utils.dlpack.from_dlpack(T.utils.dlpack.to_dlpack(g))
- g.__cuda_array_interface__
- T.cuda.graph_pool_handle()
- f = T.cuda.make_graphed_callables(nn.Linear(64, 64).to(D), (A.clone(),)) || f(A)
""",
)

GRAPH = table(
    "explicit.graph",
    """
- k.replay()
- g.copy_(h); k.replay(); y.clone()
B k.replay(); y.sum().item()
""",
    setup="k = T.cuda.CUDAGraph()\nwith T.cuda.graph(k):\n    y = g * 2 + 1",
)

STATE = table(
    "explicit.state",
    """
B T.save(g, io.BytesIO())
B T.save({"a": g, "b": A}, io.BytesIO())
B T.save(n.state_dict(), io.BytesIO())
B pickle.dumps(g)
B b = pickle.dumps(g) || pickle.loads(b)
B b = io.BytesIO(); T.save(g, b); b.seek(0) || T.load(b)
B b = io.BytesIO(); T.save(g, b); b.seek(0) || T.load(b, map_location=D)
B b = io.BytesIO(); T.save(s, b); b.seek(0) || T.load(b, map_location=D)
- b = io.BytesIO(); T.save(g, b); b.seek(0) || T.load(b, map_location="cpu")
- b = io.BytesIO(); T.save(s, b); b.seek(0) || T.load(b)
B {k: v.cpu() for k, v in n.state_dict().items()}
- {k: v.to("cpu", non_blocking=True) for k, v in n.state_dict().items()}
- n.state_dict()
- copy.deepcopy(n)
- copy.deepcopy(n.state_dict())
B nn.Linear(4, 4).to(D)
B nn.Linear(4, 4).cuda()
- nn.Linear(4, 4).to(D, non_blocking=True)
- nn.Linear(4, 4, device=D)
B n.cpu()
B n.to("cpu")
- n.to(D)
- n.half()
- n.to(T.bfloat16)
- n.to_empty(device=D)
B k = nn.Linear(64, 64).state_dict() || n.load_state_dict(k)
- k = copy.deepcopy(n.state_dict()) || n.load_state_dict(k)
- k = copy.deepcopy(n.state_dict()) || n.load_state_dict(k, assign=True)
B k = nn.Linear(4, 4) || k.weight.data = k.weight.data.to(D)
- g.data = h
- g.set_(h)
- g.set_(h.untyped_storage(), 0, (9,))
B g.untyped_storage().cpu()
B g.untyped_storage()[0]
B T.rand(999).untyped_storage().cuda()
B k = T.rand(999).untyped_storage() || g.untyped_storage().copy_(k)
B k = T.rand(999).untyped_storage() || k.copy_(g.untyped_storage())
- g.untyped_storage().clone()
- g.untyped_storage().data_ptr()
- g.share_memory_()
- g.resize_(9)
- g.requires_grad_()
- T.utils.data.default_collate([g, h])
B T.utils.data.default_collate([1.0, 2.0]).to(D)
- nn.utils.parameters_to_vector(n.parameters())
- n.zero_grad()
B sum(v.norm().item() for v in n.parameters())
""",
    setup="n = nn.Linear(64, 64).to(D)",
)
CASES = (*WAITS, *ASIDE, *CALLS, *GRAPH, *STATE)
