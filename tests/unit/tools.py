"""What several unit tests do."""

from __future__ import annotations

import threading

from syncagent import HostSyncError


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
