"""torch.save, torch.load, pickle, state_dict."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn


def round_trip(value, **settings):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **settings)


def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LSTM(4, 2)).cuda()
    optimizer = torch.optim.AdamW(model[0].parameters(), lr=0.1)
    model[0](torch.rand(5, 3, device="cuda")).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_checkpoint_comes_back_to_the_device(weights_only):
    model, optimizer = trained()
    saved = round_trip({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, weights_only=weights_only)
    again, other = trained()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    for name, value in model.state_dict().items():
        assert saved["model"][name].device == torch.device("cuda:0")
        assert torch.equal(again.state_dict()[name], value)
    moments = other.state[again[0].weight]["exp_avg"], optimizer.state[model[0].weight]["exp_avg"]
    assert moments[0].is_cuda
    assert torch.equal(*moments)


@pytest.mark.parametrize("where", ["cpu", torch.device("cpu"), lambda storage, _: storage, {"cuda:0": "cpu"}])
def test_a_checkpoint_loads_on_the_cpu(where):
    value = torch.arange(4.0, device="cuda")
    loaded = round_trip({"x": value}, map_location=where)["x"]
    assert type(loaded) is torch.Tensor
    assert torch.equal(loaded, torch.arange(4.0))


@pytest.mark.parametrize("where", ["cuda", "cuda:0", torch.device("cuda"), lambda storage, _: storage.cuda(0)])
def test_a_cpu_checkpoint_loads_on_the_device(where):
    loaded = round_trip({"x": torch.arange(4.0)}, map_location=where)["x"]
    assert loaded.device == torch.device("cuda:0")
    assert loaded.tolist() == [0, 1, 2, 3]


def test_tensors_that_share_memory_still_share_it():
    base = torch.zeros(6, device="cuda")
    loaded = round_trip([base, base.view(2, 3), base[2:]])
    loaded[0].fill_(7)
    assert loaded[1].tolist() == [[7] * 3] * 2
    assert loaded[2].tolist() == [7] * 4


def test_parameters_and_non_contiguous_tensors_survive():
    parameter = nn.Parameter(torch.rand(2, 3, device="cuda"))
    loaded = round_trip([parameter, parameter.detach().t(), parameter.detach()[:, 1]], weights_only=False)
    assert isinstance(loaded[0], nn.Parameter)
    assert loaded[0].requires_grad
    assert torch.equal(loaded[1], parameter.t())
    assert loaded[2].stride() == (3,)
    assert torch.equal(pickle.loads(pickle.dumps(parameter)), parameter)


def test_a_device_that_is_not_there_is_named():
    file = io.BytesIO()
    torch.save(torch.ones(1), file)
    file.seek(0)
    with pytest.raises(RuntimeError, match=r"CUDA device 3 but torch.cuda.device_count\(\) is 1"):
        torch.load(file, map_location="cuda:3")


def test_a_process_without_the_simulation_reads_it_as_a_cuda_checkpoint(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(torch.arange(3.0, device="cuda"), path)
    program = (
        "import torch, sys\n"
        "print(torch.load(sys.argv[1], map_location='cpu').tolist())\n"
        "try: torch.load(sys.argv[1])\n"
        "except RuntimeError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True).stdout
    assert said.startswith("[0.0, 1.0, 2.0]\nAttempting to deserialize object on a CUDA device")


def test_saving_and_loading_wait_for_one_copy_a_storage(observed):
    value = torch.ones(4, device="cuda")
    observed.clear()
    file = io.BytesIO()
    torch.save(value, file)
    assert observed.waits == [("aten::copy_", "copy_d2h")]
    file.seek(0)
    torch.load(file)
    assert observed.waits[1:] == [("aten::copy_", "copy_h2d")]


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("write", [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(2, 3))])
def test_a_script_from_a_file_is_moved_to_the_device_and_back(tmp_path, write):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    write(net).save(tmp_path / "net.pt")
    loaded = torch.jit.load(tmp_path / "net.pt", map_location="cpu")
    expected = loaded(torch.ones(2, 3))
    assert torch.equal(loaded.to("cuda")(torch.ones(2, 3, device="cuda")).cpu(), expected)
    assert {each.device.type for each in loaded.state_dict().values()} == {"cuda"}
    loaded(torch.ones(2, 3, device="cuda")).sum().backward()
    assert all(each.grad is not None for each in loaded.parameters())
    with torch.no_grad():
        assert torch.equal(loaded.cpu()(torch.ones(2, 3)), expected)
