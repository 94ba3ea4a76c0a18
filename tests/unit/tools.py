"""What several unit tests do."""

from __future__ import annotations

import threading
from dataclasses import replace

from syncagent import HostSyncError
from syncagent.recording.recorder import Recorder
from syncagent.rules.table import RULES
from syncagent.runtime import agent
from syncagent.sensors.base import Conditions
from syncagent.sensors.kernels import KernelSensor
from syncagent.settings import sources
from syncagent.torchbridge.internals import look_up


def new_recorder(**internals):
    """What sensors record into, without an agent; ``internals`` take the place of what torch has."""
    found = replace(look_up(simulated=True), **internals)
    return Recorder(sources.load({"detail": "syncs"}, {}), found, lambda: 0)


def keep_recorders(monkeypatch):
    """Return a list to which each agent's recorder is added as the agent is made."""
    made = []

    class Kept(Recorder):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(agent, "Recorder", Kept)
    return made


def waiting(recorder):
    """What was recorded and not delivered yet, in all threads."""
    return [seen for state in recorder.threads.all for seen in state.buffer]


class Kernels(KernelSensor):
    """The sensor by itself, with a recorder of its own and no agent; watches the CPU unless told otherwise."""

    def __init__(self, rules=RULES, *, copies="off", device_key="CPU", **internals):
        self.recorder = new_recorder(**internals)
        super().__init__(self.recorder, Conditions(copies=copies), rules, device_key=device_key)

    def seen(self):
        return waiting(self.recorder)


def forbidden(call):
    """Does the policy forbid this call?"""
    try:
        call()
    except HostSyncError:
        return True
    return False


def on_thread(work):
    """Run it on another thread and return its result."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]
