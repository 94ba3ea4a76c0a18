"""``torch.distributed`` on the simulated device, as one rank sees it; test_distributed.py starts several."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading

import pytest
import torch
from harness import asleep, waits_behind_a_sleep
from torch import distributed as dist

from syncagent.errors import SimulationError
from syncagent.simulate import devices, over_gloo, waits
from syncagent.simulate.groups import backend_for
from syncagent.simulate.memory import flatten
from syncagent.support import log


@contextlib.contextmanager
def group(backend="nccl", **options):
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, **options)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


@pytest.fixture
def nccl():
    with group(device_id=torch.device("cuda", 0)) as made:  # without it torch warns of barriers
        yield made


def cuda(*values, **form):
    return torch.tensor(values, device="cuda", **form)


@pytest.mark.parametrize(
    ("backend", "options", "seen"),
    [
        ("nccl", {}, "nccl"),
        ("nccl", {"device_id": torch.device("cuda", 0)}, "nccl"),
        (None, {"device_id": torch.device("cuda", 0)}, "nccl"),
        (None, {}, "undefined"),
        ("cuda:nccl,cpu:gloo", {}, "cuda:nccl,cpu:gloo"),
        ("gloo", {}, "gloo"),
    ],
)
def test_the_program_sees_the_backend_that_it_asked_for(backend, options, seen):
    with group(backend, **options):
        assert dist.get_backend() == seen
        x = cuda(1.0, 2.0)
        dist.all_reduce(x)
        assert x.tolist() == [1.0, 2.0]


def test_gloo_stands_in_for_nccl_and_one_line_of_the_log_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(
        log, "get_logger", lambda: type("Logger", (), {"log": lambda _, level, text: said.append(text)})()
    )
    for _ in range(2):
        with group():
            pass
    assert len(said) == 1
    assert "gloo stands in for NCCL" in said[0]
    assert dist.is_nccl_available()


def test_options_of_nccls_are_taken():
    with group(pg_options=dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)):
        assert dist.get_world_size() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_numbers_of_every_type_are_carried(nccl, dtype):
    x = cuda(1, 0, 1).to(dtype)
    dist.all_reduce(x)
    dist.broadcast(x, 0)
    gathered = torch.empty(3, dtype=dtype, device="cuda")
    dist.all_gather([gathered], x)
    assert gathered.dtype == dtype
    assert gathered.tolist() == [1, 0, 1]


def test_other_reductions_than_sums(nccl):
    x = cuda(3.0, 5.0)
    dist.all_reduce(x, op=dist.ReduceOp.AVG)
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    assert x.tolist() == [3.0, 5.0]
    with pytest.raises(ValueError, match=r"Cannot use ReduceOp.BAND with NCCL"):
        dist.all_reduce(cuda(1), op=dist.ReduceOp.BAND)


def test_what_nccl_refuses_is_refused(nccl):
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        dist.all_reduce(torch.ones(2))
    with pytest.raises(RuntimeError, match="Tensors must be CUDA and dense"):
        dist.all_gather([torch.ones(2)], cuda(1.0, 2.0))
    with pytest.raises(ValueError, match="Tensors must be contiguous"):
        dist.all_reduce(torch.ones(2, 3, device="cuda").t())
    with pytest.raises(RuntimeError, match="recvAnysource"):
        dist.recv(cuda(1.0))


def test_the_host_waits_for_a_barrier_and_for_no_other_collective(nccl, observed):
    x = cuda(1.0, 2.0)
    whole = torch.empty(2, device="cuda")
    observed.clear()
    for call in (
        lambda: dist.all_reduce(x),
        lambda: dist.all_reduce(x, async_op=True).wait(),
        lambda: dist.broadcast(x, 0),
        lambda: dist.all_gather([whole], x),
        lambda: dist.all_to_all_single(whole, x),
    ):
        assert not waits_behind_a_sleep(call, expected=False)
    assert waits_behind_a_sleep(dist.barrier, expected=True)
    assert {op for op in observed.ops if "synchronize" not in op} == set()


def test_work_that_is_queued_before_a_collective_is_done_first_and_work_after_it_later(nccl):
    x = cuda(0.0)
    x += 0
    dist.all_reduce(x)  # the first call of each pays for its shape
    over = asleep()
    x += 1
    work = dist.all_reduce(x, async_op=True)
    assert not work.is_completed()
    assert not over.query()
    work.wait()
    x *= 2
    assert x.item() == 2
    assert work.is_completed()
    assert work.get_future().wait()[0] is x


def test_synchronizing_the_device_waits_for_collectives(nccl):
    asleep()
    work = dist.all_reduce(cuda(1.0), async_op=True)
    torch.cuda.synchronize()
    assert work.is_completed()


def test_objects_and_coalesced_calls(nccl):
    found = [None]
    dist.all_gather_object(found, {"loss": 0.5})
    assert found == [{"loss": 0.5}]
    one, two = cuda(1.0), cuda(2.0)
    with dist.distributed_c10d._coalescing_manager(device=one.device, async_ops=True) as manager:
        dist.all_reduce(one)
        dist.all_reduce(two)
    manager.wait()
    with dist.distributed_c10d._coalescing_manager():
        dist.all_reduce(one)
        dist.all_reduce(two)
    assert (one.item(), two.item()) == (1.0, 2.0)


def test_the_queues_of_a_group_that_is_gone_are_used_again(nccl):
    counts = []
    for _ in range(3):
        other = dist.new_group([0])
        dist.all_reduce(cuda(1.0), group=other)
        counts.append(len(devices.engines_of(0)))
        dist.destroy_process_group(other)
    assert counts[0] == counts[2]


def test_a_group_is_split(nccl):
    part = dist.split_group(split_ranks=[[0]])
    x = cuda(2.0)
    dist.all_reduce(x, group=part)
    assert (x.item(), dist.get_backend(part), dist.get_world_size(part)) == (2.0, "nccl", 1)


def test_a_torch_with_a_table_of_backends_finds_the_stand_in_there():
    """Since 2.15."""
    from types import SimpleNamespace

    from syncagent.simulate import groups, patches

    table = {"NCCL": "torch's own"}
    backends = SimpleNamespace(_plugins=table, _BackendPlugin=lambda make, _extended: make)
    changes = patches.begin()
    groups._put_into_table(backends)
    options = SimpleNamespace(store=dist.HashStore(), group_rank=0, group_size=1, timeout=dt.timedelta(minutes=1))
    made = table["NCCL"](options, None)
    assert isinstance(made, dist.ProcessGroupNCCL)
    made.retire()
    changes.restore()
    patches._all.remove(changes)
    assert table == {"NCCL": "torch's own"}


def test_other_backends_are_refused_by_name():
    from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers the backend

    with group("fake"), pytest.raises(SimulationError, match=r"torch\.distributed over .* is not simulated on CUDA"):
        dist.all_reduce(cuda(1.0))


@pytest.fixture
def joins():
    """What default streams have waited for collectives: when that was queued, and for how long."""
    seen = []
    waits.observe_joins(lambda *, moment_ns, waited_ns, **_: seen.append((moment_ns, waited_ns)))
    yield seen
    waits.observe_joins(None)


def test_the_stream_that_computes_reports_where_it_waits_for_a_collective(nccl, joins):
    x = cuda(1.0)
    dist.all_reduce(x)
    works = [dist.all_reduce(cuda(1.0), async_op=True) for _ in range(2)]
    torch.cuda.synchronize()
    assert len(joins) == 1
    for work in works:
        work.wait()
    torch.cuda.synchronize()
    assert [moment for moment, _ in joins] == sorted(moment for moment, _ in joins)
    assert len(joins) == 3


def test_it_also_waits_through_another_stream(nccl, joins):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = cuda(1.0)
        dist.all_reduce(x)
        done = side.record_event()
    assert joins == []
    torch.cuda.current_stream().wait_event(done)
    torch.cuda.synchronize()
    assert len(joins) == 1


def test_streams_without_collectives_are_no_joins(nccl, joins):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    assert joins == []


def test_a_barrier_is_one_in_which_the_host_waits_too(nccl, joins):
    dist.barrier(device_ids=[0])
    torch.cuda.synchronize()
    assert len(joins) == 1


def test_so_is_each_collective_of_gloo(joins):
    with group("gloo"):
        dist.all_reduce(cuda(1.0))
    assert len(joins) == 1


def test_a_join_says_how_far_the_host_is_ahead(nccl):
    seen = []
    waits.observe_joins(lambda *, caught_up, host_waited, **_: seen.append((caught_up, host_waited)))
    default = devices.engines_of(0)[0]
    torch.cuda.synchronize()
    try:
        for prepare in (
            lambda: None,
            default.retire,  # the device has passed the join before, and the program has not waited for it
            lambda: torch.cuda._sleep(100_000_000),
            lambda: None,  # the device is not there yet
            torch.cuda.synchronize,
        ):
            prepare()
            dist.all_reduce(torch.zeros(2, device="cuda"))
    finally:
        torch.cuda.synchronize()
        waits.observe_joins(None)
    assert (seen[1], seen[3], seen[4]) == ((True, False), (False, False), (True, True))


class LateGloo:
    """gloo, one of whose threads keeps the tensors for a while after it has said that it is done."""

    def __init__(self, gloo):
        self.gloo, self.held = gloo, []

    def __getattr__(self, name):
        method = getattr(self.gloo, name)

        def call(*args):
            weight = torch.ones((), requires_grad=True)
            self.held += [weight * each for each in flatten(list(args)) if isinstance(each, torch.Tensor)]
            if self.held:
                threading.Timer(0.05, self.held.clear).start()
            return method(*args)

        return call


@pytest.mark.parametrize(
    "collective",
    [
        lambda gloo, x, _: over_gloo.all_reduce(gloo, x, dist.ReduceOp.SUM),
        lambda gloo, x, _: over_gloo.all_reduce(gloo, x.bool(), dist.ReduceOp.SUM),
        lambda gloo, x, _: over_gloo.reduce(gloo, x, dist.ReduceOp.SUM, 0),
        lambda gloo, x, y: over_gloo.reduce_scatter(gloo, x, [y], dist.ReduceOp.SUM),
        lambda gloo, x, _: over_gloo.broadcast(gloo, x, 0),
        lambda gloo, x, y: over_gloo.all_gather(gloo, [x], y),
        lambda gloo, x, y: over_gloo.gather(gloo, [x], y, 0),
        lambda gloo, x, y: over_gloo.scatter(gloo, x, [y], 0),
        lambda gloo, x, y: over_gloo.all_to_all(gloo, [x], [y]),
    ],
    ids=[
        "all_reduce",
        "of booleans",
        "reduce",
        "reduce_scatter",
        "broadcast",
        "all_gather",
        "gather",
        "scatter",
        "all_to_all",
    ],
)
def test_a_collective_ends_when_no_thread_of_gloo_holds_a_tensor(nccl, collective):
    """Such a thread asks for the interpreter, and aborts the process where that is about to end."""
    gloo = LateGloo(backend_for(nccl))
    with torch.enable_grad():
        collective(gloo, torch.ones(3), torch.ones(3))
    assert gloo.held == []
