"""The same on every Python: these tests hold on all of them, whichever branch is taken."""

from __future__ import annotations

import gc
import io
import sys
import threading

import pytest

from syncagent.support.compat import StrEnum, load_toml, qualified_name, running_threads, standing_of


class Colour(StrEnum):
    RED = "red"


class Outer:
    def method(self):
        return sys._getframe().f_code

    class Inner:
        @staticmethod
        def method():
            return [code for code in [sys._getframe().f_code]][0]  # noqa: C416, RUF015 - a comprehension is wanted


def decorated(function):
    return function


@decorated
@decorated
def function():
    def nested():
        return sys._getframe().f_code

    return [of() for of in (nested, lambda: sys._getframe().f_code)]


def test_members_of_an_enumeration_are_their_strings():
    assert Colour.RED == "red"
    assert (str(Colour.RED), f"{Colour.RED:>4}", Colour("red")) == ("red", " red", Colour.RED)


def test_code_is_named_with_the_classes_and_functions_that_it_is_in():
    assert qualified_name(Outer().method()) == "Outer.method"
    assert qualified_name(Outer.Inner.method()).startswith("Outer.Inner.method")
    assert qualified_name(function.__code__) == "function"
    assert [qualified_name(code) for code in function()] == ["function.<locals>.nested", "function.<locals>.<lambda>"]
    assert qualified_name(sys._getframe().f_code) == sys._getframe().f_code.co_name


@pytest.mark.parametrize("file", ["<string>", "/nowhere/gone.py"])
def test_code_without_a_source_has_at_least_its_name(file):
    space = {}
    exec(compile("def alone(): pass", file, "exec"), space)
    assert qualified_name(space["alone"].__code__) == "alone"


def test_a_broken_toml_file_is_a_value_error():
    assert load_toml(io.BytesIO(b"[a]\nb = 1")) == {"a": {"b": 1}}
    for text in (b"[a", b"a = \xff"):
        with pytest.raises(ValueError):
            load_toml(io.BytesIO(text))


@pytest.fixture
def collecting():
    """Garbage collection as it was, whatever a test does to it."""
    was = gc.isenabled()
    yield
    (gc.enable if was else gc.disable)()


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_as_it_was_after_a_look_at_frames(collecting, enabled):
    (gc.enable if enabled else gc.disable)()
    assert threading.get_ident() in running_threads()
    assert standing_of(threading.get_ident()) is not None
    assert gc.isenabled() == enabled


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="others do not collect inside of it")
def test_nothing_is_collected_while_frames_are_looked_at(collecting, monkeypatch):
    collects = []
    monkeypatch.setattr(sys, "_current_frames", lambda: collects.append(gc.isenabled()) or {})
    gc.enable()
    assert (running_threads(), standing_of(1)) == ([], None)
    assert collects == [False, False]
