"""One call of the corpus, as data: statements that prepare it, and the expression that is run behind a sleeping GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Case", "Family", "table"]


@dataclass(frozen=True, slots=True)
class Case:
    """``setup`` and ``call`` are source text, run in a namespace that :mod:`tests.gpu.corpus.names` fills."""

    name: str
    family: str
    call: str
    setup: str = ""
    expect: bool = True
    """What the author expects: does the call wait?  The GPU decides, not this."""
    needs: str = ""
    """An expression that must hold for the case to run, such as ``has("torchvision")``."""
    stream: str = ""
    """Name of the stream, in the namespace, that the sleep goes to; by default the current one."""
    elsewhere: bool = False
    """The sleep is on another stream than the call's: a sync may be reported, and its stall must be nothing."""

    def prepare(self, namespace: dict[str, Any]) -> None:
        """Run the setup in a namespace fresh for this call."""
        exec(compile(self.setup, f"<setup of {self.name}>", "exec"), namespace)

    def run(self, namespace: dict[str, Any]) -> Any:
        """Run the call; statements are allowed, an expression gives its value."""
        try:
            code = compile(self.call, f"<{self.name}>", "eval")
        except SyntaxError:
            exec(compile(self.call, f"<{self.name}>", "exec"), namespace)
            return None
        return eval(code, namespace)


Family = str


def table(family: str, text: str, *, setup: str = "", needs: str = "") -> tuple[Case, ...]:
    """Read cases from a table, one a line: ``B call`` waits, ``- call`` does not; ``setup || call`` prepares first.

    ``~ call`` does not wait either, but syncs with a stream that is idle (``elsewhere``).
    Empty lines and lines that begin with ``#`` are passed over.  The call itself is the name.
    """
    cases = []
    for line in text.strip().splitlines():
        row = line.strip()
        if not row or row.startswith("#"):
            continue
        mark, _, rest = row.partition(" ")
        before, bar, call = rest.rpartition(" || ")
        own = before.strip() if bar else ""
        prepared = "\n".join(part for part in (setup, own) if part)
        name = f"{family}: {rest.strip()}"
        expect = {"B": True, "-": False, "~": False}[mark]
        cases.append(Case(name, family, call.strip(), prepared, expect, needs, elsewhere=mark == "~"))
    return tuple(cases)
