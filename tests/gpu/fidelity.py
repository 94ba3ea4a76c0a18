"""How true the simulated device is: every call of the corpus on it, against what a GPU did.

    python tests/gpu/fidelity.py --out FILE.json [--match TEXT] [--workers 2]

Needs no GPU.  ``results/truth.json`` says which calls wait, and ``results/oracle_syncs.json`` of which kind the waits
were.  For each call: does the simulated device report a wait where there is one, none where there is none, and the
right kind?  Calls that it refuses or that fail on it are counted apart.

The corpus is divided into two halves by a hash of the call's name.  Rules may be written from the half ``open`` alone;
``held`` is looked at for its counts, never to write a rule.  Rules from before the corpus was divided, and all of those
that the sensors have on a GPU as well, were written with all of it in view: the first difference between the halves
can come from later rules alone.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from syncagent.events import SyncEvent
    from tests.gpu.corpus import Case

__all__ = ["half_of", "main"]

_RESULTS = Path(__file__).with_name("results")
_PARTS = 24
_LIMIT_S = 600
_HANGS_S = 60
_WORDS = (
    "right", "missed", "invented", "wrong kind", "refused", "fails", "skipped", "not decided on the GPU",
)  # fmt: skip


def half_of(name: str) -> str:
    """Return the half of the corpus that a call belongs to."""
    return "open" if hashlib.sha256(name.encode()).digest()[0] % 2 else "held"


# --- one part of the corpus, in a process of its own ------------------------------------------------------------------


def run_part(part: int, match: str | None) -> dict[str, dict[str, Any]]:
    """Run every so-many-th call on the simulated device."""
    faulthandler.enable()
    warnings.filterwarnings("ignore")
    import syncagent

    agent = syncagent.start(
        simulate=True, detail="syncs", copies="all", policy="observe", journal="off", capture="off", summary=False,
        max_events=100_000,
    )  # fmt: skip
    import torch

    from tests.gpu.corpus import CASES
    from tests.gpu.explore import choose

    # As where the truth is from: none of its calls that leave validation to the default has waited for it.
    torch.distributions.Distribution.set_default_validate_args(False)
    rows = {}
    for case in choose(CASES, None, match)[part::_PARTS]:
        faulthandler.dump_traceback_later(_HANGS_S, exit=True)
        rows[case.name] = {"family": case.family, **run_case(case, agent)}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({case.name: rows[case.name]}), flush=True)
    return rows


def run_case(case: Case, agent: Any) -> dict[str, Any]:
    """Run a call twice, and return which waits were reported of the second."""
    import torch

    import syncagent
    from tests.gpu.corpus import names as corpus_names
    from tests.gpu.oracle import Watched
    from tests.gpu.physical import Timed

    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        if case.needs and not eval(case.needs, corpus_names.namespace()):
            return {"skipped": case.needs}
        for _ in range(2):
            names = corpus_names.namespace()
            case.prepare(names)
            torch.cuda.synchronize()
            began_ns = time.perf_counter_ns()
            case.run(names)
            ended_ns = time.perf_counter_ns()
            torch.cuda.synchronize()
    except syncagent.simulate.SimulationError as error:
        return {"refused": str(error).splitlines()[0]}
    except Exception as error:
        return {"fails": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        with contextlib.suppress(Exception):
            torch.cuda.synchronize()
            torch.cuda.set_stream(torch.cuda.default_stream())
            torch.cuda.set_sync_debug_mode(0)
    return {"events": [kept(event) for event in Watched(agent).between(Timed(began_ns, ended_ns, 0.0))]}


def kept(event: SyncEvent) -> list[Any]:
    return [event.op, str(event.kind)]


# --- against the GPU --------------------------------------------------------------------------------------------------


def verdict(row: dict[str, Any], truth: dict[str, Any] | None, seen: dict[str, Any] | None, elsewhere: bool) -> str:
    """Judge one call in a word or two."""
    if "skipped" in row:
        return "skipped"
    if truth is None or truth["blocks"] is None:
        return "not decided on the GPU"
    for word in ("refused", "fails"):
        if word in row:
            return word
    reported = bool(row["events"])
    if not truth["blocks"]:
        return "invented" if reported and not elsewhere else "right"
    if not reported:
        return "missed"
    return "right" if {kind for _, kind in row["events"]} >= longest_kind(seen) else "wrong kind"


def longest_kind(seen: dict[str, Any] | None) -> set[str]:
    """Return the kind of the longest wait that the agent reported on the GPU."""
    events = (seen or {}).get("events")
    return {max(events, key=lambda event: event[2])[1]} if events else set()


def judged(rows: dict[str, dict[str, Any]], elsewhere: set[str]) -> dict[str, Any]:
    """Count by half, and list what is not right in the open one; of the held half only the counts are kept."""
    truth = json.loads((_RESULTS / "truth.json").read_text(encoding="utf-8"))["cases"]
    seen = json.loads((_RESULTS / "oracle_syncs.json").read_text(encoding="utf-8"))["cases"]
    counts: dict[str, collections.Counter[str]] = {half: collections.Counter() for half in ("open", "held")}
    waits: collections.Counter[str] = collections.Counter()
    lists: dict[str, list[Any]] = {}
    for name, row in sorted(rows.items()):
        half, word = half_of(name), verdict(row, truth.get(name), seen.get(name), name in elsewhere)
        counts[half][word] += 1
        waits[half] += bool(name in truth and truth[name]["blocks"])
        if half == "open" and word not in {"right", "skipped", "not decided on the GPU"}:
            said = row.get("refused") or row.get("fails") or row.get("events")
            lists.setdefault(word, []).append([name, said, sorted(longest_kind(seen.get(name)))])
    return {
        "halves": {
            half: {"calls": sum(counter.values()), "that wait": waits[half], **{word: counter[word] for word in _WORDS}}
            for half, counter in counts.items()
        },
        "open": lists,
    }  # fmt: skip


def parts(options: argparse.Namespace) -> Iterable[dict[str, dict[str, Any]]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SYNCAGENT")}
    environment["CORPUS_DEVICE"] = "cuda"

    def part(number: int) -> dict[str, dict[str, Any]]:
        words = [sys.executable, str(Path(__file__)), "--part", str(number)]
        words += ["--match", options.match] if options.match else []
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )  # fmt: skip
        found: dict[str, dict[str, Any]] = {}
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                found.update(json.loads(line))
        if done.returncode:
            print(f"part {number} ended with {done.returncode}: {done.stderr.strip().splitlines()[-3:]}", flush=True)
        return found

    with ThreadPoolExecutor(options.workers) as pool:
        yield from pool.map(part, range(_PARTS))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="hold the simulated device against what a GPU did")
    parser.add_argument("--out", type=Path, default=Path("fidelity.json"))
    parser.add_argument("--match", help="only calls whose name holds this")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.part is not None:
        run_part(options.part, options.match)
        return 0
    import platform
    from datetime import datetime, timezone

    import torch

    from tests.gpu.corpus import CASES
    from tests.gpu.explore import choose

    rows = {name: row for part in parts(options) for name, row in part.items()}
    chosen = {case.name: case for case in choose(CASES, None, options.match)}
    for name, case in chosen.items():
        rows.setdefault(name, {"family": case.family, "fails": "the process ended"})
    result = {
        "torch": torch.__version__, "python": platform.python_version(), "gpu": "simulated device",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **judged(rows, {name for name, case in chosen.items() if case.elsewhere}),
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for half, row in result["halves"].items():
        print(half, row)
    for word, entries in result["open"].items():
        print(f"\n{word}:")
        for entry in entries:
            print("   ", *entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
