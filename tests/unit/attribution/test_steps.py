"""Where steps end, and which phase of a step a sync belongs to."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from torch import distributed
from torch.distributed.algorithms.join import Join, Joinable, JoinHook

import syncagent
from syncagent import Phase
from syncagent.attribution.steps import Steps

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])


@pytest.fixture
def steps():
    """Steps that count while the test runs; ``steps.ended`` holds the numbers of those that ended."""
    ended = []
    counting = Steps(lambda step, start_ns, end_ns: ended.append((step, start_ns, end_ns)))
    counting.ended = ended
    counting.start()
    yield counting
    counting.stop()


def numbers(steps):
    return [step for step, _, _ in steps.ended]


def optimizer(**values):
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    return torch.optim.SGD([weight], lr=0.1, **values)


# --- optimizers -------------------------------------------------------------------------------------------------------


def test_each_step_of_an_optimizer_ends_a_step(steps):
    """Numbered from 0, one after the other in time."""
    sgd = optimizer()
    for _ in range(3):
        sgd.step()
    assert (numbers(steps), steps.current, steps.count) == ([0, 1, 2], 3, 3)
    for (_, start, end), (_, following, _) in zip(steps.ended, steps.ended[1:], strict=False):
        assert start <= end == following


def test_gradient_accumulation_is_one_step(steps):
    """However often ``backward`` runs, only the optimizer ends a step."""
    weight = torch.nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([weight], lr=0.1)
    for micro in range(8):
        (weight.sum() / 4).backward()
        if micro % 4 == 3:
            sgd.step()
            sgd.zero_grad()
    assert numbers(steps) == [0, 1]


def test_two_optimizers_of_one_loop_count_once(steps):
    """A GAN's generator and discriminator: the one that steps first leads."""
    discriminator, generator = optimizer(), optimizer()
    for _ in range(4):
        discriminator.step()
        generator.step()
    assert numbers(steps) == [0, 1, 2, 3]


def test_the_leader_may_step_less_often_than_another(steps):
    """Five steps of a critic for one of the generator, which came first: still one step each round."""
    generator, critic = optimizer(), optimizer()
    for _ in range(3):
        generator.step()
        for _ in range(5):
            critic.step()
    assert numbers(steps) == [0, 1, 2]


def test_an_optimizer_that_is_gone_leads_no_longer(steps):
    """The next phase of training makes its own optimizer."""
    first = optimizer()
    first.step()
    del first
    second = optimizer()
    second.step()
    second.step()
    assert numbers(steps) == [0, 1, 2]


def test_an_optimizer_that_is_no_longer_used_loses_the_lead(steps):
    """It still exists, but only another steps: after eight of its steps, that one leads."""
    first, second = optimizer(), optimizer()
    first.step()
    for _ in range(20):
        second.step()
    assert numbers(steps) == list(range(13))


def test_an_optimizer_made_before_the_watch_counts_as_well():
    """The hook is on the class: a watch may begin in the middle of a program."""
    sgd = optimizer()
    ended = []
    counting = Steps(lambda step, *_: ended.append(step))
    counting.start()
    sgd.step()
    counting.stop()
    sgd.step()
    assert ended == [0]


def test_stop_leaves_torch_as_it_was():
    """No hook, and GradScaler's own ``update``."""
    from torch.optim import optimizer as module

    hooks, update = dict(module._global_optimizer_post_hooks), torch.amp.GradScaler.update
    counting = Steps(lambda *_: None)
    for _ in range(3):
        counting.start()
        counting.stop()
        counting.stop()
    assert (dict(module._global_optimizer_post_hooks), torch.amp.GradScaler.update) == (hooks, update)


# --- GradScaler -------------------------------------------------------------------------------------------------------


@pytest.fixture
def scaled():
    """``scaled(infinite=...)``: one iteration under a GradScaler; an infinite gradient makes it skip the optimizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaler = torch.amp.GradScaler("cpu")
    weight = torch.nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([weight], lr=0.1)

    def iterate(*, infinite=False):
        sgd.zero_grad()
        scaler.scale(weight.sum() * (float("inf") if infinite else 1.0)).backward()
        scaler.step(sgd)
        scaler.update()

    return iterate


def test_a_step_that_gradscaler_skips_still_ends_one(steps, scaled):
    """The user's own loop counter goes on as well."""
    for infinite in (False, True, True, False, False, True):
        scaled(infinite=infinite)
    assert numbers(steps) == [0, 1, 2, 3, 4, 5]


def test_a_first_step_that_gradscaler_skips_counts_too(steps, scaled):
    """The first iterations are skipped while the scale is found; no optimizer has stepped yet."""
    for infinite in (True, True, False):
        scaled(infinite=infinite)
    assert numbers(steps) == [0, 1, 2]


def test_gradscaler_with_two_optimizers_counts_once(steps):
    """One ``update`` a round, two optimizers, the second of which is skipped now and then."""
    scaler = torch.amp.GradScaler("cpu")
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizers = [torch.optim.SGD([weight], lr=0.1) for weight in weights]
    for second in (1.0, float("inf"), 1.0):
        for weight, sgd, factor in zip(weights, optimizers, (1.0, second), strict=True):
            sgd.zero_grad()
            scaler.scale(weight.sum() * factor).backward()
            scaler.step(sgd)
        scaler.update()
    assert numbers(steps) == [0, 1, 2]


def test_a_leader_that_is_skipped_while_another_steps_counts_once(steps):
    """The leader's step is skipped, the other's is not: the round is still a step."""
    scaler = torch.amp.GradScaler("cpu")
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizers = [torch.optim.SGD([weight], lr=0.1) for weight in weights]
    for first in (1.0, float("inf"), 1.0):
        for weight, sgd, factor in zip(weights, optimizers, (first, 1.0), strict=True):
            sgd.zero_grad()
            scaler.scale(weight.sum() * factor).backward()
            scaler.step(sgd)
        scaler.update()
    assert numbers(steps) == [0, 1, 2]


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_steps_marked_by_hand_replace_the_optimizers(cpu_agent):
    """From the first call on; what the optimizer had counted before stays."""
    agent = cpu_agent(detail="syncs")
    sgd = optimizer()
    sgd.step()
    syncagent.step()
    sgd.step()
    sgd.step()
    X.nonzero()
    syncagent.step()
    X.nonzero()
    assert [event.step for event in agent.events()] == [2, 3]
    assert agent.report().run.steps == 3


def test_a_step_can_be_given_its_number(cpu_agent):
    """``step(n)``: step ``n`` begins, as after a restart from a checkpoint."""
    agent = cpu_agent(detail="syncs")
    syncagent.step(1000)
    X.nonzero()
    syncagent.step()
    X.nonzero()
    assert [event.step for event in agent.events()] == [1000, 1001]


def test_marking_a_step_without_an_agent_does_nothing():
    """A script keeps its calls when it is not watched."""
    assert syncagent.current() is None
    syncagent.step()
    syncagent.step(5)


# --- what an event carries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detail", ["ops", "syncs"])
def test_a_sync_carries_the_number_of_its_step(cpu_agent, detail):
    """One that comes after the optimizer belongs to the next step."""
    agent = cpu_agent(detail=detail)
    sgd = optimizer()
    for _ in range(3):
        X.nonzero()
        sgd.step()
        X.unique()
    assert [(event.op, event.step) for event in agent.events()] == [
        ("aten::nonzero", 0),
        ("aten::_unique2", 1),
        ("aten::nonzero", 1),
        ("aten::_unique2", 2),
        ("aten::nonzero", 2),
        ("aten::_unique2", 3),
    ]
    report = agent.report()
    assert report.run.steps == 3
    assert {site.op: site.per_step for site in report.sites} == {"aten::nonzero": 1.0, "aten::_unique2": 1.0}


class Masking(torch.nn.Module):
    def forward(self, x):
        return x[x > 0]


@pytest.mark.parametrize("detail", ["ops", "syncs"])
def test_phases_follow_the_training_loop(cpu_agent, line_of, detail):
    """Forward in a module, backward under ``backward()``, optimizer in its ``step``, other for the rest."""
    agent = cpu_agent(detail=detail)
    weight = torch.nn.Parameter(torch.tensor([1.0, -1.0, 2.0]))
    model, sgd = Masking(), Reading([weight], lr=0.1)
    kept = model(weight)
    kept.sum().backward()
    sgd.step()
    weight.sum().item()
    assert [(event.op, event.phase) for event in agent.events()] == [
        ("aten::index", Phase.FORWARD),
        ("aten::index_put_", Phase.BACKWARD),
        ("aten::_local_scalar_dense", Phase.OPTIMIZER),
        ("aten::_local_scalar_dense", Phase.OTHER),
    ]


class Reading(torch.optim.SGD):
    """An optimizer of the user's that reads a value back."""

    def step(self, closure=None):
        float(self.param_groups[0]["params"][0].grad.norm())
        return super().step(closure)


@pytest.mark.parametrize("detail", ["ops", "syncs"])
def test_a_backward_sync_names_the_forward_line_and_the_line_of_backward(cpu_agent, line_of, detail):
    """The line that made the autograd node, and where ``backward()`` was called."""
    agent = cpu_agent(detail=detail)
    x = torch.tensor([1.0, -1.0, 2.0], requires_grad=True)
    kept = x[x > 0]  # <- forward line
    kept.sum().backward()  # <- backward line
    event = agent.events()[-1]
    assert (event.op, event.phase) == ("aten::index_put_", Phase.BACKWARD)
    assert (event.site.file, event.site.line) == (__file__, line_of("backward line"))
    assert (event.forward_site.file, event.forward_site.line) == (__file__, line_of("forward line"))


@pytest.mark.parametrize("detail", ["ops", "syncs"])
def test_each_backward_sync_finds_its_own_forward_line(cpu_agent, line_of, detail):
    """Several nodes of the same kind, in the reverse order."""
    agent = cpu_agent(detail=detail)
    x = torch.tensor([1.0, -1.0, 2.0], requires_grad=True)
    first = x[x > 0]  # <- first mask
    second = first[first > 1]  # <- second mask
    second.sum().backward()
    backward = [event for event in agent.events() if event.phase is Phase.BACKWARD]
    assert [event.forward_site.line for event in backward] == [line_of("second mask"), line_of("first mask")]


def test_there_is_no_forward_line_where_it_was_not_seen(cpu_agent):
    """A graph made before the watch began: nothing is guessed."""
    x = torch.tensor([1.0, -1.0, 2.0], requires_grad=True)
    loss = x[x > 0].sum()
    agent = cpu_agent(detail="syncs")
    loss.backward()
    [event] = agent.events()
    assert (event.phase, event.forward_site) == (Phase.BACKWARD, None)


class Checked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        assert grad.isfinite().all()  # <- in a custom backward
        return grad * 2


def test_a_custom_functions_backward_is_the_users_own_code(agent, line_of):
    """Its own line is the site; the phase is backward."""
    x = torch.ones(3, requires_grad=True)
    Checked.apply(x).sum().backward()
    [event] = agent.events()
    assert (event.phase, event.site.line) == (Phase.BACKWARD, line_of("in a custom backward"))


def test_a_custom_function_has_no_forward_line_of_a_later_op(cpu_agent):
    """No op has made its node: the next op, which makes none, would be taken for the one that did."""
    agent = cpu_agent(detail="ops")
    x = torch.ones(3, requires_grad=True)
    out = Checked.apply(x)
    mask = torch.ones(3) > 0
    (out * mask).sum().backward()
    [event] = agent.events()
    assert (event.phase, event.forward_site) == (Phase.BACKWARD, None)


def test_a_hook_on_a_gradient_is_the_users_own_code(agent, line_of):
    """Also in the backward pass."""
    x = torch.ones(3, requires_grad=True)
    x.register_hook(lambda grad: print(grad.norm().item()))  # <- in a hook
    (x * 2).sum().backward()
    [event] = agent.events()
    assert (event.phase, event.site.line) == (Phase.BACKWARD, line_of("in a hook"))


def test_checkpointed_code_that_runs_again_is_in_the_backward_pass(agent, line_of):
    """Activation checkpointing recomputes the forward: the line is the same, the phase is where it ran."""
    from torch.utils.checkpoint import checkpoint

    def block(x):
        return x[x > 0].exp()  # <- checkpointed

    x = torch.tensor([1.0, -1.0, 2.0], requires_grad=True)
    checkpoint(block, x * 1, use_reentrant=False).sum().backward()
    here = [event for event in agent.events() if event.op == "aten::index"]
    assert [(event.phase, event.site.line) for event in here] == [
        (Phase.FORWARD, line_of("checkpointed")),
        (Phase.BACKWARD, line_of("checkpointed")),
    ]


@pytest.mark.parametrize("call", [lambda: X.sum().item(), lambda: X.nonzero()], ids=["item", "nonzero"])
def test_validation_without_gradients_is_no_phase_of_training(agent, call):
    """Outside of a module and under ``no_grad`` a sync is put down to nothing in particular."""
    with torch.no_grad():
        call()
    assert [event.phase for event in agent.events()] == [Phase.OTHER]


# --- a trainer that says where steps are ------------------------------------------------------------------------------


def test_what_runs_between_two_steps_is_in_none_where_the_next_is_said_to_begin(steps):
    """As an evaluation does."""
    sgd = optimizer()
    sgd.step()
    steps.begin()
    sgd.step()
    (_, _, end), (_, start, _) = steps.ended
    assert numbers(steps) == [0, 1]
    assert end < start


def test_a_step_that_begins_with_a_number_is_ended_by_hand_until_optimizers_are_followed_again(steps):
    sgd = optimizer()
    steps.begin(100)
    sgd.step()
    assert (numbers(steps), steps.by_hand) == ([], True)
    steps.mark(101)
    steps.follow_optimizers()
    sgd.step()
    assert (numbers(steps), steps.current, steps.by_hand) == ([100, 101], 102, False)


# --- ranks that run out of inputs -------------------------------------------------------------------------------------


class Shadow(JoinHook):
    """What a rank does for each pass of the others once it has run out: nothing here."""


class Model(Joinable):
    """One that takes part in blocks of ``Join``, in a job of this process alone."""

    def __init__(self):
        super().__init__()

    @property
    def join_device(self):
        return torch.device("cpu")

    @property
    def join_process_group(self):
        return distributed.group.WORLD

    def join_hook(self, **_):
        return Shadow()


@pytest.fixture
def model():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield Model()
    distributed.destroy_process_group()


@pytest.fixture
def left():
    """How many other ranks have inputs left, each time that this one asks; in the end there are none."""
    return []


@pytest.fixture
def steps_beside_others(left, monkeypatch, request):
    monkeypatch.setattr(Join, "_get_num_nonjoined_procs", lambda _: left.pop(0) if left else 0)
    return request.getfixturevalue("steps")  # which wraps that


def train(model, batches, step):
    for batch in range(batches):
        Join.notify_join_context(model)
        step(batch)


def test_a_rank_that_runs_out_of_inputs_leaves_out_the_numbers_of_the_steps_that_it_misses(
    model, steps_beside_others, left
):
    steps, sgd = steps_beside_others, optimizer()
    for missed in (3, 0, 1):
        left[:] = [1] * missed
        with Join([model]):
            train(model, 2, lambda _: sgd.step())
    assert numbers(steps) == [0, 1, 5, 6, 7, 8]
    assert (steps.current, steps.count) == (10, 6)


def test_what_it_does_for_the_others_is_in_none_of_its_steps(model, steps_beside_others, left, monkeypatch):
    steps, sgd = steps_beside_others, optimizer()
    asked = []
    monkeypatch.setattr(Shadow, "main_hook", lambda _: asked.append(time.perf_counter_ns()))
    left[:] = [1, 1]
    with Join([model]):
        train(model, 1, lambda _: sgd.step())
    sgd.step()
    (_, _, ended), (_, began, _) = steps.ended
    assert ended <= asked[0] <= asked[1] <= began


def test_several_passes_may_make_one_step(model, steps_beside_others, left):
    steps, sgd = steps_beside_others, optimizer()
    left[:] = [1] * 6
    with Join([model]):
        train(model, 8, lambda batch: sgd.step() if batch % 4 == 3 else None)
    assert (numbers(steps), steps.current) == ([0, 1], 4)  # 6 passes of others: one step and a half, of 4 passes each


def test_a_number_that_the_program_gives_is_kept(model, steps_beside_others, left):
    steps = steps_beside_others
    left[:] = [1] * 3
    with Join([model]):
        train(model, 2, lambda batch: steps.mark(batch + 1))
    assert steps.current == 2


def test_a_join_that_lacks_a_name_costs_only_the_numbers(monkeypatch):
    monkeypatch.delattr(Join, "_get_num_nonjoined_procs")
    counting = Steps(lambda *_: None)
    counting.start()
    assert [sentence for sentence in counting.without if "uneven inputs" in sentence] == counting.without != []
    counting.stop()


def test_join_is_as_it_was_once_steps_are_not_counted_any_more(model):
    names = ("__enter__", "notify_join_context", "_get_num_nonjoined_procs")
    before = [vars(Join).get(name) for name in names]
    counting = Steps(lambda *_: None)
    counting.start()
    with Join([model]):
        assert [vars(Join).get(name) for name in names] != before
    counting.stop()
    assert [vars(Join).get(name) for name in names] == before
