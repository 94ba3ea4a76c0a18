"""What the training thread is busy with besides its waits, in a job of several ranks: by looks at random moments.

The other ranks wait for the one that is late; its own report is to say what it did meanwhile.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import deque
from functools import partial
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any

from syncagent.attribution.callsite import COLLECTIVE, DATA_LOADER, Where
from syncagent.attribution.locator import backward_in
from syncagent.attribution.threads import system_name
from syncagent.events import HostCause
from syncagent.native import START_NS
from syncagent.recording.host_time import HostTime, Place
from syncagent.sensors.base import Sensor
from syncagent.sensors.random_pace import RandomPace
from syncagent.support.compat import has_gil, standing_of
from syncagent.support.threads import AgentThread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from syncagent.recording.recorder import Recorder
    from syncagent.recording.records import ThreadState
    from syncagent.report.model import HostRow
    from syncagent.sensors.base import Conditions
    from syncagent.support.compat import Standing

_BLOCKING = ("distributed_c10d.py", "_functional_collectives.py")
"""Files of ``torch.distributed`` whose functions call a collective, and may wait there for the other ranks."""
_AUTOGRAD = "pt_autograd"
_STOP_TIMEOUT_S = 1.0


class HostTimeSensor(Sensor):
    """Looks at the thread that ends steps, and times the garbage collections on it.

    It begins when the first step ends, so that a process which never trains has neither the looks nor the callback.
    """

    name = "host time"
    part = "the look at the host's time"

    def __init__(self, recorder: Recorder, conditions: Conditions) -> None:
        super().__init__(recorder, conditions)
        self.sums = HostTime()
        self._pace = RandomPace()
        self._collections = Collections()
        self._state: ThreadState | None = None
        self._looker: AgentThread | None = None
        self._over = threading.Lock()
        """Held until the looks are over: to wait for it takes no Python code."""
        self._why_not = "off: times are modelled, and the host's would be the CPU's" if conditions.modelled else ""
        self._is_armed = False
        self._in_simulation: frozenset[int] = frozenset()
        """Identities of the code that a thread is in while it waits for the simulated device."""

    # --- its status

    @classmethod
    def is_listed(cls, conditions: Conditions) -> bool:
        return conditions.several_ranks

    @classmethod
    def is_wanted(cls, conditions: Conditions) -> bool:
        return conditions.several_ranks and conditions.modelled is None

    @property
    def live(self) -> bool:
        return self._looker is not None

    @property
    def cannot_see(self) -> str:
        return (
            "what C++ does below a line, which is given to that line, also where it waits for room in the GPU's queue "
            "or, in wait() or backward() without a GPU, for other ranks; Python code of less than 5 ms at a stretch is "
            "given to the next line that lets other threads run"
        )

    @property
    def detail(self) -> str:
        if self._why_not or self._looker is not None:
            return self._why_not or self._collections.why_not
        return "it begins with the second step" if self._is_armed else ""

    @classmethod
    def footprint(cls) -> dict[str, object]:
        return {"gc.callbacks": list(gc.callbacks)}

    # --- start and stop

    def start(self) -> None:
        """Begin as soon as the first step has ended."""
        if not has_gil():
            self._why_not = "off: a thread cannot be looked at in a free-threaded Python"
            return
        if self._conditions.simulate:
            from syncagent.simulate.engine import WAITING
            from syncagent.simulate.waits import REPORTED

            self._in_simulation = frozenset(map(id, (*WAITING, REPORTED)))
        self._is_armed = True

    def stop(self) -> None:
        self._is_armed = False
        self._collections.stop()
        looker, self._looker = self._looker, None
        if looker is not None:
            self._over.release()
            if looker.ident != threading.get_ident():
                looker.join(_STOP_TIMEOUT_S)

    # --- on the training thread

    def step_ended(self, state: ThreadState, start_ns: int, end_ns: int) -> None:
        """Take a step that has ended on this thread."""
        if not self._is_armed:
            return
        self._state = state
        if self._looker is not None:
            self.sums.step_ended(start_ns, end_ns)
            return
        try:
            self._begin()
        except Exception as error:
            self._fail(error)

    def _begin(self) -> None:
        self._over.acquire()
        looker = AgentThread(target=self._look_on, name="syncagent-host")
        self._looker = looker
        try:
            looker.start()
        except RuntimeError:
            self._looker = None
            self._over.release()
            raise
        self._collections.start()

    def _fail(self, error: Exception) -> None:
        self._is_armed = False
        self._why_not = "off: it failed"
        self._collections.stop()
        self._recorder.fault(self.part, error, "failed and is off")

    # --- on the agent's own thread

    def _look_on(self) -> None:
        pace, now = self._pace, time.perf_counter_ns
        due_ns = now() + pace.next_ns()
        while not self._over.acquire(timeout=max(due_ns - now(), 0) / 1e9):
            began_ns, cpu_ns = now(), time.thread_time_ns()
            try:
                place = self._place()
                cpu_ns = time.thread_time_ns() - cpu_ns
                self.sums.collected(self._take_collections())
                self._note(place, due_ns, began_ns)
                self.sums.settle(self._take_collections)
            except Exception as error:
                self._looker = None
                self._fail(error)
                break
            pace.looked(cpu_ns)
            due_ns = now() + pace.next_ns()

    def _note(self, place: Place | None, due_ns: int, began_ns: int) -> None:
        """Add up a look: it stands for the mean time between two of them, and for the time by which it came late.

        It comes late where the thread does not let go of the interpreter, as in a garbage collection.
        """
        collecting_ns = self._collections.within(due_ns, began_ns)
        weight_ns = self._pace.mean_ns + max(began_ns - due_ns, 0)
        if self._collections.was_at(due_ns):
            self.sums.looked(due_ns, weight_ns, None)
        elif collecting_ns:  # where the thread was before it is not known, only where it is since
            self.sums.looked(due_ns, collecting_ns, None)
        else:
            self.sums.looked(due_ns, weight_ns, place)

    def _take_collections(self) -> list[tuple[int, int]]:
        return self._collections.take(self._state.ident) if self._state is not None else []

    def _place(self) -> Place | None:
        """Return where the training thread is; ``None`` where it is in a wait that is timed as such, or has ended."""
        state, recorder = self._state, self._recorder
        if state is None or _is_timed(state):
            return None
        here = standing_of(state.ident)
        if here is None:
            return None
        if self._waits_in_simulation(here):
            return None
        if backward_in(here, recorder.locator.internals) is not None and self._autograd_waits():
            return None
        where = recorder.locator.sites.capture(here)
        if self._is_collective(where):
            return None
        cause = HostCause.DATA_LOADER if where.marks & DATA_LOADER else HostCause.LINE
        return Place(cause, where.user or where.library)

    def _waits_in_simulation(self, here: Standing | None) -> bool:
        codes = self._in_simulation
        while codes and here is not None:
            if id(here.f_code) in codes:
                return True
            here = here.f_back
        return False

    def _autograd_waits(self) -> bool:
        """Whether one of autograd's threads, for which the training thread waits in ``backward()``, waits itself."""
        if any(system_name(tid).startswith(_AUTOGRAD) for tid in self._recorder.waits.waiting()):
            return True
        for state in self._recorder.threads.all:
            if state.name.startswith(_AUTOGRAD):
                if state.op is not None:
                    return True
                if self._in_simulation and self._waits_in_simulation(standing_of(state.ident)):
                    return True
        return False

    def _is_collective(self, where: Where) -> bool:
        if where.library is None or not where.marks & COLLECTIVE:
            return False
        code, _ = where.library
        bits = self._recorder.locator.sites.bits(code)
        return bool(bits & COLLECTIVE) and os.path.basename(code.co_filename) in _BLOCKING

    # --- for the report

    def rows(self) -> tuple[HostRow, ...]:
        """Return what a report says of the host's time."""
        self.sums.settle(self._take_collections)
        return self.sums.rows(self._recorder.locator.sites.resolve)


def _is_timed(state: ThreadState) -> bool:
    """Whether the thread is in a wait that another sensor times."""
    return state.op is not None or (state.slot is not None and state.slot[START_NS] != 0)


class Collections:
    """Notes begin and end of garbage collections.

    A signal that arrives during a collection is handled as soon as Python code runs: in a callback that is written in
    Python, and what its handler raises would be lost.  So the callback consists of functions in C alone: it asks for
    the attribute of the name that it is given, ``start`` or ``stop``, and each is a property that notes the moment.
    """

    def __init__(self) -> None:
        self._noted: deque[tuple[int, int, bool]] = deque(maxlen=65_536)
        self._callback: Any = None
        self._began: tuple[int, int] = (0, 0)
        self._newest: list[tuple[int, int]] = []
        self._taking = threading.RLock()
        """Between the thread that looks and readers."""
        self.why_not = ""

    def start(self) -> None:
        self._callback = partial(getattr, _moments(self._noted))
        gc.callbacks.append(self._callback)

    def stop(self) -> None:
        callback, self._callback = self._callback, None
        for place, other in enumerate(gc.callbacks):
            if other is callback and callback is not None:
                del gc.callbacks[place]
                return

    def take(self, ident: int) -> list[tuple[int, int]]:
        """Return begin and end of the collections on that thread that are over and were not taken before."""
        with self._taking:
            taken = []
            for _ in range(len(self._noted)):
                moment_ns, on_thread, is_end = self._noted.popleft()
                began, self._began = self._began, (0, 0) if is_end else (moment_ns, on_thread)
                if is_end and began == (began[0], ident):
                    taken.append((began[0], moment_ns))
            if self._callback is not None and not any(other is self._callback for other in gc.callbacks):
                self._began = (0, 0)
                self.why_not = "garbage collections are not timed any more: the program has cleared gc.callbacks"
            if taken:
                self._newest = taken
            return taken

    def within(self, since_ns: int, until_ns: int) -> int:
        """Return for how long collections were running in that time, of those that were taken last."""
        return sum(max(min(ended, until_ns) - max(began, since_ns), 0) for began, ended in self._newest)

    def was_at(self, moment_ns: int) -> bool:
        """Whether a collection was running then, of those that were taken last or are not over."""
        began_ns, _ = self._began
        if began_ns and began_ns <= moment_ns:
            return True
        return any(began <= moment_ns < ended for began, ended in self._newest)


def _moments(noted: deque[tuple[int, int, bool]]) -> object:
    """Return an object whose attributes ``start`` and ``stop``, when asked for, note moment and thread."""

    def note(*, is_end: bool) -> property:
        moments: Iterator[Any] = zip(
            starmap(time.perf_counter_ns, repeat(())), starmap(threading.get_ident, repeat(())), repeat(is_end),
            strict=False,
        )  # fmt: skip
        return property(partial(next, map(noted.append, moments)))

    return type("Moments", (), {"start": note(is_end=False), "stop": note(is_end=True)})()
