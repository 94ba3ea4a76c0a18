"""Whose line a sync is put down to.  Each test is run under both details, unless it starts its own agent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import linecache
import site
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from syncagent import CallSite, Phase
from tests.processes import PACKAGE

ONE = torch.ones(1)


def only(agent):
    [event] = agent.events()
    return event


def place(event):
    """File and line of an event."""
    return event.site.file, event.site.line


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """``installed(source, name)``: a module that lies where pip puts packages."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    known = site.getsitepackages()
    monkeypatch.setattr(site, "getsitepackages", lambda: [*known, str(folder)])

    def make(source, name="library"):
        file = folder / name / "__init__.py"
        file.parent.mkdir()
        file.write_text(source)
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return make


# --- functions of every kind ----------------------------------------------------------------------------------------


def test_a_function_is_named_with_file_line_qualified_name_and_source(agent, line_of):
    """A site tells all that a reader needs to find the line."""

    def read(value):
        return value.item()  # <- in a function

    read(ONE)
    name = "test_a_function_is_named_with_file_line_qualified_name_and_source.<locals>.read"
    source = "return value.item()  # <- in a function"
    assert only(agent).site == CallSite(__file__, line_of("in a function"), name, source)


def test_a_lambda_is_its_own_site(agent, line_of):
    """The line inside the lambda is named, not the line that calls it."""
    read = lambda value: value.item()  # noqa: E731 - a lambda is wanted  # <- in a lambda
    read(ONE)
    event = only(agent)
    assert place(event) == (__file__, line_of("in a lambda"))
    assert event.site.function.endswith(".<locals>.<lambda>")


def test_comprehensions_are_named_by_the_line_inside_them(agent, line_of):
    """List, dict and set comprehensions and generator expressions, wherever the interpreter runs them."""
    list_of = [
        v.item()  # <- in a list
        for v in ONE
    ]
    dict_of = {
        number: v.item()  # <- in a dict
        for number, v in enumerate(ONE)
    }
    set_of = {
        v.item()  # <- in a set
        for v in ONE
    }
    lazy = sum(
        v.item()  # <- in a generator expression
        for v in ONE
    )
    assert (list_of, dict_of, set_of, lazy) == ([1.0], {0: 1.0}, {1.0}, 1.0)
    marks = ("in a list", "in a dict", "in a set", "in a generator expression")
    assert [place(event) for event in agent.events()] == [(__file__, line_of(mark)) for mark in marks]
    names = [event.site.function.rpartition(".")[2] for event in agent.events()]
    inlined = sys.version_info >= (3, 12)
    here = sys._getframe().f_code.co_name
    assert names == [*([here] * 3 if inlined else ["<listcomp>", "<dictcomp>", "<setcomp>"]), "<genexpr>"]


def test_a_decorated_function_is_named_not_its_decorator(agent, line_of):
    """The decorator's wrapper is named only for what it does itself."""

    def logged(function):
        @functools.wraps(function)
        def wrapper(value):
            result = function(value)
            result.item()  # <- in the wrapper
            return result

        return wrapper

    @logged
    def doubled(value):
        value.item()  # <- in the decorated function
        return value * 2

    doubled(ONE)
    inner, outer = agent.events()
    assert (place(inner), inner.site.function) == (
        (__file__, line_of("in the decorated function")),
        "test_a_decorated_function_is_named_not_its_decorator.<locals>.doubled",
    )
    assert place(outer) == (__file__, line_of("in the wrapper"))


def test_torchs_own_decorators_and_contexts_are_not_named(agent, line_of):
    """``@torch.no_grad()`` and ``@torch.inference_mode()`` stand between two lines of the user's."""

    @torch.no_grad()
    @torch.inference_mode()
    def read(value):
        return value.nonzero()  # <- under no_grad

    read(ONE)
    event = only(agent)
    assert (place(event), event.library_site) == ((__file__, line_of("under no_grad")), None)


def test_a_generator_is_named_by_the_line_it_stands_at(agent, line_of):
    """Whoever asks for the next value is not to blame."""

    def values():
        yield ONE.item()  # <- first yield
        yield from (v.item() for v in ONE)  # <- second yield

    assert list(itertools.islice(values(), 2)) == [1.0, 1.0]
    assert [place(event) for event in agent.events()] == [
        (__file__, line_of("first yield")),
        (__file__, line_of("second yield")),
    ]


def test_a_context_manager_and_the_block_inside_are_distinguished(agent, line_of):
    """Before, inside and after a ``with``; contextlib's frames in between do not count."""

    @contextlib.contextmanager
    def measured():
        ONE.item()  # <- before the block
        yield
        ONE.item()  # <- after the block

    with measured():
        ONE.item()  # <- inside the block
    marks = ("before the block", "inside the block", "after the block")
    assert [place(event) for event in agent.events()] == [(__file__, line_of(mark)) for mark in marks]


def test_methods_carry_the_name_of_their_class(agent):
    """Methods, class methods, static methods and properties."""

    class Meter:
        def total(self):
            return ONE.item()

        @classmethod
        def make(cls):
            return ONE.item()

        @staticmethod
        def read():
            return ONE.item()

        @property
        def value(self):
            return ONE.item()

    meter = Meter()
    assert (meter.total(), Meter.make(), Meter.read(), meter.value) == (1.0, 1.0, 1.0, 1.0)
    prefix = "test_methods_carry_the_name_of_their_class.<locals>.Meter."
    names = [event.site.function for event in agent.events()]
    assert names == [prefix + name for name in ("total", "make", "read", "value")]


def test_an_expression_over_several_lines_is_named_by_the_line_of_its_call(agent, line_of):
    """Not by the line where the statement begins."""
    total = (
        ONE.sum()
        + ONE
        .item()  # <- a call further down
    )  # fmt: skip
    print(
        "the total is",
        float(total),  # <- an argument further down
    )
    assert [event.site.line for event in agent.events()] == [
        line_of("a call further down"),
        line_of("an argument further down"),
    ]


def test_what_python_calls_for_an_operator_is_named_by_the_operators_line(agent, line_of):
    """``if tensor:`` and ``tensor[mask]`` have no call in their source, and a line all the same."""
    if ONE > 0:  # <- a condition
        picked = ONE[ONE > 0]  # <- a mask
    assert picked.shape == (1,)
    assert [event.site.line for event in agent.events()] == [line_of("a condition"), line_of("a mask")]


@pytest.mark.parametrize("packages", ["site-packages", "dist-packages"])
def test_packages_of_another_environment_are_libraries(agent, line_of, tmp_path, packages):
    """As in a layer over an environment, or where PYTHONPATH names the packages of one."""
    file = tmp_path / packages / "library.py"
    file.parent.mkdir()
    file.write_text("def read(value):\n    return value.item()\n")
    spec = importlib.util.spec_from_file_location("library", file)
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    library.read(ONE)  # <- the call of the library
    event = only(agent)
    assert place(event) == (__file__, line_of("the call of the library"))
    assert (event.library_site.file, event.library_site.line) == (str(file), 2)


def test_frames_of_the_standard_library_are_passed_over(agent, line_of):
    """An ExitStack calls ``item`` by itself; the user's line is the one that lets it."""
    with contextlib.ExitStack() as stack:
        stack.callback(ONE.item)
        stack.close()  # <- closes the stack
    event = only(agent)
    assert (place(event), event.library_site) == ((__file__, line_of("closes the stack")), None)


def test_methods_that_dataclasses_write_are_not_the_users(agent, line_of):
    """``==`` of two dataclasses compares their tensors in generated code; the comparison is the user's."""

    @dataclasses.dataclass
    class State:
        loss: torch.Tensor
        norm: torch.Tensor

    assert State(torch.ones(1), ONE) == State(torch.ones(1), ONE)  # <- compares two dataclasses
    # Python 3.13 compares field by field, and asks the last one too.
    assert {place(event) for event in agent.events()} == {(__file__, line_of("compares two dataclasses"))}


# --- code without a file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["<string>", "<stdin>"])
def test_executed_code_without_a_source_keeps_its_line(agent, name):
    """``exec`` and the interactive prompt leave no text to show, but a line and a name."""
    code = compile("def read(value):\n    return value.item()\nread(value)", name, "exec")
    exec(code, {"value": ONE})
    assert only(agent).site == CallSite(name, 2, "read", "")


@pytest.mark.parametrize("name", ["/tmp/ipykernel_1/2.py", "<ipython-input-1-abc>", "<generated model>"])
def test_code_that_registered_its_source_shows_it(agent, monkeypatch, name):
    """Cells of notebooks, old style and new, and generators of code put their text into ``linecache``."""
    text = "import math\nresult = value.item()  # the loss\n"
    monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(keepends=True), name))
    exec(compile(text, name, "exec"), {"value": ONE})
    assert only(agent).site == CallSite(name, 2, "<module>", "result = value.item()  # the loss")


def test_cells_with_the_same_text_are_different_sites(agent):
    """Two code objects that are equal in all but their file's name, as cells run twice are, are not the same line."""
    for number in (1, 2):
        exec(compile("value.item()", f"/tmp/ipykernel_1/{number}.py", "exec"), {"value": ONE})
    assert [event.site.file for event in agent.events()] == ["/tmp/ipykernel_1/1.py", "/tmp/ipykernel_1/2.py"]


def test_equal_code_in_a_library_does_not_hide_the_users(cpu_agent, installed, tmp_path):
    """A file that was copied out of a library is the user's, though its code objects equal the library's."""
    source = "def read(value):\n    return value.item()\n"
    library = installed(source)
    agent = cpu_agent(detail="syncs")
    library.read(ONE)
    copy = {}
    file = str(tmp_path / "mine.py")
    exec(compile(source, file, "exec"), copy)
    copy["read"](ONE)
    assert agent.events()[-1].site.file == file


# --- threads and tasks ----------------------------------------------------------------------------------------------


def test_a_thread_is_named_with_its_own_line(agent_of_all_threads, line_of):
    """Every thread is watched, and the event carries its name."""

    def work():
        ONE.item()  # <- on a thread

    thread = threading.Thread(target=work, name="worker-7")
    thread.start()
    thread.join()
    event = only(agent_of_all_threads)
    assert (place(event), event.thread) == ((__file__, line_of("on a thread")), "worker-7")


def test_a_thread_without_a_line_of_the_users_has_no_site(agent_of_all_threads):
    """Nothing is guessed: a pool that calls ``item`` itself has only the standard library on its stack."""
    with ThreadPoolExecutor(1, thread_name_prefix="pool") as pool:
        assert pool.submit(ONE.item).result() == 1.0
    event = only(agent_of_all_threads)
    assert (event.site, event.library_site, event.thread) == (None, None, "pool_0")


def test_asyncio_tasks_are_named_by_the_line_they_stand_at(agent, line_of):
    """The event loop's own frames do not count."""

    async def evaluate(value):
        await asyncio.sleep(0)
        return value.item()  # <- in a task

    async def main():
        return await asyncio.gather(evaluate(ONE), evaluate(ONE))

    assert asyncio.run(main()) == [1.0, 1.0]
    assert [place(event) for event in agent.events()] == [(__file__, line_of("in a task"))] * 2


# --- libraries --------------------------------------------------------------------------------------------------------


def test_a_sync_inside_a_library_names_the_users_line_and_the_librarys(cpu_agent, installed, line_of):
    """The user's line to see who caused it, the library's to see what did it."""
    library = installed("def outer(value):\n    return inner(value)\n\ndef inner(value):\n    return value.item()\n")
    agent = cpu_agent(detail="syncs")
    library.outer(ONE)  # <- calls the library
    event = only(agent)
    assert place(event) == (__file__, line_of("calls the library"))
    assert event.library_site == CallSite(library.__file__, 5, "inner", "return value.item()")


def test_users_code_that_a_library_calls_back_is_the_users(cpu_agent, installed, line_of):
    """A callback's own sync is not the library's."""
    library = installed("def call(callback):\n    return callback()\n")
    agent = cpu_agent(detail="syncs")

    def callback():
        return ONE.item()  # <- in the callback

    library.call(callback)
    event = only(agent)
    assert (place(event), event.library_site) == ((__file__, line_of("in the callback")), None)


def test_a_library_without_a_user_above_it_is_the_site_itself(cpu_agent, installed):
    """On a thread that a library runs by itself, its line is the best there is."""
    library = installed("def read(value):\n    return value.item()\n")
    agent = cpu_agent(detail="syncs")
    thread = threading.Thread(target=library.read, args=(ONE,))
    thread.start()
    thread.join()
    event = only(agent)
    assert (event.site.file, event.site.line, event.library_site) == (library.__file__, 2, None)


def test_torch_optim_is_a_library(agent, line_of):
    """LBFGS reads the loss back: both lines are named, and the phase is the optimizer's; the closure is the user's."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([weight], max_iter=1)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        loss.item()  # <- in the closure
        return loss

    optimizer.step(closure)  # <- steps LBFGS
    events = agent.events()
    own = [event for event in events if event.library_site is None]
    inside = [event for event in events if event.library_site is not None]
    assert [place(event) for event in own] == [(__file__, line_of("in the closure"))]
    assert inside
    for event in inside:
        assert place(event) == (__file__, line_of("steps LBFGS"))
        assert event.library_site.file.endswith("torch/optim/lbfgs.py")
        assert event.library_site.source
        assert event.phase is Phase.OPTIMIZER


def test_what_torch_passes_on_is_not_named(agent, line_of):
    """Python code of torch's own that only passes a call on (``Tensor.unique``, ``functional``) is no library."""
    ONE.unique()  # <- passed on
    f"{ONE.sum():.3f}"  # <- formatted
    events = agent.events()
    assert [event.site.line for event in events] == [line_of("passed on"), line_of("formatted")]
    assert {event.library_site for event in events} == {None}


@pytest.fixture
def counted():
    """A custom op of the user's, written in Python."""
    with torch.library._scoped_library("callsite_test", "FRAGMENT") as library:
        library.define("counted(Tensor x) -> Tensor")

        def count(x):
            x.nonzero()  # <- in a custom op
            return x.clone()

        library.impl("counted", count, "CompositeExplicitAutograd")
        yield torch.ops.callsite_test.counted


@pytest.mark.parametrize("detail", ["ops", "syncs"])
def test_a_custom_op_written_in_python_is_the_users_code(cpu_agent, counted, line_of, detail):
    """Its own line is the site, and its frame the innermost of the stack, whatever wraps the op."""
    agent = cpu_agent(detail=detail, stacks=True)
    counted(ONE)  # <- calls the custom op
    event = only(agent)
    assert place(event) == (__file__, line_of("in a custom op"))
    mine = [entry.line for entry in event.stack if entry.file == __file__]
    assert mine == [line_of("in a custom op"), line_of("calls the custom op")]


# --- what counts as the user's ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_what", ["package", "path", "module"])
def test_an_installed_package_can_be_made_the_users(cpu_agent, installed, as_what):
    """``user_code`` takes packages, modules and paths."""
    library = installed("def read(value):\n    return value.item()\n")
    folder = library.__file__.removesuffix("/__init__.py")
    chosen = {"package": "library", "path": folder, "module": library.__file__}[as_what]
    agent = cpu_agent(detail="syncs", user_code=[chosen])
    library.read(ONE)
    event = only(agent)
    assert (event.site.file, event.site.line, event.library_site) == (library.__file__, 2, None)


@pytest.mark.parametrize("as_what", ["package", "path"])
def test_a_package_whose_name_only_begins_alike_stays_a_library(cpu_agent, installed, line_of, as_what):
    """``lib`` does not mean ``library``."""
    library = installed("def read(value):\n    return value.item()\n")
    chosen = {"package": "lib", "path": library.__file__.removesuffix("rary/__init__.py")}[as_what]
    agent = cpu_agent(detail="syncs", user_code=[chosen])
    library.read(ONE)  # <- not chosen
    assert place(only(agent)) == (__file__, line_of("not chosen"))


# --- the whole stack --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detail", ["ops", "syncs"])
def test_the_whole_stack_is_kept_on_request(cpu_agent, line_of, detail):
    """Innermost first, without a frame of the agent's own."""
    agent = cpu_agent(detail=detail, stacks=True)

    def read(value):
        return value.item()  # <- innermost

    def outer():
        return read(ONE)  # <- around it

    outer()  # <- outermost
    event = only(agent)
    mine = [entry.line for entry in event.stack if entry.file == __file__]
    assert mine == [line_of("innermost"), line_of("around it"), line_of("outermost")]
    assert any("_pytest" in entry.file for entry in event.stack)
    assert not any(entry.file.startswith(PACKAGE) for entry in event.stack)


@pytest.mark.parametrize("detail", ["ops", "syncs"])
def test_the_stack_begins_where_the_call_was_made(cpu_agent, detail):
    """What the agent itself put between the call and the op is no part of the program's stack."""
    agent = cpu_agent(detail=detail, stacks=True)
    ONE.item()
    event = only(agent)
    assert event.stack[0] == event.site


def test_without_the_request_no_stack_is_kept(agent):
    """Stacks cost time and memory."""
    ONE.item()
    assert only(agent).stack == ()
