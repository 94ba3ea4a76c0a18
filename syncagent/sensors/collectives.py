"""How long the GPU's compute stream stands still for collectives: measured in C, by timing events around each wait.

The rank that waits least is the one that the others wait for; no clocks have to be compared for that.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from syncagent import native
from syncagent.sensors.base import Sensor

if TYPE_CHECKING:
    from syncagent.recording.recorder import Recorder
    from syncagent.sensors.base import Conditions

_MEASURING = (native.JOINS_ON, native.JOINS_WITHOUT_DRIVER)


class CollectiveSensor(Sensor):
    """Measures in every rank how long each collective holds up the GPU."""

    name = "collectives"

    def __init__(self, recorder: Recorder, conditions: Conditions) -> None:
        super().__init__(recorder, conditions)
        self._native: native.Native | None = None
        self._why_not = "" if conditions.collectives else "off: SYNCAGENT_COLLECTIVES is 0"
        self._counts: native.Status | None = None
        self._poll_lock = threading.Lock()
        self._stream = 0

    # --- its status

    @classmethod
    def is_listed(cls, conditions: Conditions) -> bool:
        return conditions.has_cuda and not conditions.simulate and conditions.several_ranks

    @classmethod
    def is_wanted(cls, conditions: Conditions) -> bool:
        return cls.is_listed(conditions) and conditions.collectives

    def _status(self) -> native.Status | None:
        library = self._native
        return library.status() if library is not None else self._counts

    @property
    def live(self) -> bool:
        counts = self._status() if self._native is not None else None
        return (
            counts is not None and counts.hooks > 0 and counts.joins in (native.JOINS_ON, native.JOINS_WITHOUT_DRIVER)
        )

    @property
    def cannot_see(self) -> str:
        return (
            "collectives inside of CUDA graphs, those that do not go through NCCL or where NCCL is linked statically, "
            "and waits of streams other than the one in which the optimizer runs"
        )

    @property
    def detail(self) -> str:
        if self._native is None:
            return self._why_not
        counts = self._native.status()
        if counts.joins == native.JOINS_FAILED:
            return _failure(counts)
        return (
            "" if counts.hooks else "no call into NCCL was found: it is not loaded, or torch has it linked statically"
        )

    @property
    def notes(self) -> list[str]:
        counts = self._status()
        notes: list[str] = []
        if counts is None:
            return notes
        if counts.joins == native.JOINS_FAILED:
            notes.append(f"waits of the GPU for other ranks are not measured from some step on: {_failure(counts)}")
        if counts.joins_dropped:
            notes.append(
                f"{counts.joins_dropped} of {counts.joins_measured + counts.joins_dropped} waits of the GPU for other "
                "ranks were not measured: too many were under way, or the program had an error of CUDA's to fetch"
            )
        if counts.hooks_missed:
            notes.append(
                f"{counts.hooks_missed} calls of collectives and events go through another tool's patches or cannot be "
                "patched: waits of the GPU for other ranks may be missing"
            )
        return notes

    @classmethod
    def footprint(cls) -> dict[str, object]:
        library = native.load()
        return {
            "calls of collectives and events that are patched": library.status().hooks if library is not None else 0
        }

    # --- start and stop

    def start(self) -> None:
        """Have the native library hook what it has found; the driver sensor, which starts first, has loaded it."""
        library = native.load()
        if library is None:
            self._why_not = native.why_not()
            return
        if library.measure_joins(True) < 0:
            self._why_not = "off: it needs the sensor driver, which is not on"
            return
        self._native, self._counts, self._stream = library, None, 0
        library.compute_stream(0)

    def stop(self) -> None:
        library = self._native
        if library is not None:
            self.poll()
        if self._native is not None:
            self._turn_off(self._native, "")

    def _turn_off(self, library: native.Native, why: str) -> None:
        self._counts, self._native, self._why_not = library.status(), None, why
        library.measure_joins(False)

    # --- while it runs

    def poll(self) -> None:
        """Hand on what is over; never waits for the GPU.  On the agent's own thread."""
        library = self._native
        if library is None or not self._poll_lock.acquire(blocking=False):
            return
        try:
            for join in library.take_joins():
                self._recorder.collectives.add(
                    moment_ns=join.moment_ns,
                    waited_ns=join.waited_ns,
                    caught_up=bool(join.flags & native.CAUGHT_UP),
                    host_waited=bool(join.flags & native.HOST_WAITED),
                )
            counts = library.status()
            if counts.joins == native.JOINS_FAILED:  # for good: the program need not go through the hooks any more
                self._turn_off(library, _failure(counts))
        except Exception as error:
            self._recorder.fault(self.part, error)
            self._turn_off(library, "switched off after a fault")
        finally:
            self._poll_lock.release()

    def step_ended(self) -> None:
        """Note in which stream the training thread, which calls this, computes: its waits are the ones that count."""
        library = self._native
        if library is None:
            return
        try:
            import torch

            stream = int(torch.cuda.current_stream().cuda_stream) if torch.cuda.is_initialized() else 0
        except Exception as error:
            self._recorder.fault(self.part, error)
            self._turn_off(library, "switched off after a fault")
            return
        if stream != self._stream:
            self._stream = stream
            library.compute_stream(stream)


def _failure(counts: native.Status) -> str:
    where = native.FAILED_AT[counts.failed_at] if counts.failed_at < len(native.FAILED_AT) else "the native library"
    if where == "cudaDeviceReset":
        return "switched off, since the program has reset the device"
    if not counts.failed_with:
        return f"switched off: {where} is not what it should be"
    return f"switched off: {where} failed with error {counts.failed_with}"
