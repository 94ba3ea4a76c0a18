"""What settings allow, beside lines: kinds, packs, lines between a sync and the user's, and blocks that allow once."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import sys
import threading

import pytest
import torch

import syncagent
from syncagent import ConfigError, HostSyncError, Phase
from syncagent.events import CallSite
from syncagent.policy.allowances import Entry
from tests.unit.tools import forbidden

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])


def read():
    return X.sum().item()


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_a_kind_may_be_allowed_wherever_it_is(cpu_agent):
    """The others are judged."""
    agent = cpu_agent(policy="raise", allow_kinds="scalar_read")
    assert not forbidden(read)
    assert forbidden(X.nonzero)
    assert [event.allowed for event in agent.events()] == ["allow_kinds: scalar_read", None]


def test_a_kind_that_is_none_is_one_sentence():
    """With all that there are."""
    with pytest.raises(
        ConfigError, match=r"setting allow_kinds is 'reads', but it must be one or more kinds of sync: dynamic_sh"
    ):
        syncagent.watch(allow_kinds="reads")


# --- packs and lines of libraries -------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path, monkeypatch):
    """An installed package whose function waits: ``library.inner.helper`` called by ``library.api.log_value``."""
    folder = tmp_path / "site-packages" / "library"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner.py").write_text("def helper(x):\n    return x.sum().item()\n")
    (folder / "api.py").write_text(
        "from library import inner\n\nclass Log:\n    def value(self, x):\n        return inner.helper(x)\n\n"
        "def other(x):\n    return inner.helper(x)\n"
    )
    monkeypatch.syspath_prepend(str(folder.parent))
    for name in [name for name in sys.modules if name.startswith("library")]:
        monkeypatch.delitem(sys.modules, name)
    import site

    monkeypatch.setattr(site, "getsitepackages", lambda: [str(folder.parent)])
    import library.api

    return library.api


@pytest.mark.parametrize("entry", ["library.api:Log.value", "library.api:value"])
def test_an_entry_may_name_a_function_between_the_sync_and_the_users_line(cpu_agent, library, entry):
    """And covers only what goes through it, though the innermost line is the same."""
    cpu_agent(policy="raise", allow=entry)
    for _ in range(2):
        assert not forbidden(lambda: library.Log().value(X))
        assert forbidden(lambda: library.other(X))


def test_a_package_covers_all_that_is_in_it(cpu_agent, library):
    """Whatever its functions call."""
    cpu_agent(policy="raise", allow="library")
    assert not forbidden(lambda: library.Log().value(X))
    assert not forbidden(lambda: library.other(X))
    assert forbidden(read)


def test_the_torch_pack_lets_lbfgs_read_its_losses(cpu_agent):
    """With the pack's own reason; without it, the error names the pack."""

    def train():
        parameter = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.LBFGS([parameter], max_iter=2)

        def closure():
            optimizer.zero_grad()
            loss = (parameter**2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    agent = cpu_agent(policy="raise", allow_packs="torch")
    train()
    [reason] = {event.allowed for event in agent.events()}
    assert reason.startswith("pack torch: the line search compares losses on the host")
    syncagent.stop()
    cpu_agent(policy="raise")
    with pytest.raises(HostSyncError, match="SYNCAGENT_ALLOW_PACKS=torch"):
        train()


def test_an_unknown_pack_is_one_sentence_with_those_there_are(cpu_agent):
    """When the agent starts."""
    with pytest.raises(ConfigError, match=r"setting allow_packs is 'tensorflow', but it must be one of .*torch"):
        cpu_agent(policy="raise", allow_packs="tensorflow")


@pytest.mark.parametrize(
    ("entry", "file", "covered"),
    [
        ("./train.py", "/job/train.py", True), ("train.py", "/job/mytrain.py", False),
        (".hidden/x.py", "/job/hidden/x.py", False), (".hidden/x.py", "/job/.hidden/x.py", True),
        ("/job/train.py", "/job/train.py", True), ("pkg.mod", "/job/pkg/mod.py", True),
        ("pkg.mod", "/job/pkg/mod/inner.py", True), ("pkg.mod", "/job/pkg/model.py", False),
    ],
)  # fmt: skip
def test_files_and_modules_are_recognized_by_their_path(entry, file, covered):
    """Whole names only."""
    assert Entry.parse(entry, "").covers(CallSite(file, 1, "f")) is covered


# --- first_only -------------------------------------------------------------------------------------------------------


def test_first_only_allows_the_first_time_that_the_statement_is_entered(cpu_agent):
    """For what may wait once, while it sets itself up."""
    cpu_agent(policy="raise")
    outcomes = []
    for _ in range(3):
        with syncagent.allow("builds its cache", first_only=True):
            outcomes.append(forbidden(read))
    with syncagent.allow("elsewhere", first_only=True):
        outcomes.append(forbidden(read))
    assert outcomes == [False, True, True, False]


def test_first_only_inside_an_allowance_changes_nothing(cpu_agent):
    """What is open outside holds."""
    cpu_agent(policy="raise")
    with syncagent.allow("outer"):
        for _ in range(2):
            with syncagent.allow("inner", first_only=True):
                assert not forbidden(read)


def test_first_only_as_a_decorator_allows_the_first_call(cpu_agent):
    """Of functions and of coroutines, each for itself."""
    cpu_agent(policy="raise")

    @syncagent.allow("once", first_only=True)
    def one():
        return forbidden(read)

    @syncagent.allow("once", first_only=True)
    async def two():
        return forbidden(read)

    assert [one(), one()] == [False, True]
    assert [asyncio.run(two()), asyncio.run(two())] == [False, True]


def test_as_a_decorator_it_covers_the_steps_of_generators_and_not_their_callers(cpu_agent):
    cpu_agent(policy="raise")

    @syncagent.allow("wanted")
    def batches():
        sent = yield forbidden(read)
        try:
            yield sent, forbidden(read)
        except KeyError:
            yield "thrown", forbidden(read)
        return forbidden(read)

    @syncagent.allow("wanted")
    async def later():
        try:
            sent = yield forbidden(read)
            yield sent, forbidden(read)
        finally:
            closed.append(forbidden(read))

    async def caller():
        values = later()
        seen = [await values.asend(None), forbidden(read), await values.asend("sent"), forbidden(read)]
        await values.aclose()
        return seen

    values, closed = batches(), []
    seen = [next(values), forbidden(read), values.send("sent"), values.throw(KeyError), forbidden(read)]
    assert seen == [False, True, ("sent", False), ("thrown", False), True]
    with pytest.raises(StopIteration) as ended:
        next(values)
    assert ended.value.value is False
    assert asyncio.run(caller()) == [False, True, ("sent", False), True]
    assert closed == [False]


def test_first_only_allows_the_first_run_of_a_generator_to_its_end(cpu_agent):
    cpu_agent(policy="raise")

    @syncagent.allow("once", first_only=True)
    def batches():
        yield forbidden(read)
        yield forbidden(read)

    assert [list(batches()), list(batches())] == [[False, False], [True, True]]


def test_as_a_decorator_it_takes_static_and_class_methods(cpu_agent):
    cpu_agent(policy="raise")

    class Meter:
        @syncagent.allow("wanted")
        @staticmethod
        def one(value):
            return value, forbidden(read)

        @syncagent.allow("wanted")
        @classmethod
        def two(cls):
            return cls, forbidden(read)

    assert (Meter.one(3), Meter().one(4)) == ((3, False), (4, False))
    assert (Meter.two(), Meter().two()) == ((Meter, False), (Meter, False))


def test_a_function_is_no_reason():
    with pytest.raises(
        TypeError, match=r'allow takes a reason, as in @syncagent.allow\("logged once"\), but not <func'
    ):
        syncagent.allow(read)


# --- sums -------------------------------------------------------------------------------------------------------------


def test_an_allowed_line_in_a_hot_loop_is_summed_and_no_count_is_lost(cpu_agent):
    """The first hundred are kept whole, and the first of each step; the report has them all."""
    agent = cpu_agent(detail="syncs")
    with syncagent.allow("hot"):
        for _ in range(1000):
            X.sum().item()
        syncagent.step()
        for _ in range(10):
            X.sum().item()
    report = agent.report()
    assert report.totals.syncs == 1010
    assert sum(site.allowed_count for site in report.sites) == 1010
    assert sum(event.repeats for event in agent.events()) == 1010
    assert len([event for event in agent.events() if event.repeats == 1]) >= 100
    assert len(agent.events()) < 200


def test_sums_are_kept_apart_by_reason_and_the_loop_is_judged_once_the_block_is_left(cpu_agent):
    """The same line is another matter outside of it."""
    agent = cpu_agent(policy="warn", detail="syncs")
    with pytest.warns(syncagent.HostSyncWarning):  # noqa: PT031 - the loop warns once
        for reason in ("one", "other", None):
            with syncagent.allow(reason) if reason else contextlib.nullcontext():
                for _ in range(300):
                    X.sum().item()
    found = {}
    for event in agent.events():
        found[event.allowed] = found.get(event.allowed, 0) + event.repeats
    assert found == {"one": 300, "other": 300, None: 300}


@pytest.mark.parametrize("second", ["validation", "teacher"])
def test_sums_are_kept_apart_by_phase(cpu_agent, second):
    """A line of a model runs in training, in validation, and without gradients within a model that trains."""
    agent = cpu_agent(detail="syncs")

    class Model(torch.nn.Module):
        def __init__(self, inner=None):
            super().__init__()
            self.weight, self.inner = torch.nn.Parameter(X.clone()), inner

        def forward(self, x):
            if self.inner is not None:
                return self.inner(x)
            for _ in range(50):
                x.sum().item()
            return x

    model = Model().eval()
    outer = Model(model)
    model.eval()
    with syncagent.allow("hot"), torch.no_grad():
        for _ in range(4):
            if second == "teacher":
                outer(X)
            else:
                with torch.enable_grad():
                    model(X)
        for _ in range(2):
            syncagent.step()
            model(X)
            syncagent.step()
            outer(X)
    found = collections.Counter()
    for event in agent.events():
        found[event.phase] += event.repeats
    assert found == {Phase.FORWARD: 300, Phase.EVALUATION: 100}


def test_what_is_summed_in_a_thread_that_ends_is_delivered(cpu_agent):
    """However soon."""
    agent = cpu_agent(detail="syncs")

    def work():
        with syncagent.allow("there"):
            for _ in range(500):
                X.sum().item()

    for _ in range(4):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert agent.report().totals.syncs == 2000


def test_another_kind_of_sync_at_the_same_line_is_not_summed_with_it(cpu_agent, host):
    """One may be allowed and the other not: a copy to the device, and one back."""
    cpu_agent(policy="raise", allow_kinds="copy_h2d")
    here = host(torch.ones(3))
    there = torch.zeros(3)

    def copy(target, source):
        target.copy_(source)

    for _ in range(150):
        copy(there, here)
    with pytest.raises(HostSyncError) as error:
        copy(here, there)
    assert error.value.event.kind == "copy_d2h"
