"""Signal handlers in forked children."""

from __future__ import annotations

import os
import signal

import pytest

from syncagent.support import forks

NUMBER = signal.SIGUSR2

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def _handler():
    """A handler that a child inherits."""
    before = signal.signal(NUMBER, lambda *_: None)
    yield
    forks.keep_in_children(NUMBER)
    signal.signal(NUMBER, before)


def holds_in_child(check):
    """Does the check hold in a forked child?"""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if check() else 1)
    return os.waitpid(pid, 0)[1] == 0


def has_default():
    return signal.getsignal(NUMBER) is signal.SIG_DFL


def reset():
    signal.signal(NUMBER, signal.SIG_DFL)


def test_a_child_begins_with_what_the_reset_leaves_and_the_parent_keeps_its_handler():
    forks.reset_in_children(NUMBER, reset)
    assert holds_in_child(has_default)
    assert not has_default()


def test_the_signal_can_arrive_in_child_and_parent_afterwards():
    """It is blocked only while the process forks."""
    forks.reset_in_children(NUMBER, reset)
    assert holds_in_child(lambda: NUMBER not in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    assert NUMBER not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_reset_that_fails_does_not_keep_the_signal_blocked():
    forks.reset_in_children(NUMBER, lambda: 1 / 0)
    assert holds_in_child(lambda: NUMBER not in signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_a_signal_whose_handler_is_kept_is_left_alone():
    forks.reset_in_children(NUMBER, reset)
    forks.keep_in_children(NUMBER)
    assert holds_in_child(lambda: not has_default())
