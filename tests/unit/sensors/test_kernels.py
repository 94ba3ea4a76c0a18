"""Python kernels around the ops that may wait: what they report, and that they change nothing else."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from dataclasses import replace

import pytest
import torch

from syncagent import SyncKind, allow
from syncagent.policy import Policy
from syncagent.rules.predicates import STAGED_BYTES
from syncagent.rules.rule import Rule
from syncagent.rules.table import RULES
from syncagent.sensors import hooked_op
from syncagent.settings import sources
from syncagent.torchbridge import dispatcher
from tests.unit.tools import Kernels

SHAPE, SCALAR, CHECK = SyncKind.DYNAMIC_SHAPE, SyncKind.SCALAR_READ, SyncKind.CHECK
H2D, D2H = SyncKind.COPY_H2D, SyncKind.COPY_D2H

X = torch.tensor([[1.0, 0.0, 3.0], [0.0, 5.0, 0.0]])
MASK = X > 0
ROW = torch.tensor([0])
COUNTS = torch.tensor([2, 0, 1])
POSITIVE = torch.tensor([[2.0, 0.5], [0.5, 1.0]])


def fresh():
    return X.clone()


def assigned(index, value):
    result = fresh()
    result[index] = value
    return result


LONG = torch.arange(2049.0) % 5

WAITS = {
    # what the user writes: (call, op, kind)
    "item": (lambda: X.sum().item(), "aten::_local_scalar_dense", SCALAR),
    "bool": (lambda: bool(X.any()), "aten::_local_scalar_dense", SCALAR),
    "nonzero": (lambda: X.nonzero(), "aten::nonzero", SHAPE),
    "argwhere": (lambda: torch.argwhere(X), "aten::nonzero", SHAPE),
    "where of a condition": (lambda: torch.where(MASK), "aten::nonzero", SHAPE),
    "nonzero out": (lambda: torch.nonzero(X, out=torch.empty(0, dtype=torch.int64)), "aten::nonzero", SHAPE),
    "unique": (lambda: X.unique(), "aten::_unique2", SHAPE),
    "unique along a dimension": (lambda: X.unique(dim=0), "aten::unique_dim", SHAPE),
    "unique_consecutive": (lambda: torch.unique_consecutive(X), "aten::unique_consecutive", SHAPE),
    "bincount": (lambda: torch.bincount(COUNTS), "aten::bincount", SHAPE),
    "index by a mask": (lambda: X[MASK], "aten::index", SHAPE),
    "index by a mask of a row": (lambda: X[:, MASK[0]], "aten::index", SHAPE),
    "assignment by a mask": (lambda: assigned(MASK, torch.ones(3)), "aten::index_put_", SHAPE),
    "cholesky": (lambda: torch.linalg.cholesky(POSITIVE), "aten::_linalg_check_errors", CHECK),
    "eigh": (lambda: torch.linalg.eigh(POSITIVE), "aten::_linalg_eigh", CHECK),
    "mode of a long row": (lambda: LONG.mode(), "aten::mode", SyncKind.OTHER),
    "mode of long columns": (lambda: LONG[:, None].mode(0), "aten::mode", SyncKind.OTHER),
    "mode out": (lambda: torch.mode(LONG, out=(torch.empty(()), torch.empty((), dtype=torch.int64))), "aten::mode",
                 SyncKind.OTHER),
}  # fmt: skip

PASSES = {
    "arithmetic": lambda: X * 2 + X / 3 - X**2,
    "index by integers": lambda: X[torch.tensor([1, 0])],
    "index by an integer and a slice": lambda: X[1, 0:2],
    "assignment by integers": lambda: assigned(torch.tensor([1]), torch.ones(3)),
    "where of two": lambda: torch.where(MASK, X, 0.0),
    "masked_fill": lambda: X.masked_fill(MASK, 7.0),
    "equal to itself": lambda: X.equal(X),
    "mode of short rows": lambda: (LONG[1:].mode(), LONG[:, None].mode(1), LONG[:0].view(0, 4096).mode(1)),
    "unique of nothing": lambda: torch.empty(0).unique(),
    "copy on the device": lambda: X.clone().copy_(X),
    "cast": lambda: X.half().double(),
    "a loss": lambda: torch.nn.functional.cross_entropy(X, torch.tensor([0, 1])),
}


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


WITHOUT_HOST_TIME = [replace(rule, host_us=0.0) for rule in RULES]


@pytest.fixture
def sensor(host):
    """``sensor(rules)``: kernels by themselves; taken off at the end."""
    made = []

    def make(rules=RULES, *, hot=False):
        made.append(Kernels(map(host.rule, rules), copies="all" if hot else "off"))
        made[-1].start()
        return made[-1]

    yield make
    for sensor in made:
        sensor.stop()


# --- what is reported -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_one_event_of_its_op_and_kind(agent, name):
    """The outermost op is what the user wrote, however many ops inside prove the wait."""
    call, op, kind = WAITS[name]
    call()
    assert [(event.op, event.kind) for event in agent.events()] == [(op, kind)]


@pytest.mark.parametrize("name", PASSES)
def test_what_does_not_wait_is_no_event(agent, name):
    """The same ops, called so that they need nothing from the device."""
    PASSES[name]()
    assert agent.events() == ()


@pytest.mark.parametrize("source", ["meta", "cpu"])
def test_a_copy_that_stays_on_the_device_is_passed_on_unasked(source):
    """The keys of the call say so; a copy from the host has a key of the host's as well."""
    asked = []

    def proves(args, _kwargs):
        asked.append(args[1].device.type)

    rule = Rule("aten::copy_", proves, proves, "as in the table", keys=("Meta",), hot=True)
    sensor = Kernels([rule], copies="all", device_key=None)
    sensor.start()
    try:
        torch.empty(3, device="meta").copy_(torch.empty(3, device=source))
    finally:
        sensor.stop()
    assert asked == ([] if source == "meta" else ["cpu"])


def test_masked_select_is_named_as_the_user_wrote_it(agent):
    """It is indexing by a mask inside, in one device's kernel or above it."""
    X.masked_select(MASK)
    [event] = agent.events()
    assert (event.op in {"aten::masked_select", "aten::nonzero"}, event.kind) == (True, SHAPE)


def test_copies_are_named_by_their_direction(agent, host):
    """From the host, to the host; a copy on the device is none, and neither is an empty one."""
    there, here = torch.zeros(3), host(torch.ones(3))
    there.copy_(here)
    here.copy_(there)
    torch.zeros(0).copy_(host(torch.ones(0)))
    assert [(event.op, event.kind) for event in agent.events()] == [("aten::copy_", H2D), ("aten::copy_", D2H)]


def test_a_small_non_blocking_copy_from_pageable_memory_does_not_wait(agent, host):
    """The driver stages up to a limit and returns; beyond that it may wait, ``non_blocking`` or not."""
    small, large = (host(torch.zeros(size, dtype=torch.uint8)) for size in (STAGED_BYTES, STAGED_BYTES + 1))
    torch.empty_like(small).copy_(small, non_blocking=True)
    assert agent.events() == ()
    torch.empty_like(large).copy_(large, non_blocking=True)
    assert [event.kind for event in agent.events()] == [H2D]


def test_a_list_assigned_or_an_index_on_the_host_is_a_copy(agent, host):
    """``x[[1, 0]]`` hides a copy of the index."""
    X[host(torch.tensor([1, 0]))]
    assert [(event.op, event.kind) for event in agent.events()] == [("aten::index", H2D)]


def test_a_value_on_the_host_assigned_to_an_element_is_a_copy(agent, host, line_of):
    """``x[1, 2] = value`` waits until the value is over there."""
    x, value = fresh(), host(torch.tensor(9.0))
    x[1, 2] = value  # <- assigns a value
    [event] = agent.events()
    assert (event.op, event.kind, event.site.line) == ("aten::copy_", H2D, line_of("assigns a value"))
    assert x[1, 2] == 9.0


def test_an_event_has_the_shapes_of_its_tensors(agent):
    """The op's own arguments: for an index, the tensor and what it was indexed with."""
    X[MASK]
    [event] = agent.events()
    assert event.shapes == ((2, 3), (2, 3))
    assert (event.device, event.stream, event.sensor) == ("cuda:0", 0, "kernels")


def test_an_op_is_counted_once_when_it_calls_another_that_waits(sensor, monkeypatch):
    """With a clock that ticks once a look: the stall of ``x[mask]`` is that of the ``nonzero`` inside, not both."""
    ticks = iter(range(1000, 1_000_000, 1000))
    monkeypatch.setattr(hooked_op, "_now", lambda: next(ticks))
    watching = sensor(WITHOUT_HOST_TIME)
    X[MASK]
    torch.nonzero(X)
    indexed, plain = watching.seen()
    assert (indexed.context.op, plain.context.op) == ("aten::index", "aten::nonzero")
    assert indexed.stall_ns == plain.stall_ns == 1000


def test_the_ops_own_time_on_the_host_is_no_stall(sensor, monkeypatch):
    """The shortest call so far is taken off, but no more than the rule allows for; all of that after a long wait."""
    lasts = iter([30_000, 10_000, 500_000, 90_000_000])
    clock = [0]

    def now():
        clock[0] += next(lasts) if now.inside else 1_000_000_000
        now.inside = not now.inside
        return clock[0]

    now.inside = False
    monkeypatch.setattr(hooked_op, "_now", now)
    [rule] = [rule for rule in RULES if rule.op == "aten::nonzero"]
    watching = sensor([replace(rule, host_us=20.0)])
    for _ in range(4):
        X.nonzero()
    assert [event.stall_ns for event in watching.seen()] == [10_000, 0, 490_000, 89_980_000]


def test_an_op_that_waits_twice_is_one_event_with_both_stalls(sensor, monkeypatch):
    """Two masks in one index are two ``nonzero`` inside."""
    ticks = iter(range(1000, 1_000_000, 1000))
    monkeypatch.setattr(hooked_op, "_now", lambda: next(ticks))
    watching = sensor(WITHOUT_HOST_TIME)
    X[torch.tensor([True, True]), torch.tensor([True, False, True])]
    [both] = watching.seen()
    assert (both.context.op, both.kind, both.stall_ns) == ("aten::index", SHAPE, 2000)


def test_ops_on_every_thread_are_seen(agent_of_all_threads):
    """Kernels belong to the dispatcher, not to a thread; no thread's events are lost."""
    barrier = threading.Barrier(8)

    def work():
        barrier.wait()
        for _ in range(25):
            X.nonzero()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(agent_of_all_threads.events()) == 200


def test_threads_that_begin_at_the_same_moment_all_count(cpu_agent):
    """A thread makes its buffer at its first sync, while others do the same."""
    agent = cpu_agent(detail="syncs")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            barrier = threading.Barrier(10)

            def work(barrier=barrier):
                barrier.wait()
                X.nonzero()

            threads = [threading.Thread(target=work) for _ in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(agent.events()) == 200


def test_ops_of_other_devices_pass_through(host):
    """The kernels are where calls for every backend pass; those for other backends are left alone."""
    watching = Kernels(copies="all", device_key=None)  # watches CUDA, and there is none
    watching.start()
    try:
        for call, _, _ in WAITS.values():
            call()
        assert X.clone().copy_(X).equal(X)
        meta = X.to("meta")
        assert meta.copy_(X).device.type == "meta"
        with pytest.raises((NotImplementedError, RuntimeError)):
            meta.sum().item()
    finally:
        watching.stop()
    assert (watching.seen(), watching.recorder.faults.sentences) == ([], [])


@pytest.mark.parametrize(
    ("op", "raised"),
    [
        (lambda: torch.linalg.inv(torch.zeros(2, 2)), "singular"),
        (lambda: torch.repeat_interleave(torch.tensor([2, -1])), "negative"),
    ],
)
def test_an_ops_own_error_comes_out_where_the_check_for_a_graph_capture_fails(host, op, raised):
    """The program has to see what its op raised; that a part of the agent failed is for the report."""

    def fails():
        raise OSError("no such capture")

    sensor = Kernels(map(host.rule, RULES), capturing=fails)
    sensor.start()
    try:
        with pytest.raises(RuntimeError, match=raised):
            op()
    finally:
        sensor.stop()
    assert "the check for a graph capture" in " ".join(sensor.recorder.faults.sentences)


# --- nothing else changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WAITS, *PASSES])
def test_results_are_the_same_with_and_without(cpu_agent, name):
    """Values, dtypes and shapes, under both details."""
    call = WAITS[name][0] if name in WAITS else PASSES[name]
    bare = call()
    for detail in ("ops", "syncs"):
        agent = cpu_agent(detail=detail, policy="observe", copies="all")
        watched = call()
        agent.stop()
        syncagent_release(agent)
        assert same(bare, watched)


def syncagent_release(agent):
    from syncagent.runtime.process import release

    release(agent)


NUMBERS = {
    "an element": lambda: _element(1.5),
    "an element of another type": lambda: _element(2),
    "a flag": lambda: _element(True),
    "a row": lambda: assigned(1, 4.0),
    "a slice": lambda: assigned(slice(0, 1), 3),
    "by a mask": lambda: assigned(MASK, 5),
    "by integers": lambda: assigned(torch.tensor([1]), 6.5),
    "in-place arithmetic": lambda: fresh().add_(1).mul_(2.5),
    "fill with a tensor": lambda: fresh().masked_fill_(MASK, torch.tensor(3.0)),
    "integers": lambda: torch.zeros(3, dtype=torch.int64).index_fill_(0, torch.tensor([1]), 7),
    "complex": lambda: torch.zeros(2, dtype=torch.complex64).index_put_((torch.tensor([0]),), torch.tensor(1j)),
    "an element of booleans": lambda: _element(True, torch.zeros(2, 3, dtype=torch.bool)),
    "an element of halves": lambda: _element(1 / 3, torch.zeros(2, 3, dtype=torch.bfloat16)),
    "a scalar beside a tensor": lambda: [X * 2, 1 - X, X > 0, torch.maximum(X, torch.tensor(1.0))],
}


def _element(value, target=None):
    target = fresh() if target is None else target
    target[0, 1] = value
    return target


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_stand_for_tensors_go_through(cpu_agent, name):
    """Boxing hands a Python number to a kernel where the op takes a tensor; the op gets its tensor all the same."""
    bare = NUMBERS[name]()
    cpu_agent(detail="syncs", copies="all")
    watched = NUMBERS[name]()
    assert same(bare, watched)


def test_gradients_are_the_same_with_and_without(cpu_agent):
    """Autograd sits above the kernels and sees the same ops."""

    def gradients():
        x = fresh().requires_grad_()
        y = (x * 2)[MASK].sum() + x.masked_select(MASK).prod() + torch.linalg.cholesky(x[:, :2] @ x[:, :2].T + 9).sum()
        z = x * 1.0
        z[MASK] = torch.ones(3)
        (y + z.sum()).backward()
        return x.grad

    bare = gradients()
    for detail in ("ops", "syncs"):
        agent = cpu_agent(detail=detail)
        assert torch.equal(gradients(), bare)
        syncagent_release(agent)


def test_tensors_are_not_kept_alive(agent):
    """An event keeps shapes, never the tensors."""
    x = torch.ones(3)
    x.nonzero()
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None
    assert agent.events()[0].shapes == ((3,),)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_of_the_op_keeps_its_own_type_and_the_next_op_is_seen(agent, line_of):
    """The agent is transparent for errors, and its own book-keeping survives them."""
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(-torch.eye(2))  # <- not positive
    with pytest.raises(IndexError):
        X[torch.tensor([True, False, True])]
    with pytest.raises(RuntimeError, match="cannot be converted to Scalar"):
        X.item()
    X.nonzero()
    events = agent.events()
    assert events[-1].op == "aten::nonzero"
    assert (events[0].op, events[0].site.line) == ("aten::_linalg_check_errors", line_of("not positive"))


def test_a_fault_of_a_predicate_is_kept_for_the_report_and_never_reaches_the_program(sensor):
    """The op runs, and the report says what the agent cannot see."""

    def broken(_args, _kwargs):
        raise KeyError("surprise")

    watching = sensor([Rule("aten::nonzero", broken, broken, "")])
    assert X.nonzero().shape == (3, 2)
    X.nonzero()
    assert watching.recorder.faults.sentences == ["the rule of aten::nonzero failed: KeyError: 'surprise'"]
    assert watching.seen() == []


def test_a_fault_while_recording_is_kept_for_the_report_too(sensor, monkeypatch):
    """Before the wait as after it; the sync is counted without attribution, which is switched off after a while."""
    watching = sensor()
    tries = []
    monkeypatch.setattr(watching.recorder.locator.sites, "walk", lambda *_: tries.append(1) or 1 / 0)
    for _ in range(50):
        assert X.nonzero().shape == (3, 2)
    left = {(entry.context.op, entry.kind, entry.context.where.user) for entry in watching.seen()}
    assert left == {("aten::nonzero", SHAPE, None)}
    assert (len(watching.seen()), len(tries)) == (50, 20)
    assert watching.recorder.faults.sentences == [
        "attribution failed for a sync: ZeroDivisionError: division by zero",
        "attribution failed and is off: ZeroDivisionError: division by zero",
    ]


def test_an_op_that_torch_does_not_have_is_reported_and_the_others_are_hooked(sensor):
    """Tables are newer than some torch; the report names what it misses."""
    always = next(rule.waits for rule in RULES if rule.op == "aten::nonzero")
    watching = sensor([Rule("aten::no_such_op", always, always, ""), Rule("aten::nonzero", always, always, "")])
    X.nonzero()
    assert [entry.context.op for entry in watching.seen()] == ["aten::nonzero"]
    _, lost = watching.cannot_see.split("; ")
    assert lost.startswith("aten::no_such_op is not hooked: ")
    assert "\n" not in lost


# --- on and off -------------------------------------------------------------------------------------------------------


def test_stop_gives_every_op_its_own_kernel_back(sensor):
    """Fifty times over, as a program that watches each epoch does."""
    for _ in range(50):
        watching = sensor([rule for rule in RULES if rule.op in {"aten::nonzero", "aten::copy_"}], hot=True)
        X.nonzero()
        watching.stop()
        assert not watching.live
        X.nonzero()
        X.clone().copy_(X)
        assert len(watching.seen()) == 1


def test_two_agents_one_after_the_other_each_see_their_own(cpu_agent):
    """What the second sees does not reach the first."""
    first = cpu_agent(detail="syncs")
    X.nonzero()
    syncagent_release(first)
    second = cpu_agent(detail="syncs")
    X.unique()
    assert [event.op for event in first.events()] == ["aten::nonzero"]
    assert [event.op for event in second.events()] == ["aten::_unique2"]


def test_hot_ops_are_watched_only_while_they_are_armed(sensor, host):
    """``copy_`` is called so often that a kernel on it is felt."""
    watching = sensor(hot=False)
    there, here = torch.zeros(3), host(torch.ones(3))
    counts = []
    for change in (lambda: None, watching.arm_hot, watching.arm_hot, watching.disarm_hot, watching.disarm_hot):
        change()
        there.copy_(here)
        counts.append((watching.hot_armed, len(watching.seen())))
    assert counts == [(False, 0), (True, 1), (True, 2), (False, 2), (False, 2)]


def test_kernels_that_are_off_cannot_be_armed(sensor):
    """A step that ends after the agent stopped arms nothing."""
    watching = sensor(hot=True)
    watching.stop()
    watching.arm_hot()
    assert not watching.hot_armed


def test_a_wait_inside_an_op_that_is_only_added_up_is_part_of_it(sensor):
    """Allowed lines are summed after a while; what waits inside then has no record of its own to be described in."""
    [nonzero] = [rule for rule in RULES if rule.op == "aten::nonzero"]
    [index] = [rule for rule in RULES if rule.op == "aten::index.Tensor"]
    watching = sensor([replace(index, proves=index.waits), nonzero])
    watching.recorder.policy = Policy(sources.load({}, {}), watching.recorder.locator, lambda: 0)
    with allow("wanted"):
        for _ in range(120):
            assert X[MASK].shape == (3,)
            X[ROW]  # an op that need not wait forgets what the one before was about
    state = watching.recorder.threads.current()
    [tally] = state.tallies.values()
    assert (len(watching.seen()), tally.count) == (100, 20)
    assert watching.recorder.faults.sentences == []


def test_a_torch_without_the_names_that_the_shorter_way_leans_on_is_watched_the_longer_way(sensor, monkeypatch):
    monkeypatch.delattr(torch._C, "_dispatch_keyset_full_after")
    watching = sensor()
    assert (X[0, 2].item(), X.nonzero().shape) == (3.0, (3, 2))
    assert [entry.context.op for entry in watching.seen()] == ["aten::_local_scalar_dense", "aten::nonzero"]
    assert "is not hooked" not in watching.cannot_see


def test_a_tensor_that_is_not_laid_out_in_strides_goes_where_it_would_go(sensor):
    """An op of one tensor is sent on by what the tensor is; one that has no kernel is refused in torch's own words."""
    ragged = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.tensor([2.0]), (3,), check_invariants=True)
    for call in (lambda: ragged.coalesce().sum().item(), lambda: torch.ones((), device="meta").nonzero()):
        outcomes = []
        for watched in (False, True):
            if watched:
                sensor()
            try:
                outcomes.append(call())
            except Exception as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]
    with pytest.raises(NotImplementedError, match="SparseCPU"):
        torch.ops.aten._local_scalar_dense(ragged)


def test_an_interrupt_before_a_wait_leaves_nothing_behind(sensor, monkeypatch):
    """Ctrl-C comes out where it came; the next sync is the program's own again and not one inside of another."""
    watching = sensor()
    with monkeypatch.context() as patch:
        patch.setattr(watching.recorder.locator.sites, "walk", Interrupts())
        with pytest.raises(KeyboardInterrupt):
            X.nonzero()
    assert watching.recorder.threads.current().op is None
    assert X.nonzero().shape == (3, 2)
    assert [entry.context.op for entry in watching.seen()] == ["aten::nonzero"]


class Interrupts:
    def __call__(self, *_args):
        raise KeyboardInterrupt


def test_kernels_stay_while_another_thread_runs_that_has_called_no_op_so_far(sensor):
    """It may be on its way to one, and taking the kernel off then fails the op: seen on a GPU, as threads started."""
    here = next(rule for rule in RULES if rule.op == "aten::nonzero")
    ends, waits = threading.Event(), threading.Event()

    def run():
        while not ends.is_set():
            pass

    runs, idle = threading.Thread(target=run), threading.Thread(target=waits.wait)
    watched = sensor([here])
    idle.start()
    runs.start()
    watched.stop()
    assert dispatcher.is_hooked(here)
    assert "the kernels are still on their ops" in watched.notes[0]
    ends.set()
    runs.join()
    again = sensor([here])
    again.stop()
    assert not dispatcher.is_hooked(here)  # a thread that only waits is no reason
    assert not again.notes
    waits.set()
    idle.join()


def test_threads_by_which_torch_compile_talks_to_other_processes_are_no_reason_for_kernels_to_stay(sensor):
    """They live as long as the program, and their modules use torch."""
    from torch._inductor.compile_worker.subproc_pool import SubprocPool

    here = next(rule for rule in RULES if rule.op == "aten::nonzero")
    pool = SubprocPool(1)
    try:
        assert any("SubprocPool" in repr(thread) or "Inductor" in thread.name for thread in threading.enumerate())
        watched = sensor([here])
        watched.stop()
        assert not dispatcher.is_hooked(here)
    finally:
        pool.shutdown()
