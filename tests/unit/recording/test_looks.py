"""What one thread can see of another that waits: its line, in the backward pass too."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref

import pytest
import torch

from syncagent.attribution.callsite import CallSites
from syncagent.attribution.locator import Locator
from syncagent.attribution.threads import Threads, WatchedThread
from syncagent.events import Phase, SyncKind
from syncagent.recording.looks import Looker
from syncagent.support.faults import Faults
from syncagent.torchbridge import internals

AUTOGRAD = "pt_autograd_0"


def code_of(file, body, **names):
    """Return a function that passes for one of that file."""
    exec(compile(f"def there_is(*given):\n    {body}\n", file, "exec"), names)
    return names["there_is"]


class Standing:
    """Threads that stand still until the test is over."""

    def __init__(self):
        self._over = threading.Event()
        self._threads = []

    def start(self, work):
        """Have a thread do ``work``, which is given a call that stands still, and return its ident."""
        there = threading.Event()
        stand = code_of(threading.__file__, "there()\n    over(60)", there=there.set, over=self._over.wait)
        thread = threading.Thread(target=work, args=(stand,), daemon=True)
        thread.start()
        assert there.wait(60)
        self._threads.append(thread)
        return thread.ident

    def end(self):
        self._over.set()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture
def threads():
    threads = Standing()
    yield threads
    threads.end()


@pytest.fixture
def locator():
    return Locator(CallSites(), internals.look_up(), Threads(WatchedThread, Faults()))


@pytest.fixture
def look(locator):
    looker = Looker(locator)
    return lambda ident, name=AUTOGRAD: looker.look(ident, name)


class Stands(torch.autograd.Function):
    """An op whose backward stands still, on the thread that called ``backward()``: it is the CPU's."""

    @staticmethod
    def forward(ctx, x, stand):
        ctx.stand = stand
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        ctx.stand()
        return grad, None


def train(stand):
    loss = Stands.apply(torch.ones(2, requires_grad=True), stand).sum()
    loss.backward()


def user_line(look):
    return look.where.user[0].co_name if look.where.user is not None else None


def test_autograds_thread_works_for_the_only_one_in_backward(threads, look):
    """It has no frame of its own."""
    threads.start(train)
    found = look(-1)
    assert (user_line(found), found.phase, found.thread) == ("train", Phase.BACKWARD, AUTOGRAD)


def test_a_hook_on_autograds_thread_is_the_librarys_line_of_that_backward(threads, look):
    threads.start(train)
    file = os.path.join(os.path.dirname(torch.__file__), "distributed", "hooks.py")
    found = look(threads.start(code_of(file, "given[0]()")))
    assert (user_line(found), found.phase, found.is_collective) == ("train", Phase.BACKWARD, True)
    assert found.where.library[0].co_filename == file


@pytest.mark.parametrize("callers", [0, 2])
def test_whose_pass_it_is_is_never_guessed(threads, look, callers):
    for _ in range(callers):
        threads.start(train)
    assert look(-1) is None


def test_a_thread_of_another_name_is_where_it_stands(threads, look):
    threads.start(train)
    found = look(threads.start(lambda stand: stand()), "loader")
    assert (found.phase, found.thread) == (Phase.OTHER, "loader")
    assert look(-1, "loader") is None


# --- phases -----------------------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """Stands still in its forward, once it has published what it is, as a thread does that records a sync."""

    def __init__(self, locator):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.publish = lambda: locator.phase_outside_backward(
            WatchedThread(), where(locator).marks, SyncKind.OTHER, sys._getframe(), (), grads=False
        )

    def forward(self, stand):
        self.publish()
        stand()


def where(locator):
    return locator.sites.capture(sys._getframe(1))


def calls(model, stand):
    """The line that calls the model, both times."""
    for each in (lambda: None, stand):
        model(each)


@pytest.mark.parametrize(("training", "phase"), [(True, Phase.FORWARD), (False, Phase.EVALUATION)])
def test_a_module_that_the_line_has_called_before_tells_its_mode(threads, look, locator, training, phase):
    model = Model(locator).train(training)
    ident = threads.start(lambda stand: calls(model, stand))
    assert look(ident, "train").phase is phase


def test_the_mode_is_that_of_now(threads, look, locator):
    """Trained before, evaluated now; that gradients are off there has not been seen."""
    model = Model(locator)
    calls(model, lambda: None)
    model.publish = lambda: None
    model.eval()
    ident = threads.start(lambda stand: calls(model, stand))
    assert look(ident, "train").phase is Phase.OTHER


def test_nothing_is_said_of_a_line_that_has_published_nothing_or_calls_several(threads, look, locator):
    quiet = Model(locator)
    quiet.publish = lambda: None
    assert look(threads.start(lambda stand: calls(quiet, stand)), "train").phase is Phase.OTHER
    models = [Model(locator), Model(locator)]
    for model in models:
        calls(model, lambda: None)
    assert look(threads.start(lambda stand: calls(models[1], stand)), "train").phase is Phase.OTHER


def test_a_look_keeps_no_module_alive(threads, look, locator):
    model = Model(locator)
    calls(model, lambda: None)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    later = Model(locator)
    assert look(threads.start(lambda stand: calls(later, stand)), "train").phase is Phase.FORWARD


def test_a_closure_is_told_from_the_optimizer_that_calls_it(threads, look):
    """By code alone; its forward belongs to the step, whatever the mode."""
    weight = torch.nn.Parameter(torch.ones(2))

    def closes(stand):
        def closure():
            weight.grad = torch.ones(2)
            stand()
            return weight.sum()

        torch.optim.SGD([weight], lr=0.1).step(closure)

    assert look(threads.start(closes), "train").phase is Phase.OTHER
    file = os.path.join(os.path.dirname(torch.__file__), "optim", "sgd.py")
    scope = {}
    exec(compile("def step(stand):\n    stand()\n", file, "exec"), scope)
    assert look(threads.start(scope["step"]), "train").phase is Phase.OPTIMIZER
