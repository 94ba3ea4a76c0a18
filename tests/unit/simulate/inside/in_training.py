"""Training loops give the CPU's numbers, bit for bit, in fp32."""

from __future__ import annotations

import copy

import pytest
import torch
import toy
from torch import nn

from syncagent import simulate


def same(ours, theirs):
    return all(
        torch.equal(a.cpu(), b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("variant", range(4))
def test_the_articles_step_is_bit_equal_to_the_cpus(variant, observed):
    internal = simulate.internal_waits()
    losses, model = toy.train("cuda", variant)
    ops = [op for op in observed.ops if op not in {"aten::copy_", "aten::_local_scalar_dense"}]
    assert observed.ops.count("aten::_local_scalar_dense") == 3  # float(loss) at the end
    expected_losses, expected = toy.train("cpu", variant)
    assert losses == expected_losses
    assert same(model, expected)
    each_step = {
        # The index assignment waits too, on an H100 as here: its value is copied from the host.
        0: ["aten::nonzero", "aten::index_put_", "aten::_unique2", "aten::index", "aten::index", "aten::index_put_"],
        1: ["aten::_unique2", "aten::index", "aten::index", "aten::index_put_"],
        2: ["aten::index", "aten::index", "aten::index_put_"],
        3: [],
    }[variant]
    assert ops == each_step * 3
    assert simulate.internal_waits() == internal


def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 16), nn.GELU(),
        nn.LayerNorm(16), nn.Linear(16, 5),
    )  # fmt: skip


def train(device, make_optimizer, clip=False, schedule=False):
    torch.manual_seed(3)
    model = net().to(device)
    optimizer = make_optimizer(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5) if schedule else None
    losses = []
    for _ in range(5):
        x, y = torch.rand(6, 1, 8, 8).to(device), torch.randint(0, 5, (6,)).to(device)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip:
            losses.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).detach())
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.detach())
    return [float(x) for x in losses], model


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
        lambda p: torch.optim.Adagrad(p, lr=0.01),
    ],
    ids=[
        "sgd",
        "sgd-nesterov",
        "sgd-fused",
        "adamw",
        "adamw-foreach",
        "adamw-single",
        "adamw-fused",
        "adamw-amsgrad",
        "adam",
        "rmsprop",
        "adagrad",
    ],
)
def test_optimizers_are_bit_equal_to_the_cpus(make):
    losses, model = train("cuda", make)
    expected_losses, expected = train("cpu", make)
    assert losses == expected_losses
    assert same(model, expected)


def test_clipping_and_a_schedule_are_bit_equal_to_the_cpus():
    make = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)  # noqa: E731 - short
    losses, model = train("cuda", make, clip=True, schedule=True)
    expected_losses, expected = train("cpu", make, clip=True, schedule=True)
    assert losses == expected_losses
    assert same(model, expected)


def test_a_training_step_without_reads_waits_for_nothing(observed):
    model = net().cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.rand(6, 1, 8, 8, device="cuda")
    torch.cuda.synchronize()
    observed.clear()
    internal = simulate.internal_waits()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert observed.waits == []
    assert simulate.internal_waits() == internal


def test_the_optimizer_made_before_the_move_trains_the_moved_parameters():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    model.cuda()
    model(torch.ones(1, 2, device="cuda")).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight.cpu(), before - 1)
    model.cpu()
    assert type(model.weight) is nn.Parameter
    assert model.weight.grad.device.type == "cpu"


def test_moving_a_model_takes_its_gradients_along():
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    model.cuda()
    assert model.weight.grad.is_cuda
    assert torch.equal(model.weight.grad.cpu(), torch.ones(2, 2))


def test_dropout_follows_the_seed():
    def masks(seed_with):
        seed_with(7)
        return [nn.functional.dropout(torch.ones(50, device="cuda"), 0.5).cpu() for _ in range(2)]

    first, again, other = masks(torch.manual_seed), masks(torch.manual_seed), masks(lambda _: torch.manual_seed(8))
    only_cuda = masks(torch.cuda.manual_seed)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, only_cuda, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert set(first[0].tolist()) == {0.0, 2.0}


def test_the_devices_generator_leaves_the_cpus_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    torch.rand(5, device="cuda")
    nn.functional.dropout(torch.ones(5, device="cuda"))
    torch.randperm(5, device="cuda")
    torch.randint_like(torch.ones(3, device="cuda"), 9)
    torch.cuda.synchronize()
    assert torch.equal(torch.rand(3), expected)


def test_generator_state_can_be_kept_and_put_back():
    state = torch.cuda.get_rng_state()
    first = torch.randn(4, device="cuda")
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.randn(4, device="cuda"), first)
    generator = torch.Generator(device="cuda").manual_seed(5)
    one = torch.rand(4, device="cuda", generator=generator)
    generator.manual_seed(5)
    assert torch.equal(torch.rand(4, device="cuda", generator=generator), one)
    assert generator.device == torch.device("cuda:0")
    assert isinstance(torch.Generator(), torch.Generator)
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.ones(2, device="cuda").normal_(generator=torch.Generator())


def test_a_copy_of_the_model_is_its_own():
    model = net().cuda()
    average = copy.deepcopy(model)
    with torch.no_grad():
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
            theirs.add_(1.0)
            mine.lerp_(theirs, 0.5)
    weights = average[0].weight.cpu(), model[0].weight.cpu()
    assert torch.allclose(weights[0] + 0.5, weights[1])
    assert isinstance(average[0].weight, nn.Parameter)


def test_recurrent_and_attention_layers_train_close_to_the_cpu():
    def run(device):
        torch.manual_seed(0)
        lstm, attention = nn.LSTM(4, 8, 2).to(device), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0).to(device)
        x = torch.rand(5, 3, 4).to(device)
        loss = attention(lstm(x)[0]).square().mean()
        loss.backward()
        return loss.detach().cpu(), lstm.weight_ih_l0.grad.cpu()

    for ours, theirs in zip(run("cuda"), run("cpu"), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_checkpointed_layers_give_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    layer, x = nn.Linear(3, 3).cuda(), torch.rand(2, 3, device="cuda")
    nn.functional.dropout(layer(x), 0.5).sum()
    torch.manual_seed(2)
    nn.functional.dropout(layer(x), 0.5).sum().backward()
    expected, layer.weight.grad = layer.weight.grad.clone(), None
    torch.manual_seed(2)
    checkpoint(lambda x: nn.functional.dropout(layer(x), 0.5), x, use_reentrant=False).sum().backward()
    assert torch.equal(layer.weight.grad, expected)
