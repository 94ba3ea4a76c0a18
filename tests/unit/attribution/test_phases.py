"""Which part of training a sync belongs to: budgets trust it, so it is right, or ``other``."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from syncagent import Phase

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])


class Reading(nn.Module):
    """Reads a value in its forward, as checks of an input do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        y = self.linear(x)
        y.sum().item()  # <- in the model
        return y


class Wrapping(nn.Module):
    """Calls another module with gradients off, as a model does with its teacher, or with its frozen part."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        with torch.no_grad():
            y = self.inner(x)
        return y * self.scale


def phases(agent, line=None):
    """The phases of the syncs, of those on one line if it is given."""
    return [event.phase for event in agent.events() if line is None or event.site.line == line]


def trained(model):
    """An optimizer that has taken a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(X).sum().backward()
    optimizer.step()
    return optimizer


# --- after the optimizer's step, in the loop --------------------------------------------------------------------------


def test_what_is_read_after_the_step_is_of_no_phase(agent, line_of):
    """Neither the loss nor what is cut out of it for a log: the step is over, and so is the graph."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        losses = model(X) ** 2
        losses[losses > -1].mean().backward()  # <- makes the loss
        optimizer.step()
        losses.mean().item()  # <- reads the loss
        losses[losses > 1].mean()  # <- cuts out of the loss
    assert phases(agent, line_of("reads the loss")) == [Phase.OTHER] * 2
    assert phases(agent, line_of("cuts out of the loss")) == [Phase.OTHER] * 2
    assert phases(agent, line_of("makes the loss")) == [Phase.FORWARD, Phase.BACKWARD] * 2


def test_a_step_that_is_marked_by_hand_ends_the_graph_as_well(agent, line_of):
    """A program may have an optimizer that is none of torch's."""
    import syncagent

    losses = X.requires_grad_() * 2
    try:
        losses[losses > 1].sum().backward()
        syncagent.step()
        losses[losses > 1].sum()  # <- after the mark
    finally:
        X.requires_grad_(False).grad = None
    assert phases(agent, line_of("after the mark")) == [Phase.OTHER]


def test_an_op_outside_of_modules_is_forward_where_it_adds_to_a_graph(agent, line_of):
    """What takes no part in any, such as the choice of a batch, cannot be told from the rest of the program."""
    weight = torch.ones(2, requires_grad=True)
    (X * weight)[X > 0].sum()  # <- adds to the graph
    X[X > 0].sum()  # <- has no graph
    X.nonzero()  # <- has none either
    assert phases(agent, line_of("adds to the graph")) == [Phase.FORWARD]
    assert phases(agent, line_of("has no graph")) == [Phase.OTHER]
    assert phases(agent, line_of("has none either")) == [Phase.OTHER]


def test_schedulers_are_no_optimizers(agent, line_of):
    """``ReduceLROnPlateau`` reads the loss that it is given; torch keeps it beside its optimizers."""
    model = nn.Linear(2, 2)
    optimizer = trained(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    optimizer.step()
    scheduler.step(model(X).sum().detach())  # <- steps the scheduler
    assert phases(agent, line_of("steps the scheduler")) == [Phase.OTHER]


@pytest.mark.parametrize("update", ["torch", "by hand"])
def test_averages_of_weights_are_no_optimizers(agent, update):
    """Torch's own, or a few lines of the program's."""
    model = nn.Linear(2, 2)
    if update == "torch":
        averaged = AveragedModel(model, avg_fn=lambda mean, new, _: mean if mean.sum().item() > 99 else new)
        averaged.update_parameters(model)
        averaged.update_parameters(model)
    else:
        averaged = copy.deepcopy(model)
        with torch.no_grad():
            for mean, new in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(new, 0.1 if mean[mean > -9].sum() > 99 else 0.2)
    assert set(phases(agent)) == {Phase.OTHER}


# --- GradScaler -------------------------------------------------------------------------------------------------------


def test_gradscaler_is_of_the_optimizer_only_where_it_steps(agent, line_of):
    """It looks for infinities in ``step``; ``get_scale`` and ``state_dict`` read for a log or a checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaler = torch.amp.GradScaler("cpu")
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        scaler.scale(model(X).sum()).backward()
        scaler.step(optimizer)  # <- steps with a scale
        scaler.update()
        scaler.get_scale()  # <- gets the scale
        scaler.state_dict()  # <- saves the scale
    assert phases(agent, line_of("steps with a scale")) == [Phase.OPTIMIZER] * 2
    assert phases(agent, line_of("gets the scale")) == [Phase.OTHER] * 2
    assert set(phases(agent, line_of("saves the scale"))) == {Phase.OTHER}


# --- optimizers that call the program ---------------------------------------------------------------------------------


def test_a_closure_is_what_it_does(agent, line_of):
    """LBFGS computes the loss within its step: what it reads itself is the optimizer's."""
    model = Reading()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        losses = model(X) ** 2
        loss = losses[losses > -1].mean()  # <- cuts in the closure
        loss.backward()
        with torch.no_grad():
            loss.item()  # <- reads in the closure
        return loss

    optimizer.step(closure)  # <- takes the closure
    assert set(phases(agent, line_of("takes the closure"))) == {Phase.OPTIMIZER}
    assert set(phases(agent, line_of("in the model"))) == {Phase.FORWARD}
    assert set(phases(agent, line_of("reads in the closure"))) == {Phase.OTHER}
    assert set(phases(agent, line_of("cuts in the closure"))) == {Phase.FORWARD}


class Sharpness(torch.optim.SGD):
    """The program's own optimizer: it reads by itself and in a helper, and calls the closure twice."""

    @torch.no_grad()
    def step(self, closure=None):
        self.norm().item()  # <- in a step of its own
        with torch.enable_grad():
            closure()
            loss = closure()
        super().step()
        return loss

    def norm(self):
        total = sum(each.grad.norm() for each in self.param_groups[0]["params"] if each.grad is not None)
        float(total)  # <- in a helper of the step
        return torch.as_tensor(total)


def test_a_step_of_the_programs_own_is_the_optimizers_and_its_closure_is_not(agent, line_of):
    """With gradients off in both: the instruction at which ``step`` stands tells the closure from a helper."""
    model = Reading()
    optimizer = Sharpness(model.parameters(), lr=0.01)
    for each in model.parameters():
        each.grad = torch.ones_like(each)

    def closure():
        loss = model(X).sum()
        loss.backward()
        with torch.no_grad():
            loss.item()  # <- in its closure
        return loss

    optimizer.step(closure)
    assert set(phases(agent, line_of("in a step of its own"))) == {Phase.OPTIMIZER}
    assert set(phases(agent, line_of("in a helper of the step"))) == {Phase.OPTIMIZER}
    assert phases(agent, line_of("in its closure")) == [Phase.OTHER] * 2
    assert phases(agent, line_of("in the model")) == [Phase.FORWARD] * 2


def test_hooks_of_an_optimizer_are_the_programs(agent, line_of):
    """They may do anything."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.register_step_post_hook(lambda *_: X.sum().item())  # <- in a hook of the step
    model(X).sum().backward()
    optimizer.step()
    assert phases(agent, line_of("in a hook of the step")) == [Phase.OTHER]


def test_lightning_trains_within_a_closure_and_validates_outside(agent, line_of, tmp_path):
    """What its loops run is forward, evaluation and backward, as in a loop of the program's own."""
    lightning = pytest.importorskip("lightning.pytorch")

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Reading()
            self.teacher = Reading().eval().requires_grad_(False)

        def training_step(self, batch, _index):
            with torch.no_grad():
                target = self.teacher(batch)
            loss = (self.model(batch) - target).square().mean()
            loss.item()  # <- reads in Lightning's closure
            return loss

        def on_train_epoch_start(self):
            self.teacher.eval()

        def validation_step(self, batch, _index):
            self.model(batch).sum().item()  # <- reads in Lightning's validation

        def configure_optimizers(self):
            return torch.optim.Adam(self.model.parameters(), lr=0.01)

    data = torch.utils.data.DataLoader(torch.ones(2, 1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(Lit(), data, data)
    assert phases(agent, line_of("in the model")) == [Phase.FORWARD] * 4 + [Phase.EVALUATION] * 2
    assert set(phases(agent, line_of("reads in Lightning's closure"))) == {Phase.OTHER}
    assert set(phases(agent, line_of("reads in Lightning's validation"))) == {Phase.OTHER}


# --- set-up -----------------------------------------------------------------------------------------------------------


def test_the_constructor_of_a_module_is_no_forward(agent):
    """Gradients are on, and what it makes may have parameters; no module runs."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(X.clone())
            self.kept = X.nonzero()
            self.chosen = self.weight[self.weight > 0]
            self.largest = X.max().item()

    Masked()
    assert len(phases(agent)) == 3
    assert set(phases(agent)) == {Phase.OTHER}


def test_a_module_that_is_made_in_a_forward_is_part_of_it(agent):
    """As lazy modules are."""

    class Late(nn.Module):
        def forward(self, x):
            self.inner = type("Inner", (nn.Module,), {"__init__": lambda self: X.sum().item() and None})()
            return x

    Late()(X)
    assert phases(agent) == [Phase.FORWARD]


def test_a_distribution_is_checked_in_the_phase_of_who_makes_it(agent, line_of):
    """The check reads the parameters back, and adds to no graph."""

    class Policy(nn.Linear):
        def forward(self, x):
            return torch.distributions.Normal(super().forward(x), torch.ones(2), validate_args=True)  # <- in a policy

    Policy(2, 2)(X)
    torch.distributions.Normal(X, torch.ones(2), validate_args=True)  # <- made in the loop
    assert set(phases(agent, line_of("in a policy"))) == {Phase.FORWARD}
    assert set(phases(agent, line_of("made in the loop"))) == {Phase.OTHER}


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_model_in_eval_mode_without_gradients_is_evaluated(agent, line_of, off):
    """What the loop around it reads is of no phase, as in training."""
    model = Reading()
    criterion = nn.MSELoss()
    trained(model)
    model.eval()
    before = len(agent.events())
    with off():
        criterion(model(X), X).item()  # <- validates
    model.train()
    trained(model)
    assert phases(agent, line_of("in the model"))[1:] == [Phase.EVALUATION, Phase.FORWARD]
    assert phases(agent, line_of("validates")) == [Phase.OTHER]
    assert before


def test_eval_mode_with_gradients_is_forward(agent):
    """As where a model is tuned with its statistics frozen."""
    Reading().eval()(X)
    assert phases(agent) == [Phase.FORWARD]


def test_a_part_of_the_forward_without_gradients_is_forward(agent):
    """The model trains: the outermost module is in training mode."""
    Wrapping(Reading())(X)
    assert phases(agent) == [Phase.FORWARD]


@pytest.mark.parametrize("frozen", ["teacher", "EMA", "part"])
def test_what_is_frozen_within_a_model_that_trains_is_forward(agent, frozen):
    """A teacher, an average of the weights, a part that is not trained: in eval mode, inside of the forward."""
    inner = {
        "teacher": lambda: Reading().requires_grad_(False),
        "EMA": lambda: AveragedModel(Reading()),
        "part": lambda: nn.Sequential(nn.Identity(), Reading().requires_grad_(False)),
    }[frozen]()
    model = Wrapping(inner)
    model.train()
    inner.eval()
    model(X).sum().backward()
    assert phases(agent) == [Phase.FORWARD]
    model.eval()
    with torch.no_grad():
        model(X)
    assert phases(agent) == [Phase.FORWARD, Phase.EVALUATION]


def test_an_average_that_is_evaluated_is_evaluation(agent):
    """Validation is often the average's."""
    averaged = AveragedModel(Reading()).eval()
    with torch.no_grad():
        averaged(X)
    assert phases(agent) == [Phase.EVALUATION]


def test_a_module_without_parameters_says_nothing_of_its_use(agent):
    """A loss function stays in training mode when the model is validated."""

    class Loss(nn.Module):
        def forward(self, x):
            return x.sum().item()

    loss = Loss()
    loss(X)
    with torch.no_grad():
        loss(X)
    assert phases(agent) == [Phase.FORWARD, Phase.OTHER]


@pytest.mark.parametrize("hidden", ["training", "parameters"])
def test_a_module_that_hides_what_it_is_is_of_no_phase(agent, hidden):
    """Nothing that a program does in such a property comes out here."""

    class Odd(nn.Module):
        locals()[hidden] = property(lambda _: 1 / 0, lambda *_: None)

        def forward(self, x):
            return x.sum().item()

    odd = Odd()
    with torch.no_grad():
        odd(X)
    with pytest.raises(ZeroDivisionError):
        getattr(odd, hidden)
    assert phases(agent) == [Phase.OTHER]
    assert not [note for note in agent.report().notes if "attribution" in note]


def test_a_budget_may_be_for_evaluation(cpu_agent):
    """A sync before the wait is judged by the same phase as after it."""
    from syncagent import HostSyncError

    agent = cpu_agent(policy="raise", detail="syncs", max_syncs_per_step="evaluation=1")
    model = Reading().eval()
    model(X)
    model(X)
    with torch.no_grad():
        model(X)
        with pytest.raises(HostSyncError, match="allows 1 in phase evaluation, and this is number 2") as raised:
            model(X)
    assert raised.value.event.phase is Phase.EVALUATION
    assert phases(agent) == [Phase.FORWARD] * 2 + [Phase.EVALUATION] * 2
