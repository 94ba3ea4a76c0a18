"""Streams, events, queued errors: when things run, and where failures show."""

from __future__ import annotations

import threading

import pytest
import torch
from harness import SLEEP_S, asleep

from syncagent import simulate


def test_work_is_queued_and_a_synchronize_waits_for_it():
    over = asleep()
    assert not over.query()
    torch.cuda.synchronize()
    assert over.query()


def test_streams_run_beside_each_other():
    other = torch.cuda.Stream()
    assert (torch.ones(3, device="cuda") + 1).sum().item() == 6  # the first call of an op pays for its shape
    over = asleep()
    with torch.cuda.stream(other):
        assert torch.cuda.current_stream() == other
        done = torch.ones(3, device="cuda") + 1
    other.synchronize()
    assert other.query()
    assert not over.query()
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
    assert done.tolist() == [2.0] * 3


def test_a_stream_waits_for_another_without_the_host():
    other = torch.cuda.Stream()
    x = torch.zeros(1, device="cuda")
    over = asleep()
    x.add_(1)
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        y = x * 2
    assert not other.query()
    other.synchronize()
    assert over.query()
    torch.cuda.current_stream().wait_stream(other)
    assert y.item() == 2.0


def test_events_mark_time_and_order():
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    asleep()
    end.record()
    assert not end.query()
    other = torch.cuda.Stream()
    other.wait_event(end)
    with pytest.raises(RuntimeError, match=r"completed"):
        start.elapsed_time(end)
    end.synchronize()
    assert end.query()
    assert 0.9 * SLEEP_S * 1e3 < start.elapsed_time(end) < 60e3
    other.synchronize()
    with pytest.raises(ValueError, match=r"enable_timing"):
        torch.cuda.Event().elapsed_time(torch.cuda.Event())


def test_a_prefetching_loop_is_no_race():
    side, batches = torch.cuda.Stream(), [torch.full((4,), float(i)).pin_memory() for i in range(3)]
    total = torch.zeros(4, device="cuda")
    for batch in batches:
        with torch.cuda.stream(side):
            x = batch.cuda(non_blocking=True)
        torch.cuda.current_stream().wait_stream(side)
        x.record_stream(torch.cuda.current_stream())
        total += x
    assert total.tolist() == [3.0] * 4


def test_a_race_is_warned_of_and_the_numbers_are_in_program_order():
    side, x = torch.cuda.Stream(), torch.ones(2, device="cuda")
    torch.cuda.synchronize()
    asleep()
    x.mul_(3)
    with torch.cuda.stream(side), pytest.warns(simulate.SimulationWarning, match=r"race"):
        y = torch.special.i0e(x) * 0 + x
    torch.cuda.synchronize()
    assert y.tolist() == [3.0, 3.0]


def test_backward_orders_itself_after_the_forwards_stream():
    side, w = torch.cuda.Stream(), torch.ones(2, device="cuda", requires_grad=True)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        asleep()
        loss = (w * w).sum()
    loss.backward()
    torch.cuda.synchronize()
    assert w.grad.tolist() == [2.0, 2.0]


def test_the_current_stream_belongs_to_the_thread():
    other, seen = torch.cuda.Stream(), []
    with torch.cuda.stream(other):
        thread = threading.Thread(target=lambda: seen.append(torch.cuda.current_stream()))
        thread.start()
        thread.join()
    assert seen == [torch.cuda.default_stream()]


def test_backward_returns_before_the_work_is_done():
    w = torch.rand(8, device="cuda", requires_grad=True)
    (w * w).sum().backward()
    torch.cuda.synchronize()
    over = asleep()
    (w * w).sum().backward()
    assert not over.query()
    torch.cuda.synchronize()
    assert over.query()


def test_a_mask_in_the_backward_pass_waits_and_is_reported(observed):
    w = torch.rand(8, device="cuda", requires_grad=True)
    w[w > 0.5].sum().backward()
    loss = w[w > 0.5].sum()
    torch.cuda.synchronize()
    observed.clear()
    over = asleep()
    loss.backward()
    assert over.query()
    assert observed.waits == [("aten::index_put_", "dynamic_shape")]
    assert observed.spans[0][1] > SLEEP_S / 4 * 1e9


def test_a_kernel_that_fails_is_reported_at_the_next_wait():
    x, index = torch.rand(4, device="cuda"), torch.tensor([9], device="cuda")
    y = x[index]  # as on a GPU, nothing has looked at the index yet
    with pytest.raises(torch.AcceleratorError, match=r"asynchronous kernel: index 9 is out of bounds"):
        torch.cuda.synchronize()
    with pytest.raises((torch.AcceleratorError, IndexError), match=r"index 9 is out of bounds"):
        y.cpu()
    assert x.sum().item() > 0


def test_wrong_shapes_are_refused_at_once():
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match=r"must match|size"):
        x + torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError, match=r"match|size|broadcast"):
        x.add_(torch.ones(4, device="cuda"))
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|size"):
        torch.ones(2, 3, device="cuda") @ torch.ones(2, 3, device="cuda")
    with pytest.raises(RuntimeError, match=r"shape|match|expand"):
        x.copy_(torch.ones(4))
    with pytest.raises(RuntimeError, match=r"doesn't match the broadcast shape"):
        x.copy_(torch.ones(2, 3, device="cuda"))
    with pytest.raises(RuntimeError, match=r"invalid for input of size"):
        x.view(2, 2)
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(-torch.eye(2, device="cuda"))


def test_the_launch_queue_is_bounded():
    x = torch.ones(1, device="cuda")
    torch.cuda.synchronize()
    over = asleep()
    for _ in range(1500):
        x.add_(1)
    assert over.query()
    assert x.item() == 1501


def test_threads_share_the_device():
    total = torch.zeros(1, device="cuda")

    def work():
        for _ in range(50):
            total.add_(torch.ones(1, device="cuda"))
            total.sum().item()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total.item() == 150


def test_streams_and_events_for_any_device_are_the_simulated_ones():
    stream = torch.Stream(device="cuda:0")
    assert isinstance(stream, torch.Stream)
    assert isinstance(torch.cuda.Stream(), torch.Stream)
    assert stream.device == torch.device("cuda", 0)
    start, end = (torch.Event(device="cuda", enable_timing=True) for _ in range(2))
    assert isinstance(start, torch.Event)
    assert issubclass(torch.cuda.Event, torch.Event)
    with stream:
        assert torch.accelerator.current_stream() == stream
        stream.record_event(start)
        torch.cuda._sleep(1000)
        end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 0
    assert isinstance(torch.Stream(), torch.Stream)
    assert not isinstance(stream, torch.Event)


def test_a_stream_of_a_device_that_is_not_there():
    with pytest.raises(torch.AcceleratorError, match="invalid device ordinal"):
        torch.Stream(device="cuda:7")
    with pytest.raises(torch.AcceleratorError, match="invalid device ordinal"):
        torch.Event(device="cuda:7")
