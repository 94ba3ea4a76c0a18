"""Where another thread stands: copied at one moment, without holding on to its frames."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import pytest

from syncagent.support.compat import read_frames, running_threads, standing, standing_of


def names(place):
    while place is not None:
        yield place.f_code.co_name
        place = place.f_back


def test_it_says_what_the_frames_say():
    """Code and instruction of each, innermost first."""

    def inner():
        frame = sys._getframe()
        return standing(frame), frame

    place, frame = inner()
    assert list(names(place))[:2] == ["inner", "test_it_says_what_the_frames_say"]
    while frame is not None:
        assert place.f_code is frame.f_code
        place, frame = place.f_back, frame.f_back
    assert place is None


def test_it_holds_nothing_of_the_frames():
    """Frames hold tensors."""

    class Held:
        pass

    def inner():
        held = Held()
        return standing(sys._getframe()), weakref.ref(held)

    _place, held = inner()
    gc.collect()
    assert held() is None


def test_another_thread_is_seen_by_its_ident_as_long_as_it_runs():
    there, over = threading.Event(), threading.Event()

    def work():
        there.set()
        over.wait()

    thread = threading.Thread(target=work)
    thread.start()
    there.wait()
    assert thread.ident in running_threads()
    assert "work" in names(standing_of(thread.ident))
    assert ("work", globals()) in read_frames(thread.ident, "f_code.co_name", "f_globals")
    over.set()
    thread.join()
    assert thread.ident not in running_threads()
    assert standing_of(thread.ident) is None
    assert read_frames(thread.ident, "f_code.co_name", "f_globals") == []


ENDS = """
import sys, threading
from syncagent.support.compat import read_frames, running_threads, standing_of

over, elsewhere = threading.Event(), []

class Guard:
    def __del__(self):
        if threading.get_ident() != thread.ident:
            elsewhere.append(1)

def inner():
    guard = Guard()
    return sum(range(20))

def outer():
    guard = Guard()
    return inner()

def work():
    while not over.is_set():
        outer()

thread = threading.Thread(target=work)
sys.setswitchinterval(1e-6)
thread.start()
for _ in range(20_000):
    LOOK
over.set()
thread.join()
print(len(elsewhere))
"""


@pytest.mark.parametrize(
    "look",
    ["standing_of(thread.ident)", "read_frames(thread.ident, 'f_code', 'f_globals')", "running_threads()"],
)
def test_what_a_function_holds_ends_on_its_own_thread_however_often_others_look(look):
    """The guards of torch restore the state of the thread that they end on."""
    program = ENDS.replace("LOOK", look)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


ON_THE_WAY = """
import gc, sys, threading
from syncagent.support.compat import standing_of

over = threading.Event()

class Garbage:
    def __init__(self):
        self.me = self

    def __del__(self):
        over.wait(0)

def deep(left):
    return deep(left - 1) if left else [Garbage() for _ in range(3)]

def work():
    while not over.is_set():
        deep(30)

def names(place):
    while place is not None:
        yield place.f_code.co_name
        place = place.f_back

thread = threading.Thread(target=work)
gc.set_threshold(5)
sys.setswitchinterval(1e-5)
thread.start()
for _ in range(5_000):
    place = standing_of(thread.ident)
    assert place is None or "_bootstrap" in names(place)
assert gc.isenabled()
over.set()
thread.join()
"""


def test_a_thread_may_go_on_while_it_is_looked_at():
    """With garbage whose end gives up the interpreter: on 3.11 that crashed the process every other time."""
    done = subprocess.run([sys.executable, "-c", ON_THE_WAY], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
