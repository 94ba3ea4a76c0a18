"""Programs that compile kernels for a GPU."""

from __future__ import annotations

import copy
import importlib
import sys

import pytest
import torch
from torch import nn

from syncagent.errors import SimulationError
from syncagent.support import log


def x():
    return torch.arange(4.0, device="cuda")


@pytest.mark.parametrize(
    "options",
    [{}, {"fullgraph": True, "mode": "max-autotune"}, {"dynamic": True}, {"backend": "inductor", "options": {}}],
)
def test_a_compiled_function_runs_as_written(options):
    def double(values):
        return values * 2

    compiled = torch.compile(double, **options)
    assert compiled(x()).tolist() == [0, 2, 4, 6]
    assert compiled.__name__ == "double"


def test_the_old_way_to_compile_runs_as_written():
    import torch._dynamo

    def double(values):
        return values * 2

    assert torch._dynamo.optimize("inductor")(double)(x()).tolist() == [0, 2, 4, 6]
    net = nn.Linear(4, 3).cuda()
    assert torch.equal(torch._dynamo.optimize("eager", nopython=True)(net)(x()), net(x()))


def test_compile_as_a_decorator():
    @torch.compile
    def one(values):
        return values + 1

    @torch.compile(mode="reduce-overhead")
    def two(values):
        return values + 2 + int(torch.compiler.is_compiling())

    assert (one(x()).tolist(), two(x()).tolist()) == ([1, 2, 3, 4], [2, 3, 4, 5])


def test_a_compiled_module_is_what_programs_expect_of_it():
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).cuda()
    compiled = torch.compile(net)
    assert compiled._orig_mod is net
    assert list(compiled.state_dict()) == ["_orig_mod.0.weight", "_orig_mod.0.bias"]
    compiled.eval()
    assert not net[1].training
    assert torch.equal(compiled(x()), net(x()))
    assert torch.equal(copy.deepcopy(compiled)(x()), net(x()))
    compiled(x()).sum().backward()
    assert net[0].bias.grad.tolist() == [1, 1, 1]


def test_a_module_compiles_itself():
    net = nn.Linear(4, 3).cuda()
    expected = net(x())
    net.compile(fullgraph=True)
    assert torch.equal(net(x()), expected)


def test_an_unknown_option_is_an_error_as_in_torch():
    with pytest.raises(TypeError, match="fullgraf"):
        torch.compile(nn.Linear(2, 2), fullgraf=True)


def test_one_line_of_the_log_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(log, "_said", set())
    logger = type("Logger", (), {"log": lambda _self, _level, text: said.append(text)})
    monkeypatch.setattr(log, "get_logger", logger)
    torch.compile(lambda values: values)
    torch.compile(lambda values: values)
    assert len(said) == 1
    assert "torch.compile leaves the program as it is" in said[0]


def test_a_program_that_has_it_switched_off_is_let_through(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    function = lambda x: x + 1  # noqa: E731 - a lambda is wanted
    assert torch.compile(function, disable=True)(1) == 2


def test_torch_says_that_there_is_no_triton():
    from torch.utils import _triton

    assert not _triton.has_triton()


@pytest.mark.parametrize("name", ["transformers.utils.import_utils", "accelerate.utils.imports"])
def test_so_do_the_libraries_that_others_ask(monkeypatch, tmp_path, name):
    """trl asks transformers, and takes its loss without Triton's kernels where there are none."""
    package = name.partition(".")[0]
    folder = tmp_path.joinpath(*name.split(".")[:-1])
    folder.mkdir(parents=True)
    (tmp_path / package / "__init__.py").touch()
    module = name.rpartition(".")[2]
    (folder / f"{module}.py").write_text("def is_triton_available(min_version='3.4.0'):\n    return True\n")
    (folder / "__init__.py").write_text(f"from .{module} import is_triton_available\n")
    monkeypatch.syspath_prepend(tmp_path)
    for loaded in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    utils = importlib.import_module(name.rpartition(".")[0])
    assert utils.is_triton_available() is False
    assert sys.modules[name].is_triton_available("3.0") is False


def test_a_triton_kernel_is_refused_by_name():
    triton = pytest.importorskip("triton")

    @triton.jit
    def add_one(pointer, count):
        pass

    with pytest.raises(SimulationError, match=r"the Triton kernel add_one is not simulated"):
        add_one[(1,)](x(), 4)
    tuned = triton.autotune(configs=[triton.Config({})], key=["count"])(add_one)
    with pytest.raises(SimulationError, match=r"the Triton kernel .* is not simulated"):
        tuned[(1,)](x(), count=4)
    assert "triton.runtime.jit" in sys.modules
