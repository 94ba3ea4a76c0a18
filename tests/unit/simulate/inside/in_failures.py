"""Errors: which, where they come, and that nothing of the simulation is in what they print."""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import syncagent
from syncagent import simulate
from syncagent.errors import SimulationError
from syncagent.simulate import devices
from syncagent.simulate.allocator import capacity

AGENT = str(Path(syncagent.__file__).parent) + os.sep
OWN_FRAMES = 0 if sys.version_info >= (3, 11) else 1
"""Up to Python 3.10 the frame that the error leaves the simulation by cannot be left out."""
ASSERTED = "CUDA error: device-side assert triggered"


def cuda(*shape, **kwargs):
    return torch.ones(*shape, device="cuda", **kwargs)


def index(*values):
    return torch.tensor(values, device="cuda")


def fails():
    return cuda(4).index_select(0, index(9))  # <- fails


def raised_by(call, kind=BaseException):
    try:
        call()
    except kind as error:
        return error
    pytest.fail("nothing was raised")


def frames(error):
    """The innermost part of a traceback, from the first frame of this file on, and all below it."""
    found = traceback.extract_tb(error.__traceback__)
    assert sum(frame.filename.startswith(AGENT) for frame in found) <= OWN_FRAMES
    return [frame for frame in found if not frame.filename.startswith(AGENT)]


def note(error):
    """The part of the text that says where the op was queued."""
    return "".join(traceback.format_exception_only(type(error), error))


def line_of(mark):
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# <- {mark}"))


# --- an op that fails in its queue -----------------------------------------------------------------------------


def test_sixty_dependent_ops_make_one_error_at_the_line_that_waits():
    y = fails()
    for _ in range(60):
        y = y * 2
    error = raised_by(lambda: y.sum().item(), torch.AcceleratorError)
    shown = frames(error)
    assert [frame.filename for frame in shown] == [__file__] * len(shown)
    assert len(traceback.format_exception(type(error), error, error.__traceback__)) <= len(shown) + 10
    assert error.__cause__ is None
    assert error.__context__ is None
    assert str(error).startswith(f"{ASSERTED}\nIndexError in an asynchronous kernel: index out of range in self\n")
    assert "CUDA_LAUNCH_BLOCKING=1" in str(error)


def test_a_note_says_which_op_failed_and_where_it_was_queued():
    y = fails() + 1
    told = note(raised_by(y.cpu))
    assert (
        "The error is of aten::index_select, which was queued here:\n"
        f'  File "{__file__}", line {line_of("fails")}, in fails\n'
        "    return cuda(4).index_select(0, index(9))"
    ) in told


def test_a_failure_that_nobody_reads_is_reported_by_the_next_synchronize_once():
    fails()
    error = raised_by(torch.cuda.synchronize, torch.AcceleratorError)
    assert frames(error)[-1].filename == __file__
    torch.cuda.synchronize()


def test_a_failure_is_reported_once_for_all_the_streams_that_depend_on_it():
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(first):
        y = fails()
    second.wait_stream(first)
    with torch.cuda.stream(second):
        z = y * 2
    torch.cuda.current_stream().wait_stream(second)
    total = (z + 1).sum()
    waits = (second.synchronize, first.synchronize, torch.cuda.synchronize, torch.cuda.synchronize)
    reported = []
    for wait in waits:
        try:
            wait()
        except torch.AcceleratorError as error:
            reported.append(error)
    assert len(reported) == 1
    assert "aten::index_select" in note(reported[0])
    assert "aten::index_select" in note(raised_by(total.item))  # no wrong number, however often it is read


def test_a_stream_that_does_not_depend_on_it_goes_on():
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(first):
        fails()
    with torch.cuda.stream(second):
        assert cuda(3).sum().item() == 3
    raised_by(first.synchronize, torch.AcceleratorError)


@pytest.mark.parametrize(
    ("call", "op"),
    [
        (lambda: F.embedding(index(7), cuda(3, 3)), "embedding"),
        (lambda: cuda(3).index_select(0, index(7)), "index_select"),
        (lambda: cuda(3).gather(0, index(7)), "gather"),
        (lambda: cuda(3)[index(7)], "index"),
        (lambda: cuda(3).scatter(0, index(7), 1.0), "scatter"),
        (lambda: cuda(3).index_fill_(0, index(7), 0.0), "index_fill_"),
        (lambda: F.cross_entropy(cuda(2, 3), index(0, 5)), "nll_loss_forward"),
        (lambda: F.binary_cross_entropy(cuda(2) * 3, cuda(2)), "binary_cross_entropy"),
        (lambda: torch.multinomial(-cuda(3), 1), "multinomial"),
        (lambda: torch.bernoulli(cuda(3) * 3), "bernoulli"),
    ],
)
def test_what_cuda_asserts_on_the_device_fails_there(call, op):
    y = call()  # as on a GPU, nothing has looked at the numbers yet
    error = raised_by(y.cpu, torch.AcceleratorError)
    assert str(error).startswith(ASSERTED)
    assert f"The error is of aten::{op}, which was queued here" in note(error)


def test_it_fails_in_a_loop_over_a_loader():
    weight, seen = cuda(4), 0

    def loop():
        nonlocal seen
        for (batch,) in DataLoader(TensorDataset(torch.arange(0, 8).reshape(8, 1)), batch_size=2):
            loss = weight[batch.cuda()].sum()
            loss.item()  # <- read in the loop
            seen += 1

    error = raised_by(loop, torch.AcceleratorError)
    assert frames(error)[-1].lineno == line_of("read in the loop")
    assert seen == 2


def test_it_fails_on_another_thread_at_that_threads_line():
    errors = []
    thread = threading.Thread(target=lambda: errors.append(raised_by(lambda: fails().cpu())))
    thread.start()
    thread.join()
    assert frames(errors[0])[-1].filename == __file__


@pytest.fixture
def blocking(monkeypatch):
    torch.cuda.synchronize()
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    devices.set_count(devices.count())  # the variable is read anew
    yield
    monkeypatch.undo()
    devices.set_count(devices.count())


@pytest.mark.usefixtures("blocking")
def test_with_launch_blocking_the_error_comes_at_the_very_line():
    error = raised_by(fails, torch.AcceleratorError)
    last = frames(error)[-1]
    assert (last.filename, last.lineno) == (__file__, line_of("fails"))
    assert "queued here" not in note(error)
    torch.cuda.synchronize()


@pytest.mark.usefixtures("blocking")
def test_with_launch_blocking_the_numbers_are_the_same():
    x = torch.arange(6.0).reshape(2, 3)
    assert torch.equal((x.cuda() @ x.cuda().T).relu().cpu(), (x @ x.T).relu())


# --- errors that CUDA gives at once -----------------------------------------------------------------------------


def in_autocast(call):
    with torch.autocast("cuda"):
        return call()


AT_ONCE = {
    "shapes": (lambda: cuda(3) + cuda(4), RuntimeError, "must match"),
    "matrices": (lambda: cuda(2, 3) @ cuda(4, 2), RuntimeError, "cannot be multiplied"),
    "vectors": (lambda: cuda(3) @ cuda(4), RuntimeError, "size"),
    "view": (lambda: cuda(3, 3).view(4), RuntimeError, "invalid for input of size 9"),
    "devices": (lambda: cuda(3) + torch.ones(3), RuntimeError, "same device"),
    "device": (lambda: cuda(3).to("cuda:7"), torch.AcceleratorError, "invalid device ordinal"),
    "types": (lambda: cuda(3, 3) @ cuda(3, 3).long(), RuntimeError, "same dtype"),
    "layer": (lambda: F.linear(cuda(3, 3), cuda(3, 3).half()), RuntimeError, "same dtype"),
    "convolution": (lambda: F.conv2d(cuda(1, 3, 8, 8), cuda(4, 3, 3, 3).half()), RuntimeError, "scalar type"),
    "target": (lambda: F.cross_entropy(cuda(2, 3), cuda(2).int()), RuntimeError, "expected"),
    "index": (lambda: cuda(3).index_select(0, cuda(2)), RuntimeError, "Expected dtype int32 or int64"),
    "integers": (lambda: cuda(3).long().softmax(0), NotImplementedError, "not implemented for 'Long'"),
    "bits": (lambda: cuda(3) & cuda(3), NotImplementedError, "not implemented for 'Float'"),
    "numpy": (lambda: cuda(2).numpy(), TypeError, "can't convert cuda:0 device type tensor to numpy"),
    "item": (lambda: cuda(2).item(), RuntimeError, "cannot be converted to Scalar"),
    "attribute": (lambda: cuda(2).__cuda_array_interface__, AttributeError, "no device memory"),
    "stream": (lambda: torch.cuda.Stream("cpu"), ValueError, "Expected a cuda device"),
    "event": (lambda: torch.cuda.Event().elapsed_time(torch.cuda.Event()), ValueError, "enable_timing"),
    "singular": (lambda: torch.zeros(3, 3, device="cuda").inverse(), torch.linalg.LinAlgError, "singular"),
    "factor": (lambda: torch.linalg.cholesky(-cuda(3, 3)), torch.linalg.LinAlgError, "positive-definite"),
    "equations": (
        lambda: torch.linalg.solve(torch.zeros(2, 2, device="cuda"), cuda(2)), torch.linalg.LinAlgError, "singular",
    ),
    "refused": (lambda: torch.cuda.CUDAGraph(), SimulationError, "not simulated"),
    "sparse": (lambda: cuda(2).to_sparse().cumsum(0), NotImplementedError, "SparseCUDA"),
    "products": (lambda: cuda(3, 3).half() @ cuda(3, 3), RuntimeError, "same dtype"),
    "rounding": (lambda: cuda(3, 3).half().bfloat16() @ cuda(3, 3).half(), RuntimeError, "same dtype"),
    "autocast": (lambda: in_autocast(lambda: F.linear(cuda(3, 3), cuda(4, 4))), RuntimeError, "cannot be multiplied"),
    "unsafe": (
        lambda: in_autocast(lambda: F.binary_cross_entropy(cuda(3), cuda(3))), RuntimeError, "unsafe to autocast",
    ),
    "inference": (lambda: torch.inference_mode()(cuda(3, 3).matmul)(cuda(4, 4)), RuntimeError, "cannot be multiplied"),
    "generator": (lambda: torch.Generator("cuda:9"), torch.AcceleratorError, "invalid device ordinal"),
    "state": (lambda: torch.Generator("cuda").set_state(torch.ones(3)), RuntimeError, "RNG state is wrong size"),
    "module": (lambda: nn.Linear(3, 3).to("cuda:9"), torch.AcceleratorError, "invalid device ordinal"),
    "data": (lambda: setattr(nn.Linear(2, 2).cuda().weight, "data", cuda(2, 2).long()), RuntimeError, "floating point"),
    "memory": (lambda: torch.empty(1 << 60, device="cuda"), torch.OutOfMemoryError, "Tried to allocate"),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_ONCE)
def test_an_error_at_once_ends_at_the_programs_line(name):
    call, kind, words = AT_ONCE[name]
    error = raised_by(call, kind)
    assert words in str(error)
    shown = frames(error)
    own = [frame for frame in shown if frame.filename == __file__]
    assert shown[: len(own)] == own  # what may follow is torch's: functions that are Python there, too
    assert len(shown) - len(own) <= 2
    assert (error.__cause__, error.__context__) == (None, None)
    torch.cuda.synchronize()  # and nothing is left to be reported


def test_printing_a_tensor_that_could_not_be_computed_ends_at_the_print():
    y = fails()
    error = raised_by(lambda: print(y), torch.AcceleratorError)
    assert frames(error)[-1].filename == __file__


def test_what_the_program_is_handling_stays_the_context():
    error = raised_by(lambda: raised_in_handler(KeyError("mine")))
    assert isinstance(error.__context__, KeyError)
    assert error.__context__.__context__ is None
    assert not error.__suppress_context__


def raised_in_handler(own):
    try:
        raise own
    except KeyError:
        cuda(3) @ cuda(4)


def test_what_the_program_raises_itself_keeps_its_cause_and_its_frames():
    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("mine") from KeyError("its cause")  # <- raises in backward

    error = raised_by(lambda: Raises.apply(cuda(3, requires_grad=True)).sum().backward(), ValueError)
    assert isinstance(error.__cause__, KeyError)
    assert frames(error)[-1].lineno == line_of("raises in backward")


def test_an_error_in_a_backward_written_in_python_ends_at_its_line():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad @ cuda(4, 4)  # <- wrong shape in backward

    error = raised_by(lambda: Fails.apply(cuda(3, requires_grad=True)).sum().backward(), RuntimeError)
    assert frames(error)[-1].lineno == line_of("wrong shape in backward")


def test_an_op_queued_by_a_hook_is_named_with_the_hooks_line():
    x = cuda(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: grad.index_select(0, index(9)).expand(3))  # <- hook
    y.sum().backward()
    error = raised_by(x.grad.cpu, torch.AcceleratorError)
    assert f"line {line_of('hook')}," in note(error)


def test_anomaly_detection_raises_at_the_backward_call():
    def check():
        with pytest.warns(UserWarning, match=r"Anomaly|Error detected"), torch.autograd.detect_anomaly():
            (-cuda(3, requires_grad=True)).sqrt().sum().backward()

    error = raised_by(check, RuntimeError)
    assert "returned nan values" in str(error)
    frames(error)


def test_the_policys_error_ends_at_the_programs_line():
    class Refuses:
        def before(self, op, kind, args):
            raise syncagent.HostSyncError(f"{op} is forbidden")

    simulate.observe_waits(Refuses())
    try:
        errors = [
            raised_by(call, syncagent.HostSyncError)
            for call in (
                lambda: cuda(1).item(), lambda: cuda(1).cpu(), lambda: cuda(2).nonzero(), lambda: cuda(2).tolist(),
                lambda: torch.tensor([1.0], device="cuda"), lambda: bool(cuda(1) > 0), torch.cuda.synchronize,
                torch.cuda.current_stream().synchronize, lambda: print(cuda(2)), lambda: f"{cuda(1).sum():.2f}",
            )
        ]  # fmt: skip
    finally:
        simulate.observe_waits(None)
    for error in errors:
        assert frames(error)[-1].filename == __file__
        assert (error.__cause__, error.__context__) == (None, None)


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.empty(1 << 60, device="cuda"),
        lambda: torch.zeros(1 << 24, 1 << 24, device="cuda"),
        lambda: cuda(1 << 20).expand(1 << 20, 1 << 20).contiguous(),
        lambda: cuda(1 << 20, 1) + cuda(1, 1 << 20),
        lambda: cuda(1).resize_(1 << 50),
        lambda: torch.rand(1 << 45, device="cuda"),
        lambda: torch.empty_strided((1 << 30, 2), (1 << 20, 1), device="cuda"),
    ],
)
def test_an_allocation_beyond_the_devices_memory_is_refused_at_once(call):
    error = raised_by(call, torch.OutOfMemoryError)
    assert str(error).startswith("CUDA out of memory. Tried to allocate")
    assert frames(error)[-1].filename == __file__


def test_allocations_that_fit_one_by_one_are_refused_once_the_memory_is_full():
    third = capacity() // 12  # elements of 4 bytes, that nobody writes to
    kept = []

    def fill():
        for _ in range(4):
            kept.append(torch.empty(third, device="cuda"))

    raised_by(fill, torch.OutOfMemoryError)
    assert len(kept) in {2, 3}
    kept.clear()
    gc.collect()
    fits = torch.empty(third, device="cuda")  # what was freed is free
    assert fits.numel() == third


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the frame that an error leaves the agent by cannot be left out")
def test_an_error_keeps_no_tensor_alive():
    kept = [cuda(8)]
    alive = weakref.ref(kept[0])
    at_once = raised_by(lambda: kept[0].view(7))
    kept.clear()
    kept = [fails()]
    queued = weakref.ref(kept[0])
    late = raised_by(lambda: kept[0].cpu())
    kept.clear()
    assert (alive(), queued()) == (None, None)
    assert at_once is not late


# --- mistakes of the simulation's own ------------------------------------------------------------------------------


def test_a_mistake_of_the_simulations_own_keeps_its_traceback(monkeypatch):
    x = cuda(2)
    with monkeypatch.context() as patch:
        patch.setattr(devices, "_thread", None)
        error = raised_by(lambda: x + 1, AttributeError)
    assert traceback.extract_tb(error.__traceback__)[-1].filename == devices.__file__
