"""Who is judged and when: threads that train, code that the error has to pass, changes of the policy while running."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import time
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import syncagent
from syncagent import ConfigError, HostSyncError, HostSyncWarning
from syncagent.runtime.process import release
from tests.unit.tools import forbidden, on_thread

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])


def read():
    return X.sum().item()


# --- threads ----------------------------------------------------------------------------------------------------------


def test_a_background_thread_is_observed_and_not_raised_into(cpu_agent):
    """A checkpoint writer, a metrics thread."""
    agent = cpu_agent(policy="raise")
    assert not on_thread(lambda: forbidden(read))
    assert forbidden(read)
    assert [event.violation for event in agent.events()] == [False, True]


def test_every_thread_is_judged_where_asked_for(cpu_agent):
    """``judge_threads="all"``."""
    cpu_agent(policy="raise", judge_threads="all")
    assert on_thread(lambda: forbidden(read))


def test_a_thread_whose_optimizer_steps_trains(cpu_agent):
    """Whichever it is."""
    cpu_agent(policy="raise")

    def train():
        parameter = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        before = forbidden(read)
        parameter.sum().backward()
        optimizer.step()
        return before, forbidden(read)

    assert on_thread(train) == (False, True)


# --- where the error comes out ----------------------------------------------------------------------------------------


class Waits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, where):
        ctx.where = where
        if where == "forward":
            read()
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        if ctx.where == "backward":
            read()
        return grad * 2, None


def in_no_grad():
    with torch.no_grad():
        read()


def in_checkpoint(reentrant):
    x = torch.ones(2, requires_grad=True)
    checkpoint(lambda y: y * read(), x, use_reentrant=reentrant).sum().backward()


def in_recomputation():
    """The checkpointed function waits only when it runs again, in the backward pass."""
    again = []

    def work(y):
        if again:
            read()
        again.append(1)
        return y.sin()

    x = torch.ones(2, requires_grad=True)
    checkpoint(work, x, use_reentrant=False).sum().backward()


def in_tensor_hook():
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda _grad: print(read()))
    y.sum().backward()


def in_module_hook():
    layer = torch.nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: read())
    layer(torch.ones(1, 2))


def in_custom_function(where):
    Waits.apply(torch.ones(2, requires_grad=True), where).sum().backward()


def in_optimizer():
    class Waiting(torch.optim.Optimizer):
        def step(self, closure=None):
            read()

    Waiting([torch.nn.Parameter(torch.ones(1))], {}).step()


def in_loader_loop():
    with syncagent.allow("it draws its seed with item(), on the host: here that is the device"):
        batches = iter(torch.utils.data.DataLoader([1, 2], num_workers=0))
    for _ in batches:
        read()


PLACES = {
    "no_grad": in_no_grad, "checkpoint": lambda: in_checkpoint(False),
    "reentrant checkpoint": lambda: in_checkpoint(True), "recomputation": in_recomputation,
    "tensor hook": in_tensor_hook, "module hook": in_module_hook,
    "forward of a function": lambda: in_custom_function("forward"),
    "backward of a function": lambda: in_custom_function("backward"), "optimizer": in_optimizer,
    "loop over a loader": in_loader_loop,
}  # fmt: skip


@pytest.mark.parametrize("detail", ["syncs", "ops"])
@pytest.mark.parametrize("place", PLACES)
def test_the_error_keeps_its_type_and_line_from_anywhere(cpu_agent, place, detail):
    """It pickles, and the same goes through inside ``allow``."""
    cpu_agent(policy="raise", detail=detail)
    with pytest.raises(HostSyncError) as error:
        PLACES[place]()
    assert type(error.value) is HostSyncError
    site = error.value.event.site
    assert (site.file, site.function) == (__file__, "read")
    assert pickle.loads(pickle.dumps(error.value)).event == error.value.event
    del error
    gc.collect()  # the frames of an error keep a checkpoint's hooks on, of whatever error
    with syncagent.allow("meant"):
        PLACES[place]()


# --- warnings and the log ---------------------------------------------------------------------------------------------


def test_the_log_mentions_a_site_at_growing_counts(cpu_agent, capsys):
    """10, 100: never one line a call, and the first is what the warning says."""
    agent = cpu_agent(policy="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HostSyncWarning)
        for _ in range(120):
            read()
    release(agent)
    lines = [line for line in capsys.readouterr().err.splitlines() if "against the policy" in line]
    assert [line.split("count=")[1].split()[0] for line in lines] == ["10", "100"]
    assert all("op=aten::_local_scalar_dense" in line and __file__ in line for line in lines)


def test_what_was_added_up_counts_in_the_log_and_in_the_report(cpu_agent, capsys, monkeypatch):
    """Where violations come faster than they can be delivered, no count is lost."""
    from syncagent.delivery import pipeline
    from syncagent.recording import recorder

    monkeypatch.setattr(pipeline, "_ROUND_S", 3600.0)
    monkeypatch.setattr(recorder, "_BUFFER", 5)
    agent = cpu_agent(policy="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HostSyncWarning)
        for _ in range(50):
            read()
    assert [site.violations for site in agent.report().sites] == [50]
    release(agent)
    counts = [line.split("count=")[1].split()[0] for line in capsys.readouterr().err.splitlines() if "count=" in line]
    assert counts == ["50"]


def test_under_an_error_filter_every_call_is_stopped(cpu_agent):
    """As Python does it: an error is not shown once and forgotten."""
    cpu_agent(policy="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error", HostSyncWarning)
        for _ in range(3):
            with pytest.raises(HostSyncWarning):
                read()


# --- changes while running --------------------------------------------------------------------------------------------


def test_the_policy_can_be_changed_on_the_agent(cpu_agent, capsys):
    """From the next sync on; the log says so, and the report has the last."""
    agent = cpu_agent(policy="observe")
    read()
    agent.policy = "raise"
    assert forbidden(read)
    agent.policy = "observe"
    assert not forbidden(read)
    agent.policy = "warn"
    assert (agent.policy, agent.report().run.policy) == ("warn", "warn")
    said = capsys.readouterr().err
    assert 'policy=raise before=observe by="the program"' in said
    with pytest.raises(ConfigError, match="policy is 'shout', but it must be one of observe, warn, raise"):
        agent.policy = "shout"


def test_copies_are_watched_whole_once_the_policy_raises(cpu_agent, host):
    """From the end of the step in which it changes; before, one step in 16 was."""
    agent = cpu_agent(policy="observe", detail="syncs")
    there, here = torch.zeros(3), host(torch.ones(3))
    for _ in range(6):
        syncagent.step()
    there.copy_(here)
    assert agent.events() == ()
    agent.policy = "raise"
    syncagent.step()
    assert forbidden(lambda: there.copy_(here))
    agent.policy = "warn"
    for _ in range(2):
        syncagent.step()
    there.copy_(here)
    assert [event.violation for event in agent.events()] == [True]


def test_copies_that_were_watched_whole_from_the_start_are_not_scaled_up_later(cpu_agent, host):
    """The policy that began as ``raise`` watches every copy to the end."""
    agent = cpu_agent(policy="raise", detail="syncs")
    agent.policy = "observe"
    for _ in range(6):
        syncagent.step()
    torch.zeros(3).copy_(host(torch.ones(3)))
    [site] = agent.report().sites
    assert (site.count, site.sampled) == (1, False)


def until(found):
    """Wait for another thread, ten seconds at most."""
    for _ in range(1000):
        if found():
            return True
        time.sleep(0.01)
    return False


def test_a_file_changes_the_policy(cpu_agent, tmp_path, capsys):
    """It is read at the start and each second; what makes no sense is reported once and changes nothing."""
    file = tmp_path / "policy"
    file.write_text("warn\n")
    agent = cpu_agent(policy="observe", policy_file=str(file))
    assert agent.policy == "warn"
    file.write_text("loud")
    assert until(lambda: "is 'loud', but it must be one of observe, warn, raise" in capsys.readouterr().err)
    file.write_text("RAISE")
    assert until(lambda: agent.policy == "raise")
    file.unlink()
    assert forbidden(read)


def test_a_signal_turns_observe_into_warn_and_back(cpu_agent):
    """A handler of the program's own is called as well, and stands again at the end."""
    calls = []
    before = signal.signal(signal.SIGUSR2, lambda *_: calls.append(1))
    own = signal.getsignal(signal.SIGUSR2)
    try:
        agent = cpu_agent(policy="observe", policy_signal="USR2")
        os.kill(os.getpid(), signal.SIGUSR2)
        assert until(lambda: agent.policy == "warn")
        os.kill(os.getpid(), signal.SIGUSR2)
        assert until(lambda: agent.policy == "observe")
        release(agent)
        assert (signal.getsignal(signal.SIGUSR2), calls) == (own, [1, 1])
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_signal_is_no_use_off_the_main_thread(cpu_agent):
    """It is reported, and everything else works."""
    agent = on_thread(lambda: cpu_agent(policy="observe", policy_signal="USR2"))
    assert any("policy_signal SIGUSR2 has no effect" in note for note in agent.report().notes)


@pytest.mark.parametrize("value", ["KILL", "SIGINT", 9, ""])
def test_a_signal_that_is_not_to_be_had_is_one_sentence(value):
    """Those of the system's own are not for this."""
    with pytest.raises(ConfigError, match=r"setting policy_signal is .*, but it must be one of SIGUSR1, SIGUSR2"):
        syncagent.watch(policy_signal=value)


def test_a_policy_file_that_is_no_file_is_reported_and_nothing_waits_for_it(cpu_agent, tmp_path, capsys):
    """A pipe without a writer; once there is a file in its place, it counts."""
    place = tmp_path / "policy"
    os.mkfifo(place)
    agent = cpu_agent(policy="observe", policy_file=str(place))
    assert "cannot be read, and the policy stays: it is a pipe, not a regular file" in capsys.readouterr().err
    place.unlink()
    place.write_text("raise")
    assert until(lambda: agent.policy == "raise")
