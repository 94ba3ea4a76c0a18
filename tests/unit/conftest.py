"""An agent to try things on: CPU tensors stand for CUDA's, so the real dispatcher, autograd and ops are at work.

The agent hooks the CPU's kernels, and the rules, which ask a tensor whether it is on CUDA, are told that it is: every
tensor is taken for one on the device, but for those that a test calls ``host``.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import syncagent.runtime.process
from syncagent.settings import sources
from syncagent.telemetry.violations import ViolationLog
from tests.unit.tools import keep_recorders


class OnDevice:
    """What the rules see of a CPU tensor that stands for one on the device."""

    is_cuda = True
    is_cpu = False

    def __init__(self, tensor):
        self._tensor = tensor

    def __getattr__(self, name):
        return getattr(self._tensor, name)


class Host:
    """The tensors that are on the host."""

    def __init__(self):
        self._tensors = []

    def __call__(self, tensor):
        self._tensors.append(tensor)
        return tensor

    def __contains__(self, tensor):
        return any(tensor is other for other in self._tensors)

    def shown(self, value):
        """An argument as the rules are to see it."""
        if isinstance(value, (list, tuple)):
            return [self.shown(inner) for inner in value]
        return OnDevice(value) if hasattr(value, "is_cuda") and value not in self else value

    def rule(self, rule):
        """The rule as the dispatcher would apply it: only to a call that has a tensor on the device."""

        def seen(predicate):
            def adapted(args, kwargs):
                if rule.hot and not hasattr(args[1], "is_cuda") and not args[0]._is_view():
                    return None  # a number beside a tensor (x * 2) is converted, and stays on the host
                args, kwargs = self.shown(args), {name: self.shown(value) for name, value in kwargs.items()}
                values = [*args, *kwargs.values()]
                values += [inner for value in values if isinstance(value, list) for inner in value]
                return predicate(args, kwargs) if any(isinstance(value, OnDevice) for value in values) else None

            return adapted

        return replace(rule, waits=seen(rule.waits), proves=seen(rule.proves))


@pytest.fixture
def host():
    """``host(tensor)``: this tensor is not on the device."""
    return Host()


@pytest.fixture
def cpu_device(monkeypatch, no_settings, host):
    """Agents that are started meanwhile watch the CPU; none outlives the test."""
    from syncagent.rules.table import RULES
    from syncagent.runtime import agent
    from syncagent.sensors import registry
    from syncagent.sensors.base import Conditions
    from syncagent.sensors.kernels import KernelSensor
    from syncagent.torchbridge import internals

    rules = tuple(host.rule(rule) for rule in RULES)
    forget_compiled_code()
    look_up = internals.look_up  # a torch built for CUDA may have no driver here: it is not asked
    monkeypatch.setattr(internals, "look_up", lambda **_: look_up(simulated=True))

    class CpuKernels(KernelSensor):
        def __init__(self, recorder, conditions):
            super().__init__(recorder, conditions, rules, device_key="CPU")

    kinds = [CpuKernels if kind is KernelSensor else kind for kind in registry.SENSORS]

    conditions = Conditions.of
    monkeypatch.setattr(registry, "SENSORS", kinds)
    monkeypatch.setattr(Conditions, "of", lambda settings: replace(conditions(settings), has_cuda=True))
    monkeypatch.setattr(agent, "note_without_gpu", lambda **_: None)  # there is one: the CPU stands for it
    yield
    while (running := syncagent.current()) is not None:
        syncagent.runtime.process.release(running)
    leave_all_modes()


def forget_compiled_code():
    """Whatever other tests have compiled: some sensors stop watching once torch.compile is used."""
    if "torch._dynamo.utils" in sys.modules:
        sys.modules["torch._dynamo.utils"].counters.clear()
        sys.modules["torch._dynamo.eval_frame"].cached_backends.clear()


def leave_all_modes():
    """So that a mode which one test leaves behind is not seen by the next."""
    from torch import _C, overrides
    from torch.utils import _python_dispatch

    while _C._len_torch_function_stack():
        overrides._pop_mode()
    while _C._len_torch_dispatch_stack():
        _python_dispatch._pop_mode()


@pytest.fixture
def patient(monkeypatch):
    """The end waits for as long as a delivery takes, on a busy machine and under a tracer as well."""
    from syncagent.delivery import pipeline

    monkeypatch.setattr(pipeline, "_PATIENCE_S", 100.0)
    monkeypatch.setattr(pipeline.Pipeline.stop, "__defaults__", (100.0,))


@pytest.fixture
def recorders(monkeypatch):
    """The recorders of the agents that are made meanwhile."""
    return keep_recorders(monkeypatch)


@pytest.fixture
def cpu_agent(cpu_device):
    """``cpu_agent(**settings)`` starts an agent on the CPU; the policy has no warm-up unless asked for one."""

    def begin(*, sinks=(), **settings):
        return syncagent.runtime.process.launch(sources.load({"warmup_steps": 0, **settings}), (*sinks, ViolationLog()))

    return begin


@pytest.fixture(params=["ops", "syncs", "auto"])
def agent(request, cpu_agent):
    """A running agent, once for each ``detail``; a test is over before ``auto`` watches some steps alone."""
    return cpu_agent(detail=request.param)


@pytest.fixture(params=["ops", "syncs"])
def agent_of_all_threads(request, cpu_agent):
    """One that watches the ops of every thread; ``auto`` watches those of the training thread."""
    return cpu_agent(detail=request.param)


@pytest.fixture
def line_of(request):
    """``line_of("mark")``: number of the one line of the test's file that ends in ``# <- mark``."""
    lines = Path(request.path).read_text(encoding="utf-8").splitlines()

    def find(mark):
        [number] = [number for number, line in enumerate(lines, 1) if line.endswith(f"# <- {mark}")]
        return number

    return find


@pytest.fixture
def lazy(tmp_path, monkeypatch):
    """A module that will be imported, and then fail, once somebody uses it."""
    (tmp_path / "lazy_module.py").write_text("raise RuntimeError('it has been imported')\n")
    spec = importlib.util.spec_from_file_location("lazy_module", tmp_path / "lazy_module.py")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lazy_module", module)
    spec.loader.exec_module(module)
    return module
