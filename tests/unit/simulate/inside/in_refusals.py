"""What the simulated device refuses: as CUDA does where CUDA refuses it, and by a clear sentence where only it does."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from syncagent import simulate
from syncagent.simulate import requirements


def cuda(*shape):
    return torch.ones(*shape, device="cuda")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cuda(2) + torch.ones(2), RuntimeError, "Expected all tensors .* on the same device.*cuda:0 and cpu"),
        (lambda: torch.ones(2).add_(cuda(1)[0]), RuntimeError, "Expected all tensors to be on the same device"),
        (lambda: torch.ones(()).add_(cuda(())), RuntimeError, "Expected all tensors to be on the same device"),
        (lambda: nn.Linear(2, 2)(cuda(1, 2)), RuntimeError, "Expected all tensors to be on the same device"),
        (lambda: nn.Linear(2, 2).cuda()(torch.ones(1, 2)), RuntimeError, "same device"),
        (lambda: torch.cat([cuda(2), torch.ones(2)]), RuntimeError, "same device"),
        (lambda: nn.functional.cross_entropy(cuda(2, 3), torch.tensor([0, 1])), RuntimeError, "same device"),
        (lambda: torch.ones(3)[cuda(1).long()], RuntimeError, "indices should be either on cpu or on the same device"),
        (lambda: cuda(2).numpy(), TypeError, "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()"),
        (lambda: np.asarray(cuda(2)), TypeError, "can't convert cuda:0 device type tensor to numpy"),
        (lambda: cuda(2).item(), RuntimeError, "cannot be converted to Scalar|1 element"),
        (lambda: bool(cuda(2)), RuntimeError, "ambiguous"),
        (lambda: torch.zeros(2, device="cuda:1"), torch.AcceleratorError, "invalid device ordinal"),
        (lambda: torch.cuda.set_device(1), torch.AcceleratorError, "invalid device ordinal"),
        (lambda: torch.zeros(2, device="cuda", pin_memory=True), RuntimeError, "Only dense CPU tensors can be pinned"),
    ],
)  # fmt: skip
def test_errors_that_cuda_gives_are_given_alike(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.cuda.CUDAGraph(),
        lambda: torch.cuda.graph(None),
        lambda: torch.cuda.make_graphed_callables(nn.Linear(2, 2), ()),
        lambda: torch.cuda.graph_pool_handle(),
        lambda: torch.cuda.memory_snapshot(),
        lambda: torch.cuda.memory._snapshot(),
        lambda: torch.cuda.memory._record_memory_history(max_entries=10),
        lambda: torch.cuda.memory._dump_snapshot("snapshot.pickle"),
        lambda: torch.nested.nested_tensor([cuda(2), cuda(3)]),
        lambda: torch.nested.nested_tensor([cuda(2), cuda(3)], layout=torch.jagged),
        lambda: cuda(2).__dlpack__(),
        lambda: torch.utils.dlpack.to_dlpack(cuda(2)),
        lambda: np.from_dlpack(cuda(2)),
        lambda: torch.cuda.utilization(),
        lambda: torch.cuda.temperature(),
        lambda: torch.cuda.power_draw(),
        lambda: torch.cuda.clock_rate(),
        lambda: torch.cuda.device_memory_used(),
        lambda: torch.cuda.list_gpu_processes(),
        lambda: torch.cuda.current_blas_handle(),
        lambda: torch.cuda.cudart().cudaHostRegister(0, 0, 0),
        lambda: torch.cuda.Event(interprocess=True),
    ],
)
def test_what_is_not_simulated_says_so(call):
    with pytest.raises(simulate.SimulationError, match=r"not simulated"):
        call()


def test_a_refusal_names_the_function_that_was_called():
    with pytest.raises(simulate.SimulationError, match=r"torch\.cuda\.CUDAGraph: CUDA graphs are not simulated"):
        torch.cuda.CUDAGraph()
    with pytest.raises(simulate.SimulationError, match=r"torch\.cuda\.memory\._record_memory_history: memory snap"):
        torch.cuda.memory._record_memory_history()


@pytest.mark.filterwarnings("ignore:Sparse")
def test_products_that_only_the_cpu_reduces_are_refused_as_on_cuda():
    matrix = cuda(2, 3).to_sparse_csr()
    with pytest.raises(NotImplementedError, match="'aten::_sparse_mm_reduce_impl' with arguments from the 'SparseCsr"):
        torch.sparse.mm(matrix, cuda(3, 2), "sum")


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_script_is_written_from_the_cpu(tmp_path):
    net = nn.Linear(2, 3).cuda()
    expected, script = net(cuda(1, 2)), torch.jit.script(net)
    for write in (lambda: torch.jit.save(script, tmp_path / "net.pt"), lambda: script.save_to_buffer()):
        with pytest.raises(
            simulate.SimulationError, match=r"torch\.jit\.save: .* torch\.jit\.script\(model\.cpu\(\)\)"
        ):
            write()
    on_host = nn.Linear(2, 3)
    on_host.load_state_dict(net.state_dict())
    torch.jit.script(on_host).save(tmp_path / "net.pt")
    assert torch.equal(torch.jit.load(tmp_path / "net.pt").cuda()(cuda(1, 2)), expected)


def test_the_device_has_the_hosts_memory():
    free, total = torch.cuda.mem_get_info()
    assert 0 < free <= total
    properties = torch.cuda.get_device_properties(0)
    assert properties.total_memory == total
    assert {properties: "a table by device"}[torch.cuda.get_device_properties(0)]
    torchs_own = getattr(torch._C, "_CudaDeviceProperties", object)
    assert [name for name in dir(torchs_own) if not name.startswith("_") and not hasattr(properties, name)] == []
    assert properties.L2_cache_size == 40 << 20


def test_what_stands_in_torch_has_the_form_of_torchs_own():
    """Libraries ask for it."""
    assert "fullgraph" in inspect.signature(torch.compile).parameters
    assert not isinstance(1, torch.cuda.device_of)
    with pytest.raises(TypeError):
        torch.cuda._sleep("long")
    x = torch.ones(2, device="cuda")
    storage = x.untyped_storage()
    storage.note = "the program's own"
    assert storage == x.untyped_storage()
    ones = torch.storage.TypedStorage(wrap_storage=torch.ones(2).untyped_storage(), dtype=torch.float32, _internal=True)
    rebuilt = torch._utils._rebuild_tensor_v2(ones, 0, (2,), (1,), False, backward_hooks={})
    assert rebuilt.tolist() == [1, 1]


def test_installing_twice_changes_nothing_and_another_number_is_an_error():
    zeros = torch.zeros
    simulate.install()
    assert simulate.installed()
    assert torch.zeros is zeros
    with pytest.raises(simulate.SimulationError, match=r"1 simulated devices are installed already; 2 asked for"):
        simulate.install(devices=2)


def test_a_torch_that_lacks_a_name_is_reported_in_one_sentence(monkeypatch):
    monkeypatch.setitem(requirements.REQUIRED, "_C._no_such_name", "a test")
    monkeypatch.setitem(requirements.REQUIRED, "nowhere.at_all", "another")
    with pytest.raises(simulate.SimulationError, match=r"it lacks torch\._C\._no_such_name \(a test\), torch\.nowhere"):
        requirements.check()


def test_scripted_functions_still_find_the_factories():
    @torch.jit.ignore
    def unused():
        pass

    assert torch.jit._builtins._find_builtin(torch.zeros) == "aten::zeros"
