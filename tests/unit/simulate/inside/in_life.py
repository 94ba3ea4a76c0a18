"""The device for a while: torch is as before when it is gone, and what was made on it stays usable."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import pickle
import sys
import threading
import types
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import syncagent
from syncagent import simulate
from syncagent.simulate import devices, installation, patches
from syncagent.simulate.engine import Engine
from syncagent.simulate.memory import Box
from syncagent.simulate.tensor import SimulatedTensor

WORDS = ("cuda:", "syncagent")
LEFT_BEHIND = "torch._dynamo.polyfills.loader.original_fn"
"""What a loop of that module has seen last: torch 2.10 loads it at an optimizer's first step, here during the watch."""


def workers():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(WORDS)]


def ours_in_torch():
    """Every name in a module or class of torch behind which something of this package stands."""
    found = []
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == "torch" and module is not None:
            holders = [(name, module)]
            holders += [
                (f"{name}.{key}", value) for key, value in list(vars(module).items()) if issubclass(type(value), type)
            ]
            for shown, holder in holders:
                if getattr(holder, "__module__", "").startswith("syncagent"):
                    continue
                found += [f"{shown}.{key}" for key, value in list(vars(holder).items()) if is_ours(value)]
    return [name for name in found if name != LEFT_BEHIND]


def is_ours(value):
    kind = type(value)  # asking the objects themselves imports things, and warns
    value = value.fget if kind is property else value
    file = value.__code__.co_filename if type(value) is types.FunctionType else ""
    module = value.__module__ if issubclass(kind, type) else ""
    return file.startswith(simulate.__path__[0]) or str(module).startswith("syncagent.")


def state():
    return {
        "available": torch.cuda.is_available(),
        "initialized": torch.cuda.is_initialized(),
        "devices": torch.cuda.device_count(),
        "switch interval": sys.getswitchinterval(),
        "packages": list(torch.serialization._package_registry),
        "foreach": SimulatedTensor in sys.modules["torch.utils._foreach_utils"]._foreach_supported_types,
        "Generator": torch.Generator,
        "data": "data" in vars(torch.Tensor),
        "autocast": torch._C._dispatch_dump("aten::mm").count("AutocastCUDA"),
        "workers": workers(),
        "ours": ours_in_torch(),
    }


def trained():
    """A model that has taken a step on the device, its optimizer, and a loss that waits for its backward pass."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    data = torch.randn(8, 3, device="cuda")
    with torch.autocast("cuda"):
        loss = model(data).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer, data, model(data).square().mean()


def test_torch_is_as_before_when_the_watch_is_over():
    before = state()
    assert before["ours"] == []
    with syncagent.watch(simulate=True) as agent:
        trained()[-1].item()
        torch.cuda.set_device(0)
        torch.cuda.Stream().synchronize()
        assert torch.cuda.is_available()
        assert len(ours_in_torch()) > 100
    assert state() == before
    report = agent.report()
    assert report.run.simulated
    assert "simulated" in report.run.device
    assert report.sites
    assert not [note for note in report.notes if "device" in note]


def test_steps_that_are_not_sampled_name_no_wait_of_an_op():
    """As on a GPU, where the kernels are off there; calls that ask to wait are wrapped in every step."""
    from syncagent.sensors.sampling import FIRST

    with syncagent.watch(simulate=True, overhead=0) as agent:
        value = torch.ones(4, device="cuda", requires_grad=True)
        for _ in range(FIRST + 5):
            (value * 2)[value > 0].sum().backward()
            torch.cuda.synchronize()
            syncagent.step()
        report = agent.report()
    named = [site for site in report.sites if site.sensors != ("driver",)]
    assert {site.op: (site.count, site.phase) for site in named} == {
        "aten::index": (FIRST + 5, "forward"),
        "aten::index_put_": (FIRST + 5, "backward"),
        "torch.cuda.synchronize": (FIRST + 5, "other"),
    }
    seen = Counter(event.op for event in agent.events() if event.sensor != "driver")
    assert seen == {"aten::index": FIRST, "aten::index_put_": FIRST, "torch.cuda.synchronize": FIRST + 5}
    assert all("overhead is 0" in sensor.detail for sensor in report.sensors if sensor.live and sensor.name != "driver")


def test_what_was_made_on_the_device_is_usable_after_it():
    with syncagent.watch(simulate=True):
        model, optimizer, data, loss = trained()
        weight = model[0].weight
        with torch.no_grad():
            expected = (data.cpu(), model(data).cpu())
    assert repr(data).startswith("tensor([[")
    assert "device='cuda:0'" in repr(weight)
    torch.testing.assert_close(data.cpu(), expected[0])
    torch.testing.assert_close(model(data).detach().cpu(), expected[1], rtol=1e-1, atol=1e-1)
    loss.backward()
    before = weight.detach().clone()
    optimizer.step()
    assert bool((weight != before).any())
    assert data[data > 0].sum().item() == pytest.approx(data.cpu()[data.cpu() > 0].sum().item())
    assert data.to(data.device).device == data.to("cuda").device == torch.zeros_like(data).device == data.device
    assert data.new_zeros(2).tolist() == data.new_tensor([0, 0]).tolist() == [0.0, 0.0]
    assert data.half().dtype == torch.float16
    data.data = torch.zeros_like(data)
    assert data.sum().item() == 0
    for again in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight)), saved_and_loaded(weight)):
        assert again.detach().cpu().tolist() == weight.detach().cpu().tolist()
    model.cpu()
    assert model(torch.zeros(2, 3)).shape == (2, 1)


def saved_and_loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


def boxes_of(nbytes):
    """How many allocations of that size there are."""
    return sum(type(found) is Box and found.nbytes == nbytes for found in gc.get_objects())


def test_a_class_of_tensors_that_hold_others_is_as_before_too():
    class Holder(torch.Tensor):
        @staticmethod
        def __new__(cls, elem):
            made = torch.Tensor._make_wrapper_subclass(cls, elem.size(), dtype=elem.dtype, device=elem.device)
            made.elem = elem
            return made

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            args = [x.elem if isinstance(x, Holder) else x for x in args]
            return Holder(func(*args, **kwargs or {}))

    own = set(vars(Holder))
    for _ in range(2):
        give_back = simulate.borrow()
        held = Holder(torch.ones(2, device="cuda"))
        assert (held.device.type, (held + 1).is_cuda) == ("cuda", True)
        give_back()
        assert set(vars(Holder)) == own
        assert "_make_wrapper_subclass" not in vars(torch.Tensor)
        assert (Holder(torch.ones(2)) + 1).elem.tolist() == [2, 2]


def test_memory_on_the_device_is_freed_after_it():
    with syncagent.watch(simulate=True):
        made = torch.ones(1_000_003, device="cuda")
        made.sum().item()
    assert made.sum().item() == 1_000_003
    assert boxes_of(1_000_003 * 4) == 1
    del made
    gc.collect()
    assert boxes_of(1_000_003 * 4) == 0


def test_a_thread_that_computes_with_what_is_left_ends_when_it_has_nothing_to_do():
    with syncagent.watch(simulate=True):
        made = torch.ones(3, device="cuda")
    assert workers() == []
    Engine.idle_limit_s = 0.01
    assert (made + 1).tolist() == [2.0, 2.0, 2.0]
    for thread in threading.enumerate():
        if thread.name.startswith(WORDS):
            thread.join(20)
    assert workers() == []
    assert (made + 1).tolist() == [2.0, 2.0, 2.0]


def test_it_stays_for_a_watch_that_ends_after_the_first_one():
    """As of two generators, or of two threads: the program must not lose its device."""

    @syncagent.watch(simulate=True)
    def values():
        while True:
            yield torch.ones(2, device="cuda").sum().item()

    first, second = values(), values()
    assert next(first) + next(second) == 4
    first.close()
    assert next(second) == 2
    second.close()
    assert not simulate.installed()


def test_it_comes_again_nested_and_after_an_exception():
    with syncagent.watch(simulate=True):
        first = torch.ones(2, device="cuda")
        with syncagent.watch(simulate=True):
            pass
        assert torch.cuda.is_available()
        with pytest.raises(ZeroDivisionError), syncagent.watch(simulate=True):
            raise ZeroDivisionError
        assert torch.cuda.is_available()
    with contextlib.suppress(ZeroDivisionError), syncagent.watch(simulate=True):
        second = torch.ones(2, device="cuda")
        raise ZeroDivisionError
    assert not simulate.installed()
    with syncagent.watch(simulate=True):
        assert (first + second + torch.ones(2, device="cuda")).tolist() == [3.0, 3.0]
        with simulate_again():
            assert torch.cuda.device_count() == 1
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available()


class simulate_again:
    def __enter__(self):
        self._give_back = simulate.borrow()

    def __exit__(self, *_):
        self._give_back()
        self._give_back()  # a second time does nothing


def test_an_installation_that_fails_later_on_leaves_no_device_either(monkeypatch):
    simulate.borrow(2)()

    def interrupted(_changes):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(patches.Changes, "apply_again", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulate.borrow(2)
    assert (simulate.installed(), devices.count()) == (False, 0)
    give_back = simulate.borrow(2)
    assert torch.ones(2, device="cuda:1").sum().item() == 2
    give_back()


def test_a_child_of_a_process_that_had_a_device_may_install_one_and_is_refused_when_it_uses_it():
    give_back = simulate.borrow(2)
    assert torch.ones(2, device="cuda").sum().item() == 2
    give_back()
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            simulate.borrow(3)
            torch.cuda.Event().synchronize()
            try:
                torch.ones(2, device="cuda")
            except RuntimeError as error:
                code = 0 if devices.count() == 3 and "forked subprocess" in str(error) else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_fifty_times_leave_nothing_behind_and_draw_the_same_numbers():
    def once():
        with syncagent.watch(simulate=True, detail="syncs"):
            loss = trained()[-1]
            torch.cuda.Stream().synchronize()
            return loss.item()

    expected = [once() for _ in range(5)]
    gc.collect()
    before = len(gc.get_objects()), len(torch.jit._builtins._builtin_table)
    assert {once() for _ in range(45)} == set(expected[:1])
    gc.collect()
    after = len(gc.get_objects()), len(torch.jit._builtins._builtin_table)
    assert after[0] - before[0] < (1000 if sys.gettrace() is None else 5000)  # a tracer keeps what it has seen
    assert after[1:] == before[1:]
    assert workers() == []


def test_what_the_program_keeps_of_torch_from_inside_is_torchs_own_after_it():
    with pytest.raises((RuntimeError, AssertionError)) as without:
        torch.zeros(2, device="cuda")
    with syncagent.watch(simulate=True):
        zeros, tensor, to, available, compiles = (
            torch.zeros, torch.tensor, torch.Tensor.to, torch.cuda.is_available, torch.compile,
        )  # fmt: skip
        assert zeros(2, device="cuda").is_cuda
    assert not available()
    assert zeros(2).tolist() == to(tensor([0.0, 0.0]), torch.float32).tolist() == [0.0, 0.0]
    for call in (lambda: zeros(2, device="cuda"), lambda: to(zeros(2), "cuda"), lambda: tensor([1], device="cuda")):
        with pytest.raises(type(without.value)):
            call()
    assert callable(compiles(abs, backend="eager"))


def test_what_the_program_has_put_in_place_itself_stays(monkeypatch):
    def own(*_args, **_kwargs):
        return "own"

    with syncagent.watch(simulate=True):
        monkeypatch.setattr(torch.cuda, "get_device_name", own)
    assert torch.cuda.get_device_name() == "own"
    with syncagent.watch(simulate=True):
        assert "simulated" in torch.cuda.get_device_name()
        assert torch.ones(1, device="cuda").item() == 1
    assert torch.cuda.get_device_name is own
    monkeypatch.undo()


def test_a_data_loader_outlives_the_device():
    data = TensorDataset(torch.arange(16.0))
    with syncagent.watch(simulate=True):
        loader = iter(DataLoader(data, batch_size=2, num_workers=1, persistent_workers=True))
        total = next(loader)[0].cuda().sum()
    for (batch,) in loader:
        total = total.cpu() + batch.sum()
    assert total.item() == sum(range(16))


def test_where_it_was_put_in_for_good_a_watch_does_not_take_it_away():
    """The last test here: nothing takes the device out of this process any more."""
    with syncagent.watch(simulate=True):
        simulate.install()
    assert torch.cuda.is_available()
    with syncagent.watch(simulate=True):
        pass
    assert torch.ones(1, device="cuda").item() == 1
    assert installation.installed()
