"""OpenTelemetry's context on the training thread: read by one call, whatever keeps it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from opentelemetry import baggage, context

from syncagent.recording import recorder
from syncagent.recording.recorder import Recorder
from syncagent.settings import sources
from syncagent.torchbridge.internals import look_up


@pytest.fixture
def fresh():
    return Recorder(sources.load({}, {}), look_up(simulated=True), lambda: 0)


def test_it_is_the_one_that_the_program_has_set(fresh):
    """At the first look, and at those after it."""
    for value in ("one", "two"):
        token = context.attach(baggage.set_baggage("experiment", value))
        try:
            assert baggage.get_baggage("experiment", fresh.user_context()) == value
        finally:
            context.detach(token)
    assert not fresh.user_context()


def test_a_keeper_of_another_kind_is_asked_by_the_public_name(fresh, monkeypatch):
    """Programs may replace it: OTEL_PYTHON_CONTEXT."""
    other = SimpleNamespace(_RUNTIME_CONTEXT=object(), get_current=lambda: {"whose": "theirs"})
    monkeypatch.setitem(recorder.sys.modules, "opentelemetry.context", other)
    assert fresh.user_context() == {"whose": "theirs"}


def test_one_that_is_just_being_imported_is_none_yet(fresh, monkeypatch):
    """And is found once it is there."""
    with monkeypatch.context() as patched:
        patched.setitem(recorder.sys.modules, "opentelemetry.context", SimpleNamespace())
        assert fresh.user_context() is None
    token = context.attach(baggage.set_baggage("experiment", "late"))
    try:
        assert baggage.get_baggage("experiment", fresh.user_context()) == "late"
    finally:
        context.detach(token)
