"""The calls that the selftest fires: which wait, and as what, and which look alike and do not."""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from types import CodeType
from typing import Any

from syncagent.events import SyncKind

FILE = "<syncagent selftest>"
"""The file in which the calls stand, one a line: code that is no part of the agent, as a user's would be."""

_D, _S, _OUT, _IN = SyncKind.DYNAMIC_SHAPE, SyncKind.SCALAR_READ, SyncKind.COPY_D2H, SyncKind.COPY_H2D
_CHECK, _ASKED = SyncKind.CHECK, SyncKind.EXPLICIT


@dataclass(frozen=True, slots=True)
class Case:
    """One call, as a line of Python."""

    call: str
    kind: SyncKind | None
    """``None``: it does not wait."""
    setup: str = ""
    """Runs before the GPU is given its work."""
    then: str = ""
    """Runs after it, right before the call; queues something, and does not wait."""
    note: str = ""
    """Distinguishes it from other cases with the same text."""
    in_thread: bool = False
    real: bool = False
    """Needs a real GPU."""
    monitored: bool = False
    """Needs ``sys.monitoring`` (Python 3.12)."""

    @property
    def shown(self) -> str:
        return f"{self.call}  ({self.note})" if self.note else self.call


# What each name is: see namespace().  Calls of all these kinds were tried on an H100: tests/gpu/results/truth.json.
CASES: tuple[Case, ...] = (
    Case("x.nonzero()", _D),
    Case("x[mask]", _D),
    Case("torch.masked_select(x, mask)", _D),
    Case("torch.unique(n)", _D),
    Case("torch.repeat_interleave(x, n)", _D),
    Case("loss.backward()", _D, setup="loss = w[mask].sum()"),
    Case("z.item()", _S),
    Case("bool(z)", _S),
    Case("float(z)", _S),
    Case("z.item()", _S, note="in a thread", in_thread=True),
    Case("x.cpu()", _OUT),
    Case("x.tolist()", _OUT),
    Case("x.to('cpu')", _OUT),
    Case("host.to('cuda')", _IN),
    Case("torch.tensor([1.0], device='cuda')", _IN),
    Case("large.to('cuda', non_blocking=True)", _IN, setup="large = torch.zeros(4 << 20)"),  # 16 MB, not pinned
    Case("torch.linalg.cholesky(s)", _CHECK),
    Case("torch.linalg.inv(s)", _CHECK),
    Case("torch.normal(x, x)", _CHECK),
    Case("torch.cuda.synchronize()", _ASKED),
    Case("torch.accelerator.synchronize()", _ASKED),
    Case("stream.synchronize()", _ASKED, setup="stream = torch.cuda.current_stream()"),
    Case("event.synchronize()", _ASKED, setup="event = torch.cuda.Event()", then="event.record()"),
    Case(
        "event.synchronize()", _ASKED, setup="event = torch.Event(device='cuda')", then="event.record()",
        note="torch.Event", real=True, monitored=True,
    ),
    # and what must not be reported
    Case("a @ a", None),
    Case("x[n]", None),
    Case("torch.nonzero_static(mask, size=9)", None),
    Case("torch.where(mask, x, 0.0)", None),
    Case("x.masked_fill(mask, 0.0)", None),
    Case("pinned.to('cuda', non_blocking=True)", None),
    Case("host.to('cuda', non_blocking=True)", None),
    Case("x.to(torch.float16)", None),
    Case("event.record()", None, setup="event = torch.cuda.Event()"),
)  # fmt: skip

READ = next(case for case in CASES if case.call == "z.item()")
"""The plainest of syncs."""


def line_of(case: Case) -> int:
    """Return the line of :data:`FILE` on which the call stands."""
    return CASES.index(case) + 1


def compiled(case: Case) -> CodeType:
    """Compile the call so that it stands on its line of :data:`FILE`."""
    lines = [f"{each.call}\n" for each in CASES]
    # No time of change: it is not looked for on the disk.
    linecache.cache[FILE] = (sum(map(len, lines)), None, lines, FILE)
    return compile("\n" * (line_of(case) - 1) + case.call, FILE, "exec")


def namespace() -> dict[str, Any]:
    """Make the names that calls use, anew.

    On the device: x float (999), n int (999) in 0..8, mask (999), z 0-dim, w as x with grad, a (64, 64), s positive
    definite (32, 32).  On the host: ``host`` and ``pinned``, float (999).
    """
    import torch

    torch.manual_seed(0)
    x = torch.rand(999).add_(0.1).to("cuda")
    return {
        "torch": torch,
        "x": x,
        "n": torch.randint(0, 9, (999,)).to("cuda"),
        "mask": x > 0.5,
        "z": torch.tensor(0.5).to("cuda"),
        "w": torch.rand(999).to("cuda").requires_grad_(),
        "a": torch.rand(64, 64).to("cuda"),
        "s": (torch.ones(32, 32) + 32 * torch.eye(32)).to("cuda"),
        "host": torch.rand(999),
        "pinned": torch.rand(999).pin_memory(),
    }
