"""torch.profiler as the cost window uses it: started in the middle of a run, only where nothing else profiles."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from syncagent.torchbridge.patches import Patches

ANOTHER = "another profiler is running in this process, and there can be only one"


def why_not() -> str | None:
    """Why no window can be captured now; ``None`` if one can."""
    import torch

    enabled: Any = getattr(torch._C._autograd, "_profiler_enabled", lambda: False)
    if getattr(torch.autograd.profiler, "_is_profiler_enabled", False) or enabled():
        return ANOTHER
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return "the process does not use a GPU"
    if not torch.profiler.kineto_available():
        return "this torch is built without Kineto"
    if torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    return None


@contextmanager
def _given_back() -> Iterator[None]:
    """Have Kineto let go of CUPTI when the capture ends, so that later steps are as fast as earlier ones.

    The variable is left alone where it is set already (torch does, where CUDA graphs of inductor are in use).
    """
    name = "TEARDOWN_CUPTI"
    mine = name not in os.environ
    if mine:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if mine:
            os.environ.pop(name, None)


def drain() -> None:
    """Wait for the GPU past the agent's own sensor, so that this wait is not taken for one of the program's."""
    import torch

    synchronize: Any = torch._C._cuda_synchronize
    getattr(synchronize, "__wrapped__", synchronize)()


@contextmanager
def _unseen() -> Iterator[None]:
    """Have calls of ``torch.cuda.synchronize`` inside go past the agent's sensor: they are not the program's."""
    import torch

    wrapped: Any = getattr(torch._C, "_cuda_synchronize", None)
    if wrapped is None:  # a build without CUDA
        yield
        return
    torch._C._cuda_synchronize = getattr(wrapped, "__wrapped__", wrapped)
    try:
        yield
    finally:
        torch._C._cuda_synchronize = wrapped


class Capture:
    """One run of the profiler.

    It ends when the program starts a profiler of its own, and ``gave_way`` is called.
    """

    def __init__(self, gave_way: Callable[[], None] = lambda: None) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        more: dict[str, Any] = {}
        config: Any = getattr(torch._C._profiler, "_ExperimentalConfig", None)
        try:  # which stream a wait is for
            more["experimental_config"] = config(enable_cuda_sync_events=True)
        except TypeError:
            pass  # then waits are assumed to be for all streams
        self._gave_way = gave_way
        self.running = False
        self._patches = Patches()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profiler = profile(activities=activities, acc_events=True, **more)

    def start(self) -> None:
        with _unseen():
            self._profiler.start()
        self._make_way()

    def _make_way(self) -> None:
        """A second profiler would raise in the program's own frame: end this one before that one begins."""
        import torch

        def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
            def prepare(profiler: Any, *args: Any, **kwargs: Any) -> Any:
                if self.running:
                    self.stop()
                    self._gave_way()
                return original(profiler, *args, **kwargs)

            return prepare

        self.running = self._patches.wrap(torch.autograd.profiler.profile, "_prepare_trace", wrapped)

    def mark(self, name: str) -> None:
        """Put a mark into the trace."""
        import torch

        with torch.profiler.record_function(name):
            pass

    def stop(self) -> None:
        self.running = False
        self._patches.restore()
        with _given_back(), _unseen():
            self._profiler.stop()

    def save(self, path: str) -> None:
        self._profiler.export_chrome_trace(path)
