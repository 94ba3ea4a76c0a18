"""Every wait in the CUDA runtime, whoever calls it: timed in C, the line looked up while the caller waits.

The native library (:mod:`syncagent.native`) points the callers' entries for the runtime's blocking functions at
wrappers that read the clock.  Other sensors take their stall from it; what none of them names is recorded here.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from syncagent import native
from syncagent.attribution.threads import thread_name
from syncagent.events import Phase, SyncKind
from syncagent.native import FIRST, NUMBER, START_NS, UNNAMED_NS
from syncagent.recording.waits import THRESHOLD_NS
from syncagent.sensors.base import Sensor
from syncagent.sensors.look_pace import LookPace
from syncagent.support.compat import has_gil, is_at_a_call, standing
from syncagent.support.threads import AgentThread
from syncagent.torchbridge.main_thread import is_own, raise_there

if TYPE_CHECKING:
    from types import FrameType

    from syncagent.recording.recorder import Recorder
    from syncagent.recording.records import ThreadState
    from syncagent.sensors.base import Conditions

_TIMEOUT_MS = 500
_WALK_EVERY_NS = 500_000_000
_NAMES = 10_000
_AT_ONCE = 64
"""How many waits of one call into C, each right after the other, take the line of the first at most."""
_WORTH_SAYING = 0.01


class DriverSensor(Sensor):
    """Times the driver's waits in all threads, and looks up the lines of those that no sensor names."""

    name = "driver"

    def __init__(self, recorder: Recorder, conditions: Conditions) -> None:
        super().__init__(recorder, conditions)
        self._native: native.Native | None = None
        self._why_not = "off: times are modelled, and the driver's would be the CPU's" if conditions.modelled else ""
        self._counts: native.Status | None = None
        self._has_entries = False
        """Whether a call into a CUDA runtime has been found and patched; asked for with every sync of a report."""
        self._looker: AgentThread | None = None
        self._stopping = False
        self._raised: type[BaseException] | None = None
        self._names: dict[tuple[int, int], str] = {}
        self._walked_ns = 0
        self._began_ns = time.perf_counter_ns()
        self._pace = LookPace(conditions.overhead_of_looks)

    # --- its status

    @classmethod
    def is_listed(cls, conditions: Conditions) -> bool:  # noqa: ARG003 - on the simulated device too
        return True

    @classmethod
    def is_wanted(cls, conditions: Conditions) -> bool:
        return (conditions.has_cuda or conditions.simulate) and conditions.modelled is None

    @property
    def live(self) -> bool:
        return self._native is not None and self._has_entries

    @property
    def cannot_see(self) -> str:
        return (
            "waits in libraries that bring a CUDA runtime of their own (cupy, numba, cuSOLVER) or look its functions "
            "up by name (ctypes), and the first second of an extension that is loaded later"
        )

    @property
    def detail(self) -> str:
        if self._native is None:
            return self._why_not
        if not self.live:
            return "no call into a CUDA runtime was found: none is loaded, or torch has it linked statically"
        if self._looker is None:
            return self._why_not or "lines are not looked up"
        return ""

    @property
    def notes(self) -> list[str]:
        library = self._native
        counts = library.status() if library is not None else self._counts
        notes = []
        shares = self._recorder.waits.shares
        if shares is not None:
            placed, short = shares
            rest = f"; {short:.1%} of it are waits too short to be looked at" if short >= _WORTH_SAYING else ""
            notes.append(f"line known for {placed:.1%} of the driver's wait time{rest}")
        if counts is not None and counts.foreign:
            notes.append(
                f"{counts.foreign} calls into the CUDA runtime go through another tool's patches: "
                "the driver's waits there are not seen"
            )
        if counts is not None and counts.read_only:
            notes.append(
                f"{counts.read_only} calls into the CUDA runtime could not be patched: their memory stays read-only"
            )
        if counts is not None and counts.threads_without_slot:
            notes.append(f"waits of {counts.threads_without_slot} threads are not seen: too many wait at a time")
        if counts is not None and counts.dropped:
            notes.append(f"{counts.dropped} waits that only the driver saw came too fast, and are lost")
        return notes

    @classmethod
    def footprint(cls) -> dict[str, object]:
        library = native.load()
        return {"calls into the CUDA runtime that are patched": library.status().entries if library is not None else 0}

    # --- start and stop

    def start(self) -> None:
        """Patch what is loaded, and begin to look."""
        library = native.load()
        if library is None:
            self._why_not = native.why_not()
            return
        self._has_entries = library.start(THRESHOLD_NS) > 0
        self._native = library
        self._began_ns = self._walked_ns = time.perf_counter_ns()
        self._recorder.waits.connect(library)
        self._recorder.threads.adopt = self._adopt
        self._adopt(self._recorder.threads.current())
        overhead = self._conditions.overhead
        if not has_gil():
            self._why_not = "lines are not looked up in a free-threaded Python"
        elif overhead:
            looker = AgentThread(target=self._look, name="syncagent-look")
            try:
                looker.start()
            except RuntimeError as error:
                self._why_not = f"lines are not looked up: {error}"
                return
            self._looker = looker
            library.set_looks(True, self._pace.after_ns)
            self._await_gil_holders(library)

    def _adopt(self, state: ThreadState) -> None:
        """Give a thread its slot, on that thread."""
        library = self._native
        slot = library.slot_view() if library is not None else None
        if library is not None and slot is not None:
            state.slot = slot
            state.slot_number = library.slots_view()[native.IDENT :: native.WORDS].tolist().index(slot[native.IDENT])
            state.waited_ns = slot[UNNAMED_NS]

    def stop(self) -> None:
        self._stopping = True
        library, self._native = self._native, None
        if library is not None:
            library.set_looks(False)
            self._counts = library.status()
            library.stop()
        looker, self._looker = self._looker, None
        if looker is not None and looker.ident != threading.get_ident():
            looker.join(1.0)

    def walk(self, *, now: bool = False) -> None:
        """Patch what has been loaded since; cheap where nothing was.  Twice a second, or ``now``."""
        library = self._native
        moment_ns = time.perf_counter_ns()
        if library is not None and (now or moment_ns - self._walked_ns >= _WALK_EVERY_NS):
            self._walked_ns = moment_ns
            self._has_entries = library.walk() > 0 or self._has_entries

    # --- looks, on the agent's own thread

    def _look(self) -> None:
        while not self._stopping:
            library = self._native
            if library is None:
                return
            pairs = library.next_looks(_TIMEOUT_MS)
            if pairs is None:
                return
            raised, self._raised = self._raised, None
            if raised is not None:
                raise_there(raised)
            if not pairs:
                self._keep_pace(library)
                continue
            began_ns = time.perf_counter_ns()
            try:
                came_late = self._look_at(library, pairs)
            except Exception as error:
                self._recorder.fault("the look at threads that wait", error)
                return
            took_ns = time.perf_counter_ns() - began_ns
            self._pace.looked(took_ns, came_late=came_late)
            self._keep_pace(library)

    def _look_at(self, library: native.Native, pairs: list[tuple[int, int]]) -> bool:
        """Look at threads that wait; return whether one had come back before its look was over."""
        slots, came_late = library.slots_view(), False
        for slot, number in pairs:
            at = slot * native.WORDS
            if slots[at + NUMBER] != number or not slots[at + START_NS]:
                came_late = True
                continue
            ident = slots[at + native.IDENT]
            name = self._name_of(slots[at + native.TID], ident)
            look = self._recorder.looker.look(ident, name)
            if slots[at + NUMBER] != number or not slots[at + START_NS]:
                came_late = True
            elif look is not None:
                self._recorder.waits.looked(slot, number, look)
        return came_late

    def _name_of(self, tid: int, ident: int) -> str:
        """Return Python's name of a thread, else the system's; a thread keeps the one it had when it was first seen."""
        name = self._names.get((tid, ident))
        if name is None:
            if len(self._names) >= _NAMES:
                self._names.clear()
            name = self._names[tid, ident] = thread_name(tid, ident)
        return name

    def _keep_pace(self, library: native.Native) -> None:
        if self._pace.changes(time.perf_counter_ns() - self._began_ns):
            library.set_looks(True, self._pace.after_ns)

    def _await_gil_holders(self, library: native.Native) -> None:
        """Have the main thread itself say where it is, after a wait in which it holds the GIL."""
        main = threading.main_thread().ident or 0
        recorder = self._recorder

        def came_back(number: int, frame: FrameType) -> None:
            """Run on the main thread, above the frame that has waited.

            That is so where nothing has waited since but calls that followed at once: a copy is followed by a
            synchronize, and the call into C that made both has not returned to Python in between.  And only after an
            instruction that calls: Python looks for what it has to do at the end of those, but not of an operator,
            after which it may come lines later.
            """
            try:
                state = recorder.threads.current()
                slot = state.slot
                if slot is None or not is_at_a_call(frame):
                    return
                if slot[FIRST] <= number <= slot[NUMBER] and not slot[START_NS]:
                    look = recorder.looker.at(standing(frame), main)
                    if look.phase is not Phase.BACKWARD:
                        phase = recorder.locator.phase(state, look.where.marks, SyncKind.OTHER, frame)
                        look = look._replace(phase=phase)
                    for each in range(number, min(slot[NUMBER], number + _AT_ONCE) + 1):
                        recorder.waits.looked(state.slot_number, each, look)
            except BaseException as error:
                if isinstance(error, Exception) and is_own(error):
                    recorder.fault("the look at the main thread", error)
                else:  # a signal's handler has run in here and raised: the program has to get that, and C would lose it
                    self._raised = type(error)

        library.on_pending(came_back, main)
