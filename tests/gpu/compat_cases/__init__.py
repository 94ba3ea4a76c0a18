"""The cases of ``tests/gpu/compat.py``, and what a case is given to say what must hold."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import syncagent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from syncagent.events import SyncEvent
    from syncagent.runtime.agent import ProcessAgent

__all__ = ["CASES", "HERE", "MODES", "Case", "Net", "Run", "SkipCase", "batch", "case", "content", "train"]

HERE = str(Path(__file__).resolve().parent)
MODES = ("bare", "syncs", "auto", "ops")
ITEM = "aten::_local_scalar_dense"
NONZERO = "aten::nonzero"


class SkipCase(Exception):
    """The case cannot run here; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way of using torch, tried without the agent and under it."""

    name: str
    run: Callable[[Run], Any]
    needs: str = ""
    """``cuda`` where the CPU will not do."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the watch, beyond those that all have."""
    watched: bool = True
    """Whether the harness starts the agent; else the case does so itself."""
    process: bool = False
    """Whether all that matters happens in a process of its own: such cases run side by side, before the others."""
    compiled: bool = False
    """Whether torch.compile is at work: what was compiled is then forgotten before each run."""
    fused: tuple[str, ...] = ()
    """Ops that stand in compiled code alone; were they counted one by one, that code would have run eagerly."""
    fresh: bool = False
    """Whether each run compiles with empty caches: slow, but a graph from a cache is neither lowered nor tuned."""
    deterministic: bool = True
    limit_s: float = 25.0


CASES: list[Case] = []


def case(name: str, **rest: Any) -> Callable[[Callable[[Run], Any]], Callable[[Run], Any]]:
    """Put a function among the cases."""

    def put(function: Callable[[Run], Any]) -> Callable[[Run], Any]:
        CASES.append(Case(name, function, **rest))
        return function

    return put


@dataclass(slots=True)
class Window:
    """What must be reported between two moments (``perf_counter_ns``)."""

    began: int
    ended: int
    expected: Mapping[str, int]
    others: bool
    at: str


class Run:
    """One run of a case: without the agent (``bare``) or under one ``detail``."""

    def __init__(self, case: Case, mode: str, device: str, *, sees: bool) -> None:
        self.case = case
        self.mode = mode
        self.device = device
        self.agent: ProcessAgent | None = None
        self.windows: list[Window] = []
        self.wrong: list[str] = []
        """What did not hold, one sentence each."""
        self.notes: dict[str, Any] = {}
        """What was seen and is not judged."""
        self._sees = sees

    @property
    def bare(self) -> bool:
        return self.mode == "bare"

    @property
    def sees(self) -> bool:
        """Whether an agent is there that can see syncs on this device."""
        return self._sees and not self.bare

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "policy": "observe", "detail": self._detail, "journal": "off", "summary": False, **self.case.settings,
        }  # fmt: skip

    @property
    def _detail(self) -> str:
        """A gate has to see each sync before it waits, which the default does not."""
        return "syncs" if self.mode == "auto" and self.case.name.startswith("raise") else self.mode

    @contextlib.contextmanager
    def watching(self) -> Iterator[ProcessAgent | None]:
        """Watch what is inside, unless this run is the bare one."""
        if self.bare:
            yield None
            return
        with syncagent.watch(**self.settings) as self.agent:
            yield self.agent

    def events(self) -> tuple[SyncEvent, ...]:
        return self.agent.events() if self.agent is not None else ()

    def check(self, holds: object, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)

    @contextlib.contextmanager
    def syncs(
        self, expected: Mapping[str, int], *, others: bool = False, at: str = "", threads: bool = False
    ) -> Iterator[None]:
        """Say which syncs, and how many of each op (``a|b``: of either), must be reported inside.

        No other may be, unless ``others``.  Those expected must be at a line of the cases, whose text holds ``at``.
        ``threads`` of the program's own make them: by default only the driver sees these, and adds short ones up.
        """
        began = time.perf_counter_ns()
        try:
            yield
        finally:
            if not (threads and self._detail == "auto"):
                self.windows.append(Window(began, time.perf_counter_ns(), expected, others, at))

    @contextlib.contextmanager
    def forbidden(self, op: str, at: str, tensors: Sequence[torch.Tensor] = ()) -> Iterator[None]:
        """Say that the policy must stop what is inside at ``op``, on a line that holds ``at``, and leave ``tensors``.

        Without a policy the body runs through and the tensors get their values back, so that all runs go on alike.
        """
        with syncagent.allow("kept by the harness"):
            before = [tensor.detach().clone() for tensor in tensors]
        raised: BaseException | None = None
        try:
            yield
        except RuntimeError as error:
            raised = error
        with syncagent.allow("compared by the harness"):
            if self.sees:
                self._judge(raised, op, at)
                if raised is not None:  # its frames keep the hooks of a checkpoint that it left on
                    raised = raised.with_traceback(None)
                intact = all(torch.equal(kept, now.detach()) for kept, now in zip(before, tensors, strict=True))
                self.check(intact, f"{op} was stopped, but a tensor has changed")
            elif raised is not None:
                raise raised
            with torch.no_grad():
                for kept, now in zip(before, tensors, strict=True):
                    now.copy_(kept)

    def _judge(self, raised: BaseException | None, op: str, at: str) -> None:
        if type(raised) is not syncagent.HostSyncError:
            self.wrong.append(f"{op} was to raise HostSyncError, but there was {raised!r:.200}")
            return
        event = raised.event
        if event is None:
            self.wrong.append("HostSyncError has no event")
            return
        self.check(event.op in op.split("|"), f"raised at {event.op}, not at {op}")
        place = event.site
        good = place is not None and place.file.startswith(HERE) and at in place.source
        self.check(good, f"raised at {place} ({place and place.source!r}), not at a line with {at!r}")
        again = pickle.loads(pickle.dumps(raised))
        self.check(type(again) is type(raised) and again.event == event and str(again) == str(raised), "not picklable")

    def python(self, program: str, *, when: str = "", then: Callable[[subprocess.Popen[str]], None] | None = None,
               timeout_s: float = 60.0, alone: bool = False, under: Sequence[str] = (),
               **settings: str) -> Finished:  # fmt: skip
        """Run a program in a process of its own, by ``syncagent run`` unless bare or ``alone``.

        ``under`` are the words of a tool that starts it.

        Once it has printed ``when``, ``then`` is called with the process; ``settings`` are further ones of the agent's.
        """
        with tempfile.TemporaryDirectory() as folder:
            script, report = Path(folder, "program.py"), Path(folder, "report.json")
            script.write_text(f"DEVICE, MODE = {self.device!r}, {self.mode!r}\n{program}", encoding="utf-8")
            before = (
                []
                if self.bare or alone
                else ["-m", "syncagent", "run", "--report", str(report), "--detail", self._detail]
            )
            root = str(Path(HERE).parents[2])
            unset = ("SYNCAGENT", "SYNCAGENT_DETAIL")
            environment = {key: value for key, value in os.environ.items() if key not in unset}
            environment.update(
                PYTHONPATH=os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH")))),
                SYNCAGENT_JOURNAL="off", SYNCAGENT_SUMMARY="0", PYTHONUNBUFFERED="1",
                **{f"SYNCAGENT_{name.upper()}": value for name, value in settings.items()},
            )  # fmt: skip
            process = subprocess.Popen(
                [*under, sys.executable, *before, str(script)], env=environment, cwd=folder, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            try:
                early = ""
                if when:
                    assert process.stdout is not None
                    while when not in early and (line := process.stdout.readline()):
                        early += line
                if then is not None:
                    time.sleep(0.3)
                    then(process)
                out, err = process.communicate(timeout=timeout_s)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.communicate()
            text = report.read_text(encoding="utf-8") if report.exists() else ""
        return Finished(process.returncode, early + out, err, text)


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that has ended."""

    code: int
    out: str
    err: str
    report: str
    """The saved report, as JSON; empty where there is none."""


# --- what cases share -----------------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """Small, with an activation and a normalisation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = torch.nn.Linear(width, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.last = torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.last(torch.nn.functional.gelu(self.norm(self.first(x))))
        return hidden


def batch(run: Run, rows: int = 6, width: int = 8) -> torch.Tensor:
    """Make an input on the device, without a copy to it."""
    return torch.randn(rows, width, device=run.device)


def train(run: Run, net: Any, optimizer: Any, steps: int = 3) -> list[float]:
    """Train, and read each loss back: one sync per step."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = net(batch(run)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def content(value: Any) -> Any:
    """Return tensors as bytes, whatever holds them, so that results can be compared bit by bit."""
    if isinstance(value, torch.nn.Module):
        return content(list(value.state_dict().values()))
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu()
        raw = plain.contiguous().reshape(-1).view(torch.uint8) if plain.numel() else plain
        return (str(value.dtype), tuple(value.shape), bytes(raw.tolist()))
    if isinstance(value, dict):
        return {key: content(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [content(inner) for inner in value]
    if isinstance(value, float):
        return value.hex()
    return value
