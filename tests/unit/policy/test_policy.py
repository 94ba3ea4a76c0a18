"""What happens at a sync that is not allowed, and what allows one."""

from __future__ import annotations

import asyncio
import linecache
import pickle
import re
import sys
import threading
import traceback
import warnings

import pytest
import torch

import syncagent
from syncagent import HostSyncError, HostSyncWarning, SyncKind
from syncagent.policy import Policy
from syncagent.runtime.process import release
from tests.unit.tools import forbidden, on_thread

X = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
DETAILS = pytest.mark.parametrize("detail", [None, "ops"], ids=["syncs", "ops"])


@pytest.fixture
def raising(cpu_agent):
    """A running agent with ``policy="raise"``."""
    return cpu_agent(policy="raise")


def reasons(agent):
    """Why those that ran were allowed."""
    return [event.allowed for event in agent.events() if not event.violation]


# --- raise ------------------------------------------------------------------------------------------------------------


@DETAILS
def test_raise_raises_at_the_users_line(cpu_agent, line_of, detail):
    """The innermost frame of the traceback that is not the agent's or torch's is the line that made the call."""
    cpu_agent(policy="raise", detail=detail)
    with pytest.raises(HostSyncError) as error:
        X.nonzero()  # <- forbidden
    mine = [frame for frame in traceback.extract_tb(error.tb) if frame.filename == __file__]
    assert mine[-1].lineno == line_of("forbidden")
    event = error.value.event
    assert (event.op, event.kind, event.step) == ("aten::nonzero", SyncKind.DYNAMIC_SHAPE, 0)
    assert (event.site.file, event.site.line) == (__file__, line_of("forbidden"))


def test_the_message_names_op_line_and_step_and_how_to_allow_it(raising, line_of):
    """One can act on it without any documentation."""
    with pytest.raises(HostSyncError) as error:
        X.nonzero()  # <- told
    text = str(error.value)
    place = f"{__file__}:{line_of('told')}"
    assert text.startswith(f"aten::nonzero makes the host wait for the GPU in step 0 at {place} (X.nonzero()")
    assert "with syncagent.allow(" in text
    assert f"SYNCAGENT_ALLOW={place}" in text


def test_what_the_message_says_to_set_does_allow_it(cpu_agent):
    """The value can be pasted."""
    agent = cpu_agent(policy="raise")

    def read():
        return X.nonzero()

    with pytest.raises(HostSyncError) as error:
        read()
    release(agent)
    place = str(error.value).rpartition("SYNCAGENT_ALLOW=")[2].removesuffix(".")
    agent = cpu_agent(policy="raise", allow=place)
    read()
    assert reasons(agent) == [f"allow: {place}"]


def test_error_and_warning_say_what_to_do_instead(cpu_agent):
    """As the report does."""
    agent = cpu_agent(policy="raise")
    with pytest.raises(HostSyncError, match=r"What to do: (probably: )?keep the shape: multiply by the mask or use"):
        X[X > 0].sum()
    with pytest.raises(HostSyncError, match=r"What to do: (probably: )?decide on the GPU: torch\.where or a mask"):
        _ = 1 if X.sum() > 0 else 2
    release(agent)
    cpu_agent(policy="warn")
    with pytest.warns(
        HostSyncWarning, match=r"use torch\.where, and divide by mask\.sum\(\)\. If it is wanted, allow it"
    ):
        X[X > 0].sum()


def test_where_a_library_waits_the_message_names_its_line_and_allows_no_more_than_that(cpu_agent, monkeypatch):
    """Not all that the user's line does, such as the whole training."""
    # torch.compile, once a test has used it, has turned this off for the process.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    agent = cpu_agent(policy="raise")

    def learn():
        torch.distributions.Normal(X[0], X[1] + 1.0)

    with pytest.raises(HostSyncError) as error:
        learn()
    release(agent)
    text = str(error.value)
    assert re.search(r"in torch/distributions/distribution\.py:\d+ Distribution\.__init__ ", text)
    assert "What to do: validate_args=False, or " in text
    assert "arguments and samples are not checked" in text
    place = text.rpartition("SYNCAGENT_ALLOW=")[2].removesuffix(".")
    assert place == "torch.distributions.distribution:Distribution.__init__"
    agent = cpu_agent(policy="raise", allow=place)
    learn()
    with pytest.raises(HostSyncError):
        X.nonzero()
    assert reasons(agent)[0] == f"allow: {place}"


@DETAILS
@pytest.mark.parametrize(
    "assign",
    [lambda x: x.__setitem__(x > 0, torch.tensor([7.0, 8.0])), lambda x: x.masked_fill_(x > 0, torch.tensor(7.0))],
    ids=["mask", "masked_fill_"],
)
def test_a_forbidden_op_has_not_run(cpu_agent, detail, assign):
    """It is raised before the wait: tensors are as they were, and the next op works."""
    cpu_agent(policy="raise", detail=detail)
    x = X.clone()
    with pytest.raises(HostSyncError):
        assign(x)
    with syncagent.allow():
        assert x.tolist() == X.tolist()


@DETAILS
def test_a_forbidden_sync_is_recorded_once_without_a_stall(cpu_agent, detail, line_of):
    """As what was stopped, whichever op inside would have waited; the next sync is recorded under its own name."""
    agent = cpu_agent(policy="raise", detail=detail)
    with pytest.raises(HostSyncError) as error:
        X[X > 0]  # <- stopped
    [stopped] = agent.events()
    assert (stopped.op, stopped.kind, stopped.stall_ns) == ("aten::index", SyncKind.DYNAMIC_SHAPE, 0)
    assert (stopped.violation, stopped.allowed, stopped.sensor) == (True, None, "kernels")
    assert stopped.shapes[0] == (2, 2)
    assert stopped.site.line == line_of("stopped")
    assert (stopped.site, stopped.kind, stopped.op) == tuple(
        getattr(error.value.event, name) for name in ("site", "kind", "op")
    )
    with syncagent.allow("now it may"):
        X.unique()
    event = agent.events()[-1]
    assert (event.op, event.allowed, event.violation) == ("aten::_unique2", "now it may", False)
    assert sum(row.violations for row in agent.report().sites) == 1


def test_a_forbidden_sync_in_the_backward_pass_reaches_backwards_caller(cpu_agent, line_of):
    """With its own type, from below autograd."""
    cpu_agent(policy="raise")
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    with syncagent.allow():
        loss = x[x > 0].sum()
    with pytest.raises(HostSyncError) as error:
        loss.backward()  # <- calls backward
    assert error.value.event.site.line == line_of("calls backward")


def test_a_program_may_catch_the_error_and_go_on(raising):
    """As it would any other."""
    assert [forbidden(lambda: X.sum().item()) for _ in range(3)] == [True, True, True]
    assert not forbidden(lambda: X.sum())


def test_the_error_survives_pickling(raising):
    """From a worker process to its parent, with the event and all."""
    with pytest.raises(HostSyncError) as error:
        X.nonzero()
    copy = pickle.loads(pickle.dumps(error.value))
    assert (type(copy), str(copy), copy.event) == (HostSyncError, str(error.value), error.value.event)


def test_the_error_is_a_runtime_error_and_the_warning_a_user_warning():
    """Programs that know nothing of syncagent can still tell what to do with them."""
    assert issubclass(HostSyncError, RuntimeError)
    assert issubclass(HostSyncWarning, UserWarning)


def test_no_copy_slips_through_under_raise(cpu_agent, host):
    """``raise`` watches every copy, at any step."""
    cpu_agent(policy="raise")
    there, here = torch.zeros(3), host(torch.ones(3))
    for _ in range(20):
        syncagent.step()
    with pytest.raises(HostSyncError, match="aten::copy_"):
        there.copy_(here)
    with syncagent.allow():
        assert there.tolist() == [0.0, 0.0, 0.0]


# --- warn -------------------------------------------------------------------------------------------------------------


@DETAILS
def test_warn_warns_once_a_site_and_points_at_the_users_line(cpu_agent, line_of, detail):
    """File and line of the warning are the user's, so that filters work; the op runs."""
    agent = cpu_agent(policy="warn", detail=detail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            X.nonzero()  # <- warned of
        X.nonzero()  # <- warned of as well
    assert [(w.category, w.filename, w.lineno) for w in caught] == [
        (HostSyncWarning, __file__, line_of("warned of")),
        (HostSyncWarning, __file__, line_of("warned of as well")),
    ]
    assert re.search(r"aten::nonzero (made|makes) the host wait .*for the GPU", str(caught[0].message))
    assert len(agent.events()) == 4


def test_a_filter_may_turn_the_warning_into_an_error_at_the_line(cpu_agent, line_of):
    """``-W error`` does what it says."""
    cpu_agent(policy="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(HostSyncWarning) as error:
            X.nonzero()  # <- turned into an error
    assert [f.lineno for f in traceback.extract_tb(error.tb) if f.filename == __file__][-1] == (
        line_of("turned into an error")
    )


def test_stalls_shorter_than_the_least_get_no_warning(cpu_agent, recwarn):
    """``min_stall_ms``: they are counted all the same."""
    agent = cpu_agent(policy="warn", min_stall_ms=60_000)
    X.nonzero()
    assert ([w.category for w in recwarn], len(agent.events())) == ([], 1)


def test_observe_neither_warns_nor_raises(cpu_agent, recwarn):
    """The default."""
    agent = cpu_agent()
    X.nonzero()
    assert (len(recwarn), len(agent.events())) == (0, 1)


# --- allow ------------------------------------------------------------------------------------------------------------


@DETAILS
def test_a_sync_inside_allow_passes_and_carries_the_reason(cpu_agent, detail):
    """Inside the block, not before and not after."""
    agent = cpu_agent(policy="raise", detail=detail)
    assert forbidden(X.nonzero)
    with syncagent.allow("logging every step"):
        X.nonzero()
    assert forbidden(X.nonzero)
    assert reasons(agent) == ["logging every step"]


def test_an_op_that_waits_through_another_carries_the_reason_too(raising):
    """Indexing by a mask waits in the ``nonzero`` inside."""
    with syncagent.allow("masked"):
        X[X > 0]
    assert reasons(raising) == ["masked"]


def test_allow_needs_no_reason(raising):
    """It then says that it was allowed, no more."""
    with syncagent.allow():
        X.nonzero()
    assert reasons(raising) == ["allowed"]


def test_an_allowance_is_reported_under_observe_too(cpu_agent):
    """So that a report can be read before a stricter policy is chosen."""
    agent = cpu_agent()
    with syncagent.allow("wanted"):
        X.nonzero()
    X.nonzero()
    assert reasons(agent) == ["wanted", None]


def test_allowances_nest(raising):
    """The innermost reason counts; the outer one holds again after it."""
    with syncagent.allow("outer"):
        with syncagent.allow("inner"):
            X.nonzero()
        X.nonzero()
    assert reasons(raising) == ["inner", "outer"]


def test_an_allowance_ends_with_an_exception(raising):
    """However the block is left."""
    with pytest.raises(ZeroDivisionError), syncagent.allow():
        1 / 0
    assert forbidden(X.nonzero)


def test_allow_is_a_decorator(raising):
    """Call after call, also when the function calls itself."""

    @syncagent.allow("counted")
    def count(depth):
        """Docstring."""
        X.nonzero()
        return depth if depth == 0 else count(depth - 1)

    assert (count(2), count.__name__, count.__doc__) == (0, "count", "Docstring.")
    assert forbidden(X.nonzero)
    assert reasons(raising) == ["counted"] * 3


def test_allow_decorates_coroutines(raising):
    """It holds while the coroutine runs, not while it is made."""

    @syncagent.allow("evaluated")
    async def evaluate():
        await asyncio.sleep(0)
        return X.sum().item()

    assert asyncio.run(evaluate()) == 6.0
    assert reasons(raising) == ["evaluated"]


def test_one_allowance_may_be_entered_again(raising):
    """A name for a reason, used wherever it holds."""
    wanted = syncagent.allow("again")
    with wanted:
        X.nonzero()
        with wanted:
            X.nonzero()
        X.nonzero()
    with wanted:
        X.nonzero()
    assert forbidden(X.nonzero)
    assert reasons(raising) == ["again"] * 4


def test_an_allowance_holds_for_its_own_thread_only(cpu_agent):
    """Another thread's syncs are not what was meant."""
    cpu_agent(policy="raise", judge_threads="all")
    with syncagent.allow():
        assert on_thread(lambda: forbidden(X.nonzero))
        assert not forbidden(X.nonzero)

    def allowed_there():
        with syncagent.allow():
            return forbidden(X.nonzero)

    assert not on_thread(allowed_there)
    assert forbidden(X.nonzero)


def test_one_allowance_may_be_open_on_two_threads_at_once(cpu_agent):
    """Each leaves it when it is done, in whatever order."""
    raising = cpu_agent(policy="raise", judge_threads="all")
    wanted = syncagent.allow("shared")
    both_inside, first_left = threading.Barrier(2), threading.Event()
    found = []

    def hold(*, first):
        try:
            with wanted:
                both_inside.wait()
                if not first:
                    first_left.wait()
                X.nonzero()
            found.append("ended" if forbidden(X.nonzero) else "still allowed")
        except Exception as error:
            found.append(error)
        first_left.set()

    threads = [threading.Thread(target=hold, kwargs={"first": first}) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["ended", "ended"]
    assert reasons(raising) == ["shared", "shared"]


def test_an_allowance_holds_for_its_own_task_only(raising):
    """A task inside the block and one beside it take turns."""

    async def inside():
        with syncagent.allow("mine"):
            await asyncio.sleep(0)
            X.nonzero()
            await asyncio.sleep(0)
        return forbidden(X.nonzero)

    async def beside():
        found = []
        for _ in range(4):
            found.append(forbidden(X.nonzero))
            await asyncio.sleep(0)
        return found

    async def main():
        return await asyncio.gather(inside(), beside())

    assert asyncio.run(main()) == [True, [True] * 4]
    assert reasons(raising) == ["mine"]


def test_a_task_made_inside_an_allowance_has_it(raising):
    """As asyncio hands every context variable to it."""

    async def child():
        X.nonzero()

    async def main():
        with syncagent.allow("parent"):
            task = asyncio.create_task(child())
        await task

    asyncio.run(main())
    assert reasons(raising) == ["parent"]


def test_a_backward_inside_an_allowance_is_allowed(raising):
    """Wherever autograd runs it."""
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    with syncagent.allow("masked loss"):
        x[x > 0].sum().backward()
    assert reasons(raising) == ["masked loss"] * 2


def test_allow_without_an_agent_does_nothing():
    """A script keeps it when it is not watched."""
    with syncagent.allow("nobody listens"):
        X.nonzero()


# --- the allow setting ------------------------------------------------------------------------------------------------

SOURCE = """
class Trainer:
    def step(self, x):
        return x.nonzero()

def evaluate(x):
    return x.sum().item()
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A module ``job.loop`` of the user's."""
    folder = tmp_path / "src" / "job"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "loop.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    monkeypatch.delitem(sys.modules, "job.loop", raising=False)
    monkeypatch.delitem(sys.modules, "job", raising=False)
    import job.loop

    return job.loop


FORMS = {
    # what is set: (is Trainer.step allowed, is evaluate allowed)
    "job": (True, True),
    "job.loop": (True, True),
    "job.loop:evaluate": (False, True),
    "job.loop:Trainer.step": (True, False),
    "job.loop:Trainer": (False, False),
    "job.other": (False, False),
    "ob.loop": (False, False),
    "loop.py": (True, True),
    "job/loop.py": (True, True),
    "./src/job/loop.py": (True, True),
    "{file}": (True, True),
    "job/loop.py:4": (True, False),
    "{file}:7": (False, True),
    "ob/loop.py": (False, False),
    "loop.py:5": (False, False),
    "job.loop:Trainer.step,loop.py:7": (True, True),
}


@pytest.mark.parametrize("form", FORMS)
def test_sites_can_be_allowed_by_module_function_file_and_line(cpu_agent, monkeypatch, job, form):
    """As an environment variable would say it."""
    monkeypatch.setenv("SYNCAGENT_ALLOW", form.format(file=job.__file__))
    cpu_agent(policy="raise")
    allowed = not forbidden(lambda: job.Trainer().step(X)), not forbidden(lambda: job.evaluate(X))
    assert allowed == FORMS[form]


def test_an_allowed_site_says_which_entry_allows_it(cpu_agent, job):
    """So that entries which are no longer needed can be found and removed."""
    agent = cpu_agent(allow="other.module, job.loop:evaluate")
    job.evaluate(X)
    job.Trainer().step(X)
    assert reasons(agent) == ["allow: job.loop:evaluate", None]


# --- warm-up and baseline ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 2, None])
def test_the_policy_sleeps_for_the_first_steps(cpu_agent, warmup):
    """Three by default; observation does not sleep."""
    agent = cpu_agent(policy="raise", warmup_steps=warmup)
    found = []
    for _ in range(5):
        found.append(forbidden(X.nonzero))
        syncagent.step()
    sleeps = 3 if warmup is None else warmup
    assert found == [False] * sleeps + [True] * (5 - sleeps)
    assert [event.violation for event in agent.events()] == found


def test_sites_of_a_baseline_are_known_and_new_ones_are_not(cpu_agent, tmp_path):
    """A report of yesterday's run: the policy acts on what came since."""

    def known():
        return X.nonzero()

    def new():
        return X.unique()

    first = cpu_agent()
    known()
    path = release(first).save(tmp_path / "base.json")
    agent = cpu_agent(policy="raise", baseline=str(path))
    assert (forbidden(known), forbidden(new)) == (False, True)
    assert reasons(agent) == ["baseline"]


def test_a_site_that_only_moved_is_still_known(cpu_agent, tmp_path):
    """Line numbers change with every edit; file, function and text are what counts."""

    def run(blank_lines):
        file = tmp_path / "train.py"
        file.write_text("\n" * blank_lines + "def count(x):\n    return x.nonzero()\n")
        linecache.checkcache()
        space = {}
        exec(compile(file.read_text(), str(file), "exec"), space)
        return space["count"]

    first = cpu_agent()
    run(0)(X)
    path = release(first).save(tmp_path / "base.json")
    cpu_agent(policy="raise", baseline=str(path))
    assert not forbidden(lambda: run(7)(X))


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"sites": 3}', '{"sites": [{"op": "x"}]}'])
def test_a_baseline_that_is_no_report_is_one_sentence(cpu_agent, tmp_path, content):
    """Setting, value, what is wanted and what is wrong; and nothing is left turned on."""
    path = tmp_path / "base.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(syncagent.ConfigError) as error:
        cpu_agent(policy="raise", baseline=str(path))
    text = str(error.value)
    assert text.startswith(f"syncagent: setting baseline is {path.name!r}, but it must be a report")
    assert "\n" not in text
    assert syncagent.current() is None
    assert not forbidden(X.nonzero)


@pytest.mark.parametrize("part", ["judge", "forbids", "act"])
def test_a_fault_of_the_policys_own_never_reaches_the_program(cpu_agent, monkeypatch, part):
    """It is off from then on, and the report says so."""
    agent = cpu_agent(policy="raise" if part == "judge" else "warn", warmup_steps=0)

    def broken(*_):
        raise KeyError("surprise")

    monkeypatch.setattr(Policy, part, broken)
    assert len(X.nonzero())
    assert len(X.nonzero())
    assert any("policy" in note and "surprise" in note for note in agent.report().notes)


def test_neither_the_warning_nor_the_error_has_terminal_escapes_of_the_source(cpu_agent, tmp_path, line_of):
    """And Python, which prints the line that a warning points at, is not given that line."""
    file = tmp_path / "tr\x1b[31main.py"
    file.write_text("def read(x):\n    return x.nonzero()  # \x1b]0;owned\x07 \u202e\n", encoding="utf-8")
    scope = {}
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), scope)
    agent = cpu_agent(policy="warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scope["read"](torch.ones(3))
    [warning] = [one for one in caught if one.category is HostSyncWarning]
    shown = warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno)
    assert shown.rstrip("\n").isprintable()
    assert ":2 (return x.nonzero()" in shown
    agent.policy = "raise"
    with pytest.raises(HostSyncError) as error:
        scope["read"](torch.ones(3))
    assert str(error.value).isprintable()
    assert error.value.event.site.line == 2
