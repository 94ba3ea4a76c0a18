"""Made-up Kineto events: a host that launches, waits and computes, and the GPU's side of it, in µs."""

from __future__ import annotations

MAIN, AUTOGRAD = 100, 200


class Traced:
    """Writes events as one host thread and one stream would leave them; times move on by themselves."""

    def __init__(self) -> None:
        self.events: list[dict] = []
        self.now = 1_000.0
        self.ready: dict[int, float] = {}
        self.correlation = 0

    def event(self, cat, name, ts, dur, tid=MAIN, pid=1, **args):
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": pid, "tid": tid, "args": args}
        )

    def host(self, us: float) -> None:
        self.now += us

    def mark(self, number: int) -> None:
        self.event("user_annotation", f"ProfilerStep#{number}", self.now, 1.0)

    def launch(self, us: float, stream: int = 7, call_us: float = 5.0, name="kernel", tid=MAIN, **args) -> None:
        self.correlation += 1
        call = "cudaMemcpyAsync" if name.startswith("Memcpy") else "cudaLaunchKernel"
        self.event("cuda_runtime", call, self.now, call_us, tid, correlation=self.correlation)
        self.now += call_us
        start = max(self.now + 1.0, self.ready.get(stream, 0.0) + 1.0)
        category = "gpu_memcpy" if name.startswith("Memcpy") else "kernel"
        self.event(category, name, start, us, stream, 0, stream=stream, device=0, correlation=self.correlation, **args)
        self.ready[stream] = start + us

    def wait(self, stream: int = 7, back_us: float = 5.0, tid=MAIN) -> None:
        self.correlation += 1
        end = max(self.now + 1.0, self.ready.get(stream, 0.0)) + back_us
        self.event("cuda_runtime", "cudaStreamSynchronize", self.now, end - self.now, tid, correlation=self.correlation)
        self.event("cuda_sync", "Stream Sync", self.now, 1.0, stream, 0, stream=stream, correlation=self.correlation)
        self.now = end

    def item(self) -> None:
        """What ``Tensor.item()`` leaves: a copy of a number, and the wait for it."""
        began = self.now
        self.launch(1.5, name="Memcpy DtoH (Device -> Pinned)", bytes=4)
        self.wait()
        self.event("cpu_op", "aten::item", began - 1.0, self.now - began + 2.0)

    def annotated(self, name: str, began: float, category: str = "user_annotation", tid=MAIN) -> None:
        self.event(category, name, began, self.now - began, tid)

    @property
    def file(self) -> dict:
        return {"traceEvents": self.events, "baseTimeNanoseconds": 0}


def training(
    steps: int = 6, *, kernels: int = 20, kernel_us: float = 50.0, host_us: float = 10.0, items: int = 1
) -> Traced:
    """Steps with ``items`` reads of a number, spread evenly over the kernels."""
    traced = Traced()
    for number in range(steps):
        began = traced.now
        for kernel in range(kernels):
            traced.host(host_us)
            traced.launch(kernel_us)
            if items and (kernel + 1) % (kernels // items) == 0:
                traced.host(2.0)
                traced.item()
        traced.host(20.0)
        traced.annotated(f"ProfilerStep#{number}", began)
    return traced
