"""Attributes that are replaced for a while: what is put back, and what is left alone."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from syncagent.torchbridge.patches import ABSENT, Patch, Patches, exchange_everywhere, find


class Base:
    def inherited(self):
        return "inherited"


class Holder(Base):
    def own(self):
        return "own"

    @staticmethod
    def static():
        return "static"


@pytest.fixture
def holder():
    """A class of its own for each test."""
    return type("Holder", (Base,), dict(vars(Holder)))


def shouting(original):
    def wrapper(*args):
        return original(*args).upper()

    return wrapper


def test_a_wrapped_attribute_is_restored(holder):
    patches, before = Patches(), dict(vars(holder))
    assert not patches.are_owned
    assert patches.wrap(holder, "own", shouting)
    assert (holder().own(), patches.are_owned) == ("OWN", True)
    patches.restore()
    assert dict(vars(holder)) == before


def test_a_static_method_is_still_one_once_it_is_restored(holder):
    patches = Patches()
    patches.put(holder, "static", staticmethod(lambda: "other"))
    assert holder().static() == "other"
    patches.restore()
    assert holder().static() == "static"


def test_an_inherited_attribute_is_inherited_again(holder):
    patches = Patches()
    patches.wrap(holder, "inherited", shouting)
    assert holder().inherited() == "INHERITED"
    patches.restore()
    assert "inherited" not in vars(holder)
    assert holder().inherited() == "inherited"


def test_what_is_not_there_cannot_be_wrapped(holder):
    patches = Patches()
    assert not patches.wrap(holder, "missing", shouting)
    assert not patches


def test_a_replacement_by_somebody_else_stays(holder):
    """The program has patched what we had patched; its function, which may call ours, must not vanish."""
    patches = Patches()
    patches.wrap(holder, "own", shouting)
    ours = holder.own
    holder.own = theirs = lambda self: ours(self) + "!"
    assert not patches.are_owned
    patches.restore()
    assert holder.own is theirs
    assert holder().own() == "OWN!"


def test_patches_of_one_attribute_are_restored_last_first(holder):
    patches, original = Patches(), holder.own
    patches.wrap(holder, "own", shouting)
    patches.wrap(holder, "own", lambda inner: lambda self: inner(self) * 2)
    assert holder().own() == "OWNOWN"
    patches.restore()
    assert holder.own is original


def test_a_patch_knows_what_is_in_place(holder):
    patch = Patch(holder, "extra", 1)
    assert (patch.original, patch.is_original, patch.is_owned) == (ABSENT, True, False)
    patch.apply()
    assert (holder.extra, patch.is_original, patch.is_owned) == (1, False, True)
    patch.restore()
    assert (hasattr(holder, "extra"), patch.is_original) == (False, True)
    patch.apply()
    assert holder.extra == 1


def test_a_function_is_exchanged_in_every_module_that_imported_it(monkeypatch):
    def old():
        """What modules have imported."""

    def new():
        """What takes its place."""

    for name, value in (("first_importer", old), ("second_importer", old), ("has_its_own", len)):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[name].read = value
    exchange_everywhere("read", old, new)
    found = [sys.modules[name].read for name in ("first_importer", "second_importer", "has_its_own")]
    assert found == [new, new, len]


@pytest.mark.parametrize(
    ("path", "found"), [("", sys), ("path", sys.path), ("flags.debug", 0), ("flags.none.such", None)]
)
def test_a_dotted_path_is_followed_as_far_as_it_goes(path, found):
    assert find(sys, path) == found
