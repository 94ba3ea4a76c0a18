"""What can be done about a wait: names, which reports and tests use, and what is said of each."""

from __future__ import annotations

from dataclasses import dataclass

from syncagent.support.compat import StrEnum


class What(StrEnum):
    """What can be done."""

    ASSERT_ASYNC = "assert_async"
    BRANCH = "branch"
    CREATE_ON_DEVICE = "create_on_device"
    D2H_ASYNC = "d2h_async"
    DEBUG = "debug"
    EX_FORM = "ex_form"
    EXPLICIT = "explicit"
    INDEX_1D = "index_1d"
    INDEX_ON_DEVICE = "index_on_device"
    LEAVE = "leave"
    LOADER = "loader"
    LOG_LATER = "log_later"
    MASK = "mask"
    MASK_ASSIGN = "mask_assign"
    OPTION = "option"
    OUTPUT_SIZE = "output_size"
    PIN = "pin"
    RARE = "rare"
    READ_TOGETHER = "read_together"
    SIZE = "size"
    UNIQUE = "unique"


_RARELY = 0.1
"""Syncs per step below this are now and then."""
ALLOW = 'if it is wanted, say so with syncagent.allow("reason")'
BEFORE_LOOP = "read all of them in one copy before the loop: values.tolist()"
SAYINGS = {
    What.LOG_LATER: "keep the value on the GPU (x.detach(), and sums as tensors) and read it every N steps",
    What.RARE: "this happens only now and then: leave it",
    What.BRANCH: "decide on the GPU: torch.where or a mask in place of the Python branch",
    What.SIZE: "pass a size that the host knows, such as a bound from the data loader; or read all sizes in one copy",
    What.READ_TOGETHER: "read the values together: torch.stack(values).tolist() waits once",
    What.MASK: "keep the shape: multiply by the mask or use torch.where, and divide by mask.sum()",
    What.MASK_ASSIGN: "torch.where(mask, new, old), or masked_fill_ for a single number",
    What.INDEX_1D: "index with a 1-dim tensor, or index_select: a 0-dim one is read by the host",
    What.INDEX_ON_DEVICE: "build the index on the GPU once, and use it again",
    What.CREATE_ON_DEVICE: "make it on the GPU (device=...), or once outside of the loop",
    What.PIN: "pin the memory (DataLoader(pin_memory=True), or x.pin_memory()), and copy with non_blocking=True",
    What.D2H_ASYNC: "copy into pinned memory with non_blocking=True and read it a step later, or collect and copy once",
    What.EX_FORM: "use the _ex form with check_errors=False: its info stays on the GPU",
    What.OUTPUT_SIZE: "repeat_interleave(..., output_size=N), where the host knows the sum of the repeats",
    What.UNIQUE: "the size of the result depends on the values: count into a tensor of fixed size (scatter_add), "
    "or move it to the data loader",
    What.OPTION: "an option of the library avoids it",
    What.LOADER: "do this in the data loader or the collate function, before the copy to the GPU",
    What.DEBUG: "printing a tensor reads it: remove it, or print every N steps",
    What.ASSERT_ASYNC: "check on the GPU: torch._assert_async(condition), or only every N steps",
    What.EXPLICIT: "remove it: the stream keeps the order; time with torch.cuda.Event, order streams by wait_stream",
    What.LEAVE: f"nothing avoids it here: {ALLOW}",
}
"""What is said of each, unless a rule knows more."""


@dataclass(frozen=True)
class Sync:
    """What is known of a sync besides its source."""

    op: str
    """The dispatcher's name: ``aten::nonzero``."""
    api: str = ""
    kind: str = ""
    per_step: float | None = None
    library: tuple[str, str, str, str] | None = None
    """Package, file, function and text of the line inside a library that made the call."""
    library_version: str = ""
    """Empty where it is not known."""

    @property
    def is_rare(self) -> bool | None:
        """Whether it happens in few steps; ``None``: several every N steps may be between the two."""
        if self.per_step is None or _RARELY <= self.per_step < 1:
            return None
        return self.per_step < _RARELY

    @property
    def name(self) -> str:
        """The op without namespace and overload."""
        return self.op.rpartition("::")[2].partition(".")[0]


@dataclass(frozen=True)
class Advice:
    """What to do about a wait."""

    what: What
    say: str
    is_sure: bool = True
    asked_by: str = ""
    """A regular expression of how a program asks for it: such lines are to be named."""

    def __str__(self) -> str:
        return self.say if self.is_sure else f"probably: {self.say}"


def itself(name: str) -> Advice:
    """Return the advice for a function of torch that waits for a value of its own."""
    return say(What.LEAVE, f"{name} has no form that does not wait; {ALLOW}", sure=False)


def say(what: What, more: str = "", *, sure: bool = True) -> Advice:
    """Return the advice in its usual words, or in those of a rule that knows more."""
    return Advice(what, more or SAYINGS[what], sure)
