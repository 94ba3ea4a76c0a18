"""Where another thread stands: copied at one moment, without holding on to its frames."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

from syncagent.support.compat import standing


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


ON_THE_WAY = """
import gc, sys, threading
from syncagent.support.compat import standing

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
    frame = sys._current_frames().get(thread.ident)
    if frame is not None:
        assert "_bootstrap" in names(standing(frame))
assert gc.isenabled()
over.set()
thread.join()
"""


def test_a_thread_may_go_on_while_it_is_looked_at():
    """With garbage whose end gives up the interpreter: on 3.11 that crashed the process every other time."""
    done = subprocess.run([sys.executable, "-c", ON_THE_WAY], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
