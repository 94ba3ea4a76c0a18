"""Recurrent layers and cells: one kernel each, the CPU's numbers, and CUDA's errors."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from syncagent import simulate

LAYERS = [
    pytest.param(
        kind, {"num_layers": layers, "bidirectional": both, "batch_first": first, "bias": bias, **more}, id=name
    )
    for name, kind, more in (
        ("lstm", nn.LSTM, {}),
        ("lstm_proj", nn.LSTM, {"proj_size": 3}),
        ("gru", nn.GRU, {}),
        ("tanh", nn.RNN, {}),
        ("relu", nn.RNN, {"nonlinearity": "relu"}),
    )
    for layers, both, first, bias in itertools.product((1, 2), (False, True), (False, True), (False, True))
]
CELLS = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "tanh": nn.RNNCell,
    "relu": lambda *sizes: nn.RNNCell(*sizes, nonlinearity="relu"),
}


def gradients_of(model, source, loss, **options):
    return [x.detach().cpu() for x in torch.autograd.grad(loss, [source, *model.parameters()], **options)]


def run_layer(model, device, *, packed=False):
    torch.manual_seed(1)
    model = copy.deepcopy(model).to(device)
    source = torch.rand(4, 4, 5).to(device).requires_grad_()
    given = pack_padded_sequence(source, [4, 3, 3, 1], batch_first=model.batch_first) if packed else source
    output, states = model(given)
    if packed:
        output = pad_packed_sequence(output, batch_first=model.batch_first)[0]
    states = states if isinstance(states, tuple) else (states,)
    results = [output, *states]
    loss = sum((x * x).sum() for x in results)
    return [x.detach().cpu() for x in results], gradients_of(model, source, loss), [x.stride() for x in results]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_a_layer_gives_the_cpus_numbers(kind, options, packed):
    torch.manual_seed(0)
    model = kind(5, 6, **options)
    ours, theirs = (run_layer(model, device, packed=packed) for device in ("cuda", "cpu"))
    for mine, expected in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        assert torch.equal(mine, expected)
    assert ours[2] == theirs[2]


def queued(call):
    """How many kernels a call queues."""
    engine = torch.cuda.current_stream().engine
    before = engine.submitted
    call()
    return engine.submitted - before


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_layer_is_one_kernel_forward_and_one_backward(kind):
    model, source = kind(5, 6, 2).cuda(), torch.rand(20, 4, 5, device="cuda")
    states = [torch.zeros(2, 4, 6, device="cuda") for _ in range(2)]
    output = []
    assert queued(lambda: output.append(model(source, tuple(states) if kind is nn.LSTM else states[0])[0])) == 1
    total = output[0].sum()
    assert queued(lambda: torch.autograd.grad(total, list(model.parameters()))) <= 3  # with the sum's


def run_cell(make, device, dtype=torch.float32):
    torch.manual_seed(2)
    cell, source = make(5, 6).to(device, dtype), torch.rand(4, 5, dtype=dtype).to(device).requires_grad_()
    states = None
    for _ in range(3):
        states = cell(source, states)
    results = states if isinstance(states, tuple) else (states,)
    return [x.detach().cpu() for x in results], gradients_of(cell, source, sum((x * x).sum() for x in results))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_gives_the_cpus_numbers(name):
    (ours, our_gradients), (theirs, their_gradients) = (run_cell(CELLS[name], device) for device in ("cuda", "cpu"))
    for mine, expected in zip([*ours, *our_gradients], [*theirs, *their_gradients], strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_one_kernel(name):
    cell, source = CELLS[name](5, 6).cuda(), torch.rand(4, 5, device="cuda")
    state = torch.zeros(4, 6, device="cuda")
    assert queued(lambda: cell(source, (state, state) if name == "lstm" else state)) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_other_types_are_computed_in_a_wider_one_and_rounded_once(kind, dtype):
    torch.manual_seed(0)
    wider = torch.float64 if dtype == torch.float64 else torch.float32
    model = kind(5, 6, 2).to(dtype)
    source = torch.rand(4, 3, 5, dtype=dtype)
    ours, _ = copy.deepcopy(model).cuda()(source.cuda())
    theirs, _ = copy.deepcopy(model).to(wider)(source.to(wider))
    assert ours.dtype == dtype
    assert torch.equal(ours.cpu(), theirs.to(dtype))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_what_goes_into_a_layer_or_a_cell(dtype, inference):
    layer, cell, source = nn.LSTM(5, 6).cuda(), nn.LSTMCell(5, 6).cuda(), torch.rand(4, 3, 5, device="cuda")
    with torch.autocast("cuda", dtype=dtype), torch.inference_mode(inference):
        output, states = layer(source)
        assert {x.dtype for x in (output, *states, *cell(source[0]))} == {dtype}
    if not inference:
        output.float().sum().backward()
        assert {x.grad.dtype for x in layer.parameters()} == {torch.float32}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_one_kernel_too(mode):
    torch.manual_seed(0)
    model, source = nn.GRU(5, 6, 2), torch.rand(4, 3, 5)
    expected = model(source)[0].detach()
    model, source = model.cuda(), source.cuda()
    state = torch.zeros(2, 3, 6, device="cuda")
    with mode():
        found = []
        assert queued(lambda: found.append(model(source, state)[0])) == 1
        assert torch.equal(found[0].cpu(), expected)


# --- dropout -----------------------------------------------------------------------------------------------


def test_dropout_draws_from_the_devices_generator_and_leaves_the_cpus_alone():
    model, source = nn.LSTM(5, 6, 3, dropout=0.5, bidirectional=True).cuda(), torch.rand(4, 3, 5, device="cuda")
    before = torch.random.get_rng_state()
    torch.cuda.manual_seed(3)
    first, second = model(source)[0], model(source)[0]
    torch.cuda.manual_seed(3)
    again = model(source)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
    model.eval()
    assert torch.equal(model(source)[0], model(source)[0])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last")
def test_cudnn_reads_the_seed_of_its_dropout_once_for_each_seed_of_the_device(kind, layers, observed):
    model, source = kind(5, 6, layers, dropout=0.5).cuda(), torch.rand(4, 3, 5, device="cuda")

    def waits(call):
        observed.clear()
        call()
        return observed.waits

    once = [("aten::_local_scalar_dense", "scalar_read")]
    torch.cuda.manual_seed(1)
    assert waits(lambda: model.eval()(source)) == []
    model.train()
    with torch.backends.cudnn.flags(enabled=False):
        assert waits(lambda: model(source)) == []
    assert waits(lambda: model(source)) == once
    assert waits(lambda: model(source)) == []
    state = torch.cuda.get_rng_state()
    torch.cuda.set_rng_state(state)
    assert waits(lambda: model(source)) == once
    without = kind(5, 6, 2).cuda()
    torch.cuda.manual_seed(1)
    assert waits(lambda: without(source)) == []


def test_dropout_drops_the_part_that_it_should_and_scales_the_rest():
    """Weights that pass the first layer's outputs on show the mask: each is zero, or doubled."""
    model = nn.RNN(64, 64, 2, dropout=0.25, nonlinearity="relu", bias=False).cuda()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.eye(64) if "ih" in name else torch.zeros(64, 64))
    output = model(torch.ones(10, 8, 64, device="cuda"))[0].detach().cpu()
    assert sorted(set(output.flatten().tolist())) == pytest.approx([0, 4 / 3])
    assert (output == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_with_dropout_the_gradients_are_those_of_the_same_mask():
    model, source = nn.GRU(3, 4, 2, dropout=0.5).double().cuda(), torch.rand(3, 2, 3, dtype=torch.float64)

    def output_of(x):
        torch.cuda.manual_seed(5)
        return model(x)[0].sum()

    leaf = source.cuda().requires_grad_()
    (found,) = torch.autograd.grad(output_of(leaf), leaf)
    step = torch.zeros_like(source)
    step[1, 1, 1] = 1e-6
    change = output_of((source + step).cuda()) - output_of((source - step).cuda())
    assert found[1, 1, 1].item() == pytest.approx(change.item() / 2e-6, rel=1e-5)


# --- what becomes of the graph -----------------------------------------------------------------------------


def test_a_backward_pass_may_be_repeated_and_is_refused_once_the_graph_is_freed():
    model, source = nn.LSTM(5, 6).cuda(), torch.rand(4, 3, 5, device="cuda")
    total = model(source)[0].sum()
    first = torch.autograd.grad(total, model.weight_hh_l0, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(total, model.weight_hh_l0)[0])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(total, model.weight_hh_l0)


def test_the_graph_is_made_again_for_tensors_that_were_kept_elsewhere():
    model, source = nn.LSTM(5, 6, 2, dropout=0.5).cuda(), torch.rand(4, 3, 5, device="cuda")
    found = []
    for hooks in (
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
        torch.autograd.graph.save_on_cpu(),
    ):
        torch.cuda.manual_seed(7)
        with hooks:
            total = model(source)[0].sum()
        found.append(torch.autograd.grad(total, list(model.parameters())))
    for direct, restored in zip(*found, strict=True):
        assert torch.equal(direct, restored)


def test_checkpointing_gives_the_same_gradients():
    model, source = nn.GRU(5, 6, 2).cuda(), torch.rand(4, 3, 5, device="cuda")
    direct = torch.autograd.grad(model(source)[0].sum(), list(model.parameters()))
    output = torch.utils.checkpoint.checkpoint(lambda x: model(x)[0], source, use_reentrant=False)
    for one, other in zip(direct, torch.autograd.grad(output.sum(), list(model.parameters())), strict=True):
        assert torch.equal(one, other)


def test_states_may_be_written_to_before_the_backward_pass_and_the_output_may_not():
    model, source = nn.GRU(5, 6).cuda(), torch.rand(4, 3, 5, device="cuda")
    expected = torch.autograd.grad(model(source)[0].sum(), model.weight_hh_l0)[0]
    output, state = model(source)
    state.mul_(0)
    assert torch.equal(torch.autograd.grad(output.sum(), model.weight_hh_l0)[0], expected)
    output, state = model(source)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_only_the_gradients_that_are_asked_for_are_there():
    model, source = nn.LSTM(5, 6).cuda(), torch.rand(4, 3, 5, device="cuda")
    model.weight_ih_l0.requires_grad_(False)
    model(source)[1][1].sum().backward()  # of the last state alone
    assert model.weight_ih_l0.grad is None
    assert model.weight_hh_l0.grad.abs().sum().item() > 0


# --- CUDA's errors -----------------------------------------------------------------------------------------


def second_gradient(model, source):
    output = model(source)
    output = output[0] if isinstance(output, tuple) else output
    (first,) = torch.autograd.grad(output.square().sum(), source, create_graph=True)
    return torch.autograd.grad(first.square().sum(), source)[0]


def test_a_second_backward_pass_is_refused_as_by_cudnn_and_possible_without():
    torch.manual_seed(0)
    model, source = nn.LSTM(5, 6, 2, dropout=0.3).double(), torch.rand(4, 3, 5, dtype=torch.float64)
    on_device = copy.deepcopy(model).cuda()
    with pytest.raises(RuntimeError, match="Double backwards is not supported for CuDNN RNNs"):
        second_gradient(on_device, source.cuda().requires_grad_())
    with torch.backends.cudnn.flags(enabled=False):
        second_gradient(on_device, source.cuda().requires_grad_())
        found = second_gradient(on_device.eval(), source.cuda().requires_grad_())
    torch.testing.assert_close(found.cpu(), second_gradient(model.eval(), source.requires_grad_()))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_has_a_second_backward_pass(name):
    torch.manual_seed(0)
    cell, source = CELLS[name](5, 6), torch.rand(3, 5)
    found = second_gradient(copy.deepcopy(cell).cuda(), source.cuda().requires_grad_())
    torch.testing.assert_close(found.cpu(), second_gradient(cell, source.requires_grad_()))


def test_cudnn_has_no_backward_pass_in_eval_mode():
    model, source = nn.LSTM(5, 6).cuda().eval(), torch.rand(4, 3, 5, device="cuda")
    total = model(source)[0].sum()
    with pytest.raises(RuntimeError, match="cudnn RNN backward can only be called in training mode"):
        total.backward()
    with torch.backends.cudnn.flags(enabled=False):
        model(source)[0].sum().backward()


@pytest.mark.parametrize(
    "change",
    [
        lambda x, h, w: (x.cpu(), h, w),
        lambda x, h, w: (x, h.cpu(), w),
        lambda x, h, w: (x, h, [w[0].cpu(), *w[1:]]),
        lambda x, h, w: (x[..., :4], h, w),
        lambda x, h, w: (x, h[:, :2], w),
    ],
)
def test_tensors_that_do_not_fit_together_raise_at_the_call(change):
    model = nn.GRU(5, 6).cuda()
    x, h, w = change(torch.rand(4, 3, 5).cuda(), torch.zeros(1, 3, 6).cuda(), list(model.parameters()))
    with pytest.raises((RuntimeError, ValueError)):
        torch.gru(x, h, w, True, 1, 0.0, True, False, False)
    torch.cuda.synchronize()


STATE = torch.zeros(2, 3, 6)


PACKED = lambda m, x: torch.gru(  # noqa: E731
    x.reshape(12, 5), torch.tensor([3] * 4, device="cuda"), STATE.cuda(), list(m.parameters()), True, 2, 0, True, False
)
ELSEWHERE = "Input and {0} tensors are not at the same device, found input tensor at {1} and {0} tensor at {2}"
OTHER = "Input and hidden tensors are not the same dtype, found input tensor with Float and hidden tensor with Half"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda m, x: m(x, STATE), ELSEWHERE.format("hidden", "cuda:0", "cpu")),
        (lambda m, x: m(x.cpu()), ELSEWHERE.format("parameter", "cpu", "cuda:0")),
        (lambda m, x: m(x, STATE.cuda().half()), OTHER),
        (lambda m, x: m(x, STATE.cuda().transpose(0, 1).contiguous().transpose(0, 1)), "rnn: hx is not contiguous"),
        (PACKED, "batch_sizes tensor should be on CPU, but got cuda:0"),
    ],
)
def test_what_cudnn_does_not_take_is_refused_in_torchs_words(call, error):
    with pytest.raises(RuntimeError) as caught:
        call(nn.GRU(5, 6, 2).cuda(), torch.rand(4, 3, 5, device="cuda"))
    assert str(caught.value) == error


def test_a_cell_state_that_is_not_contiguous_is_refused_and_torchs_own_kernels_take_it():
    model, source = nn.LSTM(5, 6, 2).cuda(), torch.rand(4, 3, 5, device="cuda")
    states = torch.zeros(2, 3, 6, device="cuda"), torch.zeros(3, 2, 6, device="cuda").transpose(0, 1)
    with pytest.raises(RuntimeError, match="rnn: cx is not contiguous"):
        model(source, states)
    expected = model(source)[0]
    with torch.backends.cudnn.flags(enabled=False):
        assert torch.equal(model(source, states)[0], expected)


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("lengths", [[4, 1, 3], [4, 1, 0], [4, 1], [5, 2, 1], [4, 3, 1]])
def test_lengths_are_checked_as_on_the_cpu(lengths, is_sorted):
    found = []
    source = torch.rand(4, 3, 5)
    for x in (source, source.cuda()):
        try:
            packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=is_sorted)
            found.append((packed.data.tolist(), packed.batch_sizes.tolist()))
        except (RuntimeError, IndexError) as error:
            found.append(str(error))
    assert found[1] == found[0]


@pytest.mark.parametrize("is_sorted", [True, False])
def test_lengths_on_the_device_are_refused(is_sorted):
    source = torch.rand(4, 3, 5, device="cuda")
    with pytest.raises(RuntimeError, match="should be a 1D CPU int64 tensor, but got 1D cuda:0 Long tensor"):
        pack_padded_sequence(source, torch.tensor([4, 3, 1], device="cuda"), enforce_sorted=is_sorted)


def test_what_waits_when_a_batch_is_packed_is_the_copy_of_its_order(observed):
    source = torch.rand(4, 3, 5, device="cuda")
    observed.clear()
    packed = pack_padded_sequence(source, [4, 3, 1])
    pad_packed_sequence(packed)
    assert observed.waits == []
    packed = pack_padded_sequence(source, [4, 1, 3], enforce_sorted=False)
    assert [kind for _, kind in observed.waits] == ["copy_h2d"]
    observed.clear()
    pad_packed_sequence(packed)
    assert [kind for _, kind in observed.waits] == ["copy_d2h"]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_functions_see_the_parts():
    torch.manual_seed(0)
    cell, source = nn.GRUCell(5, 6), torch.rand(3, 5)
    expected = torch.func.vmap(lambda x: cell(x[None])[0])(source)
    on_device = copy.deepcopy(cell).cuda()
    found = torch.func.vmap(lambda x: on_device(x[None])[0])(source.cuda())
    torch.testing.assert_close(found.detach().cpu(), expected.detach())
    gradient = torch.func.grad(lambda x: on_device(x).sum())(source.cuda())
    torch.testing.assert_close(gradient.cpu(), torch.func.grad(lambda x: cell(x).sum())(source))


def test_an_empty_batch_gives_what_torch_gives():
    model = nn.LSTM(5, 6).cuda()
    assert model(torch.rand(4, 0, 5, device="cuda"))[0].shape == (4, 0, 6)


def test_nothing_here_waits(observed):
    internal = simulate.internal_waits()
    model, source = nn.LSTM(5, 6, 2, dropout=0.5).cuda(), torch.rand(4, 3, 5, device="cuda")
    model(source)  # cuDNN has the seed of its dropout from then on
    observed.clear()
    model(source)[0].sum().backward()
    assert observed.ops == []
    assert simulate.internal_waits() == internal
